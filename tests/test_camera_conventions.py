"""The release's cameras: by hand, and one place for a point in mesh raster, splatter and sampler."""

import math

import pytest
import torch

from guava.camera import Camera, from_release_extrinsics, release_matrices, to_release_extrinsics
from guava.model import sample_projected
from guava.rendering import GSPLAT, THREE_DGS, rasterize_mesh, splat
from guava.rotation import axis_angle_to_matrix

SIZE = 512


def extrinsics(seed: int, batch: tuple[int, ...] = ()) -> torch.Tensor:
    """Release-style RT, float64: turned by up to some 60 degrees, about 21 m away."""
    generator = torch.Generator().manual_seed(seed)
    turn = axis_angle_to_matrix(0.5 * torch.randn(*batch, 3, generator=generator, dtype=torch.float64))
    shift = torch.randn(*batch, 3, generator=generator, dtype=torch.float64) * torch.tensor([0.1, 0.1, 0.5])
    return torch.cat([turn, (shift + torch.tensor([0.0, 0.0, 21.0]))[..., None]], -1)


def people(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, generator=generator, dtype=torch.float64) - 0.5) * 0.9


def ndc_by_definition(rt: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """24 (x, y) / (z + 1e-7) of diag(-1, -1, 1, 1) [RT; 0 0 0 1] p, point by point."""
    out = []
    flip = torch.diag(torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64))
    w2c = flip @ torch.cat([rt, torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)])
    for p in points:
        x, y, z, _ = w2c @ torch.cat([p, torch.ones(1, dtype=torch.float64)])
        out.append(torch.stack([24 * x / (z + 1e-7), 24 * y / (z + 1e-7)]))
    return torch.stack(out)


def test_axes_by_hand():
    """PyTorch3D's x goes left and y up: with R = 1 and t = (0, 0, 20), a point at (0.1, 0.2, 0) lies left of
    the middle by 6144 * 0.1 / 20 pixels and above it by twice that."""
    rt = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 20]], dtype=torch.float64)
    camera = from_release_extrinsics(rt)
    pixel, depth = camera.project(torch.tensor([[0.1, 0.2, 0.0], [0.0, 0, 5]], dtype=torch.float64))
    torch.testing.assert_close(
        pixel, torch.tensor([[256 - 30.72, 256 - 61.44], [256, 256]], dtype=torch.float64)
    )
    assert depth.tolist() == [20, 25]
    assert torch.equal(
        camera.world_to_camera.diagonal(), torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64)
    )
    assert camera.intrinsics[0, 0] == 6144 and torch.equal(
        camera.center, torch.tensor([0.0, 0, -20], dtype=torch.float64)
    )
    # The person faces +z, so this camera sees the back; turned half round, it sees the face as they see us:
    # their left hand (+x) on the picture's right.
    back = rt.clone()
    back[0, 0] = back[2, 2] = -1
    seen, _ = from_release_extrinsics(back).project(torch.tensor([[0.5, 0, 0.0]], dtype=torch.float64))
    assert seen[0, 0] > 256


def test_ndc_and_back():
    for seed in range(4):
        rt, points = extrinsics(seed), people(30, seed)
        camera = from_release_extrinsics(rt, SIZE)
        pixel, _ = camera.project(points)
        wanted = (ndc_by_definition(rt, points) + 1) / 2 * SIZE  # -1 and 1 are the picture's edges
        torch.testing.assert_close(pixel, wanted, atol=1e-5, rtol=0)
        assert torch.equal(to_release_extrinsics(camera), rt)
        square = torch.cat([rt, torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)])
        assert torch.equal(from_release_extrinsics(square, SIZE).world_to_camera, camera.world_to_camera)
    batch = extrinsics(9, (3, 2))
    cameras = from_release_extrinsics(batch, 100)
    assert cameras.intrinsics.shape == (3, 2, 3, 3) and cameras.width == 100
    one = from_release_extrinsics(batch[2, 1], 100)
    torch.testing.assert_close(cameras[2, 1].world_to_camera, one.world_to_camera)
    with pytest.raises(ValueError, match="3, 4"):
        from_release_extrinsics(torch.eye(3))


def test_row_vector_matrices():
    rt, points = extrinsics(3), people(20)
    camera = from_release_extrinsics(rt, SIZE)
    m = release_matrices(camera)
    assert m.tanfovx == pytest.approx(1 / 24) and m.tanfovy == pytest.approx(1 / 24)
    ones = torch.ones(len(points), 1, dtype=torch.float64)
    row = torch.cat([points, ones], 1)
    view = row @ m.world_view_transform
    torch.testing.assert_close(view[:, :3], camera.transform(points))
    clip = row @ m.full_proj_transform
    torch.testing.assert_close(clip[:, 3], view[:, 2])
    ndc = clip[:, :2] / (clip[:, 3:] + 1e-7)
    torch.testing.assert_close(ndc, ndc_by_definition(rt, points), atol=1e-9, rtol=0)
    # The release's pixel centres are integers, ours half-integers: the same place.
    torch.testing.assert_close(
        ((ndc + 1) * SIZE - 1) / 2 + 0.5, camera.project(points)[0], atol=1e-5, rtol=0
    )
    near, far = torch.tensor([0.01, 100.0], dtype=torch.float64)
    z = view[:, 2]
    torch.testing.assert_close(clip[:, 2] / clip[:, 3], far / (far - near) * (1 - near / z))
    centre = torch.linalg.inv(camera.world_to_camera)[:3, 3]
    torch.testing.assert_close(m.camera_center, centre)
    crop = torch.tensor([[1.0, 0, 7], [0, 1, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match="principal"):
        release_matrices(camera.through(crop, SIZE, SIZE))


def splatted_centre(alpha: torch.Tensor) -> torch.Tensor:
    """The top of a Gaussian to a fraction of a pixel: its logarithm is a parabola."""
    y, x = (alpha > 0.1).nonzero().double().unbind(1)
    value = alpha[alpha > 0.1].double().log()
    x, y = x + 0.5, y + 0.5
    mx, my = x.mean(), y.mean()
    x, y = x - mx, y - my
    terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], 1)
    _, bx, by, xx, xy, yy = torch.linalg.lstsq(terms, value[:, None]).solution[:, 0]
    hessian = torch.stack([torch.stack([2 * xx, xy]), torch.stack([xy, 2 * yy])])
    return torch.linalg.solve(hessian, -torch.stack([bx, by])) + torch.stack([mx, my])


@pytest.mark.parametrize("seed", range(3))
def test_one_pixel_for_mesh_splat_and_sampling(seed):
    """A point of the release's world lies at the same place of the picture for all that draws or reads it."""
    rt = extrinsics(seed)
    camera = from_release_extrinsics(rt, SIZE)
    points = people(6, seed) * torch.tensor([0.8, 0.8, 0.2])
    wanted = (ndc_by_definition(rt, points) + 1) / 2 * SIZE
    assert ((wanted > 8) & (wanted < SIZE - 8)).all()

    # Sampling: a map of pixel coordinates reads the point's own.
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    ramp = torch.stack([x, y])[None].double()
    torch.testing.assert_close(sample_projected(ramp, points[None], camera)[0], wanted, atol=1e-3, rtol=0)
    # ... at any resolution of the map.
    small = torch.nn.functional.interpolate(ramp, scale_factor=0.5, mode="area")
    torch.testing.assert_close(sample_projected(small, points[None], camera)[0], wanted, atol=1e-3, rtol=0)

    # Mesh: a tilted triangle about the point; barycentrics at a pixel's centre say what is seen there.
    around = 0.03 * torch.tensor([[1.0, 0, 0.5], [-0.5, 0.9, -0.8], [-0.5, -0.9, 0.3]], dtype=torch.float64)
    for p, at in zip(points, wanted, strict=True):
        corners = p + around @ camera.world_to_camera[:3, :3]
        hit = rasterize_mesh(corners, torch.tensor([[0, 1, 2]]), camera)
        column, row = int(at[0]), int(at[1])
        assert hit.face_ids[row, column] == 0
        seen = (hit.barycentrics[row, column].double()[:, None] * corners).sum(0)
        place = (ndc_by_definition(rt, seen[None])[0] + 1) / 2 * SIZE
        torch.testing.assert_close(place, torch.tensor([column, row]).double() + 0.5, atol=1e-3, rtol=0)

    # Splat: the top of a round Gaussian.
    for conventions in (GSPLAT, THREE_DGS):
        for backend in ("native", "numba", "torch"):
            p, at = points[1:2], wanted[1]
            shape = (torch.tensor([[1.0, 0, 0, 0]]).double(), torch.full((1, 3), 0.01).double())
            values = (p, *shape, torch.tensor([0.9]).double(), torch.ones(1, 1).double())
            alpha = splat(*values, camera, backend=backend, conventions=conventions).alpha
            torch.testing.assert_close(splatted_centre(alpha), at, atol=1e-3, rtol=0)


def test_a_camera_can_carry_the_translation():
    """The release's world, where the person is not moved, from the tracker's, where they are."""
    camera = Camera.frontal(SIZE, dtype=torch.float64).orbit(0.4, 0.2, torch.tensor([0.0, 0, -20]))
    points, shift = people(8), torch.tensor([0.1, -0.3, -20.0], dtype=torch.float64)
    moved = camera.absorbing(shift)
    for a, b in zip(camera.project(points + shift), moved.project(points), strict=True):
        torch.testing.assert_close(a, b)
    both = camera.absorbing(torch.stack([shift, 2 * shift]))
    assert both.intrinsics.shape == (2, 3, 3)
    torch.testing.assert_close(
        both.project(points.expand(2, -1, -1))[0][1], camera.project(points + 2 * shift)[0]
    )
    torch.testing.assert_close(moved.center, camera.center - shift)


def test_focal_length_is_the_releases_field_of_view():
    camera = Camera.frontal(SIZE)
    half = math.atan(SIZE / 2 / float(camera.intrinsics[0, 0]))
    assert math.tan(half) == pytest.approx(1 / 24)
    rt = to_release_extrinsics(camera)
    # The tracker's camera looks along -z with y up; in PyTorch3D's axes: x left = -x, y up, z forward = -z.
    assert torch.equal(rt[:, :3], torch.diag(torch.tensor([-1.0, 1, -1]))) and (rt[:, 3] == 0).all()
