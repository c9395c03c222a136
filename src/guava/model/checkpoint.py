"""The authors' checkpoint: in and out.

It is one torch file with ``model`` (the network and a whole copy of the body models), ``render_model`` (the
refiner), ``global_iter`` and ``meta_cfg``. What was learned is taken over, under our names; the copy of
SMPL-X and FLAME is not, and the user's own files take its place. docs/weights.md tells it in full.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guava import __version__
from guava.body import Template
from guava.container import replacing
from guava.errors import FileFormatError, InputError
from guava.model.backbone import BACKBONE, key_table, module_layout, to_layout
from guava.model.config import GuavaConfig, official
from guava.model.torch_file import damaged_member, fingerprint, read_torch_file
from guava.model.weights import Weights, check_name, compare_keys

OFFICIAL_TEMPLATE = "smplx-flame"
OFFICIAL_VERTICES = 10_595  # SMPL-X's 10,475 and 120 of the teeth

Progress = Callable[[str, int, int], None]

# Official prefix -> ours; the backbone's keys differ below the prefix too.
_PARTS = (
    ("dino_encoder.dino_model.", BACKBONE),
    ("dino_encoder.", "encoder.neck."),
    ("global_feature_mapping.", "global_mapping."),
    ("vertex_gs_decoder.", "template_decoder."),
    ("uv_feature_decoder.", "uv_styleunet."),
    ("uv_style_mapping.", "uv_style_mapping."),
    ("uv_point_decoder.", "uv_decoder."),
    ("vertex_base_feature", "vertex_base_feature"),
    ("uv_base_feature", "uv_base_feature"),
)
_REFINER = "nerual_refiner."  # the release's spelling
_BLOCK_NUMBER = re.compile(r"\.?(?:layer|blocks)\.(\d+)\.")


@dataclass(frozen=True)
class LeftOut:
    """Entries of the release's ``model`` that Guava neither copies nor needs from there.

    Attributes:
        prefix: Beginning of their keys.
        reason: What they are, and where Guava has the same from.
    """

    prefix: str
    reason: str


LEFT_OUT = (
    LeftOut("xy_image_coord", "a grid of pixel coordinates, which the release never reads either"),
    LeftOut(
        "v_template",
        "SMPL-X's rest mesh with FLAME's head on it: licensed, and computed from the user's own files",
    ),
    LeftOut("laplacian_matrix", "the mesh's Laplacian, dense, which the release never reads either"),
    LeftOut("ehm.", "SMPL-X and FLAME: licensed, and read from the files that the user adds"),
    LeftOut("smplx.", "the same SMPL-X once more, under a second name"),
    LeftOut(
        "mesh_renderer.",
        "faces, texture coordinates and skinning weights of SMPL-X: licensed, and read from the files that "
        "the user adds",
    ),
)

LICENCE = (
    "The authors' weights, under the terms that their release states. They were trained with SMPL-X and "
    "FLAME and need these models, under their owners' licences. The checkpoint itself holds a copy of both "
    "models: treat that file as licensed material. Nothing of them was copied out of it."
)

# What the network holds but never uses, by its official keys.
_UNUSED = (".stylegan_decoder.noises.", "dino_encoder.refinenet.0.resConfUnit1.", "dino_model.mask_token")

# Names in the release's config -> fields here.
_META: dict[str, tuple[str, ...]] = {
    "feature_img_size": ("encoder.image_size",),
    "image_size": ("encoder.map_size", "refiner.size"),
    "dino_out_dim": ("encoder.uv_channels",),
    "prj_out_dim": ("encoder.template_channels",),
    "smplx_fea_dim": ("template_branch.base_channels",),
    "global_vertex_dim": ("template_branch.global_channels",),
    "uvmap_size": ("uv_branch.size",),
    "uv_out_dim": ("uv_branch.feature_channels",),
    "color_dim": ("channels",),
    "opacity_threshold": ("opacity_threshold",),
}
_LARGE = 2**31  # no size is larger
# What Guava's network always has.
_FIXED = {"add_teeth": True, "sh_degree": 0, "refiner_type": "styleunet", "invtanfov": 24}


# --- keys ---


def left_out(key: str) -> LeftOut | None:
    """Why an entry of the release's ``model`` is not copied; None if it is."""
    for entry in LEFT_OUT:
        if key.startswith(entry.prefix) if entry.prefix.endswith(".") else key == entry.prefix:
            return entry
    return None


def network_from_official(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's ``model`` -> a network's state, body arrays left out.

    Keys that no part has keep their names. Query, key and value are views.
    """
    out: dict[str, Tensor] = {}
    backbone: dict[str, Tensor] = {}
    for key, value in model.items():
        if left_out(key) is not None:
            continue
        for theirs, ours in _PARTS:
            if key.startswith(theirs):
                (backbone if ours == BACKBONE else out)[_moved(key, theirs, ours)] = value
                break
        else:
            out[key] = value
    backbone = to_layout({_moved(k, BACKBONE, ""): v for k, v in backbone.items()}, "transformers5")
    return {BACKBONE + key: value for key, value in backbone.items()} | out


def network_to_official(network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state -> the release's ``model`` without body arrays; inverse of
    :func:`network_from_official`."""
    backbone = {_moved(k, BACKBONE, ""): v for k, v in network.items() if k.startswith(BACKBONE)}
    out = {_PARTS[0][0] + key: value for key, value in to_layout(backbone, "official").items()}
    for key, value in network.items():
        if key.startswith(BACKBONE):
            continue
        theirs = next((_moved(key, ours, theirs) for theirs, ours in _PARTS if key.startswith(ours)), key)
        out[theirs] = value
    return out


def official_names(keys: Iterable[str]) -> dict[str, str]:
    """Keys of a network -> those of the release that hold them; query, key and value share one."""
    keys = list(keys)
    backbone = [_moved(key, BACKBONE, "") for key in keys if key.startswith(BACKBONE)]
    layout = module_layout(backbone)
    names: dict[str, str] = {}
    if layout is not None:
        table = key_table(layout, 1 + max(int(m[1]) for key in backbone if (m := _BLOCK_NUMBER.search(key))))
        names = {BACKBONE + own: _PARTS[0][0] + key for key, held in table.items() for own in held}
    for key in keys:
        if key not in names:
            names[key] = next((_moved(key, a, b) for b, a in _PARTS if key.startswith(a)), key)
    return {key: names[key] for key in keys}


def refiner_from_official(render_model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's ``render_model`` -> a refiner's state; other keys keep their names."""
    return {_moved(key, _REFINER, ""): value for key, value in render_model.items()}


def refiner_to_official(refiner: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of :func:`refiner_from_official`."""
    return {_REFINER + key: value for key, value in refiner.items()}


def _moved(key: str, old: str, new: str) -> str:
    return new + key[len(old) :] if key.startswith(old) else key


# --- in ---


def import_official(
    path: str | os.PathLike,
    progress: Progress | None = None,
    *,
    name: str = "official",
    strict: bool = True,
    template: Template | None = None,
    config: GuavaConfig | None = None,
    vertices: int = OFFICIAL_VERTICES,
) -> Weights:
    """The authors' checkpoint -> weights.

    Nothing that is in the file is run, and its tensors stay on the disk until they are used.

    Args:
        path: The authors' file, or one of the same layout, with or without body arrays.
        progress: Called with (stage, done, total).
        name: Name of the weights.
        strict: Every key must be known, there and of the right shape, and the file's checksums must match.
            Otherwise unknown keys are left out, what the network never uses may be missing, and checksums
            that do not match are passed over, each with a note.
        template: The user's own ``smplx-flame``, to compare the checkpoint's copy with; a difference becomes
            a note.
        config: Architecture to expect; the release's without it. Sizes that ``meta_cfg`` states go before,
            unless the tensors contradict them.
        vertices: Of the template that the checkpoint belongs to.

    Returns:
        The weights; ``provenance["notes"]`` says what a reader should know.

    Raises:
        InputError: There is no such file.
        FileFormatError: It is no torch file, is cut off or damaged, holds code, is not the release's layout,
            or (keys listed) not its architecture.
        MissingDependencyError: transformers is not installed.
    """
    from guava.model.official_keys import official_shapes

    check_name(name)
    path = Path(path)
    tell = progress or (lambda stage, done, total: None)
    document = read_torch_file(path)
    notes: list[str] = []
    model, render_model = _sections(document, path, notes)
    if problem := damaged_member(path, lambda done, total: tell("checksums", done, total)):
        if strict:
            raise FileFormatError(f"'{path}' is damaged ({problem}).", "Get the checkpoint again.")
        notes.append(f"A checksum in the file does not match ({problem}).")
    meta = _plain(document.get("meta_cfg"))

    tell("keys", 0, 1)
    kept = {key: value for key, value in model.items() if left_out(key) is None}
    config = config or official()
    stated = _stated(meta, config, notes)
    if stated != config:
        wrong = [_misshapen(candidate, vertices, kept, render_model) for candidate in (stated, config)]
        if wrong[0] > wrong[1]:
            notes.append("Sizes that its config states contradict its tensors, and were not used.")
            stated = config
    expected = official_shapes(stated, vertices)
    kept = _checked("model", kept, expected["model"], path, strict, notes)
    render_model = _checked("render_model", render_model, expected["render_model"], path, strict, notes)
    if template is not None:
        notes += _compare_bodies(model, template)

    digest = fingerprint(path, lambda done, total: tell("fingerprint", done, total))
    return Weights(
        name=name,
        config=stated,
        template_name=OFFICIAL_TEMPLATE,
        template_hash=None,
        network=network_from_official(kept),
        refiner=refiner_from_official(render_model),
        provenance={
            "source": "a checkpoint of the GUAVA authors' layout",
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": digest,
            "iteration": _whole(_plain(document.get("global_iter"))),
            "meta_cfg": meta,
            "left_out": _tell_left_out(model),
            "licence": LICENCE,
            "notes": notes,
            "imported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "software": f"guava-avatar {__version__}",
        },
    )


def _tell_left_out(model: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """What of a checkpoint's ``model`` is not copied, for the provenance."""
    told = []
    for entry in LEFT_OUT:
        sizes = [t.numel() * t.element_size() for key, t in model.items() if left_out(key) is entry]
        if sizes:
            keys = entry.prefix + ("*" if entry.prefix.endswith(".") else "")
            told.append({"keys": keys, "count": len(sizes), "bytes": sum(sizes), "reason": entry.reason})
    return told


def _sections(document: Any, path: Path, notes: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    if not isinstance(document, Mapping):
        raise FileFormatError(f"'{path}' holds {_a(document)}, not a checkpoint's sections.")
    sections = []
    for section in ("model", "render_model"):
        if section not in document:
            there = ", ".join(sorted(map(str, document))[:6]) or "nothing"
            raise FileFormatError(
                f"'{path}' is not a checkpoint of the GUAVA authors: it has no section '{section}' (it has: "
                f"{there}{', ...' if len(document) > 6 else ''})."
            )
        state = document[section]
        if not isinstance(state, Mapping) or not all(
            isinstance(k, str) and k.isprintable() and isinstance(v, Tensor) for k, v in state.items()
        ):
            raise FileFormatError(f"The section '{section}' of '{path}' is not a table of tensors.")
        for key, value in state.items():
            if value.is_nested or value.is_meta or value.layout != torch.strided:
                raise FileFormatError(f"'{key}' of '{path}' is no ordinary tensor.")
        if state and all(key.startswith("module.") for key in state):
            state = {key.removeprefix("module."): value for key, value in state.items()}
            notes.append(f"The keys of '{section}' began with 'module.' (a wrapper for several GPUs).")
        sections.append({key: value.detach() for key, value in state.items()})
    return sections[0], sections[1]


def _a(value: Any) -> str:
    return "one tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _misshapen(
    config: GuavaConfig, vertices: int, model: Mapping[str, Tensor], render_model: Mapping[str, Tensor]
) -> float:
    """How many tensors are not of the shape that a config asks for; infinite if no network can be built."""
    from guava.model.official_keys import official_shapes

    try:
        expected = official_shapes(config, vertices)
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError):  # sizes that layers refuse
        return math.inf
    sections = {"model": model, "render_model": render_model}
    return sum(len(compare_keys(sections[name], expected[name]).misshapen) for name in sections)


def _checked(
    section: str,
    state: dict[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    path: Path,
    strict: bool,
    notes: list[str],
) -> dict[str, Tensor]:
    """What is kept of a section: every expected key, finite and floating point."""
    report = compare_keys(state, expected)
    wrong = [*report.missing, *(key for key, *_ in report.misshapen)]
    made = [key for key in wrong if any(part in key for part in _UNUSED)]
    if not strict:
        if report.unexpected:
            notes.append(f"Left out of '{section}', as unknown: {', '.join(report.unexpected)}.")
        if made:
            notes.append(f"Zeros stand in '{section}' for what the network never uses: {', '.join(made)}.")
        state = {key: value for key, value in state.items() if key in expected}
        state |= {key: torch.zeros(expected[key]) for key in made}
        report = compare_keys(state, expected)
    if report:
        raise FileFormatError(
            f"'{path}' does not have the release's architecture. Keys of its section '{section}': "
            f"{report.describe()}.",
            "" if wrong != made else "What differs is not needed. To import without it: --lenient",
        )
    for key, value in state.items():
        if not value.is_floating_point():
            raise FileFormatError(f"'{key}' of '{path}' holds {value.dtype}, not real numbers.")
        if not bool(value.float().isfinite().all()):
            raise FileFormatError(f"'{key}' of '{path}' has values that are not finite in single precision.")
    return {key: state[key] for key in expected}


def _stated(meta: Any, config: GuavaConfig, notes: list[str]) -> GuavaConfig:
    """``config`` with the sizes that the release's own config states.

    How that config is nested is not known, so settings are found by name. What cannot be used becomes a note:
    the tensors decide whether an architecture fits.
    """
    for name, expected in _FIXED.items():
        found = [value for value in _named(meta, name) if not _same(value, expected)]
        if found:
            notes.append(f"Its config says {name} = {found[0]!r}; this network always has {expected!r}.")
    for name, targets in _META.items():
        values = _named(meta, name)
        numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if not values:
            continue
        whole = name == "opacity_threshold" or all(abs(v) < _LARGE and v == int(v) for v in numbers)
        one = len(numbers) == len(values) and all(abs(v) < _LARGE and v == numbers[0] for v in numbers)
        if not whole or not one:
            notes.append(f"Its config says {name} = {', '.join(map(repr, values))}, which was not used.")
            continue
        for target in targets:
            config = _with(config, target.split("."), numbers[0])
    return config


def _named(value: Any, name: str) -> list[Any]:
    """Every setting of that name in a nested config."""
    if not isinstance(value, Mapping):
        return []
    own = [value[name]] if name in value and not isinstance(value[name], Mapping) else []
    return own + [found for inner in value.values() for found in _named(inner, name)]


def _same(value: Any, expected: Any) -> bool:
    """Whether a setting says what is expected, for every axis or once for all."""
    if isinstance(value, (list, tuple)):
        return all(_same(inner, expected) for inner in value)
    if isinstance(value, str) and isinstance(expected, str):
        return value.lower() == expected.lower()
    return value == expected


def _with(config: Any, target: list[str], value: float) -> Any:
    """A config with one field, by its path, replaced."""
    head, *rest = target
    old = getattr(config, head)
    new = _with(old, rest, value) if rest else type(old)(value)
    return replace(config, **{head: new})


def _plain(value: Any, levels: int = 16) -> Any:
    """JSON values of a config; what is none becomes text."""
    if isinstance(value, (Mapping, list, tuple, set)) and not levels:
        return "..."
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, levels - 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(inner, levels - 1) for inner in value]
    if isinstance(value, Tensor):
        dense = not (value.is_nested or value.is_meta or value.layout != torch.strided)
        return _plain(value.tolist()) if dense and value.numel() <= 64 else "a tensor"
    if isinstance(value, int) and value.bit_length() > 63:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _whole(value: Any) -> int | None:
    """An integer, perhaps written as another kind of number or as one tensor; None if it is anything else."""
    while isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        return None
    return int(value)


# --- the body models that are in it ---


def _compare_bodies(model: Mapping[str, Tensor], template: Template) -> list[str]:
    """How the user's own body models differ from the checkpoint's copy of them."""
    tables: list[tuple[str, tuple[str, ...], Tensor]] = [
        ("list of triangles", ("ehm.smplx.faces_tensor", "mesh_renderer.faces"), template.faces),
        ("SMPL-X rest mesh", ("ehm.smplx.v_template", "smplx.v_template"), template.body.v_template),
        ("FLAME rest mesh", ("ehm.flame.v_template",), template.head.v_template),
    ]
    table = getattr(template, "uv_table", None)
    if table is not None:
        tables.append(("UV table", ("ehm.smplx.uvmap_f_idx", "smplx.uvmap_f_idx"), table.face_ids))
    same, absent, notes = [], [], []
    for what, keys, ours in tables:
        theirs = next((model[key] for key in keys if key in model), None)
        if theirs is None:
            absent.append(what)
            continue
        if tuple(theirs.shape) != tuple(ours.shape):
            notes.append(
                f"The {what} of your files has another size ({_by(ours)}) than the checkpoint's "
                f"({_by(theirs)})."
            )
        elif ours.is_floating_point():
            worst = float((theirs.to(ours) - ours).abs().max()) if ours.numel() else 0.0
            if worst > 1e-5:
                notes.append(
                    f"The {what} of your files differs from the checkpoint's by up to {worst:.2g} m."
                )
            else:
                same.append(what)
        elif wrong := int((theirs.to(ours.dtype) != ours).sum()):
            notes.append(
                f"The {what} of your files differs from the checkpoint's in {wrong:,} of {ours.numel():,} "
                "entries."
            )
        else:
            same.append(what)
    if notes:
        notes.append("The network was trained with the checkpoint's body; another may cost quality.")
    if same:
        notes.append(f"Your body files agree with the checkpoint's copy ({', '.join(same)}).")
    if absent:
        notes.append(f"Not in the checkpoint, so not compared with your files: {', '.join(absent)}.")
    return notes


def _by(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


# --- out ---


def export_official(weights: Weights) -> dict[str, Any]:
    """Weights -> the release's sections; for every key that was imported, the same numbers.

    There are no body arrays in it: the release builds them from its own asset folder, and its loader, which
    is not strict, leaves those in place.

    Raises:
        InputError: The weights are not of the release's architecture.
    """
    from guava.model.official_keys import official_shapes

    if weights.refiner is None or weights.config.encoder.kind != "dinov2":
        raise InputError(
            f"The weights '{weights.name}' ({weights.preset}) are not of the authors' architecture.",
            "Only weights of the presets official and paper can be exported.",
        )
    out = {
        "model": network_to_official(weights.network),
        "render_model": refiner_to_official(weights.refiner),
    }
    expected = official_shapes(weights.config, weights.network["vertex_base_feature"].shape[0])
    for section, state in out.items():
        if report := compare_keys(state, expected[section]):
            raise InputError(
                f"The weights '{weights.name}' are not of the authors' architecture ({report.describe()})."
            )
    return {
        **out,
        "global_iter": weights.provenance.get("iteration") or 0,
        "meta_cfg": weights.provenance.get("meta_cfg") or {},
    }


def write_official(weights: Weights, path: str | os.PathLike) -> None:
    """Write :func:`export_official` as a torch file, atomically.

    Raises:
        InputError: As there, or the file cannot be written.
    """
    document = export_official(weights)
    for section in ("model", "render_model"):
        # Copies: torch.save would write all of the file that a view belongs to.
        document[section] = {key: value.detach().cpu().clone() for key, value in document[section].items()}
    with replacing(path) as handle:
        try:
            torch.save(document, handle)
        except RuntimeError as error:  # what torch makes of a write that fails
            raise InputError(
                f"Cannot write '{path}' ({str(error).splitlines()[0]}).", "Check the free space."
            ) from error
