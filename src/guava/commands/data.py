"""``guava data``: folders of the authors' EHM-Tracker, looked at and converted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, subcommand

from guava.commands.console import bar, check_output, say, warn, write_sidecar


@dataclass(frozen=True)
class Info:
    """What a folder holds, and what is damaged in it: "guava data info FOLDER"."""

    path: Positional[Path]
    """A folder with "optim_tracking_ehm.pkl": one clip's, one picture's, or a training set."""
    decode: bool = False
    """Also decode every picture, to find damaged ones; without it they are only looked up."""


@dataclass(frozen=True)
class Convert:
    """Make a motion file of a tracked clip: "guava data convert FOLDER CLIP -o OUT.track".

    It holds all that "guava track" would have found (pose, expression, cameras, keypoints) and drives avatars
    of the template "smplx-flame".
    """

    path: Positional[Path]
    """The folder."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The file to write."""
    clip: Positional[str] = ""
    """The clip's name; may be left out where there is only one."""
    template: str = "smplx-flame"
    """The template made of your SMPL-X and FLAME files."""
    fps: float | None = None
    """Frames a second of the clip; the folder does not say, 30 is assumed."""
    masks: bool = False
    """Keep the person masks, a megabyte a frame."""


@tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Config:
    """Data of the GUAVA authors' tracker (EHM-Tracker): see what is in a folder, convert a clip.

    Folders are only read, and their pickles cannot run anything.
    """

    action: Annotated[Info, subcommand("info")] | Annotated[Convert, subcommand("convert")]


def run(config: Config) -> None:
    """Do one of the two."""
    if isinstance(config.action, Info):
        _info(config.action)
    else:
        _convert(config.action)


def _info(action: Info) -> None:
    from guava.data import open_release_dataset

    dataset = open_release_dataset(action.path)
    count = sum(len(dataset.frames_of(name)) for name in dataset.clip_names)
    kind = "one clip" if dataset.single else "a combined set"
    names = len(dataset.clip_names)
    say(f"{action.path}: {kind}, {names} clip{'s' * (names != 1)}, {count} frames")
    for name in dataset.clip_names[:20]:
        say(f"  {name:<32} {len(dataset.frames_of(name)):>6} frames")
    if names > 20:
        say(f"  ... and {names - 20} more")
    for split, entries in dataset.splits.items():
        say(f"split {split}: {len(entries)} frames")
    if dataset.images is None:
        say("pictures: none (no 'img_lmdb')")
    else:
        say(f"pictures: {len(dataset.images)} entries")
    with bar(total=names, desc="check", unit="clip") as shown:
        damage = dataset.check(decode=action.decode, progress=lambda done, _: shown.update(done - shown.n))
    if not damage:
        say("nothing is damaged" if action.decode or dataset.images is None else "nothing is missing")
        return
    say(f"damaged: {len(damage)}")
    for one in damage[:20]:
        say(f"  {one}")
    if len(damage) > 20:
        say(f"  ... and {len(damage) - 20} more")


def _convert(action: Convert) -> None:
    check_output(action.output)
    from guava.body import load_template
    from guava.data import open_release_dataset, to_tracked_sequence
    from guava.tracking.file import save_tracked

    template = load_template(action.template)
    clip = open_release_dataset(action.path).clip(action.clip or None)
    tracked = to_tracked_sequence(clip, template, fps=action.fps, masks=action.masks)
    save_tracked(tracked, action.output, template=template)
    warn(tracked.quality.notes)
    valid, notes = int(tracked.valid.sum()), list(tracked.quality.notes)
    write_sidecar(action.output, "data convert", action, frames=len(tracked), valid=valid, notes=notes)
    say(f"{action.output}: {len(tracked)} frame{'s' * (len(tracked) > 1)}, {valid} usable")
