"""The paper's network at sizes that a test can afford, and a photo for it with known truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from samples import standing_pose
from torch import Tensor

from guava.body import EHM, EHMOutput, Identity, Pose, Template
from guava.camera import Camera
from guava.model import GuavaConfig, preset
from guava.photo import Photo
from guava.rendering import shade_mesh
from guava.synth.tracked import tracked_truth
from guava.tracking.sequence import TrackedSequence

CHANNELS, SIDE = 8, 64


def tiny_config(name: str = "official") -> GuavaConfig:
    """The preset's choices and code with a thousandth of its numbers; maps and pictures of 64 x 64."""
    c = preset(name)
    if name == "lite":
        return replace(
            c,
            channels=CHANNELS,
            encoder=replace(c.encoder, image_size=64, width=8),
            uv_branch=replace(
                c.uv_branch, size=SIDE, base_channels=4, feature_channels=8, widths=(8, 8, 16, 16, 16)
            ),
            refiner=replace(c.refiner, size=SIDE, width=8),
        )
    return replace(
        c,
        channels=CHANNELS,
        encoder=replace(
            c.encoder,
            image_size=56,
            map_size=SIDE,
            uv_channels=4,
            template_channels=6,
            global_channels=64,
            width=8,
            pyramid=(0, 0, 1, 1, 1),
            neck_channels=(4, 4, 4, 4),
        ),
        template_branch=replace(c.template_branch, base_channels=4, global_channels=8),
        uv_branch=replace(
            c.uv_branch,
            size=SIDE,
            base_channels=4,
            feature_channels=6,
            style_channels=8,
            channel_scale=32,
        ),
        refiner=replace(c.refiner, size=SIDE, style_channels=8, channel_scale=32),
    )


@dataclass(frozen=True)
class Scene:
    """A render of the mean person, coloured by place, as photo and as if it had been tracked.

    Attributes:
        photo: 256 pixels a side.
        tracked: Its truth; the crop is the picture at 128 pixels.
        body: The posed body.
        colors: (V, 3) the vertices' own colours.
    """

    photo: Photo
    tracked: TrackedSequence
    body: EHMOutput
    colors: Tensor


def scene(template: Template, *, whole: bool = False) -> Scene:
    """Half figure on grey, or the whole body from head to feet."""
    identity, pose, camera = Identity.neutral(template), standing_pose(template), Camera.frontal(128)
    if whole:
        pose = replace(pose, translation=torch.tensor([[0.0, 0.1, -26.0]]))
    ehm = EHM(template)
    with torch.no_grad():
        body, rest = ehm(identity, pose), ehm(identity, Pose.rest(template)).vertices[0]
    colors = 0.5 + 0.35 * torch.sin(rest * torch.tensor([9.0, 7.0, 5.0]) + torch.tensor([0.0, 1.0, 2.0]))
    image = shade_mesh(
        body.vertices[0], template.faces, camera.resized(256, 256), vertex_colors=colors, ambient=1.0
    )
    pixels = image[..., :3] * image[..., 3:] + 0.45 * (1 - image[..., 3:])
    photo = Photo((pixels * 255).round().to(torch.uint8).numpy(), None, "ab" * 32, "made-up.png", ())
    alpha = torch.nn.functional.avg_pool2d(image[None, ..., 3], 2)[0]
    tracked = tracked_truth(template, identity, pose, camera, alpha, picture_size=256)
    return Scene(photo, tracked, body, colors)


def assert_close_pictures(a: Tensor | np.ndarray, b: Tensor | np.ndarray, mean: float) -> None:
    """Mean absolute difference of two pictures in [0, 1]."""
    difference = float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean())
    assert difference < mean, difference
