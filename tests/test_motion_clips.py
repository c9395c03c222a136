"""Our clips loop, do not jerk, and reach for what they say."""

import numpy as np
import pytest
import torch

from guava.body import EHM, Identity, load_template
from guava.errors import InputError
from guava.motion import CLIP_NAMES, make_clip
from guava.motion.clips import _HANGING, _OPEN, _RAISED, _as_goal, _goal, solve_arm
from guava.rotation import axis_angle_to_matrix

BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")


def circular_second_difference(x):
    """x[t-1] - 2 x[t] + x[t+1], the last frame followed by the first."""
    return x.roll(1, 0) + x.roll(-1, 0) - 2 * x


@pytest.fixture(scope="module", params=CLIP_NAMES)
def clip(request):
    return make_clip(request.param)


def test_ends_match_and_nothing_jerks(clip):
    # Taken round the seam, so a clip whose ends do not meet fails here too.
    with torch.no_grad():
        template = load_template()
        out = EHM(template, torch.zeros(1, dtype=torch.long))(Identity.neutral(template), clip.pose)
    bend = circular_second_difference(out.joints).norm(dim=-1)
    # Metres a frame squared. Waving fingers swing 0.13 m at 2.25 Hz: 0.13 (2 pi 2.25 / 30)^2 = 0.029.
    assert bend.max() < {"idle": 0.004, "talk": 0.012, "wave": 0.032}[clip.name]
    step = (out.joints.roll(-1, 0) - out.joints).norm(dim=-1)
    assert step[-1].max() <= step.max() and step.max() < 0.09
    smooth = [i for i, name in enumerate(clip.expression_names) if name not in BLINKS]
    assert circular_second_difference(clip.pose.expression[:, smooth]).abs().max() < 0.2
    # A blink closes within 0.1 s: it cannot be slower, but must not flicker within one frame.
    blink = clip.pose.expression[:, [clip.expression_names.index(name) for name in BLINKS]]
    assert circular_second_difference(blink).abs().max() < 0.6


def test_units_and_angles_stay_human(clip):
    template = load_template()
    expression = clip.pose.expression
    assert expression.min() >= 0 and expression.max() <= 1
    for unit, limit in template.expression_bounds:
        assert (expression[:, template.unit(unit)] <= expression[:, template.unit(limit)] + 1e-6).all()
    for name, most in (("neck", 0.35), ("head", 0.35), ("spine1", 0.2), ("spine2", 0.2), ("spine3", 0.2)):
        assert clip.pose.joints[:, template.joint(name)].norm(dim=-1).max() < most
    assert clip.pose.joints[:, template.joint("left_elbow")].norm(dim=-1).max() < 2.8


def test_same_seed_same_clip_other_seed_other_clip(clip):
    again = make_clip(clip.name)
    assert torch.equal(again.pose.joints, clip.pose.joints)
    assert torch.equal(again.pose.expression, clip.pose.expression)
    assert not torch.equal(make_clip(clip.name, seed=7).pose.expression, clip.pose.expression)


def test_blinks_close_the_eyes_and_open_them_again():
    for name, least in (("idle", 3), ("talk", 3), ("wave", 2)):
        clip = make_clip(name)
        lid = clip.pose.expression[:, clip.expression_names.index("eyeBlinkLeft")].numpy()
        shut = lid > 0.9
        assert (shut & ~np.roll(shut, 1)).sum() >= least
        assert (lid < 0.05).mean() > 0.7


def test_talk_speaks():
    template = load_template()
    clip = make_clip("talk")
    unit = {name: clip.pose.expression[:, i].numpy() for i, name in enumerate(template.expression_names)}
    jaw = unit["jawOpen"]
    maxima = ((jaw > np.roll(jaw, 1)) & (jaw >= np.roll(jaw, -1)) & (jaw > 0.1)).sum()
    assert 12 <= maxima <= 45, "syllables in eight seconds"
    assert jaw.min() < 0.03, "pauses with the mouth shut"
    closure = unit["mouthClose"] > 0.7 * jaw
    assert (closure & (jaw > 0.05)).any(), "lips meet while the jaw is open (m, b, p)"
    assert unit["mouthPucker"].max() > 0.3 and unit["mouthFunnel"].max() > 0.3
    assert unit["browInnerUp"].max() > 0.15


def test_wave_raises_the_right_hand_beside_the_head():
    template = load_template()
    clip = make_clip("wave")
    with torch.no_grad():
        joints = EHM(template, torch.zeros(1, dtype=torch.long))(
            Identity.neutral(template), clip.pose
        ).joints
    at = {n: joints[:, template.joint(n)] for n in ("head", "right_wrist", "right_middle3", "left_wrist")}
    middle = slice(45, 75)
    assert (at["right_middle3"][middle, 1] > at["head"][middle, 1]).all()
    assert (at["right_wrist"][middle, 0] < at["head"][middle, 0] - 0.2).all()
    assert (at["left_wrist"][:, 1] < at["head"][:, 1] - 0.4).all()
    swing = at["right_middle3"][middle, 0]
    turns = (swing.diff()[1:] * swing.diff()[:-1] < 0).sum()
    assert turns >= 3, "to and fro"


def reached(template, goal):
    """Wrist (3,) and the hand's rotation (3, 3) of a solved goal, by walking down the chain."""
    rotations = solve_arm(template, _as_goal(goal[None]))
    chain = ("collar", "shoulder", "elbow", "wrist")
    rest = {n: template.body.joints_template[template.joint(f"left_{n}")].double() for n in chain}
    turn, place = torch.eye(3, dtype=torch.float64), rest["collar"]
    for parent, child in zip(chain[:-1], chain[1:], strict=True):
        turn = turn @ axis_angle_to_matrix(rotations[f"left_{parent}"][0])
        place = place + turn @ (rest[child] - rest[parent])
    return place, turn @ axis_angle_to_matrix(rotations["left_wrist"][0])


@pytest.mark.parametrize("goal", [_HANGING, _OPEN, _RAISED], ids=["hanging", "open", "raised"])
def test_arms_reach_their_goals(goal):
    template = load_template()
    wrist, hand = reached(template, goal)
    assert torch.allclose(wrist, torch.from_numpy(goal[:3]), atol=1e-6)
    rest = {
        n: template.body.joints_template[template.joint(f"left_{n}")].double() for n in ("wrist", "middle1")
    }
    fingers = torch.nn.functional.normalize(hand @ (rest["middle1"] - rest["wrist"]), dim=0)
    wanted = torch.nn.functional.normalize(torch.from_numpy(goal[6:9]), dim=0)
    assert torch.allclose(fingers, wanted, atol=1e-6)
    palm = hand @ torch.tensor([0.0, -1, 0], dtype=torch.float64)
    assert float(palm @ torch.from_numpy(goal[9:12])) > 0.5


def test_far_goals_are_brought_within_reach():
    template = load_template()
    wrist, _ = reached(template, _goal((2.0, 0.5, 0.0), (0, -1, 0), (1, 0, 0), (0, -1, 0), 0.0))
    shoulder = template.body.joints_template[template.joint("left_shoulder")].double()
    goal = torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64)
    line = torch.nn.functional.normalize(goal - shoulder, dim=0)
    assert torch.allclose(torch.nn.functional.normalize(wrist - shoulder, dim=0), line, atol=1e-6)
    assert 0.5 < float((wrist - shoulder).norm()) < 0.54


def test_unknown_clip():
    with pytest.raises(InputError, match="no clip named 'dance'.*idle, talk, wave"):
        make_clip("dance")
