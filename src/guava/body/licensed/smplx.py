"""SMPL-X (Pavlakos et al. 2019) as its owner distributes it: the neutral model of version 1.1."""

from __future__ import annotations

from pathlib import Path

from guava.body.licensed.arrays import Expected, OwnerModel, find_file, read_model

JOINT_NAMES = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle",
    "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "jaw",
    "left_eye_smplhf", "right_eye_smplhf",
    *(
        f"{side}_{finger}{k}"
        for side in ("left", "right")
        for finger in ("index", "middle", "pinky", "ring", "thumb")
        for k in (1, 2, 3)
    ),
)  # fmt: skip
_BODY_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15)
_HAND_PARENTS = tuple(
    wrist if k == 0 else first + 3 * finger + k - 1
    for wrist, first in ((20, 25), (21, 40))
    for finger in range(5)
    for k in range(3)
)
EXPECTED = Expected(
    title="SMPL-X",
    vertices=10475,
    faces=20908,
    joints=55,
    directions=400,
    parents=_BODY_PARENTS + _HAND_PARENTS,
    names=("SMPLX_NEUTRAL_2020.npz", "SMPLX_NEUTRAL.npz", "SMPLX_NEUTRAL.pkl"),
    others={
        6890: "SMPL or SMPL+H",
        778: "MANO (a hand)",
        5023: "FLAME (add it with: guava assets add flame)",
    },
    version="Get SMPL-X v1.1 (300 shape and 100 expression directions); v1.0 has 10 of each.",
    owner="https://smpl-x.is.tue.mpg.de",
)


def read_smplx(path: Path) -> OwnerModel:
    """Read a neutral SMPL-X model (``.npz`` or ``.pkl``), or find it in a folder.

    Raises:
        InputError: There is none.
        FileFormatError: The file is damaged, or another model, version or gender.
    """
    return read_model(find_file(path, EXPECTED), EXPECTED)
