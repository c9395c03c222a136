"""FLAME (Li et al. 2017) as its owner distributes it: the neutral ("generic") model of 2020 or 2023."""

from __future__ import annotations

from pathlib import Path

from guava.body.licensed.arrays import Expected, OwnerModel, find_file, read_model

JOINT_NAMES = ("root", "neck", "jaw", "left_eye", "right_eye")
EXPECTED = Expected(
    title="FLAME",
    vertices=5023,
    faces=9976,
    joints=5,
    directions=400,
    parents=(-1, 0, 1, 1, 1),
    names=("generic_model.pkl", "FLAME2020.pkl", "FLAME_NEUTRAL.pkl", "flame2023.pkl"),
    others={
        10475: "SMPL-X (add it with: guava assets add smplx)",
        6890: "SMPL or SMPL+H",
        778: "MANO (a hand)",
    },
    version="Get FLAME 2020 (300 shape and 100 expression directions).",
    owner="https://flame.is.tue.mpg.de",
)


def read_flame(path: Path) -> OwnerModel:
    """Read a neutral FLAME model (``.pkl``, with or without chumpy inside, or ``.npz``), or find it in a
    folder.

    Raises:
        InputError: There is none.
        FileFormatError: The file is damaged, or another model, version or gender.
    """
    return read_model(find_file(path, EXPECTED), EXPECTED)
