"""Folders of the authors' tracker: read as written, refused where they are hostile, named where damaged."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import release_data as made
import torch

from guava.body import EHM, load_template
from guava.commands.main import main
from guava.data import ModelSizes, open_release_dataset, part_boxes, to_tracked_sequence
from guava.data import images as images_module
from guava.data.images import ReleaseImages, decode_picture
from guava.data.parameters import clip_pose
from guava.errors import FileFormatError, InputError, MissingDependencyError, TemplateMismatchError
from guava.tracking import load_tracked, save_tracked

pytest.importorskip("lmdb")


@pytest.fixture(scope="module")
def template():
    return made.release_template()


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single") / "clip"
    tracking, person = made.write_single(folder, 4)
    return folder, tracking, person


@pytest.fixture(scope="module")
def combined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("combined")
    return folder, made.write_combined(folder, {"b_clip": 3, "a_clip": 4, "c_clip": 2})


# --- reading ------------------------------------------------------------------------------------------------


def test_a_single_clip_reads_as_written(single):
    folder, tracking, person = single
    dataset = open_release_dataset(folder)
    assert dataset.single and dataset.clip_names == ("clip",) and not dataset.damage and not dataset.check()
    clip = dataset.clip()
    assert clip.frames == tuple(tracking) and clip.usable.all() and len(clip) == 4
    for row, entry in enumerate(tracking.values()):
        for group, names in {
            "smplx_coeffs": ("global_pose", "body_pose", "right_hand_pose", "exp", "camera_RT_params"),
            "flame_coeffs": ("expression_params", "jaw_params", "eye_pose_params", "eyelid_params"),
        }.items():
            for name in names:
                assert np.array_equal(clip.values[name][row], entry[group][name].ravel()), name
        assert np.array_equal(clip.body_crop[row], entry["body_crop"]["M_o2c-hd"])
        assert np.array_equal(clip.part_crops[row, 2], entry["right_hand_crop"]["M_c2o"])
        assert np.allclose(clip.keypoints[row], entry["dwpose_rlt"]["keypoints"])
    assert np.array_equal(clip.identity.smplx_shape, person["smplx_shape"][0])
    assert np.array_equal(clip.identity.joints_offset, person["joints_offset"][0])


def test_a_combined_set_keeps_clips_apart(combined):
    folder, tracking = combined
    dataset = open_release_dataset(folder)
    assert not dataset.single and dataset.clip_names == ("b_clip", "a_clip", "c_clip")
    assert {name: len(entries) for name, entries in dataset.splits.items()} == {
        "train": 7,
        "valid": 2,
        "test": 2,
    }
    assert dataset.splits["valid"] == (("c_clip", "frame_000000"), ("c_clip", "frame_000001"))
    assert dataset.splits["test"] == (("b_clip", "frame_000001"), ("b_clip", "frame_000002"))
    clip = dataset.clip("a_clip")
    wanted = tracking["a_clip"]["frame_000002"]["flame_coeffs"]["expression_params"]
    assert np.array_equal(clip.values["expression_params"][2], wanted)
    image, mask = made.pictures(3 + 2, 64)  # the sixth picture written
    assert np.array_equal(clip.image("frame_000002"), image.transpose(2, 0, 1))
    assert np.array_equal(clip.mask("frame_000002"), mask)
    assert clip.scores is None and dataset.check(decode=True) == ()
    with pytest.raises(InputError, match="no clip 'd_clip'.*b_clip"):
        dataset.clip("d_clip")
    with pytest.raises(InputError, match="has 3 clips"):
        dataset.clip()


def test_frames_follow_the_list_and_not_the_pickle(tmp_path):
    made.write_single(tmp_path, 4)
    order = ["frame_000003", "frame_000001"]
    (tmp_path / "videos_info.json").write_text(json.dumps({"x.y": {"frames_num": 2, "frames_keys": order}}))
    clip = open_release_dataset(tmp_path).clip("x.y")
    assert clip.frames == tuple(order)
    (tmp_path / "videos_info.json").unlink()
    assert open_release_dataset(tmp_path).clip(tmp_path.name).frames[0] == "frame_000000"


def test_nothing_is_written(single):
    folder, *_ = single
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}
    clip = open_release_dataset(folder).clip()
    clip.image("frame_000000")
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_the_photo_of_a_frame_is_white_outside_the_mask(single):
    clip = open_release_dataset(single[0]).clip()
    photo = clip.photo("frame_000001")
    assert photo.pixels.shape == (64, 64, 3) and photo.alpha.shape == (64, 64)
    assert (photo.pixels[photo.alpha == 0] == 255).all() and (photo.pixels[photo.alpha > 250] < 250).any()
    assert clip.original_size("frame_000001") == made.ORIGINAL


# --- pictures -----------------------------------------------------------------------------------------------


def test_pictures_decode_as_rgb():
    image, mask = made.pictures(1, 48)
    assert np.array_equal(decode_picture(made.encoded(image, "PNG"), "k"), image.transpose(2, 0, 1))
    lossy = decode_picture(made.encoded(image), "k").transpose(1, 2, 0).astype(int)
    assert np.abs(lossy - image).max() < 12
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    assert decode_picture(made.encoded(red), "k")[:, 8, 8].argmax() == 0
    grey = decode_picture(made.encoded(mask, "PNG"), "k")
    assert all(np.array_equal(grey[i], mask) for i in range(3))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_the_tensor_fallback_takes_plain_tensors_only(tmp_path):
    tensor = torch.randint(0, 256, (3, 8, 9), dtype=torch.uint8)
    torch.save(tensor, tmp_path / "t")
    assert np.array_equal(decode_picture((tmp_path / "t").read_bytes(), "k"), tensor.numpy())

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "harm"), "w")

    torch.save({"x": Evil()}, tmp_path / "evil")
    with pytest.raises(FileFormatError, match="'k' is no plain torch tensor"):
        decode_picture((tmp_path / "evil").read_bytes(), "k")
    with pytest.raises(FileFormatError, match="'k' is no plain torch tensor"):
        decode_picture(pickle.dumps(Evil(), 2), "k")
    assert not (tmp_path / "harm").exists()
    torch.save(torch.zeros(3, 8, 8), tmp_path / "f")
    with pytest.raises(FileFormatError, match=r"not a tensor of \(3, H, W\) bytes"):
        decode_picture((tmp_path / "f").read_bytes(), "k")
    # A few bytes that would fill the memory.
    torch.save(tensor[:, :1, :1].expand(3, 100_000, 100_000), tmp_path / "bomb")
    with pytest.raises(FileFormatError, match=r"not a tensor of \(3, H, W\) bytes"):
        decode_picture((tmp_path / "bomb").read_bytes(), "k")
    torch.save(tensor, tmp_path / "old", _use_new_zipfile_serialization=False)
    whole, generator = (tmp_path / "old").read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for place in generator.integers(2, len(data), 4):
            data[place] = generator.integers(256)
        try:
            decode_picture(bytes(data), "k")
        except FileFormatError:
            refused += 1
    assert 50 < refused < 300


def test_damaged_pictures_are_named():
    image, _ = made.pictures(1, 48)
    for data in (made.encoded(image)[:200], made.encoded(image, "PNG")[:60], b"", b"GIF89a..."):
        with pytest.raises(FileFormatError, match="'a/b'"):
            decode_picture(data, "a/b")


def test_without_lmdb_one_sentence_says_how_to_get_it(single, monkeypatch):
    import builtins

    real = builtins.__import__

    def no_lmdb(name, *rest, **named):
        if name == "lmdb":
            raise ImportError(name)
        return real(name, *rest, **named)

    reader = ReleaseImages(single[0] / "img_lmdb")
    reader.close()
    monkeypatch.setattr(builtins, "__import__", no_lmdb)
    with pytest.raises(MissingDependencyError, match=r"guava-avatar\[lmdb\]"):
        reader.get("frame_000000/body_image")


def test_a_foreign_file_is_no_lmdb(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"\0" * 100)
    with pytest.raises(FileFormatError, match="no LMDB folder, or damaged"):
        ReleaseImages(tmp_path).get("x")
    with pytest.raises(InputError, match="no 'data.mdb'"):
        ReleaseImages(tmp_path / "nothing")


def test_a_copy_that_was_cut_off_is_refused(tmp_path):
    """LMDB itself would read beyond the file's end, which kills the process."""
    made.write_single(tmp_path, 3)
    data = tmp_path / "img_lmdb" / "data.mdb"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(FileFormatError, match="is cut off"):
        open_release_dataset(tmp_path).clip().image("frame_000002")


def test_readers_of_one_folder_share_it(single):
    folder = single[0] / "img_lmdb"
    first, second = ReleaseImages(folder), ReleaseImages(folder)
    assert first.get("frame_000000/body_mask") == second.get("frame_000000/body_mask") is not None
    again = pickle.loads(pickle.dumps(first))
    assert len(again) == len(second) and list(images_module._environments).count(first.folder) == 1
    first.close()
    assert second.get("frame_000000/body_mask") is not None


# --- damage -------------------------------------------------------------------------------------------------


def _damage(folder, change, core="numpy.core"):
    tracking, _ = made.write_single(folder, 5)
    change(tracking)
    (folder / "optim_tracking_ehm.pkl").write_bytes(made.pickled(tracking, core=core))


def test_damaged_frames_are_named_and_flagged(tmp_path, template):
    def change(tracking):
        tracking["frame_000001"]["smplx_coeffs"]["body_pose"][3, 1] = np.nan
        del tracking["frame_000002"]["flame_coeffs"]["jaw_params"]
        tracking["frame_000003"]["smplx_coeffs"]["camera_RT_params"] = np.zeros((3, 4))
        tracking["frame_000004"]["flame_coeffs"]["expression_params"] = np.zeros(10)

    _damage(tmp_path, change)
    clip = open_release_dataset(tmp_path).clip()
    assert clip.usable.tolist() == [True, False, False, False, False]
    assert [d.where for d in clip.damage] == [f"clip/frame_00000{i}" for i in range(1, 5)]
    reasons = " ".join(d.reason for d in clip.damage)
    for part in ("body_pose is not 63", "no jaw_params", "no rotation", "expression_params is not 50"):
        assert part in reasons
    tracked = to_tracked_sequence(clip, template)
    assert tracked.valid.tolist() == clip.usable.tolist()
    assert torch.equal(tracked.pose.joints, tracked.pose.joints[:1].expand(5, -1, -1))
    notes = " ".join(tracked.quality.notes)
    assert "4 of 5 frames are damaged" in notes and "clip/frame_000001" in notes
    with pytest.raises(FileFormatError, match="No frame of the clip 'clip' is usable"):
        to_tracked_sequence(clip, template, frames=["frame_000001"])


def test_lists_that_do_not_fit_are_damage(tmp_path):
    made.write_combined(tmp_path, {"a": 2, "b": 2})
    splits = {"train": ["a/frame_000000", "a/frame_000009", "z/frame_000000"], "valid": "all"}
    (tmp_path / "dataset_frames.json").write_text(json.dumps(splits))
    infos = {"a": {"frames_keys": ["frame_000000"]}, "gone": {"frames_keys": ["frame_000000"]}, "b": {}}
    (tmp_path / "videos_info.json").write_text(json.dumps(infos))
    (tmp_path / "testing_split.json").write_text(json.dumps({"q": 3}))
    dataset = open_release_dataset(tmp_path)
    assert dataset.clip_names == ("a", "b") and len(dataset.frames_of("a")) == 1
    told = {d.where: d.reason for d in dataset.check()}
    assert set(told) == {"gone", "valid", "q", "a/frame_000009", "z/frame_000000"}


def test_missing_and_damaged_pictures_are_found(tmp_path):
    made.write_single(tmp_path, 2, **{"frame_000001/body_mask": b"\xff\xd8\xffjunk"})
    dataset = open_release_dataset(tmp_path)
    assert dataset.check() == ()
    assert [d.where for d in dataset.check(decode=True)] == ["frame_000001/body_mask"]


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (lambda f: None, "was not written by EHM-Tracker"),
        (lambda f: (f / "base_tracking.pkl").write_bytes(b""), "not finished"),
        (lambda f: (f / "skipped.txt").write_text(""), "gave"),
        (lambda f: made.write_single(f / "one"), "holds 1 tracked folders"),
        (lambda f: (f / "data.mdb").write_bytes(b""), "only the pictures"),
    ],
)
def test_folders_that_are_something_else_say_so(tmp_path, prepare, told):
    prepare(tmp_path)
    with pytest.raises(InputError, match=told):
        open_release_dataset(tmp_path)


def test_an_identity_that_is_damaged_is_named(tmp_path):
    _, person = made.write_single(tmp_path, 2)
    person["head_scale"] = np.full((1, 3), np.inf, np.float32)
    (tmp_path / "id_share_params.pkl").write_bytes(made.pickled(person))
    with pytest.raises(FileFormatError, match="head_scale is missing, damaged"):
        open_release_dataset(tmp_path).clip()


def test_a_damaged_json_is_one_sentence(tmp_path):
    made.write_single(tmp_path, 2)
    (tmp_path / "videos_info.json").write_text("{")
    with pytest.raises(FileFormatError, match="videos_info.json' is damaged or not JSON"):
        open_release_dataset(tmp_path)


JUNK = [None, 0, "x", b"", [], {}, np.zeros(0), np.array("x"), np.array([None], object), {1: 2}, np.nan, True]
JUNK += [np.full(63, 1e300), 10**400, np.zeros(63, complex), np.array(["1"] * 63)]


PLACES = ["", "smplx_coeffs", "smplx_coeffs/body_pose", "body_crop/M_o2c-hd"]
PLACES += ["head_crop", "left_hand_crop/M_c2o", "dwpose_rlt/scores"]


@pytest.mark.parametrize("place", PLACES)
def test_wrong_types_damage_a_frame_at_most(tmp_path, template, place):
    where = tuple(place.split("/")) if place else ()
    tracking, _ = made.write_single(tmp_path, len(JUNK) + 1)
    for junk, entry in zip(JUNK, list(tracking.values())[1:], strict=True):
        for key in where[:-1]:
            entry = entry[key]
        if where:
            entry[where[-1]] = junk
    if not where:
        tracking |= dict(zip(list(tracking)[1:], JUNK, strict=True))
    (tmp_path / "optim_tracking_ehm.pkl").write_bytes(made.pickled(tracking))
    dataset = open_release_dataset(tmp_path)
    needed = where[:1] in ((), ("smplx_coeffs",), ("body_crop",))
    assert len(dataset.check()) == (len(JUNK) if needed else 0)
    tracked = to_tracked_sequence(dataset.clip(), template)
    assert int(tracked.valid.sum()) == (1 if needed else len(JUNK) + 1)
    assert tracked.pose.joints.isfinite().all() and tracked.camera.world_to_camera.isfinite().all()


# --- to our records -----------------------------------------------------------------------------------------


def test_joints_stand_where_the_template_expects_them(single, template):
    folder, tracking, _ = single
    clip = open_release_dataset(folder).clip()
    pose = clip_pose(clip, [2], ModelSizes.of(template))
    entry = tracking["frame_000002"]
    smplx, flame = entry["smplx_coeffs"], entry["flame_coeffs"]
    wanted = {
        "pelvis": smplx["global_pose"],
        "left_hip": smplx["body_pose"][0],
        "right_wrist": smplx["body_pose"][20],
        "jaw": flame["jaw_params"],
        "left_eye_smplhf": flame["eye_pose_params"][:3],
        "right_eye_smplhf": flame["eye_pose_params"][3:],
        "left_index1": smplx["left_hand_pose"][0],
        "right_thumb3": smplx["right_hand_pose"][14],
    }
    for name, value in wanted.items():
        assert np.array_equal(pose.joints[0, template.joint(name)].numpy(), value), name
    assert np.array_equal(pose.eyelids[0].numpy(), flame["eyelid_params"])
    assert np.array_equal(pose.body_expression[0].numpy(), smplx["exp"])
    assert not pose.translation.any()


def test_identity_is_padded(single, template):
    tracked = to_tracked_sequence(open_release_dataset(single[0]).clip(), template)
    assert tracked.identity.body_shape.shape == (1, 300) and not tracked.identity.body_shape[0, 200:].any()
    assert np.array_equal(tracked.identity.body_shape[0, :200].numpy(), single[2]["smplx_shape"][0])
    assert np.array_equal(tracked.identity.hand_scale.numpy(), single[2]["hand_scale"])


def test_vertices_project_as_the_release_projects_them(single, template):
    """x = W/2 (1 - f Xc/Zc) with Xc in PyTorch3D's axes, from the recorded extrinsics alone."""
    folder, tracking, _ = single
    tracked = to_tracked_sequence(open_release_dataset(folder).clip(), template)
    with torch.no_grad():
        vertices = EHM(template)(tracked.identity, tracked.pose).vertices
    pixels, depth = tracked.camera.project(vertices)
    assert tracked.camera.width == 1024 and (depth > 10).all()
    for row, entry in enumerate(tracking.values()):
        extrinsics = entry["smplx_coeffs"]["camera_RT_params"].astype(np.float64)
        seen = vertices[row].double().numpy() @ extrinsics[:, :3].T + extrinsics[:, 3]
        wanted = 512 * (1 - 24 * seen[:, :2] / seen[:, 2:])
        assert np.abs(pixels[row].numpy() - wanted).max() < 1e-3
        assert np.allclose(depth[row].numpy(), seen[:, 2], atol=1e-4)
    half = tracked.camera.resized(512, 512).project(vertices)[0]
    assert torch.allclose(half * 2, pixels, atol=1e-3)


def test_crops_keypoints_and_what_is_not_recorded(single, template):
    folder, tracking, _ = single
    tracked = to_tracked_sequence(open_release_dataset(folder).clip(), template, fps=25)
    assert len(tracked) == 4 and tracked.fps == 25 and tracked.frame_indices.tolist() == [0, 1, 2, 3]
    assert tracked.timestamps[2] == 2 / 25 and (tracked.media.width, tracked.media.height) == made.ORIGINAL
    assert np.allclose(tracked.crop_from_image[0], tracking["frame_000000"]["body_crop"]["M_o2c-hd"])
    for error in ("face_error", "hand_error", "body_error", "mask_overlap"):
        assert getattr(tracked.quality, error).isnan().all()
    assert [tuple(tracked.keypoints[n].points.shape) for n in ("face", "body", "left_hand")] == [
        (4, 68, 2),
        (4, 18, 2),
        (4, 21, 2),
    ]
    pose = tracking["frame_000001"]["dwpose_rlt"]
    assert np.allclose(tracked.keypoints["right_hand"].points[1], pose["keypoints"][113:])
    assert np.allclose(tracked.keypoints["face"].confidence[1], np.minimum(pose["scores"][24:92], 1))
    assert any("renumbers" in note for note in tracked.quality.notes)
    crop = to_tracked_sequence(open_release_dataset(folder).clip(), template, picture="crop")
    assert torch.equal(crop.crop_from_image[0], torch.eye(3)) and crop.media.width == 1024
    assert crop.fps == 30 and any("30 frames a second are assumed" in note for note in crop.quality.notes)


def test_unseen_points_are_no_coordinates(tmp_path, template):
    """The tracker sets them to (-1, -1) in original pixels and pushes that through the crop."""

    def change(tracking):
        pose = tracking["frame_000001"]["dwpose_rlt"]
        pose["keypoints"][95] = [-301.6, -65.6]
        pose["scores"][95] = 0.1
        pose["scores"][113:] = 0.2

    _damage(tmp_path, change)
    tracked = to_tracked_sequence(open_release_dataset(tmp_path).clip(), template)
    hand = tracked.keypoints["left_hand"]
    assert hand.confidence[1, 3] == 0 and not hand.points[1, 3].any() and hand.confidence[1, 4] > 0.3
    seen = hand.points[1][hand.confidence[1] > 0]
    low, high = seen.amin(0), seen.amax(0)
    grown = torch.cat([(low + high) / 2 - 0.65 * (high - low), (low + high) / 2 + 0.65 * (high - low)])
    assert torch.allclose(tracked.hand_boxes[1, 0], grown, atol=1e-3)
    assert tracked.hand_boxes[1, 1].isnan().all() and not tracked.hand_boxes[0].isnan().any()
    notes = " ".join(tracked.quality.notes)
    assert "crop of the left hand takes in points that were not seen in 1 of 5" in notes
    assert "right hand is hardly seen in 1 of 5" in notes


def test_keypoints_come_from_the_tracking_before_the_fit_where_the_fit_lacks_them(tmp_path, template):
    tracking, _ = made.write_single(tmp_path, 2)
    (tmp_path / "base_tracking.pkl").write_bytes(made.pickled(tracking))
    points = tracking["frame_000001"].pop("dwpose_rlt")["keypoints"]
    (tmp_path / "optim_tracking_ehm.pkl").write_bytes(made.pickled(tracking))
    tracked = to_tracked_sequence(open_release_dataset(tmp_path).clip(), template)
    assert np.allclose(tracked.keypoints["body"].points[1], points[:18])
    assert tracked.template_name == "smplx-flame" and tracked.template_hash == template.hash


def test_without_keypoints_the_part_crops_give_the_boxes(combined, template):
    folder, tracking = combined
    tracked = to_tracked_sequence(open_release_dataset(folder).clip("a_clip"), template)
    entry = tracking["a_clip"]["frame_000000"]
    corners = np.array([[0, 0, 1], [512, 0, 1], [0, 512, 1], [512, 512, 1]]) @ (
        entry["body_crop"]["M_o2c-hd"] @ entry["left_hand_crop"]["M_c2o"]
    ).T
    assert np.allclose(tracked.hand_boxes[0, 0], [*corners.min(0)[:2], *corners.max(0)[:2]], atol=1e-3)
    assert tracked.keypoints == {} and any("Keypoints are not" in note for note in tracked.quality.notes)
    assert tracked.media.width == 0 and any("size are not in" in note for note in tracked.quality.notes)


def test_masks_come_along_when_asked_for(tmp_path, template):
    made.write_single(tmp_path, 1, size=1024)
    clip = open_release_dataset(tmp_path).clip()
    tracked = to_tracked_sequence(clip, template, masks=True)
    assert tracked.fps == 0 and tracked.masks.shape == (1, 1024, 1024)
    assert tracked.masks[0, 512, 512] > 250 and tracked.masks[0, 0, 0] < 5
    made.write_single(tmp_path / "small", 1, size=64)
    with pytest.raises(FileFormatError, match="64 x 64"):
        to_tracked_sequence(open_release_dataset(tmp_path / "small").clip(), template, masks=True)


def test_a_tracked_sequence_survives_its_file(single, template, tmp_path):
    tracked = to_tracked_sequence(open_release_dataset(single[0]).clip(), template)
    save_tracked(tracked, tmp_path / "t.track", template=template)
    again = load_tracked(tmp_path / "t.track")
    assert torch.equal(again.pose.joints, tracked.pose.joints)
    assert torch.equal(again.camera.world_to_camera, tracked.camera.world_to_camera)
    assert again.quality.notes == tracked.quality.notes and again.detector == "ehm-tracker"


def test_the_open_template_is_refused(single):
    with pytest.raises(TemplateMismatchError, match="coefficients of SMPL-X and FLAME"):
        to_tracked_sequence(open_release_dataset(single[0]).clip(), load_template())


@pytest.mark.slow
def test_a_full_size_body_stands_upright_in_the_crop_and_shuts_the_right_lid(tmp_path):
    """SMPL-X's and FLAME's sizes: PIXIE's flip in the root, the release's camera, lids as (left, right)."""
    synthetic_models = pytest.importorskip("synthetic_models")
    body = synthetic_models.synthetic_template()
    tracking, person = made.write_single(tmp_path, 1)
    entry = tracking["frame_000000"]
    for group in ("smplx_coeffs", "flame_coeffs"):
        for value in entry[group].values():
            value[:] = 0
    for name in ("smplx_shape", "flame_shape", "joints_offset"):
        person[name][:] = 0
    entry["smplx_coeffs"]["global_pose"][:] = [np.pi, 0, 0]
    entry["smplx_coeffs"]["camera_RT_params"][:] = [[-1, 0, 0, 0], [0, -1, 0, -0.35], [0, 0, 1, 22]]
    entry["flame_coeffs"]["eyelid_params"][:] = [0, 1]
    (tmp_path / "optim_tracking_ehm.pkl").write_bytes(made.pickled(tracking))
    (tmp_path / "id_share_params.pkl").write_bytes(made.pickled(person))
    tracked = to_tracked_sequence(open_release_dataset(tmp_path).clip(), body)
    model = EHM(body)
    with torch.no_grad():
        out = model(tracked.identity, tracked.pose)
        joints = dict(zip(body.body.joint_names, tracked.camera.project(out.joints)[0][0], strict=True))
        open_pose = type(tracked.pose)(**{**vars(tracked.pose), "eyelids": torch.zeros(1, 2)})
        moved = (out.vertices - model(tracked.identity, open_pose).vertices)[0].norm(dim=-1)
        pixels = tracked.camera.project(out.vertices)[0][0]
    assert joints["head"][1] < joints["pelvis"][1]  # y down: the head is above
    assert joints["left_wrist"][0] > joints["right_wrist"][0] + 200  # their left hand is on our right
    assert 0 < joints["head"][1] < 1024
    assert (moved > 1e-4).sum() > 100
    assert (pixels[:, 0] * moved).sum() / moved.sum() < joints["head"][0] - 8


# --- boxes --------------------------------------------------------------------------------------------------


def _boxes(folder, change):
    tracking, _ = made.write_single(folder, 1)
    change(tracking["frame_000000"])
    (folder / "optim_tracking_ehm.pkl").write_bytes(made.pickled(tracking))
    return part_boxes(open_release_dataset(folder).clip(), [0])[0].tolist(), tracking["frame_000000"]


def test_boxes_are_the_corners_extent_in_the_512_picture(tmp_path):
    (head, left, right), entry = _boxes(tmp_path, lambda entry: None)
    for box, name in ((head, "head"), (left, "left_hand"), (right, "right_hand")):
        xs, ys = [], []
        for x in (0, 512):
            for y in (0, 512):
                point = entry["body_crop"]["M_o2c-hd"] @ entry[f"{name}_crop"]["M_c2o"] @ [x, y, 1]
                xs.append(min(max(point[0] / 2, 0), 511))
                ys.append(min(max(point[1] / 2, 0), 511))
        assert box == [int(min(xs)), int(max(xs)), int(min(ys)), int(max(ys))]
    assert head[0] < head[1] and left[2] < left[3]


def test_empty_boxes(tmp_path):
    def away(entry):
        for name in ("head", "left_hand"):
            entry[f"{name}_crop"]["M_c2o"] = made.affine(0.2, -5000, -5000)
        del entry["right_hand_crop"]

    (head, left, right), _ = _boxes(tmp_path, away)
    assert head == [0, 511, 0, 511]
    assert left[1] <= left[0] and right[1] <= right[0]


# --- command ------------------------------------------------------------------------------------------------


def test_info_tells_what_is_there_and_what_is_damaged(tmp_path, capsys):
    made.write_combined(tmp_path, {"a": 3, "b": 2})
    (tmp_path / "testing_split.json").write_text(json.dumps({"q": 3}))
    assert main(["data", "info", str(tmp_path), "--decode"]) == 0
    text = capsys.readouterr().out
    assert "a combined set, 2 clips, 5 frames" in text and "split train: 3" in text
    assert "pictures: 10 entries" in text and "damaged: 1" in text and "q (in testing_split.json" in text


def test_convert_writes_a_track_file(single, template, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("guava.body.load_template", lambda name: template)
    out = tmp_path / "o.track"
    assert main(["data", "convert", str(single[0]), "clip", "-o", str(out), "--fps", "25"]) == 0
    captured = capsys.readouterr()
    assert "4 frames, 4 usable" in captured.out and "renumbers" in captured.err
    assert len(load_tracked(out)) == 4 and load_tracked(out).fps == 25
    assert main(["data", "convert", str(single[0]), "no", "-o", str(out)]) == 2
    assert "no clip 'no'" in capsys.readouterr().err
