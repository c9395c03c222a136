"""``guava weights``: learned weights by name; the authors' checkpoint in and out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, subcommand

from guava.commands.console import check_output, say, stage_bar, warn
from guava.errors import InputError


@dataclass(frozen=True)
class Import:
    """Take the GUAVA authors' checkpoint over: "guava weights import CHECKPOINT.pt".

    The file (about 1.4 GB) is read without running anything that is in it, every key is checked against the
    network, and what was learned is written to your folder of weights. The copies of SMPL-X and FLAME inside
    it are left where they are; your own files, which "guava assets add" took, are used instead and compared
    with them.
    """

    checkpoint: Positional[Path]
    """The authors' file, as they offer it."""
    name: str = "official"
    """Name by which other commands find the weights."""
    half: bool = False
    """Store half precision: half the size, values rounded to 11 bits."""
    lenient: bool = False
    """Leave unknown keys out, and allow what the network never uses to be missing, with a note each."""
    replace: bool = False
    """Replace weights of the same name."""


@dataclass(frozen=True)
class List:
    """All weights that commands can use by name."""


@dataclass(frozen=True)
class Info:
    """What weights are: network, template, size, hash, where they came from, licence."""

    name: Positional[str]
    """Name, or a .weights file."""


@dataclass(frozen=True)
class Export:
    """Write weights of the authors' architecture as a torch file that their release can load."""

    name: Positional[str]
    """Name, or a .weights file."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Where to, ending in .pt."""


@dataclass(frozen=True)
class Remove:
    """Delete weights of yours."""

    name: Positional[str]
    """Name."""


@tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Config:
    """Learned weights: list them, take over the GUAVA authors' checkpoint, write it back."""

    action: (
        Annotated[Import, subcommand("import")]
        | Annotated[List, subcommand("list")]
        | Annotated[Info, subcommand("info")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Remove, subcommand("remove")]
    ) = List()  # noqa: RUF009 - frozen


def run(config: Config) -> None:
    """Do one of the five."""
    action = config.action
    if isinstance(action, Import):
        _import(action)
    elif isinstance(action, List):
        _list()
    elif isinstance(action, Info):
        _info(action.name)
    elif isinstance(action, Export):
        _export(action)
    else:
        _remove(action.name)


def _import(action: Import) -> None:
    from guava.body import load_template
    from guava.errors import MissingAssetError
    from guava.model.checkpoint import OFFICIAL_TEMPLATE, import_official
    from guava.model.weights import check_name, save_weights, weights_path

    path = weights_path(check_name(action.name))
    if path.exists() and not action.replace:
        raise InputError(
            f"There are weights named '{action.name}' already.",
            "Choose another --name, or add --replace.",
        )
    try:
        template = load_template(OFFICIAL_TEMPLATE)
    except MissingAssetError:
        template = None
    with stage_bar("import") as progress:
        weights = import_official(
            action.checkpoint, progress, name=action.name, strict=not action.lenient, template=template
        )
        progress("writing", 0, 1)
        save_weights(weights, precision="float16" if action.half else "float32")
    provenance = weights.provenance
    del weights  # before what was written is read for the summary, which has the import's own notes
    if template is None:
        warn([
            f"These weights need the template '{OFFICIAL_TEMPLATE}', which is not installed yet. Add your "
            "SMPL-X and FLAME files (see: guava assets add --help); import again after that to have them "
            "compared with the checkpoint's copy."
        ])  # fmt: skip
    say(f"{action.checkpoint.name} -> {path}")
    _describe_left_out(provenance)
    say()
    _info(action.name)


def _list() -> None:
    from guava.folders import weights_folder
    from guava.model.weights import list_weights

    found = list_weights()
    if found:
        say(f"{'name':<18} {'preset':<9} {'template':<13} {'precision':<9} {'size':>9}  hash")
    for info in found:
        if info.problem:
            say(f"{info.name:<18} unusable: {info.problem}")
            continue
        say(
            f"{info.name:<18} {info.preset:<9} {info.template_name:<13} {info.precision:<9} "
            f"{_megabytes(info.size):>9}  {info.hash[:16]}{'  (comes with Guava)' if info.embedded else ''}"
        )
    if not found:
        say("no weights are installed")
        say("  official     the GUAVA authors' checkpoint: guava weights import CHECKPOINT.pt")
    say(f"your folder: {weights_folder()}" + ("" if weights_folder().is_dir() else " (not made yet)"))


def _info(name: str) -> None:
    from guava.model.weights import config_to_json, load_weights

    weights = load_weights(name)
    provenance = weights.provenance
    network = sum(t.numel() for t in weights.network.values())
    refiner = sum(t.numel() for t in (weights.refiner or {}).values())
    say(f"name        {weights.name}")
    say(f"preset      {weights.preset}")
    template = f"hash {weights.template_hash[:16]}" if weights.template_hash else "made from your own files"
    say(f"template    {weights.template_name} ({template})")
    say(
        f"numbers     {network / 1e6:.1f} M network"
        + (f" + {refiner / 1e6:.1f} M refiner" if weights.refiner else ", no refiner")
        + f", {weights.precision}"
    )
    say(f"hash        {weights.hash}")
    for label, key in (("from", "source"), ("file", "file"), ("sha256", "sha256"), ("step", "iteration")):
        if provenance.get(key) is not None:
            say(f"{label:<11} {provenance[key]}")
    if provenance.get("imported"):
        say(f"imported    {provenance['imported']} by {provenance.get('software', 'Guava')}")
    changed = _changes(config_to_json(weights.config), weights.preset)
    say(f"config      preset '{weights.preset}'" + (f" with {', '.join(changed)}" if changed else ""))
    for note in provenance.get("notes", ()):
        say(f"note        {note}")
    if provenance.get("licence"):
        say(f"licence     {provenance['licence']}")


def _changes(config: dict, preset_name: str) -> list[str]:
    """Settings that differ from the preset's, as "uv_branch.size = 256"."""
    from guava.model.config import PRESETS, preset
    from guava.model.weights import config_to_json

    if preset_name not in PRESETS:
        return ["a preset that this version does not have"]

    def walk(ours, theirs, path):
        if isinstance(ours, dict) and isinstance(theirs, dict):
            for key in ours:
                yield from walk(ours[key], theirs.get(key), (*path, key))
        elif ours != theirs:
            yield f"{'.'.join(path)} = {ours}"

    return list(walk(config, config_to_json(preset(preset_name)), ()))


def _describe_left_out(provenance: dict) -> None:
    entries = provenance.get("left_out") or []
    if not entries:
        say("The checkpoint holds no body arrays.")
        return
    say("Not copied out of the checkpoint:")
    for entry in entries:
        count = f"{entry['count']} arrays, " if entry["count"] > 1 else ""
        say(f"  {entry['keys']:<17} {count}{_megabytes(entry['bytes'])}: {entry['reason']}")


def _export(action: Export) -> None:
    from guava.model.checkpoint import write_official
    from guava.model.weights import load_weights

    check_output(action.output, ".pt", ".pth")
    weights = load_weights(action.name)
    with stage_bar("export") as progress:
        progress("writing", 0, 1)
        write_official(weights, action.output)
    say(f"{action.output} ({_megabytes(action.output.stat().st_size)})")
    if weights.preset != "official":
        warn(
            [
                f"These weights are of the preset '{weights.preset}', but the authors' code computes as the "
                "preset 'official' does (docs/network.md): it will not show what they were trained for."
            ]
        )
    say(
        "It has the authors' keys without body arrays: their loader, which is not strict, keeps those that "
        "it builds from its own asset folder."
    )


def _remove(name: str) -> None:
    from guava.model.weights import remove_weights

    say(f"removed {remove_weights(name)}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} B"
