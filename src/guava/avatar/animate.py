"""Frames of a moving avatar (paper Sec. 3.3): body, posing, splatting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from guava.avatar.avatar import Avatar
from guava.avatar.posing import PosedGaussians, pose_gaussians
from guava.body import EHM, Identity, LinearModel, Pose, Template
from guava.body.ehm import WRISTS
from guava.camera import Camera
from guava.errors import GuavaError, TemplateMismatchError
from guava.rendering.splatting import SplatOutput, splat

WHITE = (1.0, 1.0, 1.0)


class Animator:
    """Renders one avatar in many poses. What depends only on the identity is computed once.

    Attributes:
        seconds: Time spent so far by stage: "body" (EHM), "pose" (Gaussians), "splat".
        frames: Frames rendered so far.

    Args:
        avatar: Who is shown.
        template: The avatar's template.
        backend: Splat backend, see :func:`guava.rendering.splat`.

    Raises:
        TemplateMismatchError: The avatar belongs to another template.
        GuavaError: The avatar's channels need a refiner.
    """

    def __init__(self, avatar: Avatar, template: Template, *, backend: str = "auto"):
        if avatar.template_hash != template.hash:
            raise TemplateMismatchError(
                f"The avatar belongs to another body template ({avatar.template_hash[:12]}) than "
                f"'{template.name}' ({template.hash[:12]})."
            )
        if avatar.refiner is not None:
            raise GuavaError(f"This avatar needs the refiner '{avatar.refiner}' to be shown.")
        self.avatar = avatar
        self.template, self.identity = with_identity(template, avatar.identity)
        self.ehm = EHM(self.template)
        self.backend = backend
        gaussians = avatar.gaussians
        self.gaussians = replace(gaussians, features=gaussians.features[:, :3].contiguous())
        self.seconds: dict[str, float] = defaultdict(float)
        self.frames = 0

    def pose(self, pose: Pose) -> PosedGaussians:
        """The avatar's Gaussians in one pose (B = 1)."""
        with torch.no_grad():
            with self._timed("body"):
                output = self.ehm(self.identity, pose)
            with self._timed("pose"):
                return pose_gaussians(
                    self.gaussians, output, self.template.faces, sigma_rule=self.avatar.sigma_rule
                )

    def splat(self, pose: Pose, camera: Camera | None = None) -> SplatOutput:
        """One frame as premultiplied RGB, alpha and depth.

        Args:
            pose: B = 1.
            camera: One camera; the source view's without it.
        """
        g = self.pose(pose)
        with torch.no_grad(), self._timed("splat"):
            out = splat(
                g.means, g.quaternions, g.scales, g.opacities, g.features,
                camera or self.avatar.source.camera, backend=self.backend,
            )
        self.frames += 1
        return out

    def render(self, pose: Pose, camera: Camera | None = None, supersample: int = 1) -> Tensor:
        """One frame as (H, W, 4) float32: RGB in [0, 1], not premultiplied, and alpha. See :func:`over`.

        Args:
            pose: B = 1.
            camera: One camera; the source view's without it.
            supersample: Samples per pixel side. Splatting widens everything by half a pixel, so that lids and
                lips cover eyes and teeth in small pictures; 2 avoids it at little cost.
        """
        camera = camera or self.avatar.source.camera
        if supersample == 1:
            out = self.splat(pose, camera)
            color, alpha = out.features, out.alpha[..., None]
        else:
            out = self.splat(pose, camera.resized(camera.width * supersample, camera.height * supersample))
            stacked = torch.cat([out.features, out.alpha[..., None]], -1)
            shape = (camera.height, supersample, camera.width, supersample, 4)
            color, alpha = stacked.reshape(shape).mean((1, 3)).split([3, 1], -1)
        return torch.cat([(color / alpha.clamp(min=1e-6)).clamp(0, 1), alpha], -1)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[stage] += perf_counter() - start


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
