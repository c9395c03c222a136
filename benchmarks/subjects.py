"""Synthetic people whose avatars the benchmarks compare with the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from guava.body import Pose, Template
from guava.camera import Camera
from guava.photo import Photo, resize_area
from guava.synth import (
    dress,
    frame_person,
    render_person,
    sample_background,
    sample_light,
    sample_person,
    sample_pose,
)
from guava.synth.person import SyntheticPerson
from guava.synth.render import Light
from guava.synth.tracked import tracked_truth
from guava.tracking.sequence import TrackedSequence


@dataclass(frozen=True)
class Subject:
    """A person who does not exist, and their photo.

    Attributes:
        person, light: What the truth is rendered from.
        pose, camera: The photo's, at the tracker's size.
        photo, tracked: What an avatar is made from.
    """

    person: SyntheticPerson
    light: Light
    pose: Pose
    camera: Camera
    photo: Photo
    tracked: TrackedSequence

    def truth(self, pose: Pose, camera: Camera, template: Template) -> torch.Tensor:
        """(H, W, 4) as an Animator would render it: RGB, not premultiplied, and alpha."""
        black = (0.0, 0.0, 0.0)
        view = render_person(self.person, pose, camera, template, background=black, light=self.light)
        alpha = torch.from_numpy(view.alpha)[..., None]
        color = torch.from_numpy(view.rgb.astype(np.float32) / 255) / alpha.clamp(min=1e-6)
        return torch.cat([color.clamp(0, 1), alpha], -1)


def subject(seed: int, template: Template, size: int = 512) -> Subject:
    """The person of a seed, one hand raised, photographed at twice ``size``."""
    rng = np.random.default_rng(seed)
    person = dress(sample_person(seed, template), template)
    camera = Camera.frontal(size)
    pose = frame_person(rng, person, sample_pose(rng, template, "one_hand"), template, camera=camera)
    light = sample_light(rng)
    large = camera.resized(2 * size, 2 * size)
    background = sample_background(rng, 2 * size, 2 * size)
    view = render_person(person, pose, large, template, background=background, light=light)
    mask = torch.from_numpy(resize_area(view.alpha, (size, size)))
    tracked = tracked_truth(template, person.identity, pose, camera, mask, picture_size=2 * size)
    photo = Photo(view.rgb, None, "", f"synthetic {seed}", ())
    return Subject(person, light, pose, camera, photo, tracked)
