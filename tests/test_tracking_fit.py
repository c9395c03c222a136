"""Tracking by optimisation, on keypoints projected from known template parameters (no detector needed)."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from guava.body import EHM, Identity, Pose, load_template
from guava.camera import Camera
from guava.errors import FileFormatError, InputError, NoPersonError
from guava.motion.file import load_motion
from guava.tracking import SourceMedia, TrackingConfig, load_tracked, save_tracked, track_detections
from guava.tracking.crop import crop_image, map_points, square_crop
from guava.tracking.detectors.base import FrameDetections, PersonDetection, PointSet
from guava.tracking.fit.chain import Skeleton, finger_joints, pose_chain, rest_jacobian, rotation_jacobian
from guava.tracking.fit.face import FaceLandmarkModel, project_with_jacobian
from guava.tracking.fit.offsets import body_offset, hand_offsets
from guava.tracking.fit.solver import Bounds, NormalEquations, Smoothness, minimise
from guava.tracking.keypoints import fit_keypoints
from guava.tracking.observations import BODY_POINTS, LEG_PARTS
from guava.tracking.smoothness import frame_links

SIZE = 512
MEDIA = SourceMedia("made.png", "", SIZE, SIZE)


@pytest.fixture(scope="module")
def template():
    return load_template()


def made_pose(template, frames=1, seed=0):
    """People facing the camera with both hands up, moving a little from frame to frame."""
    rng = np.random.default_rng(seed)
    pose = Pose.rest(template, frames)
    swing = torch.linspace(0, 0.3, frames) if frames > 1 else torch.zeros(1)
    for name, value in {
        "pelvis": (0.02, 0.1, 0.0),
        "neck": (0.1, 0.1, 0.0),
        "head": (0.0, 0.05, 0.02),
        "left_shoulder": (0.0, -0.4, -1.0),
        "right_shoulder": (0.0, 0.4, 1.0),
        "left_elbow": (0.0, -1.8, 0.0),
        "right_elbow": (0.0, 1.8, 0.0),
    }.items():
        pose.joints[:, template.joint(name)] = torch.tensor(value)
    pose.joints[:, template.joint("left_shoulder"), 2] += swing
    for joint, name in enumerate(template.body.joint_names):
        if name[-1] in "123" and "thumb" not in name and "spine" not in name and "_" in name:
            pose.joints[:, joint, 2] = (-0.4 if name.startswith("left") else 0.4) + float(rng.normal(0, 0.05))
    pose.expression[:, template.unit("jawOpen")] = 0.5
    pose.translation[:] = torch.tensor([0.0, -0.45, -12.0])
    return pose


def detect(template, identity, pose, layout="mediapipe", offsets=True):
    """What a perfect detector would see; without ``offsets`` its points lie on the joints themselves."""
    shift = 1.0 if offsets else 0.0
    camera = Camera.frontal(SIZE)
    with torch.no_grad():
        out = EHM(template)(identity, pose)
    transforms = out.joint_transforms[..., :3, :3].double()
    parents = template.body.parents.tolist()
    embedding = "mediapipe478" if layout == "mediapipe" else "ibug68"
    table = template.landmarks[embedding]
    marks = (out.vertices[:, template.faces[table.faces]] * table.barycentrics[..., None]).sum(2)
    body_layout = "mediapipe33" if layout == "mediapipe" else "openpose18"
    found = []
    for t in range(pose.joints.shape[0]):
        face, _ = camera.project(marks[t])
        # No depth: the measured landmark response belongs to MediaPipe's own way of being wrong, and is
        # used only
        # together with MediaPipe's depth.
        face_set = PointSet(embedding, face.double().numpy(), np.ones(len(face)))
        body = np.zeros((33 if layout == "mediapipe" else 18, 2))
        sure = np.zeros(len(body))
        world = np.zeros((len(body), 3))
        for name, index in BODY_POINTS[body_layout].items():
            if name.partition("_")[2] in LEG_PARTS:  # an upper body
                continue
            joint = template.joint(name)
            aside = shift * body_offset(name)
            point = out.joints[t, joint].double() + transforms[t, parents[joint]] @ aside
            body[index] = camera.project(point[None].float())[0][0].numpy()
            sure[index] = 1
            world[index] = out.joints[t, joint].numpy() * [1, -1, -1]
        body_set = PointSet(body_layout, body, sure, None, world if layout == "mediapipe" else None)
        hands = []
        for side in ("left", "right"):
            points = []
            for n, joint in enumerate(finger_joints(template, side)):
                offset = shift * hand_offsets(side)[n]
                if joint >= 0:
                    carrier = joint if n == 0 else parents[joint]
                    points.append(out.joints[t, joint].double() + transforms[t, carrier] @ offset)
                else:
                    finger = ("thumb", "index", "middle", "ring", "pinky")[(n - 1) // 4]
                    tip = out.vertices[t, template.surface_points[f"{side}_{finger}_tip"]].double()
                    points.append(tip + transforms[t, template.joint(f"{side}_{finger}3")] @ offset)
            pixels, depth = camera.project(torch.stack(points).float())
            scale = float(camera.intrinsics[0, 0] / depth[0])
            hands.append(
                PointSet(
                    "hand21",
                    pixels.double().numpy(),
                    np.ones(21),
                    ((depth - depth[0]) * scale).double().numpy(),
                )
            )
        everything = np.concatenate([face_set.points, body[sure > 0], hands[0].points, hands[1].points])
        box = np.concatenate([everything.min(0), everything.max(0)])
        person = PersonDetection(box, 1.0, face_set, body_set, *hands)
        found.append(FrameDetections(person, 1, None))
    return found


def run(template, found, **options):
    return track_detections(
        found, [(SIZE, SIZE)] * len(found), media=MEDIA, detector="made", template=template, **options
    )


def neck_aligned(template, identity, pose):
    with torch.no_grad():
        joints = EHM(template, torch.tensor([0]))(identity, pose).joints
    return joints - joints[:, [template.joint("neck")]]


@pytest.fixture(scope="module")
def still(template):
    identity, pose = Identity.neutral(template), made_pose(template)
    return identity, pose, run(template, detect(template, identity, pose))


def test_a_known_person_is_recovered(template, still):
    identity, pose, tracked = still
    gap = neck_aligned(template, tracked.identity, tracked.pose) - neck_aligned(template, identity, pose)
    for name, limit in {"head": 0.02, "shoulder": 0.03, "elbow": 0.04, "wrist": 0.05}.items():
        rows = [j for j, n in enumerate(template.body.joint_names) if n.endswith(name)]
        assert float(gap[0, rows].norm(dim=-1).max()) < limit, name
    assert float(tracked.quality.face_error[0]) < 1.5
    assert float(tracked.quality.hand_error[0].max()) < 2.0
    assert float(tracked.pose.expression[0, template.unit("jawOpen")]) > 0.35


def test_a_still_has_no_nan_and_says_what_it_is(template, still):
    tracked = still[2]
    for record in (tracked.pose, tracked.identity):
        for f in fields(record):
            assert torch.isfinite(getattr(record, f.name)).all(), f.name
    assert len(tracked) == 1 and tracked.valid.all() and tracked.fps == 0
    assert tracked.template_hash == template.hash
    assert tracked.expression_names == template.expression_names
    assert bool(((tracked.pose.expression >= 0) & (tracked.pose.expression <= 1)).all())


def test_tracking_is_deterministic(template, still):
    again = run(template, detect(template, *still[:2]))
    assert torch.equal(again.pose.joints, still[2].pose.joints)
    assert torch.equal(again.identity.body_shape, still[2].identity.body_shape)


def test_unseen_hands_are_said_and_stay_natural(template, still):
    found = detect(template, *still[:2])
    person = replace(found[0].person, left_hand=None)
    tracked = run(template, [replace(found[0], person=person)])
    assert any("left hand" in note for note in tracked.quality.notes)
    assert not any("right hand" in note for note in tracked.quality.notes)
    assert torch.isnan(tracked.quality.hand_error[0, 0]) and torch.isfinite(tracked.quality.hand_error[0, 1])
    assert torch.isnan(tracked.hand_boxes[0, 0]).all()


def test_invalid_frames_are_kept_and_cuts_are_not_smoothed(template):
    identity, pose = Identity.neutral(template), made_pose(template, 6)
    found = detect(template, identity, pose)
    found[2] = FrameDetections(None, 0, None)
    shots = torch.tensor([0, 0, 0, 1, 1, 1])
    tracked = run(template, found, fps=25.0, shots=shots)
    assert len(tracked) == 6
    assert tracked.valid.tolist() == [True, True, False, True, True, True]
    assert tracked.frame_indices.tolist() == list(range(6))
    # The absent frame holds a neighbour's pose.
    assert any(torch.equal(tracked.pose.joints[2], tracked.pose.joints[t]) for t in (1, 3))
    assert tracked.identity.body_shape.shape[0] == 1
    links = frame_links(tracked.valid, tracked.shots, tracked.timestamps)
    assert (links > 0).tolist() == [True, False, False, True, True]


def test_smoothness_stops_at_a_cut():
    """Two frames pulled to 0 and 1: linked they move together, across a cut they do not."""

    def build(values, shared):
        equations = NormalEquations.zero(2, 1, 0)
        target = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        equations.add(values - target, torch.ones(2, 1, 1, dtype=torch.float64))
        return equations

    start, none = torch.full((2, 1), 0.3, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    stiff = torch.tensor([100.0], dtype=torch.float64)
    for link, expected in ((1.0, (0.4975, 0.5025)), (0.0, (0.0, 1.0))):
        smooth = Smoothness(torch.tensor([link], dtype=torch.float64), stiff)
        values, _ = minimise(build, start, none, iterations=30, smoothness=smooth)
        assert values[:, 0].tolist() == pytest.approx(expected, abs=1e-3)


def test_solver_shares_values_and_keeps_bounds():
    """x_t + s = y_t with x in [0, 1]: checked against an ordinary bounded least-squares solver."""
    from scipy.optimize import lsq_linear

    target = torch.tensor([[0.5], [2.0], [-1.0]], dtype=torch.float64)

    def build(values, shared):
        equations = NormalEquations.zero(3, 1, 1)
        ones = torch.ones(3, 1, 1, dtype=torch.float64)
        equations.add(values + shared - target, ones, ones)
        equations.add_prior(values, torch.zeros(1).double(), torch.full((1,), 0.1).double(), slice(0, 1))
        equations.add_shared_prior(shared, torch.tensor([0.01]).double(), slice(0, 1))
        return equations

    bounds = Bounds(torch.zeros(1).double(), torch.ones(1).double())
    start = torch.full((3, 1), 0.5, dtype=torch.float64)
    values, shared = minimise(build, start, torch.zeros(1).double(), iterations=100, bounds=bounds)
    rows = np.zeros((7, 4))
    rows[:3, :3], rows[:3, 3] = np.eye(3), 1
    rows[3:6, :3], rows[6, 3] = np.sqrt(0.1) * np.eye(3), 0.1
    best = lsq_linear(rows, [0.5, 2, -1, 0, 0, 0, 0], ([0, 0, 0, -np.inf], [1, 1, 1, np.inf])).x
    assert torch.cat([values[:, 0], shared]).tolist() == pytest.approx(best.tolist(), abs=5e-3)


def test_chain_jacobians_are_exact():
    torch.manual_seed(0)
    skeleton = Skeleton.build([-1, 0, 1, 1], [0, 1, 2, 3, 3])
    angles, shift = torch.randn(2, 4, 3).double() * 0.8, torch.randn(2, 3).double()
    joints, points = torch.randn(4, 3).double(), torch.randn(5, 3).double()
    joint_dirs, point_dirs = torch.randn(4, 3, 2).double(), torch.randn(5, 3, 2).double()

    def forward(a, s):
        return pose_chain(skeleton, a, shift, joints + joint_dirs @ s, points + point_dirs @ s).points

    zero = torch.zeros(2).double()
    posed = pose_chain(skeleton, angles, shift, joints, points)
    by_angle, by_shape = torch.autograd.functional.jacobian(forward, (angles, zero))
    mine = rotation_jacobian(skeleton, posed, angles, torch.arange(4)).reshape(2, 5, 3, 4, 3)
    for t in range(2):
        torch.testing.assert_close(mine[t], by_angle[t, :, :, t])
    torch.testing.assert_close(rest_jacobian(skeleton, posed, joint_dirs, point_dirs), by_shape)


def test_projection_agrees_with_the_camera(template):
    camera = Camera.frontal(SIZE, dtype=torch.float64)
    points = torch.randn(7, 3).double() * 0.2 + torch.tensor([0.0, 0.0, -11.0]).double()
    pixels, jacobian = project_with_jacobian(camera, points)
    torch.testing.assert_close(pixels, camera.project(points)[0])
    exact = torch.autograd.functional.jacobian(lambda p: camera.project(p)[0].sum(0), points)
    torch.testing.assert_close(jacobian, exact.permute(1, 0, 2))


def test_face_model_agrees_with_the_template(template):
    model = FaceLandmarkModel(template, "mediapipe478")
    pose = Pose.rest(template)
    pose.expression[:] = torch.linspace(0, 0.5, pose.expression.shape[1])
    identity = replace(Identity.neutral(template), head_shape=torch.randn(1, template.head.num_shape) * 0.5)
    head, _ = EHM(template).head(identity, pose)
    slot = torch.full((template.body.num_vertices,), -1)
    slot[template.head_vertex_ids] = torch.arange(len(template.head_vertex_ids))
    table = template.landmarks["mediapipe478"]
    expected = (head[0, slot[template.faces[table.faces]]] * table.barycentrics[..., None]).sum(1)
    mine = model.points(identity.head_shape[0].double(), pose.expression.double())[0]
    torch.testing.assert_close(mine.float(), expected, atol=1e-5, rtol=1e-4)


def test_long_clips_are_chunked_with_one_identity(template):
    identity, pose = Identity.neutral(template), made_pose(template, 9)
    found = detect(template, identity, pose)
    config = TrackingConfig(identity_frames=3, chunk=6, overlap=3)
    seen = []
    chunked = run(template, found, fps=25.0, config=config, progress=lambda *state: seen.append(state))
    assert len(chunked) == 9 and chunked.identity.head_shape.shape[0] == 1
    assert seen[0] == ("fit", 0, 9) and seen[-1] == ("fit", 9, 9)
    whole = run(template, found, fps=25.0)
    gap = neck_aligned(template, chunked.identity, chunked.pose) - neck_aligned(
        template, whole.identity, whole.pose
    )
    wrists = [template.joint("left_wrist"), template.joint("right_wrist")]
    assert float(gap[:, wrists].norm(dim=-1).max()) < 0.04
    # The seam is as smooth as the rest: no step is far larger than the motion itself.
    step = (chunked.pose.joints[1:] - chunked.pose.joints[:-1])[:, template.joint("left_shoulder")].norm(
        dim=-1
    )
    assert float(step.max()) < 0.1


def test_other_layouts_without_depth(template):
    """iBUG-68 and OpenPose-18, as DWPose gives them."""
    identity, pose = Identity.neutral(template), made_pose(template, 3)
    found = detect(template, identity, pose, "dwpose")
    arrays = {
        "body": np.stack([f.person.body.points for f in found]) / SIZE,
        "body_score": np.stack([f.person.body.confidence for f in found]),
        "hands": np.stack([[f.person.left_hand.points, f.person.right_hand.points] for f in found]) / SIZE,
        "hands_score": np.ones((3, 2, 21)),
        "face": np.stack([f.person.face.points for f in found]) / SIZE,
        "face_score": np.ones((3, 68)),
    }
    arrays["face_score"][1] = 0
    tracked = fit_keypoints(**arrays, fps=24.0)
    assert tracked.valid.tolist() == [True, False, True] and tracked.masks is None
    assert float(tracked.quality.face_error[0]) < 3
    assert float(tracked.quality.hand_error[0].max()) < 3
    with pytest.raises(InputError, match="'hands'"):
        fit_keypoints(**{**arrays, "hands": arrays["hands"][:, 0]}, fps=24.0)


def test_a_face_that_is_none_of_the_template_is_said(template, still):
    found = detect(template, *still[:2])
    rng = np.random.default_rng(0)
    face = found[0].person.face
    spoilt = replace(face, points=face.points + rng.normal(0, 6, face.points.shape))
    tracked = run(template, [replace(found[0], person=replace(found[0].person, face=spoilt))])
    assert any("fits poorly" in note for note in tracked.quality.notes)
    assert not any("fits poorly" in note for note in still[2].quality.notes)


def test_nobody_is_a_clear_error(template):
    with pytest.raises(NoPersonError, match=r"No person was found in 'made\.png'"):
        run(template, [FrameDetections(None, 0, None)])


def test_files_round_trip_and_drive_as_motions(template, still, tmp_path):
    tracked = replace(still[2], masks=torch.randint(0, 255, (1, 8, 8), dtype=torch.uint8))
    path = tmp_path / "a.motion"
    save_tracked(tracked, path)
    again = load_tracked(path)
    for record in ("pose", "identity"):
        for f in fields(getattr(tracked, record)):
            assert torch.equal(
                getattr(getattr(again, record), f.name), getattr(getattr(tracked, record), f.name)
            )
    for name in ("timestamps", "frame_indices", "valid", "shots", "crop_from_image", "masks"):
        assert torch.equal(getattr(again, name), getattr(tracked, name)), name
    for name in ("face_boxes", "hand_boxes"):
        torch.testing.assert_close(getattr(again, name), getattr(tracked, name), equal_nan=True)
    assert again.media == tracked.media and again.quality.notes == tracked.quality.notes
    assert again.keypoints.keys() == tracked.keypoints.keys() and again.detector == "made"
    motion = load_motion(path)
    assert torch.equal(motion.pose.joints, tracked.pose.joints) and motion.template_hash == template.hash


def test_a_motion_that_was_not_tracked_is_refused(template, tmp_path):
    from guava.motion.clips import make_clip
    from guava.motion.file import save_motion

    path = tmp_path / "talk.motion"
    save_motion(make_clip("talk", template), path)
    with pytest.raises(FileFormatError, match="did not come from tracking"):
        load_tracked(path)


def test_crops_map_and_sample():
    matrix = square_crop(np.array([10.0, 20.0, 30.0, 60.0]), 1.1, 100)
    corners = map_points(matrix, np.array([[20.0, 40.0], [20.0, 62.0]]))
    assert corners == pytest.approx(np.array([[50.0, 50.0], [50.0, 100.0]]))
    image = torch.zeros(80, 60)
    image[40:60, 20:40] = 1.0
    crop = crop_image(image, torch.from_numpy(matrix), 100)
    assert float(crop[60, 60]) == pytest.approx(1.0) and float(crop[40, 40]) == 0.0
    assert float(crop_image(torch.ones(80, 60), torch.from_numpy(matrix), 100)[50, 0]) == pytest.approx(0.0)
