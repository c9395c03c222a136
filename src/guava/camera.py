"""Pinhole cameras.

Guava's own tracker follows the paper's release: focal length 24 in normalised device coordinates of a square
crop (a full field of view of 4.77 degrees), so that distance carries the scale and perspective is weak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FOCAL_NDC = 24.0
"""Focal length in units of half the crop's side, as in the authors' release (tan(half FoV) = 1/24)."""


@dataclass(frozen=True)
class Camera:
    """One camera or a batch of cameras.

    Attributes:
        world_to_camera: (*B, 4, 4) rigid transform; OpenCV axes (x right, y down, z forward).
        intrinsics: (*B, 3, 3) pixel intrinsics; pixel centres lie at half-integers.
        width: Image width in pixels.
        height: Image height in pixels.
    """

    world_to_camera: Tensor
    intrinsics: Tensor
    width: int
    height: int

    @staticmethod
    def frontal(size: int = 512, *, focal_ndc: float = FOCAL_NDC, dtype=torch.float32) -> Camera:
        """Camera at the world's origin looking along -z with y up, for a square image of ``size`` pixels.

        The tracker keeps this camera and moves the person (``Pose.translation`` has z < 0).
        """
        world_to_camera = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=dtype))
        f, c = focal_ndc * size / 2, size / 2
        intrinsics = torch.tensor([[f, 0, c], [0, f, c], [0, 0, 1]], dtype=dtype)
        return Camera(world_to_camera, intrinsics, size, size)

    def to(self, device=None, dtype=None) -> Camera:
        """The same camera on another device or in another dtype."""
        return replace(
            self,
            world_to_camera=self.world_to_camera.to(device=device, dtype=dtype),
            intrinsics=self.intrinsics.to(device=device, dtype=dtype),
        )

    def __getitem__(self, index) -> Camera:
        """Select from a batch; intrinsics that all share stay shared."""
        own = self.intrinsics.ndim > 2
        intrinsics = self.intrinsics[index] if own else self.intrinsics
        return replace(self, world_to_camera=self.world_to_camera[index], intrinsics=intrinsics)

    def transform(self, points: Tensor) -> Tensor:
        """World points (*B, N, 3) -> camera coordinates (*B, N, 3)."""
        rotation, shift = self.world_to_camera[..., :3, :3], self.world_to_camera[..., :3, 3]
        return points @ rotation.transpose(-1, -2) + shift[..., None, :]

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World points (*B, N, 3) -> pixels (*B, N, 2) and camera depth (*B, N), in metres.

        Points at or behind the camera give meaningless pixels; check ``depth > 0``.
        """
        cam = self.transform(points)
        depth = cam[..., 2]
        homogeneous = cam @ self.intrinsics.transpose(-1, -2)
        return homogeneous[..., :2] / homogeneous[..., 2:].clamp(min=1e-8), depth

    def through(self, pixel_map: Tensor, width: int, height: int) -> Camera:
        """The camera of another picture of the same view.

        Args:
            pixel_map: (*B, 3, 3) affine map from this camera's pixels to the other picture's pixels (for
                instance the inverse of a crop matrix: the crop's camera becomes the photo's camera).
            width, height: Size of the other picture.
        """
        return replace(
            self, intrinsics=pixel_map.to(self.intrinsics) @ self.intrinsics, width=width, height=height
        )

    def resized(self, width: int, height: int) -> Camera:
        """The same view sampled at another resolution."""
        factors = [width / self.width, height / self.height, 1.0]
        scale = torch.diag(torch.tensor(factors, dtype=torch.float64))
        return self.through(scale, width, height)

    @property
    def center(self) -> Tensor:
        """(*B, 3) where the camera stands, world metres."""
        rotation, shift = self.world_to_camera[..., :3, :3], self.world_to_camera[..., :3, 3]
        return -(rotation.transpose(-1, -2) @ shift[..., None]).squeeze(-1)

    def absorbing(self, translation: Tensor) -> Camera:
        """The camera that sees a point p where this one sees p + ``translation`` (*B, 3).

        Guava's tracker moves the person and keeps the camera; the release keeps the person at the world's
        origin and moves the camera. What depends on where the origin is (collapsed texels hang there) sees
        the release's world with the pose's translation moved into the camera.
        """
        rotation, shift = self.world_to_camera[..., :3, :3], self.world_to_camera[..., :3, 3]
        shift = shift + (rotation @ translation.to(rotation)[..., None]).squeeze(-1)
        batch = shift.shape[:-1]
        top = torch.cat([rotation.expand(*batch, 3, 3), shift[..., None]], -1)
        bottom = shift.new_tensor([0.0, 0, 0, 1]).expand(*batch, 1, 4)
        intrinsics = self.intrinsics.expand(*batch, 3, 3)
        return replace(self, world_to_camera=torch.cat([top, bottom], -2), intrinsics=intrinsics)

    def orbit(self, yaw: float, pitch: float, pivot: Tensor) -> Camera:
        """The camera moved round ``pivot`` (3,), always seeing it at the same pixel and depth.

        Args:
            yaw: Radians; positive moves the camera to its own right (world +x for the frontal camera).
            pitch: Radians; positive moves the camera up.
        """
        w2c = self.world_to_camera
        pivot = pivot.to(w2c)
        cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
        # The world turns about the pivot in camera coordinates, opposite to the camera's own move.
        about_y = w2c.new_tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        about_x = w2c.new_tensor([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        turn = about_x @ about_y
        rotation, shift = w2c[..., :3, :3], w2c[..., :3, 3]
        pivot_cam = rotation @ pivot + shift
        out = w2c.clone()
        out[..., :3, :3] = turn @ rotation
        out[..., :3, 3] = pivot_cam - turn @ (rotation @ pivot)
        return replace(self, world_to_camera=out)


# --- the release's cameras ---------------------------------------------------------------------------------

_FLIP = (-1.0, -1.0, 1.0, 1.0)  # PyTorch3D's x left, y up -> x right, y down


@dataclass(frozen=True)
class ReleaseMatrices:
    """A camera as the release's renderer takes it: for *row* vectors, p' = p @ M, so transposed.

    Attributes:
        world_view_transform: (*B, 4, 4) transposed world-to-camera matrix.
        full_proj_transform: (*B, 4, 4) world to clip space; x / w and y / w are in [-1, 1], y down.
        camera_center: (*B, 3) world metres.
        tanfovx, tanfovy: Tangents of half the fields of view.
    """

    world_view_transform: Tensor
    full_proj_transform: Tensor
    camera_center: Tensor
    tanfovx: float
    tanfovy: float


def from_release_extrinsics(
    extrinsics: Tensor, size: int = 512, *, focal_ndc: float = FOCAL_NDC
) -> Camera:
    """The camera of the release's ``camera_RT_params``.

    They are PyTorch3D's (x left, y up, z forward) for column vectors, p' = R p + t; Guava's world_to_camera
    is diag(-1, -1, 1, 1) [RT; 0 0 0 1].

    Args:
        extrinsics: (*B, 3, 4) or (*B, 4, 4) RT.
        size: Side of the square picture in pixels.
        focal_ndc: Focal length in half sides: 24 in the release.
    """
    if extrinsics.shape[-2:] not in ((3, 4), (4, 4)):
        raise ValueError(f"Extrinsics are (..., 3, 4) or (..., 4, 4), got {tuple(extrinsics.shape)}.")
    bottom = extrinsics.new_tensor([0.0, 0, 0, 1]).expand(*extrinsics.shape[:-2], 1, 4)
    world_to_camera = torch.cat([extrinsics[..., :3, :], bottom], -2) * extrinsics.new_tensor(_FLIP)[:, None]
    f, c = focal_ndc * size / 2, size / 2
    intrinsics = extrinsics.new_tensor([[f, 0, c], [0, f, c], [0, 0, 1]])
    return Camera(world_to_camera, intrinsics.expand(*extrinsics.shape[:-2], 3, 3), size, size)


def to_release_extrinsics(camera: Camera) -> Tensor:
    """(*B, 3, 4) RT of :func:`from_release_extrinsics`; the intrinsics are left out."""
    w2c = camera.world_to_camera
    return (w2c * w2c.new_tensor(_FLIP)[:, None])[..., :3, :]


def release_matrices(camera: Camera, *, near: float = 0.01, far: float = 100.0) -> ReleaseMatrices:
    """What the release's renderer is given for a camera.

    Raises:
        ValueError: The principal point is not the picture's centre, or there is skew, which it cannot say.
    """
    k, w2c = camera.intrinsics, camera.world_to_camera
    centred = k.new_tensor([camera.width / 2, camera.height / 2])
    if not torch.allclose(k[..., :2, 2], centred.expand_as(k[..., :2, 2])) or (
        (k[..., 0, 1] != 0) | (k[..., 1, 0] != 0)
    ).any():
        raise ValueError("The release's matrices need a centred principal point and no skew.")
    x, y = 2 * k[..., 0, 0] / camera.width, 2 * k[..., 1, 1] / camera.height
    if (x != x.reshape(-1)[0]).any() or (y != y.reshape(-1)[0]).any():
        raise ValueError("The release's matrices need one field of view for the whole batch.")
    projection = w2c.new_zeros(*x.shape, 4, 4)
    projection[..., 0, 0], projection[..., 1, 1] = x, y
    projection[..., 2, 2] = far / (far - near)
    projection[..., 2, 3] = -far * near / (far - near)
    projection[..., 3, 2] = 1
    return ReleaseMatrices(
        w2c.transpose(-1, -2), (projection @ w2c).transpose(-1, -2), camera.center,
        1 / float(x.reshape(-1)[0]), 1 / float(y.reshape(-1)[0]),
    )
