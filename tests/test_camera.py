"""Camera conventions, checked on points whose place is known by construction."""

import math

import torch

from guava.camera import Camera


def test_frontal_camera_axes():
    camera = Camera.frontal(512)
    points = torch.tensor([[0.0, 0, -10], [0.1, 0, -10], [0, 0.1, -10]])
    pixels, depth = camera.project(points)
    assert torch.allclose(depth, torch.full((3,), 10.0))
    step = 256 * 24 * 0.1 / 10
    expected = torch.tensor([[256.0, 256], [256 + step, 256], [256, 256 - step]])
    assert torch.allclose(pixels, expected, atol=1e-3)


def test_ndc_edges_are_image_edges():
    camera = Camera.frontal(100, focal_ndc=2.0)
    pixels, _ = camera.project(torch.tensor([[0.5, 0.5, -1.0], [-0.5, -0.5, -1.0]]))
    assert torch.allclose(pixels, torch.tensor([[100.0, 0], [0, 100]]), atol=1e-4)


def test_through_maps_pixels_by_the_affine():
    crop_from_image = torch.tensor([[0.5, 0, -20], [0, 0.5, -30], [0, 0, 1]])
    crop = Camera.frontal(512)
    photo = crop.through(torch.linalg.inv(crop_from_image), 1600, 1200)
    points = torch.randn(10, 3) * 0.3 + torch.tensor([0.0, 0, -10])
    in_crop, _ = crop.project(points)
    in_photo, _ = photo.project(points)
    back = in_photo @ crop_from_image[:2, :2].T + crop_from_image[:2, 2]
    assert torch.allclose(back, in_crop, atol=1e-2)


def test_orbit_keeps_the_pivot_and_moves_the_camera_the_documented_way():
    camera, pivot = Camera.frontal(512), torch.tensor([0.1, -0.2, -10.0])
    before, depth_before = camera.project(pivot[None])
    turned = camera.orbit(math.radians(30), math.radians(10), pivot)
    after, depth_after = turned.project(pivot[None])
    assert torch.allclose(before, after, atol=1e-2) and torch.allclose(depth_before, depth_after, atol=1e-5)

    def centre(c):
        rotation, shift = c.world_to_camera[:3, :3], c.world_to_camera[:3, 3]
        return -rotation.T @ shift

    assert centre(camera.orbit(math.radians(30), 0.0, pivot))[0] > 1
    assert centre(camera.orbit(0.0, math.radians(30), pivot))[1] > 1
    rotation = turned.world_to_camera[:3, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-5) and torch.linalg.det(rotation) > 0


def test_orbit_is_exact_in_double_precision():
    pivot = torch.tensor([0.1, -0.2, -10.0], dtype=torch.float64)
    rotation = Camera.frontal(512, dtype=torch.float64).orbit(0.7, -0.3, pivot).world_to_camera[:3, :3]
    assert (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-15


def test_batches_and_resize():
    camera = Camera.frontal(512)
    batch = Camera(camera.world_to_camera.expand(3, 4, 4), camera.intrinsics.expand(3, 3, 3), 512, 512)
    pixels, depth = batch.project(torch.randn(3, 7, 3) * 0.1 + torch.tensor([0.0, 0, -9]))
    assert pixels.shape == (3, 7, 2) and depth.shape == (3, 7)
    shared = Camera(batch.world_to_camera, camera.intrinsics, 512, 512)[1]
    assert shared.intrinsics.shape == (3, 3) and shared.world_to_camera.shape == (4, 4)
    small = batch[1].resized(256, 128)
    point = torch.tensor([[0.2, 0.3, -9.0]])
    assert torch.allclose(
        small.project(point)[0], batch[1].project(point)[0] * torch.tensor([0.5, 0.25]), atol=1e-3
    )
