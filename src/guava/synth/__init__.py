"""Renders of the template with known parameters: the truth that tracking is measured against."""

from guava.synth.dataset import (
    HARD_UNITS,
    TEST_SEEDS,
    TUNING_SEEDS,
    AccuracySample,
    accuracy_sample,
    accuracy_set,
    unit_visibility,
)
from guava.synth.person import SyntheticPerson, dress, sample_identity, sample_person
from guava.synth.pose import (
    HAND_SHAPES,
    LEG_KINDS,
    POSE_KINDS,
    sample_expression,
    sample_legs,
    sample_pose,
)
from guava.synth.render import (
    Light,
    SyntheticView,
    frame_person,
    render_person,
    sample_background,
    sample_light,
)

__all__ = [
    "AccuracySample",
    "HARD_UNITS",
    "TEST_SEEDS",
    "TUNING_SEEDS",
    "accuracy_sample",
    "accuracy_set",
    "unit_visibility",
    "HAND_SHAPES",
    "LEG_KINDS",
    "Light",
    "POSE_KINDS",
    "SyntheticPerson",
    "SyntheticView",
    "dress",
    "frame_person",
    "render_person",
    "sample_background",
    "sample_expression",
    "sample_identity",
    "sample_legs",
    "sample_light",
    "sample_person",
    "sample_pose",
]
