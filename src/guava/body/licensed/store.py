"""The user's own body models in their data folder, and the template made of them.

What ``guava assets add`` reads is kept as one file of checked arrays each (``models/smplx.asset``,
``flame.asset``, ``tables.asset``). As soon as nothing is missing, ``templates/smplx-flame.template`` is made
of them. None of it ever leaves that folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from guava.body.licensed import flame, smplx
from guava.body.licensed.arrays import OwnerModel
from guava.body.licensed.convert import NAME, NATURAL_TEETH, ConvertOptions, convert
from guava.body.licensed.correspondences import TABLES, FoundTables, read_tables
from guava.body.template import save_template
from guava.container import read_container, read_part, write_atomically, write_container
from guava.errors import FileFormatError, InputError, MissingAssetError
from guava.folders import templates_folder, user_folder

KIND, VERSION = "asset", 1
Part = Literal["smplx", "flame", "tables"]
MODELS = {"smplx": (smplx.read_smplx, smplx.EXPECTED), "flame": (flame.read_flame, flame.EXPECTED)}
TEETH = {"release": ConvertOptions(), "natural": NATURAL_TEETH}
"""Readings of the release's teeth by the name that the command line uses."""
LICENCE = (
    "These files stay their owners'. SMPL-X, FLAME and MANO may be used under the licences that you accepted "
    "when you downloaded them, and so may what Guava makes of them in your folder; do not pass either on."
)


@dataclass(frozen=True)
class Item:
    """One thing that "smplx-flame" is made of.

    Attributes:
        name: "smplx", "flame" or a table's name.
        about: What it is.
        owner: Where it is offered.
        command: How to add it.
        required: Whether the template cannot be made without it.
        file: File that it came from, or None while it is missing.
    """

    name: str
    about: str
    owner: str
    command: str
    required: bool
    file: str | None


@dataclass(frozen=True)
class Added:
    """What an addition came to.

    Attributes:
        files: Names of the files that were read.
        missing: What is still missing for the template.
        template: The template's file, if it could be made.
        notes: Things worth telling.
    """

    files: tuple[str, ...]
    missing: tuple[Item, ...]
    template: Path | None
    notes: tuple[str, ...]


def template_path() -> Path:
    """Where the template is kept; need not exist."""
    return templates_folder() / f"{NAME}.template"


def add_model(part: Literal["smplx", "flame"], path: Path, build: bool = True) -> Added:
    """Read, check and keep SMPL-X or FLAME; a model of the same kind is replaced.

    Args:
        part: Which.
        path: Its file, or a folder that holds it.
        build: Make the template at once if nothing is missing.

    Raises:
        InputError: Nothing was found, or the folder cannot be written.
        FileFormatError: The file is damaged, or another model, version or gender.
    """
    read, _ = MODELS[part]
    model = read(Path(path))
    arrays = {
        f.name: torch.from_numpy(getattr(model, f.name))
        for f in fields(model)
        if f.name not in ("file", "sha256")
    }
    _keep(part, arrays, {"file": model.file, "sha256": model.sha256})
    return _added((model.file,), build)


def add_tables(path: Path, build: bool = True) -> Added:
    """Read, check and keep the tables in a folder (or one file); others that are kept stay.

    Raises:
        InputError: Nothing was found, or the folder cannot be written.
        FileFormatError: A file has a table's name but not its content.
    """
    found = read_tables(Path(path))
    kept = _tables()
    arrays, files = {**kept.arrays, **found.arrays}, {**kept.files, **found.files}
    tensors = {
        f"{table}/{name}": torch.from_numpy(value)
        for table, values in arrays.items()
        for name, value in values.items()
    }
    _keep("tables", tensors, {"files": files})
    return _added(tuple(name for names in found.files.values() for name in names), build)


def choose_teeth(name: Literal["release", "natural"], build: bool = True) -> Added:
    """Which of ``TEETH`` the template gets, from now on.

    Raises:
        InputError: There is no such reading, or the folder cannot be written.
    """
    if name not in TEETH:
        raise InputError(f"There are no teeth named '{name}'.", f"Choose one of: {', '.join(TEETH)}.")
    _forget_template()
    _folder()
    write_atomically(_options(), json.dumps({"teeth": name}).encode())
    return _added((), build)


def chosen_teeth() -> str:
    """Name of the reading of the teeth that the template gets."""
    path = _options()
    if not path.is_file():
        return "release"
    try:
        name = json.loads(path.read_text())["teeth"]
        if name not in TEETH:
            raise ValueError(name)
        return name
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise FileFormatError(
            f"'{path}' is damaged.", "Choose again: guava assets teeth release"
        ) from error


def remove(name: str) -> tuple[str, ...]:
    """Delete a part ("smplx", "flame", "tables"), or all of it and the choice of teeth ("smplx-flame"), and
    the template.

    Returns:
        Names of the parts that were there.

    Raises:
        InputError: There is nothing of that name.
    """
    parts = ("smplx", "flame", "tables") if name == NAME else (name,)
    if parts[0] not in (*MODELS, "tables"):
        raise InputError(f"There is no asset named '{name}'.", f"One of: smplx, flame, tables, {NAME}.")
    there = tuple(part for part in parts if _path(part).exists())
    if not there and not template_path().exists():
        raise InputError(f"'{name}' is not there; nothing was removed.", "See: guava assets list")
    _forget_template()
    for part in there:
        _path(part).unlink()
    if name == NAME:
        _options().unlink(missing_ok=True)
    return there


def items() -> tuple[Item, ...]:
    """Everything that the template is made of, whether it is there or not."""
    out = []
    for part, (_, expected) in MODELS.items():
        file = _header(part).get("file") if _path(part).is_file() else None
        about = f"the neutral {expected.title} model"
        out.append(Item(part, about, expected.owner, f"guava assets add {part} PATH", True, file))
    files = _header("tables").get("files", {}) if _path("tables").is_file() else {}
    for table in TABLES:
        file = ", ".join(files[table.name]) if table.name in files else None
        out.append(
            Item(
                table.name, table.about, table.owner, "guava assets add tables FOLDER", table.required, file
            )
        )
    return tuple(out)


def missing() -> tuple[Item, ...]:
    """What has to be added before the template can be made."""
    return tuple(item for item in items() if item.required and item.file is None)


def usual_name(item: Item) -> str:
    """The usual file name of an item, as its owner writes it."""
    for table in TABLES:
        if table.name == item.name:
            return " and ".join(names[0] for names in table.files)
    return MODELS[item.name][1].names[0]


def require_template() -> Path:
    """The template's file, made now if it is not there.

    Raises:
        MissingAssetError: Something is missing; every piece is named, with where its owner offers it.
        FileFormatError: The pieces do not fit each other, or are damaged.
    """
    path = template_path()
    if path.is_file():
        return path
    absent = missing()
    if absent:
        listed = "; ".join(f"{item.about} ({usual_name(item)}; {item.owner})" for item in absent)
        commands = ", ".join(dict.fromkeys(item.command for item in absent))
        raise MissingAssetError(
            f"The template '{NAME}' needs files of yours that are not there: {listed}.", f"Add: {commands}"
        )
    template = convert(_model("smplx"), _model("flame"), _tables(), TEETH[chosen_teeth()])
    _make_folder(path.parent)
    save_template(template, path, exact=True)
    return path


def _added(files: tuple[str, ...], build: bool) -> Added:
    absent = missing()
    path, notes = None, []
    if build and not absent:
        path = require_template()
        from guava.body.template import load_template

        texels = load_template(NAME).provenance["texels"]
        if texels["valid"] != texels["release"]:
            notes.append(
                f"The UV layout gives {texels['valid']:,} texels, the authors' {texels['release']:,}: it is "
                "another one, and the authors' weights will not fit."
            )
    optional = [item for item in items() if not item.required and item.file is None and not absent]
    notes += [
        f"Not there, and not necessary: {item.about} ({usual_name(item)}; {item.owner})." for item in optional
    ]
    return Added(files, absent, path, tuple(notes))


# --- files ---


def _folder(make: bool = True) -> Path:
    folder = user_folder() / "models"
    if make:
        _make_folder(folder)
    return folder


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InputError(
            f"Cannot make the folder '{folder}': {error.strerror or error}.",
            "Set GUAVA_HOME to a folder that may be written.",
        ) from error


def _options() -> Path:
    return _folder(make=False) / "options.json"


def _path(part: str) -> Path:
    return _folder(make=False) / f"{part}.asset"


def _keep(part: str, tensors: dict[str, torch.Tensor], header: dict) -> None:
    # The old template goes first: should anything fail, none is better than one of other files.
    _forget_template()
    _folder()
    write_container(_path(part), KIND, VERSION, tensors, {"part": part, **header})


def _forget_template() -> None:
    template_path().unlink(missing_ok=True)


def _read(part: str, pick: Callable[[dict, dict], object]) -> object:
    tensors, header = read_container(_path(part), KIND, VERSION)
    try:
        return pick(tensors, header)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"'{_path(part)}' is not complete ({error}).", f"Add it again: guava assets add {part} PATH"
        ) from error


def _header(part: str) -> dict:
    """Of a part that is there; one that cannot be read counts as missing."""
    try:
        return read_part(_path(part), KIND, VERSION)[1]
    except FileFormatError:
        return {}


def _model(part: str) -> OwnerModel:
    return _read(
        part,
        lambda tensors, header: OwnerModel(
            **{name: value.numpy() for name, value in tensors.items()},
            file=header["file"],
            sha256=header["sha256"],
        ),
    )


def _tables() -> FoundTables:
    if not _path("tables").is_file():
        return FoundTables({}, {})

    def pick(tensors: dict, header: dict) -> FoundTables:
        arrays: dict[str, dict[str, np.ndarray]] = {name: {} for name in header["files"]}
        for key, value in tensors.items():
            table, name = key.split("/")
            arrays[table][name] = value.numpy()
        return FoundTables(arrays, dict(header["files"]))

    return _read("tables", pick)
