"""Files in the layout of the GUAVA authors' checkpoint, with made-up numbers and a made-up body."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from torch import Tensor

from guava.model.config import (
    EncoderConfig,
    GuavaConfig,
    RefinerConfig,
    TemplateBranchConfig,
    UVBranchConfig,
    official,
)
from guava.model.official_keys import official_shapes

TINY_VERTICES = 60


def tiny_config() -> GuavaConfig:
    """The release's architecture at a size that takes no time."""
    return GuavaConfig(
        encoder=EncoderConfig(
            image_size=28, map_size=16, uv_channels=4, template_channels=6, global_channels=64, width=8,
            neck_channels=(4, 6, 8, 8), pyramid=(0, 1, 0, 1, 1),
        ),
        template_branch=TemplateBranchConfig(base_channels=5, global_channels=7),
        uv_branch=UVBranchConfig(
            size=16, base_channels=3, feature_channels=6, style_channels=8, channel_scale=32,
        ),
        refiner=RefinerConfig(size=16, style_channels=8, channel_scale=32),
    )  # fmt: skip


def meta(config: GuavaConfig) -> dict:
    """Like the release's own config: nested, with the names of its settings."""
    encoder, branch, uv = config.encoder, config.template_branch, config.uv_branch
    return {
        "MODEL": {
            "image_size": encoder.map_size,
            "feature_img_size": encoder.image_size,
            "color_dim": config.channels,
            "dino_out_dim": encoder.uv_channels,
            "prj_out_dim": encoder.template_channels,
            "smplx_fea_dim": branch.base_channels,
            "global_vertex_dim": branch.global_channels,
            "uv_out_dim": uv.feature_channels,
            "uvmap_size": uv.size,
            "opacity_threshold": config.opacity_threshold,
            "sh_degree": 0,
            "refiner_type": "styleunet",
            "add_teeth": True,
            "invtanfov": 24,
        },
        "OPTIMIZE": {"lr": 1e-4, "train_iter": 200000},
    }


def filled(key: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers that depend on key and row; only one number a row takes room, on the disk too."""
    seed = zlib.crc32(key.encode()) % 9973 / 9973
    if not shape:
        return torch.tensor(seed)
    rows = seed + torch.arange(shape[0], dtype=torch.float32) / shape[0]
    return rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def random(key: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers of the size that weights have."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    return torch.randn(shape, generator=generator) * 0.02


def body_arrays(vertices: int, faces: int = 21_076, side: int = 512) -> dict[str, Tensor]:
    """Some of every sort of the body arrays that the release stores, sizes as there."""
    nothing = torch.zeros(())
    table = torch.arange(side * side, dtype=torch.int32).reshape(side, side) % faces
    smplx = {
        "vertex_uv_coord": nothing.expand(vertices, 2),
        "faces_tensor": torch.arange(faces * 3).reshape(faces, 3) % vertices,
        "v_template": filled("smplx", (vertices, 3)),
        "shapedirs": nothing.expand(vertices, 3, 350),
        "J_regressor": nothing.expand(55, vertices),
        "uvmap_f_idx": table,
        "uvmap_mask": table >= 0,
        "extra_joint_selector.bcs": torch.zeros(22, 3),
    }
    flame = {
        "eye_pose": torch.zeros(1, 6),
        "neck_pose": torch.zeros(1, 3),
        "v_template": filled("flame", (5143, 3)),
        "mask.v.teeth": torch.arange(120),
    }
    return {
        "xy_image_coord": nothing.expand(side, side, 2),
        "v_template": filled("ehm", (vertices, 3)),
        "laplacian_matrix": nothing.expand(vertices, vertices),
        "ehm.v_template": filled("ehm", (vertices, 3)),
        **{f"ehm.smplx.{key}": value for key, value in smplx.items()},
        **{f"ehm.flame.{key}": value for key, value in flame.items()},
        **{f"smplx.{key}": value for key, value in smplx.items()},
        "mesh_renderer.faces": smplx["faces_tensor"],
        "mesh_renderer.faces_uvs": smplx["faces_tensor"],
        "mesh_renderer.verts_uvs": nothing.expand(11_433, 2),
        "mesh_renderer.lbs_weights": nothing.expand(vertices, 55),
    }


def checkpoint(
    config: GuavaConfig | None = None, vertices: int = 10_595, *, body: bool = True, fill=filled
) -> dict:
    """The four sections of a checkpoint, for a config of the release's architecture."""
    config = config or official()
    sections = {
        name: {key: fill(key, shape) for key, shape in keys.items()}
        for name, keys in official_shapes(config, vertices).items()
    }
    if body:
        sections["model"] |= body_arrays(vertices)
    return {**sections, "global_iter": 190_000, "meta_cfg": meta(config)}


def save(path: Path, document: dict) -> Path:
    """As the release writes it."""
    torch.save(document, path)
    return path
