"""Eq. 2 and Eq. 6 against arithmetic by hand and brute force."""

import numpy as np
import pytest
import torch

from guava.camera import Camera
from guava.model import inverse_texture_map, sample_projected, visible_faces, visible_points
from guava.rendering import MeshFragments, rasterize_mesh


def _camera(size=16, focal=20.0):
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return Camera(torch.eye(4), intrinsics, size, size)


def _bilinear(image, x, y):
    """(C, H, W) at pixel (x, y), centres at half-integers, border repeated; loops only."""
    channels, height, width = image.shape
    out = np.zeros(channels)
    x, y = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (1 - abs(x - x0 - dx)) * (1 - abs(y - y0 - dy))
            out += weight * image[:, min(y0 + dy, height - 1), min(x0 + dx, width - 1)]
    return out


def test_projection_sampling_at_a_known_point():
    features = torch.zeros(1, 2, 16, 16)
    features[0, 0, 5, 11], features[0, 1, 5, 12] = 3.0, 7.0
    # Pixel centre (11.5, 5.5) at depth 2, and half way to its right neighbour.
    points = torch.tensor(
        [[[(11.5 - 8) / 20 * 2, (5.5 - 8) / 20 * 2, 2.0], [(12.0 - 8) / 20 * 2, -0.25, 2.0]]]
    )
    sampled = sample_projected(features, points, _camera())
    assert torch.allclose(sampled[0], torch.tensor([[3.0, 0.0], [1.5, 3.5]]), atol=1e-5)


@pytest.mark.parametrize("feature_size", [16, 32, 7])
def test_projection_sampling_against_loops(feature_size):
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(2, 3, feature_size, feature_size, generator=generator)
    points = torch.rand(2, 40, 3, generator=generator) * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor(
        [-1.0, -1.0, 1.5]
    )
    camera = _camera()
    sampled = sample_projected(features, points, camera).numpy()
    scale = feature_size / 16
    for b in range(2):
        for n in range(40):
            x, y, z = points[b, n].tolist()
            expected = _bilinear(features[b].numpy(), (20 * x / z + 8) * scale, (20 * y / z + 8) * scale)
            assert np.allclose(sampled[b, n], expected, atol=1e-4)


def test_projection_sampling_is_differentiable_in_the_features():
    features = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[[0.1, 0.2, 2.0], [-0.3, 0.1, 2.0]]], dtype=torch.float64)
    camera = _camera(4, 6.0).to(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: sample_projected(f, points, camera), features)


def _two_sheets():
    """A small square in front of a large one; the large one's middle is hidden."""

    def square(half, z):
        return [[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]]

    vertices = torch.tensor(square(0.2, 1.5) + square(0.8, 2.0))
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    return vertices, faces


def _ray_hits(origin, target, corners):
    """Moeller-Trumbore: distance along origin -> target in units of it, or None."""
    direction = target - origin
    e1, e2 = corners[1] - corners[0], corners[2] - corners[0]
    p = np.cross(direction, e2)
    det = e1 @ p
    if abs(det) < 1e-12:
        return None
    s = origin - corners[0]
    u = s @ p / det
    q = np.cross(s, e1)
    v = direction @ q / det
    if u < 0 or v < 0 or u + v > 1:
        return None
    return e2 @ q / det


def test_visibility_against_ray_casting():
    vertices, faces = _two_sheets()
    camera = _camera(64, 60.0)
    fragments = rasterize_mesh(vertices, faces, camera)
    generator = np.random.default_rng(0)
    points = np.concatenate(
        [
            np.c_[generator.uniform(-0.19, 0.19, (50, 2)), np.full(50, 1.5)],
            np.c_[generator.uniform(-0.6, 0.6, (200, 2)), np.full(200, 2.0)],
        ]
    )
    visible = visible_points(
        torch.tensor(points, dtype=torch.float32), camera, fragments, tolerance=0.01
    ).numpy()
    corners = vertices.numpy()[faces.numpy()]
    margin = 2.0 / 60  # one pixel at the far sheet: the z-buffer samples pixel centres
    checked = 0
    for point, seen in zip(points, visible, strict=True):
        outline = abs(max(abs(point[0]), abs(point[1])) * 1.5 / point[2] - 0.2)
        pixel = 60 * point[:2] / point[2] + 32
        if (point[2] > 1.6 and outline < margin) or not ((pixel >= 0).all() and (pixel < 64).all()):
            continue
        hits = [_ray_hits(np.zeros(3), point, c) for c in corners]
        blocked = any(h is not None and h < 1 - 1e-3 for h in hits)
        assert seen == (not blocked)
        checked += 1
    assert checked > 150
    assert visible_faces(fragments, 4).all()


def test_inverse_mapping_fills_each_texel_from_its_own_projection():
    vertices, faces = _two_sheets()
    camera = _camera(64, 60.0)
    generator = torch.Generator().manual_seed(3)
    features = torch.rand(1, 4, 64, 64, generator=generator)
    ids = torch.tensor([[-1, 0, 1], [2, 3, -1]], dtype=torch.int32)
    weights = torch.rand(2, 3, 3, generator=generator)
    weights = weights / weights.sum(-1, keepdim=True)
    texels = MeshFragments(ids, weights, torch.ones(2, 3))
    visible = torch.tensor([[True, True, True, False]])
    out, mask = inverse_texture_map(features, vertices[None], faces, texels, camera, visible=visible)
    for_all = inverse_texture_map(features, vertices[None], faces, texels, camera, visible=visible[0])
    assert torch.equal(for_all[0], out) and torch.equal(for_all[1], mask)
    for row in range(2):
        for column in range(3):
            face = int(ids[row, column])
            if face < 0 or face == 3:
                assert (out[0, :, row, column] == 0).all() and not mask[0, row, column]
                continue
            x, y, z = (weights[row, column] @ vertices[faces[face]]).tolist()
            expected = _bilinear(features[0].numpy(), 60 * x / z + 32, 60 * y / z + 32)
            assert mask[0, row, column]
            assert np.allclose(out[0, :, row, column].numpy(), expected, atol=1e-4)


def test_inverse_mapping_is_zero_outside_the_picture():
    vertices, faces = _two_sheets()
    texels = MeshFragments(
        torch.tensor([[0]], dtype=torch.int32), torch.tensor([[[1.0, 0, 0]]]), torch.ones(1, 1)
    )
    far = vertices + torch.tensor([5.0, 0, 0])
    out, _ = inverse_texture_map(torch.ones(1, 1, 8, 8), far[None], faces, texels, _camera(8))
    assert out.abs().max() == 0
