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
        """Select from a batch."""
        return replace(self, world_to_camera=self.world_to_camera[index], intrinsics=self.intrinsics[index])

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
