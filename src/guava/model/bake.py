"""Baking: an avatar of latents and a refiner becomes plain RGB Gaussians that need no network.

A splatted picture is linear in the colours: with poses, sizes and opacities given, picture k is A_k c, where
A_k (pixels x Gaussians) holds the compositing weights. The colours that show the refined pictures b_k best,
over poses and views that stand for what the avatar will be asked to do, therefore minimise ::

    sum_k |A_k c - b_k|^2 + lambda |c - p|^2

by conjugate gradients on the normal equations: drawing is A_k, the drawing's gradient is A_k^T, and there is
no learning rate. p is the coarse RGB under the one affine change of colour that explains the refiner best; a
Gaussian that no fitted picture shows keeps it. Before that, the half pixel by which the splatter widens
everything goes into the sizes: plain Gaussians are shown at any size, the refiner knows them at one.

Opacities, sizes and places enter nonlinearly. If asked for, they follow by a few hundred steps of Adam, and
the colours are solved once more. What a Gaussian is bound to always stays: the avatar moves as before.

What is lost is measured on poses and views that were not fitted (:class:`guava.avatar.BakeReport`).
docs/baking.md has figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from guava.avatar import Animator, Avatar, BakeReport
from guava.avatar.framing import framing, pivot
from guava.avatar.gaussians import BindingKind, Gaussians
from guava.avatar.views import orbit
from guava.body import Pose, Template
from guava.body.controls import read_controls, write_controls
from guava.camera import Camera
from guava.errors import InputError
from guava.model.stages import Progress
from guava.motion import Performance, apply_motion, make_clip
from guava.rendering import SplatConventions, splat
from guava.rotation import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    quaternion_multiply,
    quaternion_to_matrix,
)

_FINGERS = ("index", "middle", "pinky", "ring")


# --- which poses and views ---


@dataclass(frozen=True)
class BakePose:
    """A pose to bake or to judge by.

    Attributes:
        clip: One of ``guava.motion.CLIP_NAMES``; "" is the photo's own pose.
        seconds: Moment of the clip.
        seed: Which take of it.
        head: Degrees that the head turns on top of it: to the person's left, and down.
        gaze: Degrees that the eyes turn on top of it: to the person's left, and up.
        fingers: Degrees that every joint of the fingers bends on top of it.
        arms: As in ``guava.motion.apply_motion``.
    """

    clip: str = ""
    seconds: float = 0.0
    seed: int = 0
    head: tuple[float, float] = (0.0, 0.0)
    gaze: tuple[float, float] = (0.0, 0.0)
    fingers: float = 0.0
    arms: str = "auto"

    def __str__(self) -> str:
        parts = [f"{self.clip} {self.seed} at {self.seconds:g} s" if self.clip else "photo"]
        for name in ("head", "gaze"):
            aside, along = getattr(self, name)
            parts += [f"{name} {aside:+g} {along:+g}"] if aside or along else []
        parts += [f"fingers {self.fingers:+g}"] if self.fingers else []
        return ", ".join(parts)


View = tuple[float, float]
"""Degrees (yaw, pitch) of ``guava.avatar.views.orbit``."""

FITTED: tuple[tuple[BakePose, View], ...] = (
    (BakePose(), (0, 0)),
    (BakePose(), (-28, 6)),
    (BakePose(), (28, -6)),
    (BakePose("talk", 0.4), (-15, 0)),
    (BakePose("talk", 1.2), (15, 8)),
    (BakePose("talk", 2.1), (-30, -8)),
    (BakePose("talk", 3.0), (5, -10)),
    (BakePose("talk", 3.9), (30, 5)),
    (BakePose("talk", 4.8), (-8, 10)),
    (BakePose("talk", 5.7), (22, 0)),
    (BakePose("talk", 6.6), (-22, 4)),
    (BakePose("talk", 7.4), (0, 0)),
    (BakePose("wave", 1.6, arms="motion"), (10, 0)),
    (BakePose("wave", 2.2, arms="motion"), (-20, 5)),
    (BakePose("idle", 1.0, head=(25, 0)), (0, 0)),
    (BakePose("idle", 2.5, head=(-25, 5)), (12, 4)),
    (BakePose("idle", 4.0, head=(0, 16)), (-12, -4)),
    (BakePose("idle", 5.0, gaze=(20, 8), fingers=35), (18, -6)),
    (BakePose("idle", 6.0, gaze=(-20, -8), fingers=65), (-25, 0)),
    (BakePose("idle", 7.0, head=(12, -12), gaze=(0, -15)), (2, 12)),
)
"""What is fitted: talking, gestures, head turns, fingers and gaze, from where an upper body is looked at."""

JUDGED_POSES: tuple[BakePose, ...] = (
    BakePose("talk", 1.7, seed=7),
    BakePose("talk", 5.1, seed=7, gaze=(15, 0)),
    BakePose("wave", 1.9, seed=3, arms="motion"),
    BakePose("idle", 3.3, seed=5, head=(18, 8)),
    BakePose("talk", 6.9, seed=7, head=(-15, 0), fingers=45),
)
JUDGED_VIEWS: tuple[View, ...] = ((-25, 5), (3, -4), (20, 8))
"""What the loss is measured on, all poses in all views; none of them is fitted."""


@dataclass(frozen=True)
class BakeConfig:
    """How an avatar is baked.

    Attributes:
        fitted: Poses and views that are fitted.
        judged_poses, judged_views: What the loss is measured on, every pose in every view.
        iterations: Of conjugate gradients, for each solution of the colours.
        steps: Of Adam on opacities, sizes, places and colours, between two solutions of the colours; 0
            solves for colours alone, once.
        prior: lambda of the module's equation, in pixels: a Gaussian whose weights in all fitted pictures
            sum to less keeps about its prior colour.
        samples: Samples per pixel side that the plain Gaussians are drawn with, for fitting and for judging;
            the commands show them with 2 (``guava.avatar.framing.samples``).
    """

    fitted: tuple[tuple[BakePose, View], ...] = FITTED
    judged_poses: tuple[BakePose, ...] = JUDGED_POSES
    judged_views: tuple[View, ...] = JUDGED_VIEWS
    iterations: int = 4
    steps: int = 0
    prior: float = 0.1
    samples: int = 2


class Baked(NamedTuple):
    """What baking gives.

    Attributes:
        avatar: Three channels, no refiner; its provenance holds the report.
        report: What was lost.
    """

    avatar: Avatar
    report: BakeReport


def bake(
    avatar: Avatar,
    template: Template,
    refiner: nn.Module | None = None,
    config: BakeConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    backend: str = "auto",
    progress: Progress | None = None,
) -> Baked:
    """Fit plain RGB Gaussians to the refined pictures of an avatar.

    The result is the same on every run with the same backend and versions.

    Args:
        avatar: With a refiner.
        template: The avatar's.
        refiner: Its refiner; the installed weights' without it.
        config: How.
        device: Where everything runs.
        backend: Splat backend; it must have gradients.
        progress: Called with (stage, done, total), total in units of about equal time.

    Raises:
        InputError: There is nothing to bake: the avatar has no refiner.
        MissingAssetError: The weights that its refiner belongs to are not installed.
        TemplateMismatchError: The avatar belongs to another template.
    """
    check_bakeable(avatar)
    config = config or BakeConfig()
    work = _Work(config, progress)
    show = Animator(avatar, template, refiner=refiner, device=device, backend=backend)
    coarse = Animator(avatar, template, coarse=True, device=device, backend=backend)
    size = show.working_size

    fitted = bake_cameras(avatar, template, config.fitted, size)
    frames = [
        _Frame.of(coarse, show, pose, camera, config.samples)
        for pose, camera in work("refined pictures", fitted, _REFINE)
    ]
    scene = _Scene(frames, coarse.gaussians.opacities, coarse.conventions, backend)
    shapes = widened(scene, coarse.gaussians)
    scene = scene.with_shapes(shapes)
    colors = coarse.gaussians.features[:, :3]
    prior = affine_prior(scene, colors, work("colours", range(len(frames))))

    def solve(scene: _Scene, start: Tensor) -> Tensor:
        return solve_colors(scene, start, prior, config.prior, config.iterations, work.passes("colours"))

    fit = solve(scene, prior)
    if config.steps:
        change, fit = refine_shapes(scene, coarse.gaussians, fit, config.steps, work.passes("shapes"))
        fit = solve(scene.with_shapes(change), fit)
        shapes = change.after(shapes)
    baked = baked_avatar(avatar, fit, shapes)

    judged = [(pose, view) for pose in config.judged_poses for view in config.judged_views]
    result = Animator(baked, template, device=device, backend=backend)
    rows = []
    for pose, camera in work("unseen views", bake_cameras(avatar, template, judged, size), _JUDGE):
        truth = show.render(pose, camera)
        drawn = [a.render(pose, camera, config.samples) for a in (result, coarse)]
        rows.append([compare(picture, truth, shade) for picture in drawn for shade in (0.0, 1.0)])
    across = len(config.judged_views)
    tables = [
        tuple(tuple(row[kind] for row in rows[i : i + across]) for i in range(0, len(rows), across))
        for kind in range(4)
    ]
    report = BakeReport(
        weights=avatar.refiner.weights,
        hash=avatar.refiner.hash,
        size=size,
        poses=tuple(str(pose) for pose in config.judged_poses),
        views=tuple((float(yaw), float(pitch)) for yaw, pitch in config.judged_views),
        psnr=tables[0],
        psnr_on_white=tables[1],
        coarse_psnr=tables[2],
        coarse_psnr_on_white=tables[3],
        settings={
            "iterations": config.iterations, "steps": config.steps, "prior": config.prior,
            "samples": config.samples,
            "fitted": [[str(pose), float(yaw), float(pitch)] for pose, (yaw, pitch) in config.fitted],
        },
    )  # fmt: skip
    stated = baked.provenance
    baked = replace(
        baked, provenance=replace(stated, baked=report, notes=(*stated.notes, report.sentence()))
    )
    return Baked(baked, report)


def check_bakeable(avatar: Avatar) -> None:
    """Refuse an avatar that has nothing to bake.

    Raises:
        InputError: It is baked already, or never had a refiner.
    """
    if avatar.refiner is not None:
        return
    if avatar.provenance.baked is not None:
        raise InputError(
            f"This avatar is baked already. {avatar.provenance.baked.sentence()}",
            "To bake it otherwise, start from the file with the refiner's latents.",
        )
    raise InputError(
        f"This avatar has no refiner: what the model '{avatar.provenance.generator}' made is plain RGB "
        "already, and needs no baking.",
        "Use it as it is.",
    )


# --- poses and cameras ---


def bake_cameras(
    avatar: Avatar, template: Template, wanted: Iterable[tuple[BakePose, View]], size: int
) -> list[tuple[Pose, Camera]]:
    """Poses (B = 1) in the avatar's world, and a camera for each, framed as ``guava render`` does."""
    center = pivot(avatar, template)
    takes: dict[tuple[str, int, str], Performance] = {}
    out = []
    for item, (yaw, pitch) in wanted:
        hands = avatar.source.hands_seen
        pose = avatar.source.pose
        if item.clip:
            key = (item.clip, item.seed, item.arms)
            if key not in takes:
                clip = make_clip(item.clip, template, item.seed)
                takes[key] = apply_motion(clip, avatar, template, anchor="photo", arms=item.arms)
            take = takes[key]
            frame = round(item.seconds * take.fps) % take.pose.joints.shape[0]
            pose, hands = take.pose[frame : frame + 1], take.arms
        pose = _changed(pose, item, template)
        camera = framing(avatar, template, size, poses=pose, hands=hands)
        out.append((pose, orbit(camera, center, yaw, pitch)))
    return out


def _changed(pose: Pose, item: BakePose, template: Template) -> Pose:
    """The pose with the item's turn of head, eyes and fingers on top."""
    if any(item.gaze):
        controls = read_controls(pose, template.expression_names)
        aside = controls.gaze.new_tensor([math.radians(angle) for angle in item.gaze])
        pose, _ = write_controls(pose, template, replace(controls, gaze=controls.gaze + aside))
    joints = pose.joints.clone()

    def turn(name: str, *angles: float) -> None:
        index = template.joint(name)
        more = axis_angle_to_matrix(joints.new_tensor([math.radians(angle) for angle in angles]))
        joints[:, index] = matrix_to_axis_angle(axis_angle_to_matrix(joints[:, index]) @ more)

    if any(item.head):
        left, down = item.head
        for name in ("neck", "head"):
            turn(name, down / 2, left / 2, 0.0)
    if item.fingers:
        for side, sign in (("left", -1.0), ("right", 1.0)):
            for name in (f"{side}_{finger}{k}" for finger in _FINGERS for k in (1, 2, 3)):
                turn(name, 0.0, 0.0, sign * item.fingers)
    return replace(pose, joints=joints)


# --- the linear part: pictures of colours ---


@dataclass(frozen=True)
class _Frame:
    """One fitted picture.

    Attributes:
        means, quaternions, scales: (N, .) the posed Gaussians.
        turn, ratio: (N, 4), (N, 1): how the pose turns (a quaternion) and stretches what hangs at a Gaussian.
        camera: At the splat's size, ``samples`` times the picture's.
        samples: Per pixel side.
        target: (H, W, 4) the refined picture on black, and its alpha.
    """

    means: Tensor
    quaternions: Tensor
    scales: Tensor
    turn: Tensor
    ratio: Tensor
    camera: Camera
    samples: int
    target: Tensor

    @staticmethod
    def of(coarse: Animator, show: Animator, pose: Pose, camera: Camera, samples: int) -> _Frame:
        posed, rest = coarse.pose(pose), coarse.gaussians
        drawn = show.render(pose, camera)
        target = torch.cat([drawn[..., :3] * drawn[..., 3:], drawn[..., 3:]], -1).to(coarse.device)
        large = camera.resized(samples * camera.width, samples * camera.height).to(coarse.device)
        back = rest.rotations * rest.rotations.new_tensor([1.0, -1, -1, -1])
        return _Frame(
            posed.means, posed.quaternions, posed.scales, quaternion_multiply(posed.quaternions, back),
            posed.scales[:, :1] / rest.scales[:, :1].clamp(min=1e-12), large, samples, target,
        )

    def changed(self, shapes: _Shapes) -> _Frame:
        """The frame with other sizes and places."""
        w, axis = self.turn[:, :1], self.turn[:, 1:]
        moved = torch.linalg.cross(axis, shapes.shift, dim=1)
        moved = shapes.shift + 2 * (w * moved + torch.linalg.cross(axis, moved, dim=1))
        return replace(
            self, means=self.means + self.ratio * moved, scales=self.scales * shapes.growth.exp()
        )


@dataclass(frozen=True)
class _Shapes:
    """What is fitted besides colours.

    Attributes:
        opacities: (N,).
        growth: (N, 3) logarithms of the factors by which scales change.
        shift: (N, 3) metres in the rest pose.
    """

    opacities: Tensor
    growth: Tensor
    shift: Tensor

    def after(self, first: _Shapes) -> _Shapes:
        """Both changes, one after the other."""
        return _Shapes(self.opacities, first.growth + self.growth, first.shift + self.shift)


@dataclass(frozen=True)
class _Scene:
    """All fitted pictures of one set of Gaussians.

    Attributes:
        frames: The pictures.
        opacities: (N,).
        conventions, backend: Of the splatter.
    """

    frames: list[_Frame]
    opacities: Tensor
    conventions: SplatConventions
    backend: str

    def draw(self, frame: _Frame, features: Tensor) -> tuple[Tensor, Tensor]:
        """(H, W, C) premultiplied features and (H, W) alpha of a frame."""
        out = splat(
            frame.means, frame.quaternions, frame.scales, self.opacities, features, frame.camera,
            backend=self.backend, conventions=self.conventions,
        )
        return _averaged(out.features, frame.samples), _averaged(out.alpha[..., None], frame.samples)[..., 0]

    def with_shapes(self, shapes: _Shapes) -> _Scene:
        """The same pictures of Gaussians with other shapes."""
        return replace(self, frames=[f.changed(shapes) for f in self.frames], opacities=shapes.opacities)


def _averaged(picture: Tensor, samples: int) -> Tensor:
    if samples == 1:
        return picture
    height, width, channels = picture.shape
    shape = (height // samples, samples, width // samples, samples, channels)
    return picture.reshape(shape).mean((1, 3))


def affine_prior(scene: _Scene, colors: Tensor, numbers: Iterable[int]) -> Tensor:
    """(N, 3) the colours under the affine map that, applied to the coarse pictures, explains the refined ones
    best; in [0, 1].

    Because pictures are linear in colours, [rgb, alpha] of the coarse picture times a 4 x 3 matrix *is* the
    picture of Gaussians whose colours went through it. Twelve numbers from many pictures cannot fit too
    closely, so the map also holds for what was never seen: no seam where the fitted views end.

    Args:
        scene: The pictures.
        colors: (N, 3) coarse RGB.
        numbers: Indices of the frames to use.
    """
    gram, moment = colors.new_zeros(4, 4, dtype=torch.float64), colors.new_zeros(4, 3, dtype=torch.float64)
    for number in numbers:
        frame = scene.frames[number]
        with torch.no_grad():
            rgb, alpha = scene.draw(frame, colors)
        coarse = torch.cat([rgb, alpha[..., None]], -1).reshape(-1, 4).double()
        gram += coarse.T @ coarse
        moment += coarse.T @ frame.target[..., :3].reshape(-1, 3).double()
    # A person of one colour leaves the map open; then it stays what it was.
    weight = 1e-3 * gram.diagonal().mean() + 1e-9
    unchanged = torch.eye(4, 3, dtype=torch.float64, device=colors.device)
    ridge = weight * torch.eye(4, dtype=torch.float64, device=colors.device)
    change = torch.linalg.solve(gram + ridge, moment + weight * unchanged)
    stacked = torch.cat([colors, torch.ones_like(colors[:, :1])], -1).double()
    return (stacked @ change).clamp(0, 1).float()


def solve_colors(
    scene: _Scene,
    start: Tensor,
    prior: Tensor,
    weight: float,
    iterations: int,
    step: Callable[[], None] = lambda: None,
) -> Tensor:
    """(N, 3) colours in [0, 1] that minimise sum |A_k c - b_k|^2 + weight |c - prior|^2.

    Conjugate gradients with the preconditioner sum A_k^T A_k 1 + weight. The last third of the iterations
    holds what left [0, 1] at its bound and lets the neighbours make up for it.

    Args:
        scene: The pictures.
        start, prior: (N, 3).
        weight: Of the prior, lambda.
        iterations: In all; each draws every picture once, and each of the two parts draws them once more.
        step: Called after every picture drawn.
    """
    colors = start.clone()
    first = iterations - iterations // 3
    free = torch.ones_like(colors)
    for count in (first, iterations - first):
        if count:
            colors = _descend(scene, colors, prior, weight, count, free, step).clamp(0, 1)
            free = ((colors > 0) & (colors < 1)).to(colors)
    return colors


def _descend(
    scene: _Scene,
    colors: Tensor,
    prior: Tensor,
    weight: float,
    iterations: int,
    free: Tensor,
    step: Callable[[], None],
) -> Tensor:
    """Conjugate gradients over the colours where ``free`` (N, 3) is 1; the three channels share their matrix
    and nothing else."""
    residual = -weight * (colors - prior)
    seen = torch.zeros_like(colors[:, 0])
    stacked = torch.cat([colors, torch.ones_like(colors[:, :1])], -1)
    for frame in scene.frames:
        pulled = _transposed(scene, frame, stacked, lambda rgba, t=frame.target: torch.cat(
            [t[..., :3] - rgba[..., :3], rgba[..., 3:]], -1
        ))  # fmt: skip
        residual += pulled[:, :3]
        seen += pulled[:, 3]  # A^T A 1: an upper bound of A^T A, whose entries are not negative
        step()
    inverse = 1 / (seen + weight)[:, None]
    residual = residual * free
    scaled = inverse * residual
    direction = scaled
    energy = (residual * scaled).sum(0)
    for _ in range(iterations):
        curved = weight * direction
        for frame in scene.frames:
            curved = curved + _transposed(scene, frame, direction, lambda picture: picture)
            step()
        curved = curved * free
        length = energy / (direction * curved).sum(0).clamp(min=1e-30)
        colors = colors + length * direction
        residual = residual - length * curved
        scaled = inverse * residual
        before, energy = energy, (residual * scaled).sum(0)
        direction = scaled + energy / before.clamp(min=1e-30) * direction
    return colors


def _transposed(
    scene: _Scene, frame: _Frame, features: Tensor, of: Callable[[Tensor], Tensor]
) -> Tensor:
    """A_k^T of(A_k features): (N, C)."""
    features = features.detach().requires_grad_()
    with torch.enable_grad():
        picture, _ = scene.draw(frame, features)
        (pulled,) = torch.autograd.grad(picture, features, of(picture.detach()))
    return pulled


# --- the rest: opacities, sizes and places ---

_BOX = 1 / 12
"""Variance of a pixel's square, in square pixels."""


def widened(scene: _Scene, gaussians: Gaussians) -> _Shapes:
    """Sizes at which a picture of S x S samples a pixel looks as one of a single sample does, in which the
    refiner knows the Gaussians.

    The splatter widens everything by ``eps2d`` square pixels of what it draws, and averaging S x S samples
    widens by (1 - 1 / S^2) / 12. At other sizes, or with more samples, Gaussians would be thinner than the
    refiner saw them, and outlines with them. The difference, in metres at the fitted pictures' distance, goes
    into the scales; with that the avatar looks about the same at all sizes.
    """
    apart = [1 - 1 / frame.samples**2 for frame in scene.frames]
    variance = torch.zeros_like(gaussians.opacities)
    for frame, share in zip(scene.frames, apart, strict=True):
        depth = frame.camera.transform(frame.means)[:, 2]
        pixel = frame.samples * depth / frame.camera.intrinsics[0, 0] / frame.ratio[:, 0].clamp(min=1e-3)
        variance += share * (scene.conventions.eps2d - _BOX) * pixel.square() / len(scene.frames)
    known = gaussians.scales.clamp(min=1e-9).square()
    growth = (1 + variance.clamp(min=0)[:, None] / known).log() / 2
    return _Shapes(scene.opacities, growth, torch.zeros_like(gaussians.positions))


_COLOR_RATE, _OPACITY_RATE, _SIZE_RATE, _SHIFT_RATE = 0.01, 0.03, 0.01, 0.03
"""Learning rates at the start: of colours, of opacities' logits, of sizes' logarithms, and of places in units
of the Gaussian's size."""

_FAINT_GRADIENT = 0.01
"""Adam's eps, in units of summed squared errors: Gaussians that hardly show move little."""

_ALPHA_WEIGHT = 0.3
"""Of the alpha's squared error beside those of three colours."""


def refine_shapes(
    scene: _Scene,
    gaussians: Gaussians,
    colors: Tensor,
    steps: int,
    step: Callable[[], None] = lambda: None,
) -> tuple[_Shapes, Tensor]:
    """Opacities, sizes and places that fit the pictures and their alphas better, colours along with them.

    What a Gaussian is bound to stays: it moves in the frame of its triangle, or in the rest pose of its own
    skin. Those on vertices have no place of their own.

    Args:
        scene: The pictures, with the Gaussians' own shapes.
        gaussians: The Gaussians in the rest pose.
        colors: (N, 3) to start from.
        steps: Of Adam, one picture each.
        step: Called after each.

    Returns:
        The shapes, and colours in [0, 1].
    """
    drawn = scene.opacities > scene.conventions.alpha_min
    # A disc's thickness is no measure of it; Gaussians of no size stay where they are.
    reach = gaussians.scales.topk(2, dim=1).values.prod(1, keepdim=True).sqrt()
    reach = reach * (gaussians.binding != BindingKind.VERTEX)[:, None]
    logits = torch.logit(scene.opacities, eps=1e-4).requires_grad_()
    growth, place = torch.zeros_like(colors).requires_grad_(), torch.zeros_like(colors).requires_grad_()
    colors = colors.clone().requires_grad_()
    groups = [
        {"params": [colors], "lr": _COLOR_RATE},
        {"params": [logits], "lr": _OPACITY_RATE},
        {"params": [growth], "lr": _SIZE_RATE},
        {"params": [place], "lr": _SHIFT_RATE},
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=_FAINT_GRADIENT)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: 0.05 + 0.475 * (1 + math.cos(math.pi * min(n / steps, 1)))
    )
    generator = torch.Generator().manual_seed(0)
    order: list[int] = []

    def shapes() -> _Shapes:
        return _Shapes(torch.where(drawn, torch.sigmoid(logits), scene.opacities), growth, reach * place)

    for _ in range(steps):
        order = order or torch.randperm(len(scene.frames), generator=generator).tolist()
        frame = scene.frames[order.pop()]
        with torch.enable_grad():
            now = shapes()
            rgb, alpha = replace(scene, opacities=now.opacities).draw(frame.changed(now), colors)
            error = (rgb - frame.target[..., :3]).square().sum()
            error = error + _ALPHA_WEIGHT * (alpha - frame.target[..., 3]).square().sum()
            optimizer.zero_grad()
            error.backward()
        optimizer.step()
        decay.step()
        with torch.no_grad():
            colors.clamp_(0, 1)
        step()
    now = shapes()
    return _Shapes(now.opacities.detach(), now.growth.detach(), now.shift.detach()), colors.detach()


# --- the result ---


def baked_avatar(avatar: Avatar, colors: Tensor, shapes: _Shapes | None = None) -> Avatar:
    """The avatar with three channels and no refiner, bound to the template as before."""
    g = replace(avatar.gaussians, features=colors.cpu().contiguous())
    if shapes is not None:
        shift = shapes.shift.cpu()
        # Into the triangle's frame: turned by the inverse of its rotation, in units of its size.
        inward = g.triangle_rotation * g.triangle_rotation.new_tensor([1.0, -1, -1, -1])
        local = (quaternion_to_matrix(inward) @ shift[..., None])[..., 0] / g.sigma[:, None].clamp(min=1e-12)
        rigged = (g.binding == BindingKind.TRIANGLE)[:, None]
        g = replace(
            g,
            opacities=shapes.opacities.cpu().clone(),
            scales=g.scales * shapes.growth.cpu().exp(),
            positions=g.positions + shift,
            local_offset=torch.where(rigged, g.local_offset + local, g.local_offset),
        )
    return replace(avatar, gaussians=g, refiner=None)


def compare(drawn: Tensor, truth: Tensor, shade: float) -> float:
    """PSNR in dB of two (H, W, 4) pictures of :meth:`guava.avatar.Animator.render` over a grey of ``shade``,
    over all pixels and three channels, peak 1; 100 at most."""

    def shown(picture: Tensor) -> Tensor:
        alpha = picture[..., 3:].double()
        return picture[..., :3].double() * alpha + shade * (1 - alpha)

    error = float((shown(drawn) - shown(truth)).square().mean())
    return -10 * math.log10(max(error, 1e-10))


# --- progress ---

_REFINE, _JUDGE, _STEP = 3, 4, 2
"""Time of a refined picture, of a judged one (a refined and two plain ones) and of a step of Adam, in draws
of three channels with their transpose."""


class _Work:
    """Counts work for a progress bar."""

    def __init__(self, config: BakeConfig, progress: Progress | None):
        count, judged = len(config.fitted), len(config.judged_poses) * len(config.judged_views)
        solution = count * (config.iterations + (2 if config.iterations >= 3 else 1))
        self.total = count * (_REFINE + 1) + solution + judged * _JUDGE
        if config.steps:
            self.total += solution + _STEP * config.steps
        self.done = 0
        self.progress = progress

    def __call__(self, stage: str, items: Iterable, units: int = 1):
        """Yield the items of a stage, each ``units`` of work."""
        for item in items:
            self._tell(stage, 0)
            yield item
            self._tell(stage, units)

    def passes(self, stage: str) -> Callable[[], None]:
        """To be called after every draw of a stage."""
        units = _STEP if stage == "shapes" else 1
        return lambda: self._tell(stage, units)

    def _tell(self, stage: str, units: int) -> None:
        self.done = min(self.done + units, self.total)
        if self.progress is not None:
            self.progress(stage, self.done, self.total)


__all__ = [
    "FITTED",
    "JUDGED_POSES",
    "JUDGED_VIEWS",
    "BakeConfig",
    "BakePose",
    "Baked",
    "bake",
    "bake_cameras",
    "check_bakeable",
    "compare",
]
