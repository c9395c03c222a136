"""A template small enough for finite differences: every optional part of the schema can be switched on."""

from __future__ import annotations

import torch

from guava.body import LandmarkEmbedding, LinearModel, Template

VERTICES, HEAD = 60, 20
JOINTS = (
    "pelvis",
    "left_hip",
    "right_hip",
    "spine1",
    "left_knee",
    "right_knee",
    "spine2",
    "left_ankle",
    "right_ankle",
    "spine3",
    "left_foot",
    "right_foot",
    "neck",
    "left_collar",
    "right_collar",
    "head",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "jaw",
    "left_eye_smplhf",
    "right_eye_smplhf",
    *(
        f"{side}_{finger}{k}"
        for side in ("left", "right")
        for finger in ("index", "middle", "pinky", "ring", "thumb")
        for k in (1, 2, 3)
    ),
)
PARENTS = (
    -1,
    0,
    0,
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    9,
    9,
    12,
    13,
    14,
    16,
    17,
    18,
    19,
    15,
    15,
    15,
    *(
        wrist if k == 0 else 25 + 15 * side + 3 * finger + k - 1
        for side, wrist in enumerate((20, 21))
        for finger in range(5)
        for k in range(3)
    ),
)


def tiny_template(
    regress_joints: bool = False, eyelids: bool = False, pose_dirs: bool = False, hard_blend: bool = False
) -> Template:
    """Random numbers in the template's schema: 60 vertices of which the last 20 are the head, 55 joints."""
    g = torch.Generator().manual_seed(3)

    def normal(*shape: int, scale: float = 1.0):
        return scale * torch.randn(*shape, generator=g)

    def weights(rows: int, columns: int):
        w = torch.rand(rows, columns, generator=g) ** 8
        keep = w.topk(4, 1).indices
        out = torch.zeros_like(w).scatter(1, keep, w.gather(1, keep))
        return out / out.sum(1, keepdim=True)

    def model(vertices: int, joints: tuple, parents: tuple, expressions: int) -> LinearModel:
        count = len(joints)
        regressor = torch.rand(count, vertices, generator=g) ** 6
        return LinearModel(
            v_template=normal(vertices, 3, scale=0.3),
            shape_dirs=normal(vertices, 3, 4, scale=0.02),
            expression_dirs=normal(vertices, 3, expressions, scale=0.02),
            pose_dirs=normal(vertices, 3, 9 * (count - 1), scale=0.01)
            if pose_dirs
            else torch.zeros(vertices, 3, 0),
            weights=weights(vertices, count),
            parents=torch.tensor(parents),
            joint_names=joints,
            joints_template=normal(count, 3, scale=0.3),
            joints_shape_dirs=normal(count, 3, 4, scale=0.02),
            joint_regressor=regressor / regressor.sum(1, keepdim=True) if regress_joints else None,
        )

    faces = torch.tensor([[i, i + 1, i + 2] for i in range(VERTICES - 2)])
    return Template(
        name="tiny",
        body=model(VERTICES, JOINTS, PARENTS, 2),
        head=model(HEAD, ("neck", "head", "jaw", "left_eye", "right_eye"), (-1, 0, 1, 1, 1), 3),
        head_vertex_ids=torch.arange(VERTICES - HEAD, VERTICES),
        head_blend=torch.ones(HEAD) if hard_blend else torch.rand(HEAD, generator=g),
        eyelid_dirs=normal(HEAD, 3, 2 if eyelids else 0, scale=0.02),
        hand_vertex_ids=(torch.arange(0, 6), torch.arange(6, 12)),
        hand_centers=normal(2, 3, scale=0.3),
        regress_joints=regress_joints,
        faces=faces,
        uv=torch.rand(VERTICES, 2, generator=g),
        uv_faces=faces,
        face_parts=torch.arange(len(faces)) % 2,
        part_names=("one", "two"),
        expression_names=("jawOpen", "mouthClose", "smile"),
        expression_bounds=(("mouthClose", "jawOpen"),),
        landmarks={"two": LandmarkEmbedding(torch.tensor([0, 5]), torch.full((2, 3), 1 / 3), torch.ones(2))},
        surface_points={"nose_tip": VERTICES - 1},
        provenance={"made": "at random"},
        head_from_body=normal(4, 4),
    )
