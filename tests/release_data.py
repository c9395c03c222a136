"""Folders in exactly the format that EHM-Tracker writes, with made-up people in them."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_template import tiny_template

from guava.body import Template
from guava.data.release import POINTS

ORIGINAL = (1280, 720)
_LENGTHS = {
    "global_pose": (3,),
    "body_pose": (21, 3),
    "left_hand_pose": (15, 3),
    "right_hand_pose": (15, 3),
    "exp": (50,),
    "body_cam": (3,),
}


def release_template() -> Template:
    """The tiny template with as many coefficients as SMPL-X and FLAME have."""
    g = torch.Generator().manual_seed(8)
    tiny = tiny_template(regress_joints=True, eyelids=True, pose_dirs=True, hard_blend=True)

    def wide(model):
        count, joints = model.num_vertices, model.num_joints
        return replace(
            model,
            shape_dirs=0.01 * torch.randn(count, 3, 300, generator=g),
            expression_dirs=0.01 * torch.randn(count, 3, 50, generator=g),
            joints_shape_dirs=torch.zeros(joints, 3, 300),
        )

    return replace(
        tiny,
        name="smplx-flame",
        body=wide(tiny.body),
        head=wide(tiny.head),
        expression_names=tuple(f"expression{i}" for i in range(50)),
        expression_bounds=(),
        head_from_body=None,
        hash="f" * 64,
    )


def pickled(content, protocol: int = 4, core: str = "numpy._core") -> bytes:
    """A pickle as numpy 1 ("numpy.core") or numpy 2 ("numpy._core") writes it, whichever runs here."""
    data = pickle.dumps(content, protocol)
    operations = list(pickletools.genops(data))
    ends = [position for _, _, position in operations[1:]] + [len(data)]
    out = []
    for (operation, value, start), end in zip(operations, ends, strict=True):
        piece = data[start:end]
        if operation.name == "FRAME":  # its length would no longer be right; frames are optional
            continue
        if isinstance(value, str) and value.startswith(("numpy.core", "numpy._core")):
            name = core + value.removeprefix("numpy._core").removeprefix("numpy.core")
            if operation.name == "GLOBAL":
                piece = b"c" + name.replace(" ", "\n").encode() + b"\n"
            elif operation.name == "SHORT_BINUNICODE":
                piece = b"\x8c" + bytes([len(name)]) + name.encode()
        out.append(piece)
    return b"".join(out)


def identity(rng: np.random.Generator) -> dict:
    """An entry of ``id_share_params.pkl``."""
    return {
        "smplx_shape": rng.normal(size=(1, 200)).astype(np.float32),
        "flame_shape": rng.normal(size=(1, 300)).astype(np.float32),
        "left_mano_shape": rng.normal(size=(1, 10)).astype(np.float32),
        "right_mano_shape": rng.normal(size=(1, 10)).astype(np.float32),
        "head_scale": rng.uniform(0.9, 1.1, (1, 3)).astype(np.float32),
        "hand_scale": rng.uniform(0.9, 1.1, (1, 3)).astype(np.float32),
        "joints_offset": (0.01 * rng.normal(size=(1, 55, 3))).astype(np.float32),
    }


def affine(scale: float, x: float, y: float, angle: float = 0.0) -> np.ndarray:
    """A similarity as 3 x 3."""
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, x], [s, c, y], [0, 0, 1]])


def frame(rng: np.random.Generator, *, keypoints: bool = True) -> dict:
    """A frame of ``optim_tracking_ehm.pkl``: head near the crop's top, hands below."""
    smplx = {n: (0.3 * rng.normal(size=shape)).astype(np.float32) for n, shape in _LENGTHS.items()}
    angle = rng.normal(0, 0.05)
    extrinsics = np.diag([-1.0, -1, 1]) @ np.array(
        [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    )
    shift = [rng.normal(0, 0.1), rng.normal(0, 0.1), rng.uniform(20, 24)]
    smplx["camera_RT_params"] = np.concatenate([extrinsics, np.array(shift)[:, None]], 1).astype(np.float32)
    flame = {
        "expression_params": rng.normal(size=50),
        "jaw_params": rng.normal(0, 0.1, 3),
        "pose_params": rng.normal(size=3),
        "neck_pose_params": np.zeros(3),
        "eye_pose_params": rng.normal(0, 0.1, 6),
        "eyelid_params": rng.uniform(0, 1, 2),
        "camera_RT_params": np.eye(3, 4),
        "cam": rng.normal(size=3),
    }
    to_crop = affine(1.6, -300.0, -64.0)
    parts = {"head": (480, 100, 160), "left_hand": (600, 420, 90), "right_hand": (380, 430, 80)}
    out = {"smplx_coeffs": smplx, "flame_coeffs": {n: v.astype(np.float32) for n, v in flame.items()}}
    out["body_crop"] = {"M_o2c-hd": to_crop, "M_c2o-hd": np.linalg.inv(to_crop)}
    out["body_crop"]["M_o2c"] = affine(224 / 1024, 0, 0) @ to_crop
    out["body_crop"]["M_c2o"] = np.linalg.inv(out["body_crop"]["M_o2c"])
    for name, (x, y, side) in parts.items():
        back = affine(side / 512, x, y, 0.2 if name == "head" else 0.0)
        out[f"{name}_crop"] = {"M_o2c": np.linalg.inv(back), "M_c2o": back}
    if keypoints:
        scores = rng.uniform(0.5, 1.1, POINTS)
        points = rng.uniform(100, 900, (POINTS, 2))
        out["dwpose_rlt"] = {"keypoints": points, "scores": scores, "faces": np.zeros((68, 2))}
        out["left_mano_coeffs"] = {"pred_cam": np.zeros((1, 3), np.float32)}
    return out


def encoded(pixels: np.ndarray, kind: str = "JPEG") -> bytes:
    """(H, W) or (H, W, 3) uint8 as a file's bytes."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return stream.getvalue()


def pictures(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth (S, S, 3) picture and an (S, S) mask, different for every seed."""
    y, x = np.mgrid[:size, :size] / size
    image = np.stack([x, y, (x + y) / 2 + 0 * x], -1) * 200 + 5 * (seed % 11)
    mask = ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.15 + 0.01 * (seed % 3)) * 255
    return image.astype(np.uint8), mask.astype(np.uint8)


def write_lmdb(folder: Path, entries: dict[str, bytes]) -> None:
    """An LMDB as the tracker leaves it, with its lock file."""
    import lmdb

    folder.mkdir(parents=True, exist_ok=True)
    environment = lmdb.open(str(folder), map_size=1 << 28)
    with environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key.encode(), value)
    environment.close()


def write_single(
    folder: Path, frames: int = 4, *, size: int = 64, name: str = "clip", core: str = "numpy._core", **changes
) -> tuple[dict, dict]:
    """A folder of one clip; returns its tracking and its identity. ``changes`` are further LMDB entries."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    tracking = {f"frame_{i:06d}": frame(rng) for i in range(frames)}
    person = identity(rng)
    (folder / "optim_tracking_ehm.pkl").write_bytes(pickled(tracking, core=core))
    (folder / "id_share_params.pkl").write_bytes(pickled(person, core=core))
    info = {name: {"frames_num": frames, "frames_keys": list(tracking)}}
    (folder / "videos_info.json").write_text(json.dumps(info))
    entries, original = {}, encoded(np.zeros((ORIGINAL[1], ORIGINAL[0], 3), np.uint8))
    for i, key in enumerate(tracking):
        image, mask = pictures(i, size)
        entries |= {f"{key}/body_image": encoded(image), f"{key}/body_mask": encoded(mask)}
        entries[f"{key}/ori_image"] = original
    write_lmdb(folder / "img_lmdb", entries | changes)
    return tracking, person


def write_combined(folder: Path, counts: dict[str, int], *, size: int = 64, core: str = "numpy.core") -> dict:
    """A combined training set; returns {clip: {frame: ...}}. The last clip is the split "valid"."""
    rng = np.random.default_rng(6)
    folder.mkdir(parents=True, exist_ok=True)
    tracking = {
        clip: {f"frame_{i:06d}": frame(rng, keypoints=False) for i in range(count)}
        for clip, count in counts.items()
    }
    (folder / "optim_tracking_ehm.pkl").write_bytes(pickled(tracking, 2, core))
    (folder / "id_share_params.pkl").write_bytes(pickled({clip: identity(rng) for clip in counts}, 2, core))
    info = {clip: {"frames_num": n, "frames_keys": list(tracking[clip])} for clip, n in counts.items()}
    (folder / "videos_info.json").write_text(json.dumps(info))
    names = [[f"{clip}/{key}" for key in tracking[clip]] for clip in counts]
    splits = {"train": sum(names[:-1], []), "valid": names[-1]}
    (folder / "dataset_frames.json").write_text(json.dumps(splits))
    (folder / "testing_split.json").write_text(json.dumps({list(counts)[0]: 2}))
    entries = {}
    for i, key in enumerate(sum(names, [])):
        image, mask = pictures(i, size)
        entries |= {f"{key}/body_image": encoded(image, "PNG"), f"{key}/body_mask": encoded(mask, "PNG")}
    write_lmdb(folder / "img_lmdb", entries)
    return tracking
