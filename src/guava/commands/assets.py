"""``guava assets``: body templates and weights, where they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from guava.commands.console import say


@dataclass(frozen=True)
class Config:
    """List the body templates and weights that this installation can use, or print the folder of yours.

    The open template comes with Guava; nothing has to be downloaded or registered for. Templates and
    weights of yours will live in the folder that "guava assets path" prints; adding them is not part of
    this version.
    """

    action: tyro.conf.Positional[Literal["list", "path"]] = "list"
    """"list" or "path"."""


def user_folder() -> Path:
    """Where the user's own templates and weights belong (need not exist)."""
    from platformdirs import user_data_path

    return user_data_path("guava", appauthor=False)


def run(config: Config) -> None:
    """Print the list or the folder."""
    if config.action == "path":
        say(str(user_folder()))
        return
    from guava.body import load_template
    from guava.body.template import OPEN_TEMPLATE
    from guava.model import GENERATORS

    template = load_template()
    size = OPEN_TEMPLATE.stat().st_size / 1e6
    body = template.body
    say("templates")
    say(
        f"  open         embedded ({size:.1f} MB), CC0; {body.num_vertices:,} vertices, "
        f"{body.num_joints} joints, {len(template.expression_names)} expression units; "
        f"hash {template.hash[:12]}"
    )
    say("models for 'guava reconstruct --model'")
    for name in sorted(GENERATORS):
        say(f"  {name:<12} {'no weights needed' if name == 'baseline' else ''}")
    say("not in this version")
    say("  smplx-flame  your SMPL-X and FLAME files (from smpl-x.is.tue.mpg.de and flame.is.tue.mpg.de)")
    say("  official     the GUAVA authors' checkpoint, which belongs to those body models")
    say("  open-lite    weights of our own")
    say(f"your folder: {user_folder()}" + ("" if user_folder().is_dir() else " (not made yet)"))
