"""What stands between a measurement and the table of speeds: targets, quiet batches, equal pictures."""

import sys
from pathlib import Path

import pytest
import torch

from guava.body import load_template

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from peers import agreement  # noqa: E402
from scenes import speed_scene, template_mesh  # noqa: E402
from table import Row, markdown, number  # noqa: E402
from timing import Batch, summarise  # noqa: E402


@pytest.mark.parametrize(
    ("measured", "bound", "at_most", "met"),
    [(30.0, 30.0, True, True), (30.1, 30.0, True, False), (6.0, 6.0, False, True), (5.9, 6.0, False, False),
     (None, 6.0, True, None), (1.0, None, True, None)],
)
def test_a_row_is_met_or_missed(measured, bound, at_most, met):
    row = Row("it", measured, "ms", bound, at_most)
    assert row.met is met
    assert Row.from_report(row.report()) == row


def test_the_table_names_what_was_not_run_and_what_was_disturbed():
    rows = [
        Row("first", 12.345, "ms", 30.0, note="numba 99 ms", quiet=False),
        Row("second", None, "s", 6.0, note="no portraits"),
        Row("third", 7.0, "x", 6.0, at_most=False, quiet=True),
    ]
    lines = markdown(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["first", "<= 30.0 ms", "12.3 ms", "met (disturbed)", "numba 99 ms"]
    assert cells[3] == ["second", "<= 6.00 s", "not run", "", "no portraits"]
    assert cells[4] == ["third", ">= 6.00 x", "7.00 x", "met", ""]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.01"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234.5, "1234")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def batch(milliseconds, others):
    return Batch({"": milliseconds, "blend": [ms / 2 for ms in milliseconds]}, others)


def test_disturbed_batches_do_not_count_where_enough_were_quiet():
    quiet = [batch([10.0, 11.0], 0.0), batch([10.5], 0.05), batch([12.0], 0.1)]
    times = summarise([batch([99.0], 0.9), *quiet, batch([98.0], 0.5)])
    assert times[""].quiet and times[""].runs == 4
    assert (times[""].min, times[""].median, times[""].max) == (10.0, 10.75, 12.0)
    assert times["blend"].median == 5.375
    assert times[""].others == pytest.approx(0.05)


def test_without_quiet_batches_the_least_disturbed_third_stands_in_and_is_marked():
    batches = [batch([50.0], 0.5), batch([20.0], 0.2), batch([90.0], 0.9)] * 2
    times = summarise(batches)[""]
    assert not times.quiet and times.runs == 2 and times.median == 20.0


def test_where_others_are_unknown_nothing_is_called_quiet():
    times = summarise([batch([1.0], None), batch([3.0], None), batch([2.0], None)])[""]
    assert not times.quiet and times.others is None and times.median == 2.0


def test_pictures_agree_up_to_a_few_flips_at_thresholds():
    torch.manual_seed(0)
    ours = (torch.rand(200, 100, 3), torch.rand(200, 100), torch.rand(200, 100))

    def changed(pixels: int, by: float) -> dict:
        features = ours[0].clone()
        features.view(-1, 3)[:pixels, 1] += by
        return agreement(ours, (features, ours[1], ours[2]))

    assert changed(20_000, 0.5e-4)["agree"]
    few = changed(2, 0.01)
    assert few["agree"] and few["flipped_pixels"] == 2 and few["max_flip"] == pytest.approx(0.01, rel=1e-3)
    assert few["max_difference"] < 1e-6
    assert not changed(3, 0.01)["agree"]  # more than one pixel in ten thousand
    assert not changed(1, 0.1)["agree"]
    assert not changed(1, float("nan"))["agree"]


def test_the_scene_is_the_same_for_every_size_and_has_the_stated_sizes():
    mesh = template_mesh(load_template())
    scene, larger = speed_scene(mesh, 3000, 512, 4), speed_scene(mesh, 3000, 1024, 4)
    assert all(torch.equal(a, b) for a, b in zip(scene.tensors, larger.tensors, strict=True))
    pixels, depth = scene.camera.project(scene.means)
    assert torch.allclose(larger.camera.project(larger.means)[0], 2 * pixels, atol=1e-3)
    # Depths are one addition, so that every implementation sorts alike.
    assert torch.equal(depth, scene.means[:, 1] + scene.camera.world_to_camera[2, 3])
    sigmas = scene.scales / 0.56 * 512  # pixels at the camera's reference distance
    assert 0.9 <= float(sigmas[:, :2].min()) and float(sigmas[:, :2].max()) <= 2.5
    assert torch.allclose(scene.scales[:, 2], 0.2 * scene.scales[:, :2].amin(1))
    assert 0.3 <= float(scene.opacities.min()) and float(scene.opacities.max()) <= 1
    assert 0.55 < float(((pixels > 0) & (pixels < 512)).all(1).float().mean()) < 0.75
