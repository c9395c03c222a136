"""The mesh z-buffer against ray casting, the UV raster, shading and normals."""

import numpy as np
import pytest
import torch

from guava.body import load_template
from guava.camera import Camera
from guava.rendering import rasterize_mesh, rasterize_uv, sample_texture, shade_mesh, vertex_normals

BACKENDS = ["cpu", "torch"]


def wide_camera(size: int = 24) -> Camera:
    """Strong perspective, so that a mistake in it shows."""
    return Camera.frontal(size, focal_ndc=1.2)


def triangles(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 1, 3, generator=generator) * torch.tensor([4.0, 4.0, 3.0])
    centre = centre - torch.tensor([2.0, 2.0, 3.2])
    corners = centre + torch.randn(count, 3, 3, generator=generator) * 0.6
    return corners.reshape(-1, 3), torch.arange(3 * count).reshape(count, 3)


def ray_cast(vertices, faces, camera, near=0.01):
    """Every pixel against every face by the Moeller-Trumbore intersection."""
    points = camera.transform(vertices).double().numpy()
    k_inverse = np.linalg.inv(camera.intrinsics.double().numpy())
    ids = np.full((camera.height, camera.width), -1)
    depth = np.full((camera.height, camera.width), np.inf)
    barycentrics = np.zeros((camera.height, camera.width, 3))
    for y in range(camera.height):
        for x in range(camera.width):
            ray = k_inverse @ [x + 0.5, y + 0.5, 1.0]
            for f, (i, j, k) in enumerate(faces.tolist()):
                e1, e2 = points[j] - points[i], points[k] - points[i]
                p = np.cross(ray, e2)
                det = e1 @ p
                u = (-points[i] @ p) / det
                q = np.cross(-points[i], e1)
                v = (ray @ q) / det
                z = (e2 @ q) / det
                if u >= 0 and v >= 0 and u + v <= 1 and near < z < depth[y, x]:
                    ids[y, x], depth[y, x], barycentrics[y, x] = f, z, (1 - u - v, u, v)
    return ids, depth, barycentrics


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_matches_ray_casting_also_for_faces_that_reach_behind_the_camera(backend, seed):
    vertices, faces = triangles(25, seed)
    camera = wide_camera()
    behind = camera.transform(vertices)[faces][..., 2] < 0
    assert (behind.any(1) & ~behind.all(1)).any()  # the scene does hold such faces
    hit = rasterize_mesh(vertices, faces, camera, backend=backend)
    ids, depth, barycentrics = ray_cast(vertices, faces, camera)
    assert (ids >= 0).mean() > 0.2
    np.testing.assert_array_equal(hit.face_ids.numpy(), ids)
    np.testing.assert_allclose(hit.depth.numpy(), depth, rtol=1e-5)
    np.testing.assert_allclose(hit.barycentrics.numpy(), barycentrics, atol=1e-5)


def test_backends_agree_on_the_template():
    template = load_template()
    vertices = template.body.v_template + torch.tensor([0.0, -0.4, -14.0])
    camera = Camera.frontal(200)
    cpu = rasterize_mesh(vertices, template.faces, camera, backend="cpu")
    reference = rasterize_mesh(vertices, template.faces, camera, backend="torch")
    assert cpu.mask.float().mean() > 0.15
    assert torch.equal(cpu.face_ids, reference.face_ids)
    torch.testing.assert_close(cpu.depth, reference.depth)
    torch.testing.assert_close(cpu.barycentrics, reference.barycentrics)


@pytest.mark.parametrize("backend", BACKENDS)
def test_barycentrics_give_back_the_pixel_and_the_depth(backend):
    vertices, faces = triangles(12, 3)
    camera = wide_camera(31)
    hit = rasterize_mesh(vertices, faces, camera, backend=backend)
    pixels, depth = camera.project(hit.interpolate(vertices, faces)[hit.mask])
    y, x = hit.mask.nonzero().unbind(1)
    torch.testing.assert_close(pixels, torch.stack([x, y], 1) + 0.5, atol=2e-3, rtol=0)
    torch.testing.assert_close(depth, hit.depth[hit.mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_depths_go_to_the_lower_index_and_pixels_are_sampled_at_their_centres(backend):
    camera = Camera(torch.eye(4), torch.diag(torch.tensor([4.0, 4.0, 1.0])), 4, 4)
    # Covers u + v <= 3.1 pixels: the centres (0.5, 0.5) ... with x + y <= 2 and no others.
    corner = torch.tensor([[0.0, 0.0, 4.0], [3.1, 0.0, 4.0], [0.0, 3.1, 4.0]])
    faces = torch.tensor([[0, 1, 2], [2, 1, 0]])
    hit = rasterize_mesh(corner, faces, camera, backend=backend)
    y, x = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    assert torch.equal(hit.mask, x + y <= 2)
    assert set(hit.face_ids[hit.mask].tolist()) == {0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_where_there_is_nothing(backend):
    camera = Camera.frontal(1)
    behind = torch.tensor([[-1.0, -1, 5], [1, -1, 5], [0, 1, 5]])
    for vertices, faces in (
        (behind, torch.tensor([[0, 1, 2]])),
        (behind, torch.zeros(0, 3, dtype=torch.long)),
        (-behind, torch.tensor([[0, 0, 1]])),  # no area
    ):
        hit = rasterize_mesh(vertices, faces, camera, backend=backend)
        assert hit.face_ids.tolist() == [[-1]] and hit.depth.isinf().all()
    hit = rasterize_mesh(-behind, torch.tensor([[0, 1, 2]]), camera, backend=backend)
    assert hit.face_ids.tolist() == [[0]]


def test_refuses_what_it_cannot_draw():
    vertices, faces = triangles(2, 0)
    camera = wide_camera()
    with pytest.raises(ValueError, match="NaN"):
        rasterize_mesh(vertices * torch.nan, faces, camera)
    with pytest.raises(ValueError, match="outside"):
        rasterize_mesh(vertices, faces + 1, camera)
    with pytest.raises(ValueError, match="batch"):
        batch = Camera(camera.world_to_camera[None], camera.intrinsics[None], 8, 8)
        rasterize_mesh(vertices, faces, batch)
    with pytest.raises(ValueError, match="backend"):
        rasterize_mesh(vertices, faces, camera, backend="opengl")


def test_uv_raster_puts_every_texel_back_where_it_is():
    template = load_template()
    texels = rasterize_uv(template, 64)
    assert 0.3 < texels.mask.float().mean() < 1
    uv = texels.interpolate(template.uv, template.uv_faces)[texels.mask]
    y, x = texels.mask.nonzero().unbind(1)
    torch.testing.assert_close(uv * 64, torch.stack([x, y], 1) + 0.5, atol=1e-3, rtol=0)


def test_vertex_normals_of_a_sphere_and_of_tiny_triangles():
    template = load_template()
    corners = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]])
    upper = torch.tensor([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2]])
    lower = torch.tensor([[1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])
    faces = torch.cat([upper, lower])
    torch.testing.assert_close(vertex_normals(corners, faces), corners)
    torch.testing.assert_close(vertex_normals(corners * 1e-6, faces), corners)
    torch.testing.assert_close(vertex_normals(corners.repeat(2, 1, 1), faces)[1], corners)
    normals = vertex_normals(template.body.v_template, template.faces)
    assert ((normals.norm(dim=1) - 1).abs() < 1e-4).float().mean() > 0.99


def test_texture_sampling_is_bilinear_about_texel_centres():
    texture = torch.arange(12.0).reshape(3, 4, 1)
    uv = torch.tensor([[0.5 / 4, 0.5 / 3], [1.0 / 4, 0.5 / 3], [3.5 / 4, 2.5 / 3], [1, 1], [0, 0.5]])
    torch.testing.assert_close(sample_texture(texture, uv)[:, 0], torch.tensor([0, 0.5, 11, 11, 4]))


def test_shading_faces_the_light_and_antialiases():
    square = torch.tensor([[-0.33, -0.33, -12.0], [0.33, -0.33, -12], [0.33, 0.33, -12], [-0.33, 0.33, -12]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    camera = Camera.frontal(20)
    red = torch.tensor([[1.0, 0, 0]]).repeat(4, 1)
    towards = shade_mesh(square, faces, camera, vertex_colors=red, light=(0, 0, -1), ambient=0.25)
    away = shade_mesh(square, faces, camera, face_colors=red[:2], light=(0, 0, 1), ambient=0.25)
    assert towards.shape == (20, 20, 4)
    torch.testing.assert_close(towards[10, 10], torch.tensor([1.0, 0, 0, 1]))
    torch.testing.assert_close(away[10, 10], torch.tensor([0.25, 0, 0, 1]))
    partial = (towards[..., 3] > 0) & (towards[..., 3] < 1)
    assert partial.any()
    torch.testing.assert_close(towards[partial][:, :3], red[:1].expand(int(partial.sum()), 3))
    left_right = torch.zeros(8, 8, 3)
    left_right[:, 4:] = 1
    uv = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]])  # v down
    textured = shade_mesh(square, faces, camera, texture=left_right, uv=uv, uv_faces=faces, ambient=1)
    assert textured[10, 6, 0] < 0.1 < 0.9 < textured[10, 14, 0]
