"""A tracked photo -> an avatar by the learned system (Sec. 3.2): presets "official", "paper" and "lite"."""

from __future__ import annotations

import hashlib
import json
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guava import __version__
from guava.avatar import Avatar, Provenance, RefinerReference, SourceView
from guava.avatar.animate import PRECISIONS, find_device
from guava.avatar.gaussians import BindingKind, Gaussians
from guava.body import EHM, Pose, Template, load_template
from guava.body.template import PLAIN_HEAD
from guava.camera import Camera
from guava.errors import InputError, MissingAssetError, NoPersonError, TemplateMismatchError
from guava.model.assemble import Seen, assemble, seen_in_source
from guava.model.backbone import BACKBONE
from guava.model.baseline.assemble import SIDES, hands_seen
from guava.model.config import Ablation, GuavaConfig, preset
from guava.model.network import build_network, build_refiner
from guava.model.outputs import NetworkOutput
from guava.model.source import SourceBatch, SurfacePrior
from guava.model.stages import Progress, Stages
from guava.model.weights import (
    Weights,
    check_template,
    config_from_json,
    config_to_json,
    load_into,
    load_weights,
)
from guava.photo import Photo
from guava.tracking.sequence import TrackedSequence

_PREDICTED = ("positions", "rotations", "scales", "opacities", "features")

STAGES = ("weights", "pose", "matte", "prior", "network", "assemble")
"""Of a reconstruction; "prior" only where the network starts from another generator's avatar."""

RANDOM = "random:"
"""Weights of this name are random numbers, "random:SEED": for developers. Nothing is random by default."""

ABLATIONS = {
    "refiner": "refiner",
    "inverse-mapping": "inverse_mapping",
    "uv-gaussians": "uv_gaussians",
    "ehm": "expressive_head",
}
"""Parts that Tab. 4 leaves out, by the names that commands use: field of :class:`Ablation`."""

_WORK_SIZE, _COLOR_SIZE = 512, 1024
"""Sides of the crop that mattes are solved in, and that the source picture is made from (release: 1024)."""


@dataclass(frozen=True)
class NetworkSettings:
    """How a network makes an avatar.

    Attributes:
        weights: Name or file of the weights, weights themselves, or "random:SEED" (see :data:`RANDOM`);
            None takes those that are named like the preset.
        network: Another network than the preset's, for random weights only (others bring their own).
        device: Where the network runs: "cpu", "cuda".
        precision: "fp32", "bf16" or "fp16" (mixed precision for the last two).
        noise: Seed of the noise that the release draws in every call; None leaves noise out.
        matting: "closed_form" solves the person's matte from the photo and the fitted mesh; "tracker" takes
            the detector's mask as it is.
        ablate: Names of :data:`ABLATIONS`: parts to leave out.
    """

    weights: str | Path | Weights | None = None
    network: GuavaConfig | None = None
    device: str = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    noise: int | None = None
    matting: Literal["closed_form", "tracker"] = "closed_form"
    ablate: tuple[str, ...] = ()


def reconstruct_network(
    photo: Photo,
    tracked: TrackedSequence,
    *,
    model: str,
    template: Template,
    config: NetworkSettings | None = None,
    frame: int = 0,
    progress: Progress | None = None,
    stages: Stages | None = None,
) -> Avatar:
    """One photo -> an avatar with the latents of the paper's network.

    For many photos, make a :class:`Generator` once.

    Args:
        photo: The picture that was tracked (for a clip: frame ``frame`` of it).
        tracked: Its tracked parameters.
        model: The preset.
        template: The template of ``tracked``.
        config: Settings.
        frame: Which frame of ``tracked`` the photo is.
        progress: Called with (stage, done, total).
        stages: Filled with stage times.

    Raises:
        MissingAssetError: The weights are not installed.
        TemplateMismatchError: Photo, weights and template do not belong together.
        NoPersonError: Nobody was tracked in the frame.
        InputError: Wrong settings.
    """
    config = config or NetworkSettings()
    stages = stages or Stages(STAGES, progress)
    with stages("weights"):
        weights = find_weights(model, config, template)
        generator = Generator(
            weights, template, device=config.device, precision=config.precision, ablate=config.ablate
        )
    return generator.avatar(
        photo, tracked, frame=frame, noise=config.noise, matting=config.matting, stages=stages
    )


class Generator:
    """A network with its weights, ready for any number of photos.

    Args:
        weights: What was learned, see :func:`find_weights`.
        template: The template that photos are tracked with.
        device: "cpu" or "cuda".
        precision: "fp32", "bf16" or "fp16".
        ablate: Parts to leave out.

    Attributes:
        weights, template, device: As given.
        config: The weights' config with the ablation.
        network: In evaluation mode, on the device.

    Raises:
        TemplateMismatchError: The weights belong to another template.
        FileFormatError: The weights do not fit their own config.
        MissingDependencyError: The encoder's library is not installed.
        InputError: An unknown device, precision or ablation.
    """

    def __init__(
        self,
        weights: Weights,
        template: Template,
        *,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        ablate: tuple[str, ...] = (),
    ):
        if precision not in PRECISIONS:
            raise InputError(
                f"There is no precision '{precision}'.", f"Choose one of: {', '.join(PRECISIONS)}."
            )
        self.weights, self.template, self.device = weights, template, find_device(device)
        self.precision, self.ablate = precision, tuple(dict.fromkeys(ablate))
        self.config = without(weights.config, self.ablate)
        _check_template(weights, template, self.config)
        self.network = _network(weights, self.config, template).to(self.device).eval()
        self.ehm = EHM(template)

    def predict(self, source: SourceBatch, *, noise: int | None = None) -> NetworkOutput:
        """The network on a batch, without gradients; tensors are single precision, on the device.

        Args:
            source: On any device.
            noise: Seed of the release's noise; None leaves it out.
        """
        generator = None if noise is None else torch.Generator(self.device).manual_seed(noise)
        dtype = PRECISIONS[self.precision]
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            output = self.network(
                to_device(source, self.device),
                noise="off" if noise is None else "random",
                generator=generator,
            )
        return output

    def avatar(
        self,
        photo: Photo,
        tracked: TrackedSequence,
        *,
        frame: int = 0,
        noise: int | None = None,
        matting: str = "closed_form",
        stages: Stages | None = None,
    ) -> Avatar:
        """One photo -> an avatar; arguments and errors as for :func:`reconstruct_network`."""
        stages = stages or Stages(STAGES)
        template, config = self.template, self.config
        _check_tracked(tracked, template, frame)
        with stages("pose"), torch.no_grad():
            view = source_view(tracked, self.ehm, frame)
        with stages("matte"):
            picture = source_picture(photo, tracked, template, frame, matting)
            shown = in_release_world(view) if config.encoder.kind == "dinov2" else view
            source = source_batch(shown, picture, config.encoder.image_size)
        if config.uv_branch.prior == "baseline":
            with stages("prior"):
                source = replace(source, prior=self._baseline(photo, tracked, view, frame))
        with stages("network"):
            output = self.predict(source, noise=noise)
            _synchronize(self.device)
        with stages("assemble"), torch.inference_mode():
            seen = self._seen(output, view, picture)
            gaussians = assemble(
                output,
                view.rest_vertices.to(self.device),
                template.faces.to(self.device),
                sigma_rule=config.sigma_rule,
                opacity_threshold=config.opacity_threshold,
                seen=seen,
            ).to("cpu")
            hanging = collapsed(gaussians) if shown is not view else torch.zeros(len(gaussians)).bool()
            gaussians = gaussians[~hanging]
        gaussians = replace(  # inference tensors cannot be used for training later
            gaussians, **{f.name: getattr(gaussians, f.name).clone() for f in fields(gaussians)}
        )
        values = (getattr(gaussians, name) for name in _PREDICTED)
        if not all(bool(torch.isfinite(value).all()) for value in values):
            raise InputError(
                f"The network gives values that are not finite in {self.precision}.", "Use --precision fp32."
            )
        weight = gaussians.opacities
        fraction = float((weight * gaussians.observed).sum() / weight.sum().clamp(min=1e-6))
        refines = config.ablation.refiner and self.weights.refiner is not None
        return Avatar(
            gaussians,
            tracked.identity,
            template.hash,
            self._source_record(photo, tracked, frame),
            Provenance(
                generator=config.preset,
                settings=self._settings(noise, matting),
                software=f"guava-avatar {__version__}",
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                observed_fraction=fraction,
                notes=(
                    *photo.notes, *tracked.quality.notes, *picture.notes, *self.notes(),
                    *_left_out(int(hanging.sum())),
                ),
            ),
            refiner=RefinerReference(self.weights.name, self.weights.hash) if refines else None,
            sigma_rule=config.sigma_rule,
            splat_conventions=config.splat_conventions,
            template_name=template.name,
        )

    def notes(self) -> tuple[str, ...]:
        """What whoever looks at the avatar should know of the network, in sentences."""
        notes = []
        if self.weights.name.startswith(RANDOM):
            notes.append(
                f"The weights are RANDOM NUMBERS ('{self.weights.name}'), nothing was learned: this avatar "
                "only shows that the program runs."
            )
        if self.ablate:
            trained = [name for name in self.ablate if getattr(self.weights.config.ablation, ABLATIONS[name])]
            if trained:
                notes.append(
                    f"Left out here, though the weights were trained with it: {', '.join(trained)}. A "
                    "network that was trained without it (Tab. 4) does better than this."
                )
        return (*notes, *unlike_the_release(self.weights, self.template))

    def _settings(self, noise: int | None, matting: str) -> dict:
        weights = self.weights
        return {
            "network": config_to_json(self.config),
            "weights": {
                "name": weights.name,
                "hash": weights.hash,
                "template": weights.template_name,
                "precision": weights.precision,
                "provenance": weights.provenance,
            },
            "device": self.device.type,
            "precision": self.precision,
            "noise": noise,
            "matting": matting,
            "ablate": list(self.ablate),
        }

    def _seen(self, output: NetworkOutput, view: PosedSource, picture: CutOut) -> Seen:
        seen = seen_in_source(
            output,
            view.vertices,
            self.template.faces,
            view.camera.resized(_WORK_SIZE, _WORK_SIZE),
            person=_resized(picture.mask, _WORK_SIZE)[0, 0] > 0.5,
            guessed=view.guessed,
        )
        return Seen(seen.template.to(self.device), tuple(texels.to(self.device) for texels in seen.uv))

    def _baseline(
        self, photo: Photo, tracked: TrackedSequence, view: PosedSource, frame: int
    ) -> SurfacePrior:
        """What the learning-free generator makes of the photo, as maps."""
        from guava.model.baseline import reconstruct_baseline
        from guava.model.lite import avatar_prior, uv_tables

        made = reconstruct_baseline(photo, tracked, template=self.template, frame=frame)
        tables = uv_tables(self.template, self.config.uv_branch.size)
        return avatar_prior(made.gaussians, view.rest_vertices, self.template.uv, tables)

    def _source_record(self, photo: Photo, tracked: TrackedSequence, frame: int) -> SourceView:
        return SourceView(
            tracked.pose[frame : frame + 1],
            tracked.camera[frame],
            tracked.crop_from_image[frame],
            photo.width,
            photo.height,
            photo.sha256 or tracked.media.sha256,
            photo.name or tracked.media.name,
            hands_seen=hands_seen(tracked, frame),
        )


# --- the source ---


@dataclass(frozen=True)
class PosedSource:
    """The posed body before the source camera, in the body's own frame: the tracker's translation is folded
    into the camera, as in the release.

    Attributes:
        vertices, rest_vertices: (V, 3) metres.
        camera: One camera of the square crop.
        guessed: (F,) bool: faces of hands that were not found; their place is a guess.
    """

    vertices: Tensor
    rest_vertices: Tensor
    camera: Camera
    guessed: Tensor


@dataclass(frozen=True)
class CutOut:
    """The square crop of the photo.

    Attributes:
        image: (1, 3, K, K) the person on black: colour times matte, RGB in [0, 1].
        mask: (1, 1, K, K) the matte.
        notes: What was decided about the picture, in sentences.
    """

    image: Tensor
    mask: Tensor
    notes: tuple[str, ...] = ()


def source_view(tracked: TrackedSequence, ehm: EHM, frame: int = 0) -> PosedSource:
    """Frame ``frame`` of a tracked sequence as a network sees it."""
    pose = tracked.pose[frame : frame + 1]
    posed = ehm(tracked.identity, replace(pose, translation=torch.zeros_like(pose.translation)))
    rest = ehm(tracked.identity, Pose.rest(ehm.template))
    shown = zip(SIDES, hands_seen(tracked, frame), strict=True)
    hidden = [f"{side}_hand" for side, seen in shown if not seen]
    template = ehm.template
    guessed = template.part(*hidden) if hidden else torch.zeros(len(template.faces), dtype=torch.bool)
    camera = tracked.camera[frame].absorbing(pose.translation[0])
    return PosedSource(posed.vertices[0], rest.vertices[0], camera, guessed)


def in_release_world(view: PosedSource) -> PosedSource:
    """The same view in the world that the release's networks know.

    The release's tracker keeps the source camera's axes about the world's and turns the person upside down
    (world y down), Guava's keeps the person upright. The camera code (``camera_code``) tells the two apart,
    so an upright world is turned by half about x; a view from the release's own tracks stays as it is.
    """
    w2c = view.camera.world_to_camera
    if w2c[1, 1] > 0:
        return view
    turn = w2c.new_tensor([1.0, -1.0, -1.0, 1.0])
    camera = replace(view.camera, world_to_camera=w2c * turn)
    return replace(view, vertices=view.vertices * turn[:3].to(view.vertices), camera=camera)


def unlike_the_release(weights: Weights, template: Template) -> tuple[str, ...]:
    """How the user's own body model differs from the one that the authors' weights were trained with, in
    sentences. Weights that know their template's hash are compared by it, not here."""
    if weights.template_hash is not None:
        return ()
    notes, made = [], template.provenance
    theirs = {"teeth_order": "scrambled", "upper_teeth_joint": "neck"}
    if made.get("options", theirs) != theirs:
        notes.append(
            "The weights were trained with the teeth of the authors' release, and the template has others: "
            "expect a wrong mouth, or choose theirs with: guava assets teeth release"
        )
    texels = made.get("texels", {})
    if texels.get("valid") != texels.get("release"):
        notes.append(
            f"The template's UV layout gives {texels['valid']:,} texels and the authors' "
            f"{texels['release']:,}: the weights were trained with another layout and do not fit it."
        )
    return tuple(notes)


def collapsed(gaussians: Gaussians) -> Tensor:
    """(N,) bool: UV Gaussians of texels whose triangle the release's UV table collapsed ([Q], all-zero
    barycentrics).

    The release hangs them at its world's origin, which lies below the picture of an upper body that its
    tracker posed, but inside the chest of one that ours did. The network never saw what they would do there.
    """
    return (gaussians.binding == BindingKind.TRIANGLE) & (gaussians.barycentrics == 0).all(-1)


def _left_out(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (f"{count} Gaussians of texels without area, which the release hangs at its world's origin, are "
            "left out: our tracker's origin is elsewhere.",)  # fmt: skip


def source_picture(
    photo: Photo, tracked: TrackedSequence, template: Template, frame: int = 0, matting: str = "closed_form"
) -> CutOut:
    """The person of a tracked photo, cut out.

    Args:
        photo: The picture.
        tracked: With the detector's mask.
        template: The template of ``tracked``.
        frame: Which frame of ``tracked`` the photo is.
        matting: See :class:`NetworkSettings`.

    Raises:
        InputError: ``tracked`` carries no person mask, or there is no such matting.
        NoPersonError: The fitted person lies outside the photo.
    """
    if tracked.masks is None:
        raise InputError("The tracked parameters carry no person mask.", "Track the photo again with masks.")
    if matting == "tracker":
        from guava.photo import warp_affine

        zoom = _COLOR_SIZE / tracked.camera.width
        matrix = torch.diag(torch.tensor([zoom, zoom, 1.0], dtype=torch.float64))
        matrix = matrix @ tracked.crop_from_image[frame].double()
        pixels = warp_affine(photo.pixels, matrix.numpy(), (_COLOR_SIZE, _COLOR_SIZE), border="edge")
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        mask = _resized(tracked.masks[frame][None, None].float() / 255, _COLOR_SIZE)
        return CutOut(image * mask, mask)
    if matting != "closed_form":
        raise InputError(f"There is no matting '{matting}'.", "Choose 'closed_form' or 'tracker'.")
    from guava.model.baseline.assemble import BaselineConfig, guessed_faces, matte_person
    from guava.model.baseline.surface import pose_template, see, surface_tables, to_camera

    config = BaselineConfig(work_size=_WORK_SIZE, color_size=_COLOR_SIZE)
    tables = surface_tables(template, config.texture_size)
    posed = pose_template(template, tracked.identity, tracked.pose[frame : frame + 1])
    camera = tracked.camera[frame].resized(_WORK_SIZE, _WORK_SIZE)
    bare = see(to_camera(posed.vertices[0], camera), tables, camera, guessed_faces(tracked, tables, frame))
    if bare.covered.sum() < 200:
        raise NoPersonError("The fitted person lies outside the photo.")
    cut = matte_person(photo, tracked, bare, tables, config, frame)
    image = torch.from_numpy(cut.fine_image).permute(2, 0, 1)[None].float()
    mask = torch.from_numpy(cut.fine_alpha)[None, None].float()
    return CutOut(image * mask, mask, cut.notes)


def source_batch(view: PosedSource, picture: CutOut, size: int) -> SourceBatch:
    """One source as a batch (B = 1), its picture resized to ``size`` with an antialiased bilinear filter."""
    return SourceBatch(
        _resized(picture.image, size),
        _resized(picture.mask, size),
        view.vertices[None],
        view.rest_vertices[None],
        view.camera.resized(size, size),
        view.guessed[None],
    )


def _resized(image: Tensor, size: int) -> Tensor:
    if image.shape[-2:] == (size, size):
        return image
    resized = F.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def to_device(source: SourceBatch, device: torch.device) -> SourceBatch:
    """The same batch on another device."""

    def moved(value):
        if isinstance(value, SurfacePrior):
            return replace(value, **{f.name: getattr(value, f.name).to(device) for f in fields(value)})
        return None if value is None else value.to(device)

    return replace(source, **{f.name: moved(getattr(source, f.name)) for f in fields(source)})


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- weights ---


def find_weights(model: str, config: NetworkSettings, template: Template | None = None) -> Weights:
    """The weights that settings ask for.

    Args:
        model: The preset: weights of another one are refused.
        config: Settings; ``weights`` and ``network`` are read.
        template: Whose sizes random weights get; the open one without it.

    Raises:
        MissingAssetError: They are not installed; says how to get them.
        InputError: They belong to another preset, or the settings contradict each other.
    """
    wanted = config.weights
    if isinstance(wanted, str) and wanted.startswith(RANDOM):
        return random_weights(config.network or preset(model), template or load_template(), _seed(wanted))
    if config.network is not None:
        raise InputError("Weights bring their own network.", "Leave out its configuration.")
    if isinstance(wanted, Weights):
        weights = wanted
    elif wanted is not None:
        weights = load_weights(wanted)
    else:
        try:
            weights = load_weights(model)
        except MissingAssetError as error:
            raise MissingAssetError(
                f"No weights for the model '{model}' are installed.", _HOW[model]
            ) from error
    if weights.preset != model:
        raise InputError(
            f"The weights '{weights.name}' belong to the model '{weights.preset}', not to '{model}'.",
            f"Use --model {weights.preset}, or other weights (see: guava weights list).",
        )
    return weights


_IMPORT = (
    "The authors' checkpoint comes from their project page, under their terms; add it with: guava weights "
    "import CHECKPOINT.pt --name official."
)
_HOW = {
    "official": _IMPORT,
    "paper": "Nobody has published weights for it. Train them, and name them with --weights FILE; or use "
    "--model baseline, which needs none.",
    "lite": "Name a file of yours with --weights FILE; or use --model baseline, which needs none.",
}


def prepare(
    model: str, config: NetworkSettings, template_name: str | None = None
) -> tuple[NetworkSettings, Template]:
    """The weights and the template that a photo has to be tracked with, before any work is done.

    Args:
        model: The preset.
        config: Settings; what ``weights`` names is loaded.
        template_name: The template that the user wants; without it, that of the weights (the open one for
            random weights), with its plain head in the ablation of the expressive head.

    Returns:
        The settings with the weights themselves in them, and the template.

    Raises:
        MissingAssetError: Weights or template are not installed.
        TemplateMismatchError: The template is not that of the weights.
        InputError: As :func:`find_weights`.
    """
    needed = {"uv-gaussians", "inverse-mapping"} & {*config.ablate}
    if model == "lite" and needed:
        raise InputError(
            "The model 'lite' is nothing but UV Gaussians from inverse texture mapping, and cannot leave out "
            f"{' and '.join(sorted(needed))}.",
            "These ablations are for the models 'official' and 'paper'.",
        )
    find_device(config.device)
    random = isinstance(config.weights, str) and config.weights.startswith(RANDOM)
    weights = None if random else find_weights(model, config)
    plain = PLAIN_HEAD if "ehm" in config.ablate else ""
    if template_name is None:
        name = "open" if weights is None else weights.template_name
        template_name = name if name.endswith(PLAIN_HEAD) else name + plain
    try:
        template = load_template(template_name)
    except MissingAssetError as error:
        if weights is None:
            raise
        raise MissingAssetError(
            f"The weights '{weights.name}' need the template '{template_name}', which is not installed.",
            error.hint,
        ) from error
    if weights is None:
        weights = find_weights(model, config, template)
    _check_template(weights, template, without(weights.config, config.ablate))
    return replace(config, weights=weights, network=None), template


def random_weights(config: GuavaConfig, template: Template, seed: int) -> Weights:
    """Weights as they are before any training. For developers: everything runs, nothing means anything.

    Warns with a RuntimeWarning.
    """
    warnings.warn(
        f"Random weights (seed {seed}) were asked for: the result shows nothing but that the program runs.",
        RuntimeWarning,
        stacklevel=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(config, template).state_dict()
    refiner = _random_refiner(config, seed)
    state = None if refiner is None else refiner.state_dict()
    return Weights(
        name=f"{RANDOM}{seed}",
        config=config,
        template_name=template.name,
        template_hash=template.hash,
        network=network,
        refiner=state,
        provenance={"random": seed},
        hash=_random_hash(config, state),
    )


def _random_refiner(config: GuavaConfig, seed: int) -> nn.Module | None:
    if not config.ablation.refiner:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_refiner(config)


def _random_hash(config: GuavaConfig, refiner: dict[str, Tensor] | None) -> str:
    """Of what an animation needs again: torch may draw other numbers in another version."""
    config = config_from_json(config_to_json(config))  # as a file would give it back: 2 becomes 2.0
    digest = hashlib.sha256(json.dumps(config_to_json(config), sort_keys=True).encode())
    for name, value in sorted((refiner or {}).items()):
        digest.update(name.encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _seed(name: str) -> int:
    digits = name.removeprefix(RANDOM)
    if not digits.isdecimal():
        raise InputError(f"'{name}' is not {RANDOM}SEED.", "Name a whole number, for instance random:0.")
    return int(digits)


def load_refiner(avatar: Avatar, weights: str | Path | Weights | None = None) -> nn.Module:
    """The refiner that an avatar was made for, in evaluation mode, single precision, on the CPU.

    Args:
        avatar: Its ``refiner`` says which weights they must be.
        weights: Where they are, if they are not installed under their name.

    Raises:
        MissingAssetError: They are not installed, or others are.
        InputError: The avatar needs no refiner, or ``weights`` are others.
    """
    reference = avatar.refiner
    if reference is None:
        raise InputError("This avatar needs no refiner.")
    if reference.weights.startswith(RANDOM) and weights is None:
        config = config_from_json(avatar.provenance.settings.get("network"))
        refiner = _random_refiner(config, _seed(reference.weights))
        if refiner is None or _random_hash(config, refiner.state_dict()) != reference.hash:
            raise MissingAssetError(
                f"The random refiner '{reference.weights}' comes out differently with this version of torch.",
                "Make the avatar again.",
            )
        return refiner.eval()
    if weights is None:
        try:
            weights = load_weights(f"{reference.weights}:{reference.hash[:16]}", parts=("refiner",))
        except MissingAssetError as error:
            raise MissingAssetError(
                f"This avatar is shown by the refiner of the weights '{reference}', which are not installed.",
                "Install them (guava weights import), name their file with --weights, or see the coarse "
                "picture with --coarse.",
            ) from error
    elif not isinstance(weights, Weights):
        weights = load_weights(weights, parts=("refiner",))
    if weights.hash != reference.hash:
        raise InputError(
            f"This avatar was made with the weights '{reference}', not with '{weights.name}' "
            f"({weights.hash[:12]}).",
            "Name those, or make the avatar again.",
        )
    with torch.device("meta") if weights.config.refiner.kind == "styleunet" else nullcontext():
        refiner = build_refiner(weights.config)
    load_into(None, refiner, weights)
    return refiner.eval()


def without(config: GuavaConfig, ablate: tuple[str, ...]) -> GuavaConfig:
    """A config with the named parts left out (Tab. 4).

    Raises:
        InputError: There is no such part.
    """
    for name in ablate:
        if name not in ABLATIONS:
            raise InputError(f"'{name}' cannot be left out.", f"Choose from: {', '.join(ABLATIONS)}.")
    return replace(config, ablation=replace(config.ablation, **{ABLATIONS[name]: False for name in ablate}))


def _network(weights: Weights, config: GuavaConfig, template: Template) -> nn.Module:
    """The network of ``config`` with ``weights``, which may have been trained with more parts."""
    # Without numbers of its own, the paper's network takes the weights' tensors over: no second gigabyte.
    with torch.device("meta") if config.encoder.kind == "dinov2" else nullcontext():
        network = build_network(config, template)
    state = weights.network
    if config != weights.config:
        expected = network.state_dict()
        state = {k: v for k, v in state.items() if k in expected or k.startswith(BACKBONE)}
    load_into(network, None, replace(weights, network=state))
    return network


def _check_template(weights: Weights, template: Template, config: GuavaConfig) -> None:
    if not config.ablation.expressive_head and template.name == weights.template_name + PLAIN_HEAD:
        return  # the same body, with its own head
    check_template(weights, template)
    if not config.ablation.expressive_head and not template.name.endswith(PLAIN_HEAD):
        raise TemplateMismatchError(
            f"Without the expressive head, track the photo with '{template.name}{PLAIN_HEAD}' (C.4).",
            f"Use --template {template.name}{PLAIN_HEAD}.",
        )


def _check_tracked(tracked: TrackedSequence, template: Template, frame: int) -> None:
    if tracked.template_hash != template.hash:
        raise TemplateMismatchError(
            f"The tracked parameters belong to another template ({tracked.template_hash[:12]}).",
            f"Track again with the template '{template.name}'.",
        )
    if not bool(tracked.valid[frame]):
        raise NoPersonError(f"Nobody was tracked in frame {frame} of '{tracked.media.name}'.")


__all__ = [
    "ABLATIONS",
    "RANDOM",
    "STAGES",
    "Ablation",
    "Generator",
    "NetworkSettings",
    "collapsed",
    "find_weights",
    "in_release_world",
    "load_refiner",
    "prepare",
    "random_weights",
    "reconstruct_network",
    "source_batch",
    "source_picture",
    "source_view",
    "unlike_the_release",
    "without",
]
