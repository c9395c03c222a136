"""Training pairs: who is source of whom, what the pictures are, and that workers draw the same."""

from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import pytest
import release_data as made
import torch
from torch.utils.data import DataLoader

from guava.body import EHM
from guava.data import ReleasePairs, collate_pairs, open_release_dataset, part_boxes
from guava.errors import FileFormatError, InputError

pytest.importorskip("lmdb")
SIZES = {"source_size": 40, "target_size": 32}


@pytest.fixture(scope="module")
def template():
    return made.release_template()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("set")
    made.write_combined(path, {"a": 5, "b": 4, "c": 3})
    return path


@pytest.fixture(scope="module")
def dataset(folder):
    return open_release_dataset(folder)


def _names(pair):
    return pair.clips, pair.source_frames, pair.target_frames


def test_every_training_frame_is_a_target_and_its_source_another_frame_of_the_clip(dataset, template):
    pairs = ReleasePairs(dataset, template, "train", **SIZES)
    drawn = [_names(pairs[i]) for i in range(len(pairs))]
    assert [(clip[0], target[0]) for clip, _, target in drawn] == list(dataset.splits["train"])
    assert all(source != target for _, source, target in drawn)
    for epoch in range(30):  # every other frame comes up sooner or later
        pairs.set_epoch(epoch)
        drawn.append(_names(pairs[0]))
    assert {source[0] for clip, source, target in drawn if (clip, target) == drawn[0][::2]} == {
        f"frame_00000{i}" for i in range(1, 5)
    }


def test_the_draw_depends_on_seed_and_epoch_alone(dataset, template):
    def draws(seed, epoch, **options):
        pairs = ReleasePairs(dataset, template, "train", seed=seed, **SIZES, **options)
        pairs.set_epoch(epoch)
        order = np.random.default_rng(0).permutation(len(pairs))
        return {int(i): _names(pairs[int(i)]) for i in order}

    assert draws(1, 0) == draws(1, 0)
    assert draws(1, 0) != draws(2, 0) and draws(1, 0) != draws(1, 1)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_other_splits_take_the_clips_first_frame(dataset, template, split):
    pairs = ReleasePairs(dataset, template, split, **SIZES)
    assert {pairs[i].source_frames for i in range(len(pairs))} == {("frame_000000",)}
    assert [(p.clips[0], p.target_frames[0]) for p in pairs] == list(dataset.splits[split])


def test_all_frames_and_a_clip_of_one_frame(tmp_path, dataset, template):
    assert len(ReleasePairs(dataset, template, None, **SIZES)) == 12
    made.write_single(tmp_path, 1)
    alone = ReleasePairs(open_release_dataset(tmp_path), template, None, source="random", **SIZES)
    assert _names(alone[0]) == (("clip",), ("frame_000000",), ("frame_000000",))


def _triangle(picture: np.ndarray, size: int) -> np.ndarray:
    """Antialiased bilinear reduction by its definition: a triangle as wide as two output pixels."""
    count = picture.shape[0]
    scale = count / size
    weights = np.zeros((size, count))
    for out in range(size):
        centre = (out + 0.5) * scale
        weights[out] = np.maximum(0, 1 - np.abs(np.arange(count) + 0.5 - centre) / scale)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("ij,jkc,lk->ilc", weights, picture, weights)


def test_the_source_is_masked_and_the_target_is_not(dataset, template):
    pair = ReleasePairs(dataset, template, "valid", **SIZES)[1]
    image, mask = made.pictures(9 + 1, 64)  # the target: second frame of the third clip
    assert pair.target.image.shape == (1, 3, 32, 32) and pair.target.mask.shape == (1, 1, 32, 32)
    assert np.allclose(pair.target.image[0].permute(1, 2, 0), _triangle(image / 255, 32), atol=1e-5)
    assert np.allclose(pair.target.mask[0, 0, ..., None], _triangle(mask[..., None] / 255, 32), atol=1e-5)
    image, mask = made.pictures(9, 64)
    wanted = _triangle(image / 255 * (mask[..., None] / 255), 40)
    assert pair.source.image.shape == (1, 3, 40, 40)
    assert np.allclose(pair.source.image[0].permute(1, 2, 0), wanted, atol=1e-5)
    assert not pair.source.image[0, :, 0, 0].any() and pair.target.image[0, :, -1, -1].any()


def test_cameras_and_boxes_are_those_of_the_pictures(dataset, template):
    pairs = ReleasePairs(dataset, template, "valid", **SIZES)
    pair, clip = pairs[1], dataset.clip("c")
    assert torch.equal(pair.part_boxes, part_boxes(clip, [1], 32))
    point = torch.tensor([[[0.1, 0.2, 0.0]]])
    pixels, _ = pair.source.camera.project(point)
    extrinsics = clip.values["camera_RT_params"][0].reshape(3, 4)
    seen = extrinsics[:, :3] @ point[0, 0].numpy() + extrinsics[:, 3]
    assert np.allclose(pixels[0, 0], 40 / 2 * (1 - 24 * seen[:2] / seen[2]), atol=1e-4)
    assert (pair.source.camera.width, pair.target.camera.width) == (40, 32)


def test_batches_and_the_networks_input(dataset, template):
    pairs = ReleasePairs(dataset, template, "train", **SIZES)
    batch = collate_pairs([pairs[i] for i in (0, 5, 7)])
    assert batch.target.image.shape == (3, 3, 32, 32) and batch.part_boxes.shape == (3, 3, 4)
    assert batch.clips == ("a", "b", "b") and batch.target_frames[1] == "frame_000000"
    assert torch.equal(batch.source.pose.joints[1], pairs[5].source.pose.joints[0])
    assert torch.equal(batch.target.camera.world_to_camera[2], pairs[7].target.camera.world_to_camera[0])
    with torch.no_grad():
        source = batch.target.source_batch(EHM(template), template)
    assert source.vertices.shape == source.rest_vertices.shape == (3, 60, 3)
    assert not torch.allclose(source.rest_vertices[0], source.rest_vertices[1])  # two people
    assert torch.allclose(source.rest_vertices[1], source.rest_vertices[2], atol=1e-6)  # one, in two poses
    assert not torch.allclose(source.vertices[1], source.vertices[2])
    moved = batch.to("cpu")
    assert moved.clips == batch.clips and torch.equal(moved.target.image, batch.target.image)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_draw_what_the_main_process_draws(dataset, template, method):
    pairs = ReleasePairs(dataset, template, "train", **SIZES)
    wanted = [_names(pairs[i]) for i in range(len(pairs))]  # also opens the LMDB here, which fork inherits
    loader = DataLoader(
        pairs, batch_size=1, collate_fn=collate_pairs, num_workers=1 if method == "spawn" else 2,
        multiprocessing_context=method, persistent_workers=True,
    )  # fmt: skip
    found = list(loader)
    assert [_names(pair) for pair in found] == wanted
    assert torch.equal(found[3].source.image, pairs[3].source.image)
    pairs.set_epoch(5)
    assert [_names(pair) for pair in loader] == [_names(pairs[i]) for i in range(len(pairs))] != wanted
    assert pairs[0].target.image.any()  # the parent's own handle still works


def test_it_can_be_pickled_without_the_template(dataset, template):
    pairs = ReleasePairs(dataset, template, "train", **SIZES)
    data = pickle.dumps(pairs)
    assert len(data) < 100_000
    assert torch.equal(pickle.loads(data)[2].target.image, pairs[2].target.image)


# --- damage -------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    tracking, _ = made.write_single(tmp_path, 5, **{"frame_000003/body_image": b"\xff\xd8\xffcut"})
    tracking["frame_000001"]["smplx_coeffs"]["exp"][:] = np.inf
    (tmp_path / "optim_tracking_ehm.pkl").write_bytes(made.pickled(tracking))
    names = [f"clip/frame_00000{i}" for i in (0, 1, 2, 3, 4, 7)]
    (tmp_path / "dataset_frames.json").write_text(json.dumps({"train": names}))
    return open_release_dataset(tmp_path)


def test_damage_is_refused_by_name(damaged, template):
    with pytest.raises(FileFormatError, match=r"in 2 places: clip/frame_000001 .*clip/frame_000007"):
        ReleasePairs(damaged, template, "train", **SIZES)


def test_damage_is_skipped_only_with_a_count_and_a_warning(damaged, template):
    steps = []
    with pytest.warns(UserWarning, match="3 damaged entries, 3 of 6 frames are left out: clip/frame_000001"):
        pairs = ReleasePairs(
            damaged, template, "train", damaged="skip", progress=lambda *step: steps.append(step), **SIZES
        )
    assert [d.where for d in pairs.skipped] == ["clip/frame_000001", "clip/frame_000003", "clip/frame_000007"]
    assert steps[-1] == (4, 4)
    frames = {f"frame_00000{i}" for i in (0, 2, 4)}
    for epoch in range(10):
        pairs.set_epoch(epoch)
        for pair in pairs:
            assert {*pair.source_frames, *pair.target_frames} <= frames


def test_sound_data_is_not_warned_about(dataset, template):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not ReleasePairs(dataset, template, "train", damaged="skip", **SIZES).skipped


def test_a_picture_damaged_later_is_named_when_drawn(damaged, template, tmp_path):
    (tmp_path / "dataset_frames.json").unlink()
    tracking, _ = made.write_single(tmp_path / "n", 2, **{"frame_000001/body_mask": b"\xff\xd8\xffcut"})
    pairs = ReleasePairs(open_release_dataset(tmp_path / "n"), template, None, **SIZES)
    assert pairs[0].target.image.any()
    with pytest.raises(FileFormatError, match="'frame_000001/body_mask' is damaged"):
        pairs[1]


def test_what_cannot_be_trained_on(dataset, template, tmp_path):
    with pytest.raises(InputError, match="no split 'dev'.*train, valid, test"):
        ReleasePairs(dataset, template, "dev")
    made.write_single(tmp_path, 2)
    for path in (tmp_path / "img_lmdb").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no pictures"):
        ReleasePairs(open_release_dataset(tmp_path), template, None)
    with pytest.raises(IndexError):
        ReleasePairs(dataset, template, None)[12]
