"""Evaluation: the paper's picture metrics (Sec. 4.1, B.3)."""

from guava.evaluation.metrics import (
    ImageMetrics,
    average_clips,
    compare_images,
    gradient_energy,
    l1,
    psnr,
    ssim,
    ssim_map,
    through_8_bits,
)

__all__ = [
    "ImageMetrics",
    "average_clips",
    "compare_images",
    "gradient_energy",
    "l1",
    "psnr",
    "ssim",
    "ssim_map",
    "through_8_bits",
]
