"""The learning-free canonical avatar: matte, hair, displaced surface, texture, pixel shell."""

from guava.model.baseline.assemble import (
    STAGES,
    BaselineConfig,
    guessed_faces,
    matte_person,
    reconstruct_baseline,
)
from guava.model.baseline.displacement import DisplacementConfig
from guava.model.baseline.shell import ShellConfig

__all__ = [
    "STAGES",
    "BaselineConfig",
    "DisplacementConfig",
    "ShellConfig",
    "guessed_faces",
    "matte_person",
    "reconstruct_baseline",
]
