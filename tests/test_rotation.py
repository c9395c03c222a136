"""Rotations against SciPy and by gradcheck."""

import torch
from scipy.spatial.transform import Rotation

from guava.rotation import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_quaternion,
    quaternion_multiply,
    quaternion_to_matrix,
)


def _axis_angles():
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    special = torch.tensor(
        [[0, 0, 0], [1e-9, 0, 0], [1e-4, -1e-4, 0], [3.14159, 0, 0], [0, 3.1, 0.3], [0, 0, -3.14]],
        dtype=torch.float64,
    )
    return torch.cat([random, special])


def test_axis_angle_matches_scipy():
    axis_angle = _axis_angles()
    expected = torch.from_numpy(Rotation.from_rotvec(axis_angle.numpy()).as_matrix())
    assert torch.allclose(axis_angle_to_matrix(axis_angle), expected, atol=1e-9)


def test_quaternions_match_scipy_up_to_sign():
    matrix = axis_angle_to_matrix(_axis_angles())
    ours = matrix_to_quaternion(matrix)
    scipy = torch.from_numpy(Rotation.from_matrix(matrix.numpy()).as_quat()[:, [3, 0, 1, 2]])
    assert torch.allclose((ours * scipy).sum(-1).abs(), torch.ones(len(ours), dtype=torch.float64), atol=1e-9)
    assert torch.allclose(quaternion_to_matrix(ours), matrix, atol=1e-9)


def test_round_trips_and_products():
    matrix = axis_angle_to_matrix(_axis_angles())
    assert torch.allclose(axis_angle_to_matrix(matrix_to_axis_angle(matrix)), matrix, atol=1e-6)
    a, b = matrix_to_quaternion(matrix[:100]), matrix_to_quaternion(matrix[100:200])
    product = quaternion_to_matrix(quaternion_multiply(a, b))
    assert torch.allclose(product, matrix[:100] @ matrix[100:200], atol=1e-9)


def test_gradients_are_finite_at_zero():
    axis_angle = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(axis_angle_to_matrix, (axis_angle,))
    away = torch.tensor([[0.3, -0.5, 0.9]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(axis_angle_to_matrix, (away,))
