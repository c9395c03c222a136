"""Weights of the learned system: one file each, by name, and how they get into a network.

A weights file is a Guava container (kind "weights"): the tensors of the network under ``network.`` and of
the refiner under ``refiner.``, in single or half precision, with the whole :class:`GuavaConfig`, the template
that they belong to, a hash and their provenance in its header. Files of the user's own are in
:func:`guava.folders.weights_folder`; embedded ones come with the package.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn

from guava.body import Template
from guava.container import read_container, read_part, write_container
from guava.errors import FileFormatError, InputError, MissingAssetError, TemplateMismatchError
from guava.folders import weights_folder
from guava.model.backbone import BACKBONE, module_layout, to_layout
from guava.model.config import GuavaConfig

WEIGHTS_KIND, WEIGHTS_VERSION = "weights", 1
SUFFIX = ".weights"
EMBEDDED = Path(__file__).parent / "data"
Precision = Literal["float32", "float16"]
PARTS = ("network", "refiner")

_FACTS = ("config", "template", "precision", "refiner", "sections")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Weights:
    """Everything that was learned, and what it was learned for.

    Attributes:
        name: Short name, by which commands and avatars refer to them.
        config: What network they belong to.
        template_name: Template they were trained with ("open", "smplx-flame", ...).
        template_hash: Its hash, or None where only its name and sizes are known (the authors' checkpoint:
            their copy of SMPL-X and FLAME is not ours to hash).
        network: State of the network, single precision; the backbone's keys as in transformers 5.
        refiner: State of the refiner, or None without one.
        precision: In which the tensors were stored; in memory they are float32 always.
        provenance: JSON values: where they came from, licences, training.
        hash: SHA-256 over config, template and tensors as stored.
        parts: What was read; the other's state is empty.
    """

    name: str
    config: GuavaConfig
    template_name: str
    template_hash: str | None
    network: dict[str, Tensor]
    refiner: dict[str, Tensor] | None
    precision: Precision = "float32"
    provenance: dict[str, Any] = field(default_factory=dict)
    hash: str = ""
    parts: tuple[str, ...] = PARTS

    @property
    def preset(self) -> str:
        """Name of the preset that the config started from."""
        return self.config.preset

    @property
    def reference(self) -> str:
        """ "NAME:hash", what an avatar keeps, and :func:`load_weights` takes."""
        return f"{self.name}:{self.hash[:16]}"

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(t.numel() for state in (self.network, self.refiner or {}) for t in state.values())


@dataclass(frozen=True)
class WeightsInfo:
    """What :func:`list_weights` tells without reading the tensors.

    Attributes:
        name, preset, config, template_name, template_hash, precision, hash, provenance: As in
            :class:`Weights`.
        path: The file.
        size: Of the file, in bytes.
        embedded: Whether it came with the package.
        has_refiner: Whether a refiner is in it.
        problem: Why the file cannot be used; empty if it can (its checksum is only verified when loading).
    """

    name: str
    path: Path
    size: int
    embedded: bool
    preset: str = ""
    template_name: str = ""
    template_hash: str | None = None
    precision: str = ""
    hash: str = ""
    has_refiner: bool = False
    config: GuavaConfig | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def reference(self) -> str:
        """As :attr:`Weights.reference`."""
        return f"{self.name}:{self.hash[:16]}"


# --- config <-> JSON ---


def config_to_json(config: GuavaConfig) -> dict[str, Any]:
    """A config as JSON values."""
    return json.loads(json.dumps(asdict(config)))


def config_from_json(document: Any) -> GuavaConfig:
    """What :func:`config_to_json` wrote.

    Raises:
        FileFormatError: A field is missing, unknown, of another type, or has a value that this software does
            not know.
    """
    return _decode(document, GuavaConfig, "config")


def _decode(value: Any, kind: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = get_args(kind)
        if value is None and type(None) in options:
            return None
        (kind,) = (option for option in options if option is not type(None))
        return _decode(value, kind, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise FileFormatError(f"The weights' {where} is not a group of settings.")
        hints = typing.get_type_hints(kind)
        missing, unknown = sorted(hints.keys() - value.keys()), sorted(value.keys() - hints.keys())
        if missing or unknown:
            told = [f"lacks {', '.join(missing)}"] if missing else []
            told += [f"has the unknown setting {', '.join(unknown)}"] if unknown else []
            raise FileFormatError(
                f"The weights' {where} {' and '.join(told)}: they were written by another version of Guava.",
                "Update with: pip install -U guava-avatar" if unknown else "",
            )
        return kind(**{name: _decode(value[name], hint, f"{where}.{name}") for name, hint in hints.items()})
    if origin is Literal:
        if value not in get_args(kind):
            raise FileFormatError(f"The weights' {where} is {value!r}; known are {get_args(kind)}.")
        return value
    if origin is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list) or (kinds[-1] is not ... and len(value) != len(kinds)):
            raise FileFormatError(f"The weights' {where} is {value!r}, not {len(kinds)} values.")
        kinds = (kinds[0],) * len(value) if kinds[-1] is ... else kinds
        pairs = enumerate(zip(value, kinds, strict=True))
        return tuple(_decode(inner, kind, f"{where}[{i}]") for i, (inner, kind) in pairs)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise FileFormatError(f"The weights' {where} is {value!r}, not {kind.__name__}.")
    return value


# --- files ---


def check_name(name: str) -> str:
    """A name that weights can have.

    Raises:
        InputError: It would not do as a file name.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"'{name}' cannot be the name of weights.", "Use letters, digits, '.', '_' and '-', at most 64."
        )
    return name


def weights_path(name: str) -> Path:
    """The user's file for weights of that name; need not exist."""
    return weights_folder() / f"{name}{SUFFIX}"


def remove_weights(name: str) -> Path:
    """Delete the user's weights of that name; returns the file that was.

    Raises:
        MissingAssetError: There are none.
        InputError: They came with the package, or the file cannot be deleted.
    """
    path = weights_path(name)
    if _NAME.fullmatch(name) and path.is_file():
        try:
            path.unlink()
        except OSError as error:
            raise InputError(f"Cannot delete '{path}': {error.strerror}.") from error
        return path
    found, _ = _locate(name)
    if found.parent == EMBEDDED:
        raise InputError(f"The weights '{name}' came with Guava and stay.")
    raise InputError(f"'{name}' is not the name of weights of yours.", "See: guava weights list")


def save_weights(
    weights: Weights, path: str | os.PathLike | None = None, *, precision: Precision = "float32"
) -> Weights:
    """Write weights, atomically.

    Args:
        weights: Their own ``hash`` and ``precision`` are ignored.
        path: Where to; the user's folder, by name, without it.
        precision: "float16" halves the file; values are rounded.

    Returns:
        The weights as stored: with hash, precision and, in half precision, the rounded values.

    Raises:
        InputError: The name cannot be a file's, the file cannot be written, or a value is too large for half
            precision.
    """
    check_name(weights.name)
    if path is None:
        path = weights_path(weights.name)
        folder = path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Cannot make the folder '{folder}': {error.strerror}.") from error
    if weights.parts != PARTS:
        raise ValueError(f"Only {weights.parts} of '{weights.name}' was read.")
    weights = replace(
        weights,
        network=_cast(_stored_layout(weights.network), precision),
        refiner=None if weights.refiner is None else _cast(weights.refiner, precision),
        precision=precision,
    )
    tensors = {f"network.{key}": value for key, value in weights.network.items()}
    tensors |= {f"refiner.{key}": value for key, value in (weights.refiner or {}).items()}
    header = {
        "name": weights.name,
        "preset": weights.preset,
        "config": config_to_json(weights.config),
        "template": {"name": weights.template_name, "hash": weights.template_hash},
        "precision": precision,
        "refiner": weights.refiner is not None,
        "provenance": weights.provenance,
        "sections": {part: _digest(tensors, part) for part in PARTS},
    }
    header["hash"] = _identity(header)
    header["seal"] = _seal(header)
    write_container(path, WEIGHTS_KIND, WEIGHTS_VERSION, tensors, header)
    del tensors
    _make_single(weights)
    return replace(weights, hash=header["hash"])


def load_weights(name_or_path: str | os.PathLike, parts: tuple[str, ...] = PARTS) -> Weights:
    """Weights by name ("official"), by what an avatar keeps ("official:0123456789abcdef"), or from a file.

    Args:
        name_or_path: Which.
        parts: What to read, of :data:`PARTS`: an animation needs the refiner alone, a seventh of the file.

    Raises:
        MissingAssetError: There are none of that name, or only others with the same name.
        InputError: There is no such file.
        FileFormatError: The file is damaged, incomplete, foreign or newer.
    """
    path, digest = _locate(name_or_path)
    try:
        if parts == PARTS:
            tensors, header = read_container(path, WEIGHTS_KIND, WEIGHTS_VERSION)
        else:
            prefixes = [f"{part}." for part in parts]
            tensors, header = read_part(path, WEIGHTS_KIND, WEIGHTS_VERSION, *prefixes)
            intact = all(header["sections"][part] == _digest(tensors, part) for part in parts)
            if not intact or header["seal"] != _seal(header):
                raise FileFormatError(f"'{path}' is damaged: its checksum does not match.", "Copy it again.")
        _check_header(path, header)
        weights = Weights(
            name=header["name"],
            config=config_from_json(header["config"]),
            template_name=header["template"]["name"],
            template_hash=header["template"]["hash"],
            network=_section(tensors, "network."),
            refiner=_section(tensors, "refiner.") if header["refiner"] else None,
            precision=header["precision"],
            provenance=header["provenance"],
            hash=header["hash"],
            parts=parts,
        )
    except (KeyError, TypeError) as error:
        raise FileFormatError(f"'{path}' is not a complete weights file ({error}).") from error
    if digest and not weights.hash.startswith(digest):
        raise MissingAssetError(
            f"The weights '{weights.name}' installed here are others ({weights.hash[:16]}) than those that "
            f"are needed ({digest}).",
            "Install those that the avatar was made with, or make the avatar again.",
        )
    _make_single(weights)
    return weights


def list_weights() -> list[WeightsInfo]:
    """All weights that this installation can use, the user's own first; a damaged file says so."""
    return [_info(path) for path in _files()]


def weights_info(name_or_path: str | os.PathLike) -> WeightsInfo:
    """One of :func:`list_weights`, or of any file.

    Raises:
        MissingAssetError: There are none of that name.
        InputError: There is no such file.
    """
    return _info(_locate(name_or_path)[0])


def _files() -> list[Path]:
    found: list[Path] = []
    for folder in (weights_folder(), EMBEDDED):
        if folder.is_dir():
            found += sorted(p for p in folder.iterdir() if p.suffix == SUFFIX and not p.name.startswith("."))
    return found


def _locate(name_or_path: str | os.PathLike) -> tuple[Path, str]:
    """The file, and the beginning of the hash that it must have ("" for any)."""
    text = os.fspath(name_or_path)
    if text.endswith((".pt", ".pth", ".ckpt")):
        raise InputError(
            f"'{text}' is a torch file, not a {SUFFIX} file.",
            "The authors' checkpoint is turned into one with: guava weights import FILE",
        )
    if not isinstance(name_or_path, str) or text.endswith(SUFFIX) or os.sep in text or "/" in text:
        return Path(text), ""
    name, _, digest = text.partition(":")
    same = [path for path in _files() if path.stem == name]
    for path in same:
        if not digest or _info(path).hash.startswith(digest):
            return path, digest
    if same:
        return same[0], digest
    there = ", ".join(path.stem for path in _files()) or "none"
    hint = f"Installed: {there} (see: guava weights list)."
    if name == "official":
        hint += " The authors' checkpoint is added with: guava weights import CHECKPOINT.pt --name official"
    raise MissingAssetError(f"There are no weights named '{name}'.", hint)


def _info(path: Path) -> WeightsInfo:
    known = {
        "name": path.name.removesuffix(SUFFIX), "path": path, "embedded": path.parent == EMBEDDED,
        "size": path.stat().st_size if path.is_file() else 0,
    }
    try:
        _, header = read_part(path, WEIGHTS_KIND, WEIGHTS_VERSION)
        _check_header(path, header)
        return WeightsInfo(
            **known | {"name": header["name"]},
            config=config_from_json(header["config"]),
            preset=header["preset"],
            template_name=header["template"]["name"],
            template_hash=header["template"]["hash"],
            precision=header["precision"],
            hash=header["hash"],
            has_refiner=header["refiner"],
            provenance=header["provenance"],
        )
    except FileFormatError as error:
        return WeightsInfo(**known, problem=str(error))
    except (KeyError, TypeError) as error:
        return WeightsInfo(**known, problem=f"'{path}' is not a complete weights file ({error}).")


def _check_header(path: Path, header: Mapping[str, Any]) -> None:
    """Refuse a header that is not as :func:`save_weights` writes it."""
    template = header["template"]
    texts = [header["name"], header["preset"], header["precision"], header["hash"], template["name"]]
    if template["hash"] is not None:
        texts.append(template["hash"])
    whole = all(isinstance(text, str) and text.isprintable() for text in texts)
    if not whole or not isinstance(header["provenance"], dict) or header["hash"] != _identity(header):
        raise FileFormatError(f"'{path}' is not a complete weights file (its header contradicts itself).")


def _identity(header: Mapping[str, Any]) -> str:
    facts = {key: header[key] for key in _FACTS}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _seal(header: Mapping[str, Any]) -> str:
    """Checksum of the header alone, for whoever reads only a part; the container's is over all tensors."""
    facts = {key: header[key] for key in (*_FACTS, "name", "preset", "provenance", "hash")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor], part: str) -> str:
    digest = hashlib.sha256(part.encode())
    for name in sorted(name for name in tensors if name.startswith(f"{part}.")):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def _cast(state: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    dtype = {"float32": torch.float32, "float16": torch.float16}[precision]
    out = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    for key, value in out.items():
        if dtype == torch.float16 and value.dtype == dtype and not torch.isfinite(value).all():
            raise InputError(f"'{key}' has values that half precision cannot hold.", "Keep single precision.")
    return out


def _make_single(weights: Weights) -> None:
    """In place, so that no tensor is there in both precisions."""
    for state in (weights.network, weights.refiner or {}):
        for key, value in state.items():
            if value.is_floating_point():
                state[key] = value.float()


def _stored_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the backbone's keys as the file has them, whichever transformers the module came from."""
    backbone = _section(state, BACKBONE)
    rest = {key: value for key, value in state.items() if not key.startswith(BACKBONE)}
    return rest | {BACKBONE + key: value for key, value in to_layout(backbone, "transformers5").items()}


# --- into modules ---


@dataclass(frozen=True)
class KeyReport:
    """How a state differs from what a module has.

    Attributes:
        missing: Keys that the module has and the state lacks.
        unexpected: Keys that only the state has.
        misshapen: (key, shape in the state, shape in the module).
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    def __bool__(self) -> bool:
        """Whether there is any difference."""
        return bool(self.missing or self.unexpected or self.misshapen)

    def describe(self, most: int = 12) -> str:
        """One sentence. Keys that differ in numbers alone are told as one ("blocks.*.norm1.bias, 12 times"),
        and at most ``most`` of each sort."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} missing ({_grouped(self.missing, most)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected ({_grouped(self.unexpected, most)})")
        if self.misshapen:
            told = {key: f" is {_by(have)} instead of {_by(want)}" for key, have, want in self.misshapen}
            parts.append(f"{len(self.misshapen)} of another shape ({_grouped(told, most, told)})")
        return "; ".join(parts)


def _grouped(keys: Iterable[str], most: int, endings: Mapping[str, str] | None = None) -> str:
    """Keys, and what is said of each, with those that differ in numbers alone put together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        ending = endings[key] if endings else ""
        groups.setdefault((re.sub(r"\d+", "*", key), ending), []).append(key)
    told = [
        f"{pattern if len(same) > 1 else same[0]}{ending}" + (f", {len(same)} times" if len(same) > 1 else "")
        for (pattern, ending), same in groups.items()
    ]
    more = sum(len(same) for same in list(groups.values())[most:])
    return "; ".join(told[:most]) + (f"; and {more} more" if more else "")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"


def compare_keys(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor | tuple[int, ...]]
) -> KeyReport:
    """Keys and shapes of ``state`` against ``expected`` (tensors, meta ones too, or shapes)."""

    def shape(value: Tensor | tuple[int, ...]) -> tuple[int, ...]:
        return tuple(value.shape if isinstance(value, Tensor) else value)

    return KeyReport(
        tuple(key for key in expected if key not in state),
        tuple(key for key in state if key not in expected),
        tuple(
            (key, shape(value), shape(expected[key]))
            for key, value in state.items()
            if key in expected and shape(value) != shape(expected[key])
        ),
    )


def check_template(weights: Weights, template: Template) -> None:
    """Refuse weights that were trained with another template.

    Raises:
        TemplateMismatchError: Another name, or another hash where the weights know theirs.
    """
    if weights.template_name != template.name:
        raise TemplateMismatchError(
            f"The weights '{weights.name}' belong to the template '{weights.template_name}', not to "
            f"'{template.name}'.",
            f"Use --template {weights.template_name}, or other weights (see: guava weights list).",
        )
    if weights.template_hash is not None and weights.template_hash != template.hash:
        raise TemplateMismatchError(
            f"The weights '{weights.name}' belong to another version of the template '{template.name}' "
            f"({weights.template_hash[:12]}, installed is {template.hash[:12]}).",
            "Use the software or the body files that they were made with.",
        )


def load_into(network: nn.Module | None, refiner: nn.Module | None, weights: Weights) -> None:
    """Copy weights into modules; every key must be there and fit.

    Args:
        network: Of ``build_network(weights.config, template)``; None to leave it out. Built under
            ``torch.device("meta")`` it takes the weights' own tensors over, without a second copy.
        refiner: Of ``build_refiner(weights.config)``; None to leave it out.
        weights: What to copy.

    Raises:
        TemplateMismatchError: The modules were built for a template of another size.
        FileFormatError: Keys are missing, unexpected or of another shape; nothing was copied.
    """
    states = []
    for what, module, state in (("network", network, weights.network), ("refiner", refiner, weights.refiner)):
        if module is None:
            continue
        if state is None:
            raise FileFormatError(f"The weights '{weights.name}' have no {what}.")
        expected = module.state_dict()
        layout = module_layout(_section(expected, BACKBONE))
        if layout is not None:
            backbone = to_layout(_section(state, BACKBONE), layout)
            state = {k: v for k, v in state.items() if not k.startswith(BACKBONE)}
            state |= {BACKBONE + key: value for key, value in backbone.items()}
        report = compare_keys(state, expected)
        for key, have, want in report.misshapen:
            if key == "vertex_base_feature" and have[1:] == want[1:]:
                raise TemplateMismatchError(
                    f"The weights '{weights.name}' belong to the template '{weights.template_name}' with "
                    f"{have[0]:,} vertices; the network was built for one with {want[0]:,}.",
                    f"Use --template {weights.template_name}.",
                )
        if report:
            raise FileFormatError(
                f"The weights '{weights.name}' ({weights.preset}) do not fit the {what}: {report.describe()}."
            )
        states.append((module, state))
    for module, state in states:
        on_meta = any(value.is_meta for value in module.state_dict().values())
        module.load_state_dict(state, strict=True, assign=on_meta)
        if on_meta and (empty := [name for name, table in module.named_buffers() if table.is_meta]):
            raise ValueError(f"A network with the table {empty[0]} cannot be built on the meta device.")
