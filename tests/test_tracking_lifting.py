"""Learned depth of arms and hands."""

from __future__ import annotations

import numpy as np
import pytest

from guava.body import load_template
from guava.tracking.detectors.base import PersonDetection, PointSet
from guava.tracking.lifting import DEPTH_LIFTING, lift_arms, lift_hand, load_networks

_PAIRS = [(k, k + 1) for k in range(7, 33, 2)]


@pytest.fixture(scope="module")
def networks():
    found = load_networks(load_template().hash)
    assert found is not None, "the shipped networks belong to the shipped template"
    return found


def made_person(rng: np.random.Generator) -> PersonDetection:
    def points(layout: str, count: int) -> PointSet:
        return PointSet(
            layout,
            rng.uniform(100, 400, (count, 2)),
            np.full(count, 0.9),
            rng.normal(0, 20, count),
            rng.normal(0, 0.1, (count, 3)),
        )

    body, left, right = points("mediapipe33", 33), points("hand21", 21), points("hand21", 21)
    return PersonDetection(np.array([0.0, 0, 512, 512]), 1.0, None, body, left, right)


def mirrored(person: PersonDetection) -> PersonDetection:
    def flip(item: PointSet, order: list[int]) -> PointSet:
        return PointSet(
            item.layout,
            item.points[order] * [-1, 1] + [512, 0],
            item.confidence[order],
            item.depth[order],
            item.world[order] * [-1, 1, 1],
        )

    order = list(range(33))
    for a, b in _PAIRS:
        order[a], order[b] = b, a
    same = list(range(21))
    return PersonDetection(
        person.box,
        1.0,
        None,
        flip(person.body, order),
        flip(person.right_hand, same),
        flip(person.left_hand, same),
    )


def test_a_mirrored_person_lifts_to_a_mirrored_pose(networks):
    person = made_person(np.random.default_rng(3))
    here, there = lift_arms(networks["arm"], person), lift_arms(networks["arm"], mirrored(person))
    swap = {"left": "right", "right": "left"}
    for (a, b), (direction, spread) in here.items():
        ends = tuple(swap[n.partition("_")[0]] + "_" + n.partition("_")[2] for n in (a, b))
        if ends in there:
            other = there[ends][0]
        else:  # the shoulder line is kept from right to left only
            other = -there[ends[::-1]][0]
        np.testing.assert_allclose(other, direction * [-1, 1, 1], atol=1e-9)
        assert np.linalg.norm(direction) == pytest.approx(1)
        assert (spread > 0).all()


def test_a_hand_lifts_alike_on_both_sides_and_grows_with_the_picture(networks):
    person = made_person(np.random.default_rng(4))
    depth, spread = lift_hand(networks["hand"], person, 0)
    np.testing.assert_allclose(lift_hand(networks["hand"], mirrored(person), 1)[0], depth, atol=1e-9)
    hand, body = person.left_hand, person.body
    large = PersonDetection(
        person.box,
        1.0,
        None,
        PointSet(body.layout, 2 * body.points, body.confidence, 2 * body.depth, body.world),
        PointSet(hand.layout, 2 * hand.points, hand.confidence, 2 * hand.depth, hand.world),
        None,
    )
    np.testing.assert_allclose(lift_hand(networks["hand"], large, 0)[0], 2 * depth, atol=1e-9)
    assert (spread > 0).all()


def test_networks_of_another_template_are_not_used():
    assert load_networks("0" * 64) is None
    assert DEPTH_LIFTING.stat().st_size < 500_000
