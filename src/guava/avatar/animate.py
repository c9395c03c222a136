"""Frames of a moving avatar (paper Sec. 3.3): body, posing, splatting, refining."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guava.avatar.avatar import Avatar
from guava.avatar.posing import PosedGaussians, pose_gaussians
from guava.body import EHM, Identity, LinearModel, Pose, Template
from guava.body.ehm import WRISTS
from guava.camera import Camera
from guava.errors import InputError, TemplateMismatchError
from guava.rendering.splatting import CONVENTIONS, SplatOutput, splat

WHITE = (1.0, 1.0, 1.0)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions that networks can run in, by the names that commands use."""

_FAINT = 2 / 255
"""A refiner's sigmoid never gives exactly black; less than this, where no Gaussian is, counts as nothing."""


class Animator:
    """Renders one avatar in many poses. What depends only on the identity is computed once.

    An avatar of a network shows all its channels through its refiner; ``coarse`` shows the first three, as
    they are splatted.

    Attributes:
        seconds: Time spent so far by stage: "body" (EHM), "pose" (Gaussians), "splat", "refine".
        frames: Frames rendered so far.
        refiner: The refiner in use, or None.

    Args:
        avatar: Who is shown.
        template: The avatar's template.
        backend: Splat backend, see :func:`guava.rendering.splat`.
        refiner: The refiner to use, as :func:`guava.model.build_refiner` makes it: ``forward(features, alpha,
            *, noise, generator)``, with the ``size`` that it works at, on the device and in the precision
            that it is to run in. Without it, the avatar's own is loaded from the installed weights.
        coarse: Show the first three channels and load no refiner.
        device: Where everything runs.
        precision: Of the refiner that is loaded here: "fp32", "bf16" or "fp16".
        noise: Seed of the noise that the release's networks draw at every frame; None leaves noise out, so
            that equal frames are equal.

    Raises:
        TemplateMismatchError: The avatar belongs to another template.
        MissingAssetError: The weights that the avatar's refiner belongs to are not installed.
        InputError: An unknown precision, or a device that is not there.
    """

    def __init__(
        self,
        avatar: Avatar,
        template: Template,
        *,
        backend: str = "auto",
        refiner: nn.Module | None = None,
        coarse: bool = False,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        noise: int | None = None,
    ):
        if avatar.template_hash != template.hash:
            raise TemplateMismatchError(
                f"The avatar belongs to another body template ({avatar.template_hash[:12]}) than "
                f"'{template.name}' ({template.hash[:12]})."
            )
        self.device = find_device(device)
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise InputError(f"There is no precision '{precision}'.", f"Choose one of: {known}.")
        self.avatar = avatar
        self.refiner, self.working_size = None, 0
        if not coarse and (refiner is not None or avatar.refiner is not None):
            if refiner is None:
                from guava.model.generate import load_refiner

                refiner = load_refiner(avatar).to(self.device, PRECISIONS[precision])
            self.refiner, self.working_size = refiner.eval(), int(refiner.size)
        self.template, self.identity = with_identity(template, avatar.identity)
        self.identity = self.identity.to(self.device)
        self.ehm = EHM(self.template).to(self.device)
        self.faces = self.template.faces.to(self.device)
        self.backend = backend
        self.conventions = CONVENTIONS[avatar.splat_conventions]
        self.noise = None if noise is None else torch.Generator(self.device).manual_seed(noise)
        channels = 3 if self.refiner is None else avatar.gaussians.features.shape[1]
        gaussians = avatar.gaussians.to(self.device)
        self.gaussians = replace(gaussians, features=gaussians.features[:, :channels].contiguous())
        self.seconds: dict[str, float] = defaultdict(float)
        self.frames = 0

    def pose(self, pose: Pose) -> PosedGaussians:
        """The avatar's Gaussians in one pose (B = 1), on the animator's device."""
        pose = pose.to(self.device)
        with torch.no_grad():
            with self._timed("body"):
                output = self.ehm(self.identity, pose)
            with self._timed("pose"):
                return pose_gaussians(
                    self.gaussians, output, self.faces, sigma_rule=self.avatar.sigma_rule
                )

    def splat(self, pose: Pose, camera: Camera | None = None) -> SplatOutput:
        """One frame as premultiplied features on black, alpha and depth, on the animator's device: RGB, and
        the latents too where there is a refiner.

        Args:
            pose: B = 1.
            camera: One camera; the source view's without it.
        """
        g = self.pose(pose)
        camera = (camera or self.avatar.source.camera).to(self.device)
        with torch.no_grad(), self._timed("splat"):
            out = splat(
                g.means, g.quaternions, g.scales, g.opacities, g.features, camera, backend=self.backend,
                conventions=self.conventions,
            )
        self.frames += 1
        return out

    def refine(self, features: Tensor, alpha: Tensor) -> Tensor:
        """The refiner on one splatted picture, unnormalised and on black as the release does it.

        Args:
            features: (S, S, C) premultiplied, S the refiner's working size.
            alpha: (S, S).

        Returns:
            (S, S, 3) in [0, 1], the person on black.
        """
        if self.refiner is None:
            raise ValueError("This animator has no refiner.")
        parameter = next(self.refiner.parameters(), None)
        dtype = features.dtype if parameter is None else parameter.dtype
        with torch.no_grad(), self._timed("refine"):
            maps = features.permute(2, 0, 1)[None].to(dtype).contiguous()
            noise = "off" if self.noise is None else "random"
            picture = self.refiner(maps, alpha[None, None].to(dtype), noise=noise, generator=self.noise)
            return picture[0].permute(1, 2, 0).float()

    def render(self, pose: Pose, camera: Camera | None = None, supersample: int = 1) -> Tensor:
        """One frame as (H, W, 4) float32 on the CPU: RGB in [0, 1], not premultiplied, and alpha. See
        :func:`over`.

        A refiner works at its own size, the one that it was trained at: the view is splatted square at that
        size, refined, and resized to what ``camera`` asks for; ``supersample`` is not used then. Its picture
        is the person on black, so the alpha that goes with it is the splat's, raised where the picture is
        brighter than it allows: over black the result is the refined picture itself.

        Args:
            pose: B = 1.
            camera: One camera; the source view's without it.
            supersample: Samples per pixel side. Splatting widens everything by half a pixel, so that lids and
                lips cover eyes and teeth in small pictures; 2 avoids it at little cost.
        """
        camera = camera or self.avatar.source.camera
        if self.refiner is not None:
            return self._render_refined(pose, camera)
        if supersample == 1:
            out = self.splat(pose, camera)
            color, alpha = out.features, out.alpha[..., None]
        else:
            out = self.splat(pose, camera.resized(camera.width * supersample, camera.height * supersample))
            stacked = torch.cat([out.features, out.alpha[..., None]], -1)
            shape = (camera.height, supersample, camera.width, supersample, 4)
            color, alpha = stacked.reshape(shape).mean((1, 3)).split([3, 1], -1)
        return torch.cat([(color / alpha.clamp(min=1e-6)).clamp(0, 1), alpha], -1).cpu()

    def _render_refined(self, pose: Pose, camera: Camera) -> Tensor:
        square, left, top = square_view(camera, self.working_size)
        out = self.splat(pose, square)
        picture = torch.cat([self.refine(out.features, out.alpha), out.alpha[..., None].float()], -1)
        side = max(camera.width, camera.height)
        if side != self.working_size:
            picture = F.interpolate(
                picture.permute(2, 0, 1)[None], size=(side, side), mode="bilinear", antialias=True,
                align_corners=False,
            )[0].permute(1, 2, 0)
        color, alpha = picture[top : top + camera.height, left : left + camera.width].split([3, 1], -1)
        bright = color.amax(-1, keepdim=True)
        something = (alpha > 0) | (bright >= _FAINT)
        alpha = alpha.maximum(bright).clamp(0, 1) * something
        return torch.cat([(color / alpha.clamp(min=1e-6)).clamp(0, 1) * something, alpha], -1).cpu()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] += perf_counter() - start


def square_view(camera: Camera, size: int) -> tuple[Camera, int, int]:
    """A square camera of ``size`` pixels round the whole of ``camera``'s picture, and where that picture lies
    in the square once it is scaled to the longer side of ``camera``: left and top, pixels."""
    side = max(camera.width, camera.height)
    left, top = (side - camera.width) // 2, (side - camera.height) // 2
    zoom = size / side
    frame = torch.tensor([[zoom, 0, zoom * left], [0, zoom, zoom * top], [0, 0, 1]], dtype=torch.float64)
    return camera.through(frame, size, size), left, top


def find_device(device: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        InputError: There is no such device here.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"There is no device '{device}'.", "Use cpu or cuda.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError("This installation of torch finds no CUDA device.", "Use --device cpu.")
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"Guava does not run on the device '{device}'.", "Use cpu or cuda.")
    return found


def over(rgba: Tensor, background: tuple[float, float, float] | Tensor = WHITE) -> Tensor:
    """A frame over a background, ready to be written.

    Args:
        rgba: (H, W, 4) as :meth:`Animator.render` returns it.
        background: A colour, or a picture (H, W, 3) in [0, 1].

    Returns:
        (H, W, 3) uint8.
    """
    behind = torch.as_tensor(background, dtype=rgba.dtype, device=rgba.device)
    alpha = rgba[..., 3:]
    picture = rgba[..., :3] * alpha + behind * (1 - alpha)
    return picture.clamp(0, 1).mul(255).add(0.5).to(torch.uint8)


def with_identity(template: Template, identity: Identity) -> tuple[Template, Identity]:
    """A template whose mean person is ``identity`` (B = 1), and the identity that goes with it.

    Shape directions are folded into the means, so that a frame costs only what depends on the pose. The hash
    is kept: topology and units are the same.
    """
    body = _folded(template.body, identity.body_shape[0])
    head = _folded(template.head, identity.head_shape[0])
    # Hand centres are given for the mean person and follow the wrists of others.
    wrists = [template.joint(name) for name in WRISTS]
    moved = body.joints_template[wrists] - template.body.joints_template[wrists]
    centers = template.hand_centers if template.regress_joints else template.hand_centers + moved
    folded = replace(template, body=body, head=head, hand_centers=centers)
    zero = identity.body_shape.new_zeros(1, 1)
    return folded, replace(identity, body_shape=zero, head_shape=zero)


def _folded(model: LinearModel, shape: Tensor) -> LinearModel:
    """The model with a shape (S,) as its mean; one direction is kept, because models must have one."""
    count = shape.shape[0]
    return replace(
        model,
        v_template=model.v_template + model.shape_dirs[..., :count] @ shape,
        shape_dirs=model.shape_dirs[..., :1],
        joints_template=model.joints_template + model.joints_shape_dirs[..., :count] @ shape,
        joints_shape_dirs=model.joints_shape_dirs[..., :1],
    )
