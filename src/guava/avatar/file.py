"""The avatar file: one documented, versioned container (docs/file-formats.md)."""

from __future__ import annotations

import os
from dataclasses import asdict, fields
from typing import get_args

import torch
from torch import Tensor

from guava.avatar.avatar import Avatar, BakeReport, Provenance, RefinerReference, SourceView
from guava.avatar.gaussians import MAX_INFLUENCES, BindingKind, Gaussians, Layer
from guava.avatar.posing import SigmaRule
from guava.body import Identity, Pose, Template, choose_template
from guava.camera import Camera
from guava.container import read_container, write_container
from guava.errors import FileFormatError, TemplateMismatchError
from guava.rendering.splatting import CONVENTIONS

AVATAR_KIND, AVATAR_VERSION = "avatar", 2
LARGEST_HALF = 6e4
"""Latents beyond this would overflow in half precision and are stored in single precision."""

STATED_CONVENTIONS = {
    "world": "metres, right-handed, +y up, the rest pose looks along +z",
    "camera": "OpenCV axes, X_cam = R X + t, pixel centres at half-integers",
    "rotations": "unit quaternions (w, x, y, z); joint rotations are axis-angle, radians",
    "scales": "standard deviations in metres (activated)",
    "opacities": "[0, 1] (activated)",
    "features": "channels 0-2 are displayed (sRGB) RGB in [0, 1]; further ones are latents for the refiner",
    "binding": {kind.name: int(kind) for kind in BindingKind},
    "layer": {layer.name: int(layer) for layer in Layer},
}
"""Written into every file, so that it can be read without this program."""

# Name of every Gaussian array: (trailing shape, dtype); None stands for the number of channels.
_GAUSSIANS = {
    "positions": ((3,), torch.float32),
    "rotations": ((4,), torch.float32),
    "scales": ((3,), torch.float32),
    "opacities": ((), torch.float32),
    "features": ((None,), torch.float32),
    "binding": ((), torch.uint8),
    "anchor": ((), torch.int32),
    "barycentrics": ((3,), torch.float32),
    "local_offset": ((3,), torch.float32),
    "sigma": ((), torch.float32),
    "triangle_rotation": ((4,), torch.float32),
    "skin_indices": ((MAX_INFLUENCES,), torch.uint8),
    "skin_weights": ((MAX_INFLUENCES,), torch.float32),
    "layer": ((), torch.uint8),
    "observed": ((), torch.bool),
}


def save_avatar(avatar: Avatar, path: str | os.PathLike, *, exact: bool = False) -> None:
    """Write an avatar, atomically. Nothing is lost but the latents' lower bits.

    A file gets the oldest version that can hold it: 1 without latents, refiner and other splat conventions
    than gsplat's, so that older programs can read it.

    Args:
        avatar: What to write.
        path: Where to.
        exact: Keep the latents (channels 3 and on) in single precision. Half precision saves a quarter of the
            file, and changes refined pictures by less than an eight-bit step (docs/file-formats.md).

    Raises:
        InputError: The file cannot be written.
        ValueError: A Gaussian array does not have the documented shape, dtype or values, or the sigma rule or
            the splat conventions are unknown.
    """
    problem = _gaussians_problem(avatar.gaussians)
    if not problem and avatar.sigma_rule not in get_args(SigmaRule):
        problem = f"There is no sigma rule '{avatar.sigma_rule}'."
    if not problem and avatar.splat_conventions not in CONVENTIONS:
        problem = f"There are no splat conventions '{avatar.splat_conventions}'."
    if problem:
        raise ValueError(problem)
    source = avatar.source
    gaussians = _prefixed("gaussians", avatar.gaussians)
    channels = avatar.gaussians.features.shape[1]
    simple = channels == 3 and avatar.refiner is None and avatar.splat_conventions == "gsplat"
    if channels > 3:
        latents = gaussians["gaussians.features"][:, 3:]
        if not exact and (not latents.numel() or float(latents.abs().max()) < LARGEST_HALF):
            latents = latents.half()
        gaussians["gaussians.features"] = gaussians["gaussians.features"][:, :3]
        gaussians["gaussians.latents"] = latents
    tensors = {
        **gaussians,
        **_prefixed("identity", avatar.identity),
        **_prefixed("source.pose", source.pose),
        "source.camera.world_to_camera": source.camera.world_to_camera,
        "source.camera.intrinsics": source.camera.intrinsics,
        "source.crop_from_image": source.crop_from_image,
    }
    header = {
        "template_hash": avatar.template_hash,
        "template_name": avatar.template_name,
        "refiner": None if avatar.refiner is None else asdict(avatar.refiner),
        "splat_conventions": avatar.splat_conventions,
        "sigma_rule": avatar.sigma_rule,
        "channels": channels,
        "conventions": STATED_CONVENTIONS,
        "source": {
            "name": source.name, "sha256": source.sha256, "width": source.width, "height": source.height,
            "crop_width": source.camera.width, "crop_height": source.camera.height,
            "hands_seen": list(source.hands_seen),
        },
        "provenance": asdict(avatar.provenance),
    }
    write_container(path, AVATAR_KIND, 1 if simple else AVATAR_VERSION, tensors, header)


def load_avatar(path: str | os.PathLike, template: Template | None = None) -> Avatar:
    """Read an avatar file.

    Args:
        path: The file.
        template: If given, an avatar of another template is refused.

    Raises:
        InputError: There is no such file.
        FileFormatError: The file is damaged, of another kind, or newer than this software.
        TemplateMismatchError: The avatar belongs to another template.
    """
    tensors, header = read_container(path, AVATAR_KIND, AVATAR_VERSION)
    try:
        arrays = {name: tensors[f"gaussians.{name}"] for name in _GAUSSIANS}
        if "gaussians.latents" in tensors:
            arrays["features"] = torch.cat([arrays["features"], tensors["gaussians.latents"].float()], 1)
        gaussians = Gaussians(**arrays)
        problem = _gaussians_problem(gaussians)
        if problem:
            raise FileFormatError(f"'{path}' is not a usable avatar: {problem}")
        if header["sigma_rule"] not in get_args(SigmaRule):
            raise FileFormatError(
                f"'{path}' measures triangles by '{header['sigma_rule']}', which this version does not know.",
                "Update guava-avatar.",
            )
        conventions = header.get("splat_conventions", "gsplat")
        if conventions not in CONVENTIONS:
            raise FileFormatError(
                f"'{path}' was made for the splatter '{conventions}', which this version does not know.",
                "Update guava-avatar.",
            )
        where = header["source"]
        camera = Camera(
            tensors["source.camera.world_to_camera"], tensors["source.camera.intrinsics"],
            int(where["crop_width"]), int(where["crop_height"]),
        )
        source = SourceView(
            pose=_collect(Pose, "source.pose", tensors), camera=camera,
            crop_from_image=tensors["source.crop_from_image"], width=int(where["width"]),
            height=int(where["height"]), sha256=where["sha256"], name=where["name"],
            hands_seen=(bool(where["hands_seen"][0]), bool(where["hands_seen"][1])),
        )
        stated = header["provenance"]
        known = {f.name for f in fields(Provenance)}
        provenance = Provenance(
            **{
                **{k: v for k, v in stated.items() if k in known},
                "notes": tuple(stated.get("notes", ())), "baked": _bake_report(stated.get("baked")),
            }
        )
        avatar = Avatar(
            gaussians=gaussians, identity=_collect(Identity, "identity", tensors),
            template_hash=header["template_hash"], source=source, provenance=provenance,
            refiner=_refiner(header["refiner"]), sigma_rule=header["sigma_rule"],
            splat_conventions=conventions, template_name=str(header.get("template_name", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FileFormatError(f"'{path}' is not a complete avatar file ({error}).") from error
    if template is not None and avatar.template_hash != template.hash:
        raise TemplateMismatchError(
            f"'{path}' belongs to another body template ({avatar.template_hash[:12]}) than the installed "
            f"'{template.name}' ({template.hash[:12]}).",
            "Make it again from its photo with: guava reconstruct",
        )
    if template is not None:
        _check_pose(path, avatar, template)
    return avatar


def open_avatar(path: str | os.PathLike, wanted: str | None = None) -> tuple[Avatar, Template]:
    """Read an avatar file, and find the installed template that it belongs to.

    Args:
        path: The file.
        wanted: Name of a template, if it must be this one.

    Raises:
        InputError: There is no such file.
        FileFormatError: The file is damaged, of another kind, or newer than this software.
        TemplateMismatchError: The avatar belongs to another template than ``wanted``.
        MissingAssetError: Its template is not installed.
    """
    avatar = load_avatar(path)
    template = choose_template(wanted, avatar.template_hash, avatar.template_name, f"The avatar '{path}'")
    _check_pose(path, avatar, template)
    return avatar, template


def _check_pose(path: str | os.PathLike, avatar: Avatar, template: Template) -> None:
    expected = Pose.rest(template)
    for f in fields(Pose):
        got, wanted = (tuple(getattr(p, f.name).shape) for p in (avatar.source.pose, expected))
        if got != wanted:
            raise FileFormatError(
                f"'{path}' is not a usable avatar: its pose's {f.name} is {got}, not {wanted}."
            )


def _refiner(stated: object) -> RefinerReference | None:
    return None if stated is None else RefinerReference(str(stated["weights"]), str(stated["hash"]))


def _bake_report(stated: dict | None) -> BakeReport | None:
    if stated is None:
        return None
    known = {f.name for f in fields(BakeReport)}
    values = {k: v for k, v in stated.items() if k in known}
    tables = ("views", "psnr", "psnr_on_white", "coarse_psnr", "coarse_psnr_on_white")
    for name in tables:
        values[name] = tuple(tuple(float(x) for x in row) for row in values[name])
    return BakeReport(**{**values, "poses": tuple(values["poses"])})


def _prefixed(prefix: str, record) -> dict[str, Tensor]:
    return {f"{prefix}.{f.name}": getattr(record, f.name) for f in fields(record)}


def _collect(kind, prefix: str, tensors: dict[str, Tensor]):
    return kind(**{f.name: tensors[f"{prefix}.{f.name}"] for f in fields(kind)})


def _gaussians_problem(gaussians: Gaussians) -> str:
    """What is wrong with the arrays' shapes, dtypes or values, as a sentence; "" if nothing is."""
    count = gaussians.positions.shape[0]
    for name, (trailing, dtype) in _GAUSSIANS.items():
        value = getattr(gaussians, name)
        fits = value.ndim == 1 + len(trailing) and value.shape[0] == count and value.dtype == dtype
        fits = fits and all(want in (None, got) for want, got in zip(trailing, value.shape[1:], strict=True))
        if not fits:
            got = f"{tuple(value.shape)} {value.dtype}"
            return f"Gaussian array '{name}' is {got}, not ({count}, *{trailing}) {dtype}."
        if dtype.is_floating_point and not torch.isfinite(value).all():
            return f"Gaussian array '{name}' is not finite everywhere."
    if gaussians.features.shape[1] < 3:
        return "Gaussians need at least three feature channels."
    for name, known in (("binding", BindingKind), ("layer", Layer)):
        strange = set(getattr(gaussians, name).unique().tolist()) - {int(kind) for kind in known}
        if strange:
            return f"Gaussian array '{name}' has the unknown value {min(strange)}."
    return ""
