"""``guava assets``: body templates, and the user's own body models that they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, subcommand

from guava.commands.console import say, stage_bar, warn
from guava.folders import user_folder


@dataclass(frozen=True)
class List:
    """The body templates, and what is still missing for "smplx-flame"."""


@dataclass(frozen=True)
class Add:
    """Take over files of yours: SMPL-X, FLAME, or the tables that connect them.

    "guava assets add smplx SMPLX_NEUTRAL.npz", "guava assets add flame generic_model.pkl" (or the folders
    that hold them), "guava assets add tables FOLDER" with the index tables, landmark embeddings, lids and UV
    layout from their owners or from the assets folder of GUAVA's release. The files are read without running
    what is in them, checked, and kept in your folder; "guava assets list" says what is still missing. Then
    every command takes --template smplx-flame.
    """

    what: Positional[Literal["smplx", "flame", "tables"]]
    """What the files are."""
    path: Positional[Path]
    """A file, or a folder (its subfolders are searched too)."""


@dataclass(frozen=True)
class Remove:
    """Delete what "guava assets add" took over, and the template made of it."""

    name: Positional[Literal["smplx", "flame", "tables", "smplx-flame"]]
    """"smplx", "flame", "tables", or "smplx-flame" for all of them."""


@dataclass(frozen=True)
class Teeth:
    """Which teeth "smplx-flame" gets.

    The authors' release mixes up the order of the teeth's vertices and hangs the upper ones on the neck;
    its weights were trained with that. "natural" teeth sit right and turn with the head.
    """

    name: Positional[Literal["release", "natural"]]
    """"release" or "natural"."""


@dataclass(frozen=True)
class ShowPath:
    """Print the folder of your templates and weights."""


@tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Config:
    """Body templates: list them, or add your own SMPL-X and FLAME.

    The open template comes with Guava; nothing has to be downloaded or registered for. If you hold the
    licences of SMPL-X and FLAME, "guava assets add" makes the template "smplx-flame" of your files.
    """

    action: (
        Annotated[List, subcommand("list")]
        | Annotated[Add, subcommand("add")]
        | Annotated[Remove, subcommand("remove")]
        | Annotated[Teeth, subcommand("teeth")]
        | Annotated[ShowPath, subcommand("path")]
    ) = List()  # noqa: RUF009 - frozen


def run(config: Config) -> None:
    """Do one of the five."""
    action = config.action
    if isinstance(action, Add):
        _add(action)
    elif isinstance(action, Remove):
        _remove(action.name)
    elif isinstance(action, Teeth):
        from guava.body.licensed.store import choose_teeth

        with stage_bar("teeth") as progress:
            progress(action.name, 0, 1)
            chosen = choose_teeth(action.name)
        _report(chosen)
    elif isinstance(action, ShowPath):
        say(str(user_folder()))
    else:
        _list()


def _add(action: Add) -> None:
    from guava.body.licensed.store import LICENCE, add_model, add_tables

    with stage_bar("add") as progress:  # reading, checking and making the template take seconds
        progress(action.what, 0, 1)
        added = add_tables(action.path) if action.what == "tables" else add_model(action.what, action.path)
    say(f"added {', '.join(added.files)} to {user_folder()}")
    _report(added)
    say(LICENCE)


def _report(added) -> None:
    from guava.body import load_template

    if added.template is not None:
        template = load_template("smplx-flame")
        say(f"made the template smplx-flame (hash {template.hash[:12]}); use it with --template smplx-flame")
    elif added.missing:
        say("still missing for the template smplx-flame:")
        _tell_missing(added.missing)
    warn(added.notes)


def _tell_missing(items) -> None:
    from guava.body.licensed.store import usual_name

    for command in dict.fromkeys(item.command for item in items):
        for item in items:
            if item.command == command:
                say(f"  {usual_name(item)} ({item.about})")
                say(f"      from {item.owner}")
        say(f"    add with: {command}")


def _remove(name: str) -> None:
    from guava.body.licensed.store import remove

    there = remove(name)
    say(f"removed {', '.join(there) if there else 'the template smplx-flame'}")


def _list() -> None:
    from guava.body import load_template
    from guava.body.licensed.store import chosen_teeth, items, missing, template_path
    from guava.body.template import OPEN_TEMPLATE
    from guava.model import GENERATORS

    say("templates")
    template = load_template()
    size = OPEN_TEMPLATE.stat().st_size / 1e6
    say(f"  open         embedded ({size:.1f} MB), CC0; {_size_of(template)}; hash {template.hash[:12]}")
    absent, known = missing(), items()
    if not absent:
        template = load_template("smplx-flame")
        size = template_path().stat().st_size / 1e6
        say(f"  smplx-flame  yours ({size:.0f} MB); {_size_of(template)}; hash {template.hash[:12]}")
        say(f"               teeth: {chosen_teeth()}")
    else:
        say("  smplx-flame  not there; needs files of yours")
    say("  Each also as NAME-plain-head: the body keeps its own head (the paper's ablation).")
    here = [item for item in known if item.file is not None]
    if here:
        say("files of yours that were added")
        for item in here:
            say(f"  {item.name:<12} {item.file} ({item.about})")
    if absent:
        say("missing for smplx-flame")
        _tell_missing(absent)
    optional = [item for item in known if not item.required and item.file is None]
    if optional:
        say("not necessary for smplx-flame")
        _tell_missing(optional)
    say("models for 'guava reconstruct --model'")
    for name in sorted(GENERATORS):
        need = "no weights needed" if name == "baseline" else "needs weights; see: guava weights list"
        say(f"  {name:<12} {need}")
    say(f"your folder: {user_folder()}" + ("" if user_folder().is_dir() else " (not made yet)"))


def _size_of(template) -> str:
    body, head = template.body, template.head
    return f"{body.num_vertices:,} vertices, {body.num_joints} joints, {head.num_expression} expressions"
