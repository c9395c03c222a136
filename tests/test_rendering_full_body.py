"""Nothing in drawing, framing, posing and sampling assumes that only an upper body is in view."""

from dataclasses import replace

import pytest
import torch
from samples import small_avatar

from guava.avatar import Animator
from guava.avatar.framing import framing, joint_pixels, samples
from guava.avatar.posing import bind_to_triangles
from guava.avatar.views import orbit, orbit_framing
from guava.body import EHM, Identity, Pose, load_template
from guava.camera import Camera
from guava.model import inverse_texture_map, sample_projected, visible_faces
from guava.rendering import GSPLAT, THREE_DGS, rasterize_mesh, rasterize_uv, shade_mesh, splat

SIZE = 160
FEET = ("left_foot", "right_foot", "left_ankle", "right_ankle")


@pytest.fixture(scope="module")
def template():
    return load_template()


def stepping(template) -> Pose:
    """Arms down, a knee up, the whole body before the camera."""
    pose = Pose.rest(template)
    joints = pose.joints.clone()
    for name, axis, angle in (
        ("left_shoulder", 2, -1.1), ("right_shoulder", 2, 1.1), ("left_hip", 0, -1.2), ("left_knee", 0, 1.5),
        ("right_hip", 2, -0.1),
    ):
        joints[0, template.joint(name), axis] = angle
    return replace(pose, joints=joints, translation=torch.tensor([[0.0, 0.06, -25.0]]))


@pytest.fixture(scope="module")
def scene(template):
    """A full body in the picture: pose, camera, posed mesh, colours that name the place on the body."""
    pose, camera = stepping(template), Camera.frontal(SIZE)
    with torch.no_grad():
        body = EHM(template)(Identity.neutral(template), pose)
        rest = EHM(template)(Identity.neutral(template), Pose.rest(template)).vertices[0]
    low, high = rest.amin(0), rest.amax(0)
    return pose, camera, body, (rest - low) / (high - low)


@pytest.fixture(scope="module")
def avatar(template, scene):
    """A grey disc on every triangle, as large as the triangle."""
    made = small_avatar(template, SIZE)
    with torch.no_grad():
        rest = EHM(template)(made.identity, Pose.rest(template)).vertices[0]
    corners = rest[template.faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    count = len(template.faces)
    gaussians = bind_to_triangles(
        rest, template.faces, torch.arange(count), torch.full((count, 3), 1 / 3),
        rotations=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        scales=0.36 * normal.norm(dim=1).sqrt()[:, None].expand(count, 3).clamp(min=1e-4),
        opacities=torch.full((count,), 0.95), features=torch.full((count, 3), 0.5),
    )
    crop = torch.diag(torch.tensor([0.5, 0.5, 1.0]))
    source = replace(
        made.source, pose=scene[0], camera=scene[1], crop_from_image=crop, width=2 * SIZE, height=2 * SIZE
    )
    return replace(made, gaussians=gaussians, source=source)


def test_all_of_the_body_is_drawn(template, scene, avatar):
    """Mesh and Gaussians show the same figure, from the crown to the toes."""
    pose, camera, body, _ = scene
    camera = camera.resized(4 * SIZE, 4 * SIZE)
    pixels, _ = camera.project(body.vertices[0])
    extent = float(pixels[:, 1].max() - pixels[:, 1].min())
    assert ((pixels > 0) & (pixels < 4 * SIZE)).all() and extent > 0.8 * 4 * SIZE
    mesh = rasterize_mesh(body.vertices[0], template.faces, camera).mask
    animator = Animator(avatar, template)
    g = animator.pose(pose)
    for conventions in (GSPLAT, THREE_DGS):
        drawn = (g.means, g.quaternions, g.scales, g.opacities, g.features)
        alpha = splat(*drawn, camera, conventions=conventions).alpha > 0.5
        assert (mesh & alpha).sum() / (mesh | alpha).sum() > 0.82
        assert (mesh & ~alpha).sum() / mesh.sum() < 0.01
        rows = alpha.nonzero()[:, 0]
        assert abs(int(rows.min()) - float(pixels[:, 1].min())) < 8
        assert abs(int(rows.max()) - float(pixels[:, 1].max())) < 8


def test_legs_are_posed(template, scene, avatar):
    """A Gaussian of the raised shin is on its posed triangle, far from where it rests."""
    pose, _, body, _ = scene
    g = avatar.gaussians
    legs = template.part("legs")[g.anchor.long()]
    assert legs.sum() > 100
    posed = Animator(avatar, template).pose(pose)
    corners = body.vertices[0][template.faces[g.anchor.long()]].mean(1)
    torch.testing.assert_close(posed.means[legs], corners[legs], atol=2e-3, rtol=0)
    away = (posed.means - g.positions - pose.translation)[legs].norm(dim=1)
    assert away.max() > 0.4


def test_framing_keeps_the_feet(template, avatar):
    camera = framing(avatar, template, 100)
    points = joint_pixels(avatar, template, avatar.source.pose, camera)[0]
    assert ((points > 0) & (points < 100)).all()
    pixels, _ = camera.project(Animator(avatar, template).pose(avatar.source.pose).means)
    assert ((pixels > -0.5) & (pixels < 100.5)).all()


@pytest.mark.parametrize("shape", [(2 * SIZE, 2 * SIZE), (SIZE, 2 * SIZE), (3 * SIZE, 2 * SIZE)])
def test_framing_of_tall_and_wide_photos(template, avatar, shape):
    """The square crop leaves a tall photo at the sides, and a wide photo leaves the crop."""
    width, height = shape
    crop = torch.tensor([[0.5, 0, SIZE / 2 - width / 4], [0, 0.5, 0], [0, 0, 1]])
    source = replace(avatar.source, crop_from_image=crop, width=width, height=height)
    wide = replace(avatar, source=source)
    camera = framing(wide, template, 100, poses=source.pose)
    pixels, _ = camera.project(Animator(wide, template).pose(source.pose).means)
    assert ((pixels > 0) & (pixels < 100)).all()


def test_framing_widens_for_kicks_and_jumps(template, avatar):
    names = [template.joint(n) for n in (*FEET, "head")]
    kick = avatar.source.pose.joints.clone()
    kick[0, template.joint("right_hip"), 2] = 1.2
    kick[0, template.joint("right_hip"), 0] = 0.0
    place = avatar.source.pose.translation
    jump = replace(avatar.source.pose, joints=kick, translation=place + torch.tensor([0, 0.3, 0]))
    crouch = replace(jump, translation=place - torch.tensor([0.5, 0.5, 0]))
    animator = Animator(avatar, template)
    still = framing(avatar, template, 100)
    for pose in (jump, crouch):
        before = joint_pixels(avatar, template, pose, still)[0, names]
        assert not ((before > 0) & (before < 100)).all()
        camera = framing(avatar, template, 100, poses=pose)
        pixels, _ = camera.project(animator.pose(pose).means)
        assert ((pixels > 0) & (pixels < 100)).all()
    # A photo that ends above the ankles keeps its lower edge: legs stay out of the frame.
    source = replace(avatar.source, height=SIZE)
    half = replace(avatar, source=source)
    camera = framing(half, template, 100, poses=crouch)
    bottom = camera.intrinsics[1, 2] + camera.intrinsics[1, 1] / source.camera.intrinsics[1, 1] * (
        SIZE / 2 - source.camera.intrinsics[1, 2]
    )
    assert float(bottom) == pytest.approx(100, abs=0.1)


def test_features_are_sampled_at_the_legs(template, scene):
    """Projection sampling and inverse texture mapping read the legs' colours where the legs are."""
    _, camera, body, colors = scene
    fine = camera.resized(4 * SIZE, 4 * SIZE)
    picture = shade_mesh(
        body.vertices[0], template.faces, fine, vertex_colors=colors, ambient=1.0, supersample=1
    )
    features = (picture[..., :3] * picture[..., 3:]).permute(2, 0, 1)[None]
    fragments = rasterize_mesh(body.vertices[0], template.faces, fine)
    seen = visible_faces(fragments, len(template.faces))
    legs = template.part("legs")
    corners = torch.unique(template.faces[seen & legs])
    sampled = sample_projected(features, body.vertices, camera)[0]
    error = (sampled - colors).abs().amax(1)[corners]
    assert len(corners) > 300 and error.median() < 0.01 and (error < 0.05).float().mean() > 0.75

    texels = rasterize_uv(template, 128)
    texture, filled = inverse_texture_map(
        features, body.vertices, template.faces, texels, camera, visible=seen[None]
    )
    on_legs = filled[0] & legs[texels.face_ids.long().clamp(min=0)]
    wanted = texels.interpolate(colors, template.faces)
    error = (texture[0].permute(1, 2, 0) - wanted).abs().amax(-1)[on_legs]
    assert on_legs.sum() > 100 and error.median() < 0.01 and (error < 0.05).float().mean() > 0.75
    # Down to the soles.
    assert wanted[on_legs][:, 1].min() < 0.05


def test_orbits_hold_the_whole_body(template, avatar):
    animator = Animator(avatar, template)
    posed = animator.pose(avatar.source.pose)
    camera, center = orbit_framing(avatar, posed.means, 96)
    for azimuth, elevation in ((0, 0), (90, 0), (180, 40), (-60, -70)):
        view = orbit(camera, center, azimuth, elevation)
        pixels, _ = view.project(posed.means)
        assert ((pixels > 0) & (pixels < 96)).all()


def test_small_faces_are_drawn_with_more_samples(template):
    """Splatting widens lids by half a pixel: of a face of 40 pixels they once covered the eyes."""
    pose = Pose.rest(template)
    near, far = (replace(pose, translation=torch.tensor([[0.0, 0.0, -z]])) for z in (9.0, 25.0))
    small, large, huge = (Camera.frontal(size) for size in (512, 1024, 2048))
    assert [samples(small, p) for p in (near, far)] == [2, 4]
    assert [samples(large, p) for p in (near, far)] == [2, 2] and samples(huge, far) == 1
