"""Novel views: where the cameras stand and what they see, by projecting known points."""

import math
from dataclasses import replace

import pytest
import torch
from samples import small_avatar, standing_pose

from guava.avatar import Animator
from guava.avatar.framing import framing, pivot
from guava.avatar.views import (
    avatar_release_orbit,
    orbit,
    orbit_framing,
    release_orbit,
    release_world,
    turntable,
)
from guava.body import EHM, Pose, load_template
from guava.camera import Camera, from_release_extrinsics

ANGLES = [(0, 0), (60, 20), (-90, -35), (180, 80), (-180, -80), (135, 79)]


@pytest.fixture(scope="module")
def template():
    return load_template()


@pytest.fixture(scope="module")
def avatar(template):
    return small_avatar(template)


def tilted() -> Camera:
    """A camera that looks down on its subject by 20 degrees, from the right."""
    middle = torch.tensor([0.0, 0, -10])
    turned = Camera.frontal(200, dtype=torch.float64).orbit(0.3, math.radians(20), middle)
    assert turned.center[1] > 3
    return turned


def test_orbit_goes_where_it_says():
    camera, center = Camera.frontal(200, dtype=torch.float64), torch.tensor([0.2, 0.1, -10.0])
    start = camera.center - center.double()
    offsets = {
        (90, 0): [start[2], start[1], -start[0]], (-90, 0): [-start[2], start[1], start[0]],
        (180, 0): [-start[0], start[1], -start[2]],
    }
    for (azimuth, elevation), wanted in offsets.items():
        moved = orbit(camera, center, azimuth, elevation).center - center
        torch.testing.assert_close(moved, torch.stack([torch.as_tensor(w) for w in wanted]).double())
    high = orbit(camera, torch.tensor([0.0, 0, -10]), 0, 80).center
    e = math.radians(80)
    torch.testing.assert_close(high, torch.tensor([0, 10 * math.sin(e), -10 + 10 * math.cos(e)]).double())
    # The camera goes to the person's left: their left side (+x) comes to the front.
    left = torch.tensor([[0.3, 0.0, -10.0]]).double()
    _, before = camera.project(left)
    _, after = orbit(camera, torch.tensor([0.0, 0, -10]), 60, 0).project(left)
    assert after < before


@pytest.mark.parametrize("angles", ANGLES)
def test_orbit_goes_the_same_way_in_the_release_s_world(angles):
    """Where the person, and with them the world's up, is upside down."""
    camera, center = tilted(), torch.tensor([0.05, -0.1, -10.2], dtype=torch.float64)
    points = center + torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double() * 0.3
    turn = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    theirs = replace(camera, world_to_camera=camera.world_to_camera @ turn)
    seen = orbit(theirs, center @ turn[:3, :3], *angles).project(points @ turn[:3, :3])[0]
    torch.testing.assert_close(seen, orbit(camera, center, *angles).project(points)[0])


@pytest.mark.parametrize("angles", ANGLES)
@pytest.mark.parametrize("camera", [Camera.frontal(200, dtype=torch.float64), tilted()])
def test_orbit_keeps_pivot_distance_and_uprightness(camera, angles):
    center = torch.tensor([0.05, -0.1, -10.2], dtype=torch.float64)
    if camera.center[1] > 1 and abs(angles[1]) > 50:
        angles = (angles[0], angles[1] / 2)  # its own 20 degrees come on top
    moved = orbit(camera, center, *angles)
    rotation = moved.world_to_camera[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(rotation).item() == pytest.approx(1)
    for a, b in zip(camera.project(center[None]), moved.project(center[None]), strict=True):
        torch.testing.assert_close(a, b)
    above = center + torch.tensor([0.0, 0.2, 0], dtype=torch.float64)
    (pixel,), (higher,) = moved.project(center[None])[0], moved.project(above[None])[0]
    assert higher[1] < pixel[1] - 0.5  # up in the world is up in the picture
    assert higher[0] == pytest.approx(float(pixel[0]), abs=0.6)  # and the camera does not roll
    assert moved.intrinsics is camera.intrinsics and moved.width == camera.width


def test_going_round_a_tilted_camera_keeps_its_height():
    camera, center = tilted(), torch.tensor([0.0, 0, -10.0], dtype=torch.float64)
    cameras = list(turntable(camera, center, 8))
    assert len(cameras) == 8
    torch.testing.assert_close(cameras[0].world_to_camera, camera.world_to_camera)
    for k, c in enumerate(cameras):
        assert float(c.center[1]) == pytest.approx(float(camera.center[1]))
        step = (c.center - center)[[0, 2]]
        first = (camera.center - center)[[0, 2]]
        turn = math.atan2(step[0], step[1]) - math.atan2(first[0], first[1])
        assert math.cos(turn - 2 * math.pi * k / 8) == pytest.approx(1)


def test_orbit_framing_never_cuts(template, avatar):
    """All of the body, arms out, from straight above to straight below."""
    animator = Animator(avatar, template)
    pose = standing_pose(template)
    for wide in (False, True):
        if wide:
            pose.joints[0, template.joint("left_shoulder"), 2] = 0
        means = animator.pose(pose).means
        camera, center = orbit_framing(avatar, means, 128, whole=True)
        at = camera.project(center[None])[0][0]
        torch.testing.assert_close(at, torch.full((2,), 64.0), atol=0.01, rtol=0)
        reach = 0.0
        for azimuth in (0, 45, 90, 180, -120):
            for elevation in (-80, -30, 0, 60, 80):
                pixel, depth = orbit(camera, center, azimuth, elevation).project(means)
                assert ((pixel > 0) & (pixel < 128)).all() and (depth > 1).all()
                reach = max(reach, float((pixel - 64).abs().max()))
        assert reach > 50  # and the picture is filled
    drawn = animator.render(pose, orbit(camera, center, 90, 80))
    edge = torch.cat([drawn[0, :, 3], drawn[-1, :, 3], drawn[:, 0, 3], drawn[:, -1, 3]])
    assert edge.max() == 0 and drawn[..., 3].max() > 0.9


def test_orbit_framing_shows_what_the_photo_shows(template, avatar):
    means = Animator(avatar, template).pose(avatar.source.pose).means
    camera, center = orbit_framing(avatar, means, 128)
    whole, middle = orbit_framing(avatar, means, 128, whole=True)
    assert center[1] > middle[1] + 0.1 and camera.intrinsics[0, 0] > 1.2 * whole.intrinsics[0, 0]
    seen = avatar.source.camera.project(means)[0]
    inside = ((seen > 0) & (seen < avatar.source.camera.width)).all(1)
    pixel, _ = camera.project(means[inside])
    assert ((pixel > 0) & (pixel < 128)).all()


# --- the release's orbit ------------------------------------------------------------------------------------


def release_source(size=512) -> Camera:
    """A source camera of the release's tracks: w2c about [1 | t]."""
    rt = torch.tensor([[-1.0, 0, 0, 0.02], [0, -1, 0, -0.7], [0, 0, 1, 21]], dtype=torch.float64)
    return from_release_extrinsics(rt, size)


def test_release_orbit_by_hand():
    """Frame 0: h = 1.57, v = 1.57 - 0.05 + 0.3 = 1.82, so cos(phi) = 1 - 3.64 / pi; a quarter later v = 1.52
    and h = 1.57 + 0.35."""
    source = release_source()
    radius = math.sqrt(0.02**2 + 0.7**2 + 21**2)
    assert float(source.center.norm()) == pytest.approx(radius)
    for frame, h, v in ((0, 1.57, 1.82), (30, 1.92, 1.52)):
        sin, cos = math.sin(2 * 3.14 * frame / 120), math.cos(2 * 3.14 * frame / 120)
        h, v = 1.57 + 0.35 * sin, 1.52 + 0.3 * cos
        y = 1 - 2 * v / math.pi
        flat = math.sqrt(1 - y * y)
        wanted = radius * torch.tensor([-flat * math.cos(h), y, flat * math.sin(h)], dtype=torch.float64)
        camera = release_orbit(source, 120, frame)
        # The formulas' space is the world with y and z turned round.
        torch.testing.assert_close(camera.center * torch.tensor([1.0, -1, -1]).double(), wanted)
        pixel, depth = camera.project(torch.tensor([[0, -0.75, 0], [0, -0.95, 0]], dtype=torch.float64))
        torch.testing.assert_close(pixel[0], torch.full((2,), 256.0, dtype=torch.float64))
        # The tracks' people stand upside down in their world: -y is up.
        assert pixel[1, 1] < 256 - 20 and pixel[1, 0] == pytest.approx(256, abs=1e-6)
        assert depth[0] > 19
        rotation = camera.world_to_camera[:3, :3]
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
        assert torch.linalg.det(rotation).item() == pytest.approx(1)
        assert camera.intrinsics[0, 0] == 6144 and camera.width == 512
    near_source = release_orbit(source, 120, 30).world_to_camera[:3, :3]
    assert float((near_source - torch.eye(3)).abs().max()) < 0.4


def test_release_orbit_with_3_14_does_not_close():
    source = release_source()
    first, after = (release_orbit(source, 120, f).center for f in (0, 120))
    gap = float((first - after).norm())
    assert gap == pytest.approx(21 * 0.35 * 2 * (math.pi - 3.14), rel=0.05)


def test_tracks_of_the_release_are_in_its_world(template, avatar):
    source = replace(avatar.source, camera=release_source())
    theirs = replace(avatar, source=source)
    assert torch.equal(release_world(theirs, template), torch.eye(4).double())
    for frame in (0, 77):
        torch.testing.assert_close(
            avatar_release_orbit(theirs, template, 360, frame).world_to_camera,
            release_orbit(source.camera, 360, frame).world_to_camera,
        )


def test_release_orbit_of_our_avatars(template, avatar):
    """Upright, not mirrored, as far away as the source's camera, in its frame, swinging by 20 degrees."""
    source = avatar.source
    with torch.no_grad():
        joints = EHM(template)(avatar.identity, source.pose).joints[0]
    names = ("head", "neck", "left_wrist", "right_wrist")
    points = joints[[template.joint(n) for n in names]]
    middle = source.camera.center + source.camera.transform(joints[:1])[0, 2] * torch.tensor([0.0, 0, -1])
    azimuths = []
    for frame in range(0, 120, 10):
        camera = avatar_release_orbit(avatar, template, 120, frame)
        (head, neck, left, right), depth = camera.project(points)
        assert head[1] < neck[1] and left[0] > right[0]
        assert float(depth.mean()) == pytest.approx(12, abs=0.6)
        at = camera.project(middle[None])[0][0]
        torch.testing.assert_close(at, torch.full((2,), 48.0), atol=0.05, rtol=0)
        stand = camera.center - middle
        azimuths.append(math.degrees(math.atan2(stand[0], stand[2])))
    assert max(azimuths) == pytest.approx(20, abs=1) and min(azimuths) == pytest.approx(-20, abs=1)


def test_pivot_and_framing_work_with_orbits(template, avatar):
    """The neck stays at its pixel of the photo's framing all the way round."""
    camera, center = framing(avatar, template, 96), pivot(avatar, template)
    before = camera.project(center[None])[0]
    for view in turntable(camera, center, 5, elevation=30):
        torch.testing.assert_close(view.project(center[None])[0], before, atol=1e-2, rtol=0)


def test_rest_pose_is_the_right_way_up_from_everywhere(template, avatar):
    animator = Animator(avatar, template)
    pose = replace(Pose.rest(template), translation=torch.tensor([[0.0, -0.3, -12.0]]))
    means = animator.pose(pose).means
    camera, center = orbit_framing(avatar, means, 64, whole=True)
    for azimuth in (0, 90, 180, -90):
        alpha = animator.render(pose, orbit(camera, center, azimuth, 0))[..., 3]
        rows = (alpha > 0.5).nonzero()[:, 0]
        assert rows.min() > 0 and rows.max() < 63
        head = int((alpha[int(rows.min()) + 3] > 0.5).sum())
        assert 1 <= head <= 12  # a head, not two feet or a hip, is on top
