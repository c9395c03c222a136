"""What the release's checkpoint must hold, computed from the network that Guava builds for it.

``python -m guava.model.official_keys`` prints it as JSON: every key of ``model`` and ``render_model`` with
[shape, dtype, "param" or "buffer", trainable]. Nothing of it is read from a table: the `official` preset is
built on torch's meta device, with a made-up body of SMPL-X's and FLAME's sizes, and its state is renamed.
What the release stores besides, and why Guava does not have it, is under "left_out".
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from guava.body import LinearModel, Template
from guava.errors import GuavaError
from guava.model.checkpoint import (
    LEFT_OUT,
    OFFICIAL_VERTICES,
    left_out,
    network_to_official,
    official_names,
    refiner_to_official,
)
from guava.model.config import GuavaConfig, official
from guava.model.network import build_network, build_refiner

SMPLX_FACES, TEETH_FACES = 20_908, 168
SMPLX_TEXTURE_COORDINATES, TEETH_VERTICES = 11_313, 120
BODY_JOINTS, HEAD_JOINTS = 55, 5

Shapes = dict[str, dict[str, tuple[int, ...]]]


def sized_template(vertices: int = OFFICIAL_VERTICES) -> Template:
    """A template that has the sizes of SMPL-X with FLAME's head and teeth, and nothing else: no licensed
    number is in it."""

    def model(count: int, joints: int) -> LinearModel:
        nothing = torch.zeros(())
        return LinearModel(
            v_template=nothing.expand(count, 3),
            shape_dirs=nothing.expand(count, 3, 300),
            expression_dirs=nothing.expand(count, 3, 50),
            pose_dirs=nothing.expand(count, 3, 9 * (joints - 1)),
            weights=nothing.expand(count, joints),
            parents=torch.arange(joints) - 1,
            joint_names=tuple(f"joint{i}" for i in range(joints)),
            joints_template=nothing.expand(joints, 3),
            joints_shape_dirs=nothing.expand(joints, 3, 300),
        )

    faces = SMPLX_FACES + TEETH_FACES
    return Template(
        name="sizes",
        body=model(vertices, BODY_JOINTS),
        head=model(5_023 + TEETH_VERTICES, HEAD_JOINTS),
        head_vertex_ids=torch.zeros(0, dtype=torch.int64),
        head_blend=torch.zeros(0),
        eyelid_dirs=torch.zeros(0, 3, 2),
        hand_vertex_ids=(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)),
        hand_centers=torch.zeros(2, 3),
        regress_joints=True,
        faces=torch.zeros(faces, 3, dtype=torch.int64),
        uv=torch.zeros(SMPLX_TEXTURE_COORDINATES + TEETH_VERTICES, 2),
        uv_faces=torch.zeros(faces, 3, dtype=torch.int64),
        face_parts=torch.zeros(faces, dtype=torch.int64),
        part_names=("all",),
        expression_names=tuple(f"expression{i}" for i in range(50)),
        expression_bounds=(),
        landmarks={},
        surface_points={},
        provenance={},
    )


def official_entries(network: nn.Module, refiner: nn.Module) -> dict[str, dict[str, list]]:
    """The state of an instantiated network and refiner, in the naming and format of the release's dump:
    section -> key -> [shape, dtype, "param" or "buffer", trainable]."""
    state = network.state_dict()
    refined = refiner.state_dict()
    refined_names = dict(zip(refined, refiner_to_official(refined), strict=True))
    sections = {
        "model": (network_to_official(state), official_names(state), network),
        "render_model": (refiner_to_official(refined), refined_names, refiner),
    }
    out: dict[str, dict[str, list]] = {}
    for section, (tensors, names, module) in sections.items():
        parameters = {names[key]: p.requires_grad for key, p in module.named_parameters()}
        out[section] = {
            key: [
                list(value.shape),
                str(value.dtype).removeprefix("torch."),
                "param" if key in parameters else "buffer",
                parameters.get(key, False),
            ]
            for key, value in tensors.items()
        }
    return out


@lru_cache(maxsize=8)
def _entries(config: GuavaConfig, vertices: int) -> dict[str, dict[str, list]]:
    with torch.device("meta"):
        network, refiner = build_network(config, _on_cpu(vertices)), build_refiner(config)
    if refiner is None:
        raise ValueError("The release always has a refiner; the ablation without one has no official layout.")
    return official_entries(network, refiner)


def _on_cpu(vertices: int) -> Template:
    with torch.device("cpu"):
        return sized_template(vertices)


def official_shapes(config: GuavaConfig | None = None, vertices: int = OFFICIAL_VERTICES) -> Shapes:
    """Section -> official key -> shape, for a config of the release's architecture.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    entries = _entries(config or official(), vertices)
    return {s: {key: tuple(entry[0]) for key, entry in keys.items()} for s, keys in entries.items()}


def left_out_entries(config: GuavaConfig, template: Template) -> dict[str, Any]:
    """What the release's ``model`` holds besides, each with the reason: its non-trainable parameters one by
    one, with the sizes that follow from config and body, and its buffers by the beginning of their names."""
    vertices, faces, joints = template.body.num_vertices, len(template.faces), template.body.num_joints
    side = config.encoder.map_size
    grids: dict[str, tuple[tuple[int, ...], str]] = {
        "xy_image_coord": ((side, side, 2), "float32"),
        "v_template": ((vertices, 3), "float32"),
        "laplacian_matrix": ((vertices, vertices), "float32"),
        "ehm.smplx.vertex_uv_coord": ((vertices, 2), "float32"),
        "smplx.vertex_uv_coord": ((vertices, 2), "float32"),
        "ehm.flame.eye_pose": ((1, 6), "float32"),
        "ehm.flame.neck_pose": ((1, 3), "float32"),
        "mesh_renderer.faces": ((faces, 3), "int64"),
        "mesh_renderer.faces_uvs": ((faces, 3), "int64"),
        "mesh_renderer.verts_uvs": ((len(template.uv), 2), "float32"),
        "mesh_renderer.lbs_weights": ((vertices, joints), "float32"),
    }
    reasons = {
        "ehm.flame.eye_pose": "zeros: poses of the eyes come with every frame",
        "ehm.flame.neck_pose": "zeros: the head's own neck never moves",
    }
    parameters = {
        key: {"entry": [list(shape), dtype, "param", False], "reason": reasons.get(key) or _reason(key)}
        for key, (shape, dtype) in grids.items()
    }
    buffers = {f"{entry.prefix}*": entry.reason for entry in LEFT_OUT if entry.prefix in ("ehm.", "smplx.")}
    return {"parameters": parameters, "buffers": buffers}


def _reason(key: str) -> str:
    entry = left_out(key)
    assert entry is not None, key
    return entry.reason


def official_document(config: GuavaConfig | None = None) -> dict[str, Any]:
    """What ``python -m guava.model.official_keys`` prints."""
    config = config or official()
    template = sized_template()
    entries = _entries(config, template.body.num_vertices)
    numbers = [entry for keys in entries.values() for entry in keys.values()]
    return {
        "format": "key -> [shape, dtype, 'param'|'buffer', trainable]",
        "provenance": (
            "Computed from the instantiated preset 'official' on torch's meta device, with a made-up body of "
            "SMPL-X's and FLAME's sizes."
        ),
        "counts": {
            "model_entries": len(entries["model"]),
            "render_model_entries": len(entries["render_model"]),
            "trainable_parameters_total": sum(_count(entry) for entry in numbers if entry[3]),
        },
        "left_out": left_out_entries(config, template),
        **entries,
    }


def _count(entry: list) -> int:
    count = 1
    for side in entry[0]:
        count *= side
    return count


def main() -> int:
    """Print the document; returns the exit status."""
    try:
        document = official_document()
    except GuavaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_json(document))
    return 0


def _json(value: Any, indent: str = "") -> str:
    """JSON with one entry a line, so that it can be read and compared."""
    nested = isinstance(value, dict) and any(isinstance(inner, (dict, list)) for inner in value.values())
    if not nested or "entry" in value:
        return json.dumps(value)
    rows = [f"{indent} {json.dumps(key)}: {_json(inner, indent + ' ')}" for key, inner in value.items()]
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


if __name__ == "__main__":
    sys.exit(main())
