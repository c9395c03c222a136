"""What must hold of the finished template."""

from __future__ import annotations

import numpy as np

from guava.body import Template
from scripts.build_open_template.atlas import SIZE
from scripts.build_open_template.landmarks import LOWER_LIDS, LOWER_LIP, UPPER_LIDS, UPPER_LIP
from scripts.build_open_template.raster import rasterise

LIMIT = 8_000_000
FACE_DENSITY, HAND_DENSITY = 9.0, 5.0


def check(template: Template, size: int) -> list[str]:
    """Raise ``ValueError`` for what does not hold; otherwise lines to print."""
    lines = [f"size: {size / 1e6:.2f} MB"]
    if size > LIMIT:
        raise ValueError(f"The file has {size} bytes, more than {LIMIT}.")
    uv, uv_faces = template.uv.numpy(), template.uv_faces.numpy()
    _, _, count = rasterise((uv * SIZE).astype(float), np.zeros(len(uv)), uv_faces, SIZE)
    lines.append(f"atlas: {(count > 0).mean():.3f} covered, {(count > 1).sum()} texels with two owners")
    if (count > 1).any():
        raise ValueError("The atlas overlaps.")
    density = densities(template)
    lines += [f"  {name}: {value:.2f} px/cm" for name, value in density.items()]
    if density["face"] < FACE_DENSITY or min(density["left_hand"], density["right_hand"]) < HAND_DENSITY:
        raise ValueError("The atlas is too coarse for the face or the hands.")

    landmarks = template.landmarks["mediapipe478"]
    slot = np.full(template.body.num_vertices, -1)
    slot[template.head_vertex_ids.numpy()] = np.arange(len(template.head_vertex_ids))
    corners = slot[template.faces[landmarks.faces].numpy()]

    def moved(*units: str) -> np.ndarray:
        offsets = sum(template.head.expression_dirs[..., template.unit(u)] for u in units).numpy()
        return (offsets[corners] * landmarks.barycentrics.numpy()[..., None]).sum(1)[:, 1] * 1000

    lids, lips = moved("eyeBlinkLeft", "eyeBlinkRight"), moved("jawOpen")
    lines.append(
        f"upper lids move {np.median(lids[list(UPPER_LIDS)]):.1f} mm in a blink, lower lids "
        f"{np.median(lids[list(LOWER_LIDS)]):.1f}; jawOpen moves upper lip landmarks "
        f"{np.median(lips[list(UPPER_LIP)]):.1f}, lower {np.median(lips[list(LOWER_LIP)]):.1f}"
    )
    if lids[[159, 386]].max() > -4 or np.abs(lids[[145, 374]]).max() > 4 or lips[13] < -3 or lips[14] > -15:
        raise ValueError("Lid or lip landmarks sit on the wrong lid or lip.")
    return lines


def densities(template: Template) -> dict[str, float]:
    """Texels per centimetre of each region in the rest pose: square root of the ratio of areas."""
    corners, uv = (
        template.body.v_template[template.faces].numpy(),
        template.uv[template.uv_faces].numpy() * SIZE,
    )
    surface = 0.5 * np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    texels = 0.5 * np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
    out = {}
    for i, name in enumerate(template.part_names):
        mine = template.face_parts.numpy() == i
        out[name] = float(np.sqrt(texels[mine].sum() / (1e4 * surface[mine].sum())))
    return out
