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
from guava.body import Identity, LinearModel, Pose, Template
from guava.body.ehm import WRISTS
from guava.body.person import PersonEHM
from guava.camera import Camera
from guava.errors import InputError, TemplateMismatchError
from guava.rendering.frame import averaged, raised_alpha, to_rgb8
from guava.rendering.splatting import CONVENTIONS, SplatOutput, splat

WHITE = (1.0, 1.0, 1.0)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions that networks can run in, by the names that commands use."""

class Animator:
    """Renders one avatar in many poses. What depends only on the identity is computed once.

    An avatar of a network shows all its channels through its refiner; ``coarse`` shows the first three, as
    they are splatted.

    :meth:`frame` is the fast way: it works in the same memory frame after frame. One animator serves one
    thread.

    Attributes:
        seconds: Time spent so far by stage: "body" (EHM), "pose" (Gaussians), "splat", "refine", "convert"
            (background, 8 bits).
        frames: Frames rendered so far.
        refiner: The refiner in use, or None.

    Args:
        avatar: Who is shown.
        template: The avatar's template.
        backend: Splat backend, see :func:`guava.rendering.splat`.
        refiner: The refiner to use, as :func:`guava.model.build_refiner` makes it: ``forward(features, alpha,
            *, noise, generator)``, with the ``size`` that it works at, on the device and in the precision
            that it is to run in. If it has ``for_inference(dtype)``, what that gives is used on the CPU.
            Without it, the avatar's own is loaded from the installed weights.
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
        self._refiner_dtype = torch.float32
        if not coarse and (refiner is not None or avatar.refiner is not None):
            if refiner is None:
                from guava.model.generate import load_refiner

                refiner = load_refiner(avatar).to(self.device, PRECISIONS[precision])
            self._use(refiner.eval())
        self.template, identity = with_identity(template, avatar.identity)
        self.person = PersonEHM(self.template, identity, self.device)
        self.faces = self.template.faces.to(self.device, torch.int32)
        self.backend = backend
        self.conventions = CONVENTIONS[avatar.splat_conventions]
        self.noise = None if noise is None else torch.Generator(self.device).manual_seed(noise)
        channels = 3 if self.refiner is None else avatar.gaussians.features.shape[1]
        gaussians = avatar.gaussians.to(self.device)
        self.gaussians = replace(gaussians, features=gaussians.features[:, :channels].contiguous())
        # Memory of the last frame, for the next one.
        self._posed: PosedGaussians | None = None
        self._drawn: SplatOutput | None = None
        self._maps: Tensor | None = None
        self._square: tuple[Camera, tuple[Camera, int, int]] | None = None
        self.seconds: dict[str, float] = defaultdict(float)
        self.frames = 0

    def _use(self, refiner: nn.Module) -> None:
        parameter = next(refiner.parameters(), None)
        if parameter is not None:
            self._refiner_dtype = parameter.dtype
            if self.device.type == "cpu" and hasattr(refiner, "for_inference"):
                refiner = refiner.for_inference(parameter.dtype)
        self._refiner_dtype = getattr(refiner, "dtype", self._refiner_dtype)
        self.refiner, self.working_size = refiner, int(refiner.size)

    def pose(self, pose: Pose) -> PosedGaussians:
        """The avatar's Gaussians in one pose (B = 1), on the animator's device."""
        return self._pose(pose, None)

    def _pose(self, pose: Pose, out: PosedGaussians | None) -> PosedGaussians:
        with torch.no_grad():
            with self._timed("body"):
                output = self.person(pose)
            with self._timed("pose"):
                return pose_gaussians(
                    self.gaussians, output, self.faces, sigma_rule=self.avatar.sigma_rule, out=out
                )

    def splat(self, pose: Pose, camera: Camera | None = None) -> SplatOutput:
        """One frame as premultiplied features on black, alpha and depth, on the animator's device: RGB, and
        the latents too where there is a refiner.

        Args:
            pose: B = 1.
            camera: One camera; the source view's without it.
        """
        return self._splat(self._pose(pose, None), camera or self.avatar.source.camera, None)

    def _splat(self, g: PosedGaussians, camera: Camera, out: SplatOutput | None) -> SplatOutput:
        with torch.no_grad(), self._timed("splat"):
            drawn = splat(
                g.means, g.quaternions, g.scales, g.opacities, g.features, camera.to(self.device),
                backend=self.backend, conventions=self.conventions, out=out,
            )
        self.frames += 1
        return drawn

    def _draw(self, pose: Pose, camera: Camera) -> SplatOutput:
        """:meth:`splat` without depth, in the memory of the frame before."""
        if self.device.type != "cpu":
            return self.splat(pose, camera)
        self._posed = self._pose(pose, self._posed)
        shape = (camera.height, camera.width, self.gaussians.features.shape[1])
        if self._drawn is None or self._drawn.features.shape != shape:
            self._drawn = SplatOutput.empty(
                camera.width, camera.height, shape[2], self.conventions, depth=False
            )
        return self._splat(self._posed, camera, self._drawn)

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
        with torch.no_grad(), self._timed("refine"):
            maps, dtype = features, self._refiner_dtype
            if dtype != features.dtype:
                if self._maps is None or self._maps.shape != features.shape:
                    self._maps = torch.empty_like(features, dtype=dtype)
                maps = self._maps.copy_(features)
            maps = maps.permute(2, 0, 1)[None]
            if not getattr(self.refiner, "channels_last", False):
                maps = maps.contiguous()
            noise = "off" if self.noise is None else "random"
            picture = self.refiner(maps, alpha[None, None].to(dtype), noise=noise, generator=self.noise)
            return picture[0].permute(1, 2, 0).float()

    def render(self, pose: Pose, camera: Camera | None = None, supersample: int = 1) -> Tensor:
        """One frame as (H, W, 4) float32 on the CPU: RGB in [0, 1], not premultiplied, and alpha. See
        :func:`over`, and :meth:`frame` for videos.

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
        color, alpha, samples = self._picture(pose, camera, supersample)
        color, alpha = averaged(color, alpha, samples)
        something = 1
        if self.refiner is not None:
            alpha, something = raised_alpha(color, alpha)
        return torch.cat([(color / alpha.clamp(min=1e-6)).clamp(0, 1) * something, alpha], -1).cpu()

    def frame(
        self,
        pose: Pose,
        camera: Camera | None = None,
        supersample: int = 1,
        background: tuple[float, float, float] | Tensor = WHITE,
        out: Tensor | None = None,
    ) -> Tensor:
        """One frame over a background, ready to be shown or encoded: ``over(render(...), background)``
        without the steps between.

        Args:
            pose, camera, supersample: As for :meth:`render`.
            background: As for :func:`over`.
            out: (H, W, 3) uint8 on the CPU to write to; rows may lie apart.

        Returns:
            (H, W, 3) uint8 on the CPU; ``out`` if it was given.
        """
        color, alpha, samples = self._picture(pose, camera, supersample)
        with self._timed("convert"):
            return to_rgb8(
                color, alpha, background, samples=samples, refined=self.refiner is not None, out=out
            )

    def _picture(self, pose: Pose, camera: Camera | None, supersample: int) -> tuple[Tensor, Tensor, int]:
        """Colours on black and alpha, (H, W, C) and (H, W), and how many samples make a pixel's side; in
        memory that the next frame will use."""
        camera = camera or self.avatar.source.camera
        if self.refiner is not None:
            return *self._refined(pose, camera), 1
        if supersample > 1:
            camera = camera.resized(camera.width * supersample, camera.height * supersample)
        out = self._draw(pose, camera)
        return out.features[..., :3], out.alpha, supersample

    def _refined(self, pose: Pose, camera: Camera) -> tuple[Tensor, Tensor]:
        if self._square is None or self._square[0] is not camera:
            self._square = camera, square_view(camera, self.working_size)
        square, left, top = self._square[1]
        out = self._draw(pose, square)
        color, alpha = self.refine(out.features, out.alpha), out.alpha
        side = max(camera.width, camera.height)
        if side != self.working_size:
            picture = torch.cat([color, alpha[..., None]], -1).permute(2, 0, 1)[None]
            picture = F.interpolate(
                picture, size=(side, side), mode="bilinear", antialias=True, align_corners=False
            )[0]
            color, alpha = picture[:3].permute(1, 2, 0), picture[3]
        rows, columns = slice(top, top + camera.height), slice(left, left + camera.width)
        return color[rows, columns].contiguous(), alpha[rows, columns].contiguous()

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
