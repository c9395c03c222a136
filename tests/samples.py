"""Small made-up records for tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from guava.avatar import Avatar, Gaussians, Provenance, SourceView
from guava.avatar.gaussians import MAX_INFLUENCES
from guava.avatar.posing import bind_to_triangles
from guava.body import EHM, Identity, Pose, Template, load_template
from guava.camera import Camera


def random_gaussians(count: int = 40, channels: int = 3, seed: int = 0) -> Gaussians:
    """Every array filled with something of its dtype."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    def integers(high, *shape, dtype):
        return torch.randint(0, high, shape, generator=g).to(dtype)

    return Gaussians(
        positions=normal(count, 3),
        rotations=normal(count, 4),
        scales=normal(count, 3).abs(),
        opacities=torch.rand(count, generator=g),
        features=torch.rand(count, channels, generator=g),
        binding=integers(3, count, dtype=torch.uint8),
        anchor=integers(1000, count, dtype=torch.int32),
        barycentrics=normal(count, 3),
        local_offset=normal(count, 3),
        sigma=normal(count).abs(),
        triangle_rotation=normal(count, 4),
        skin_indices=integers(55, count, MAX_INFLUENCES, dtype=torch.uint8),
        skin_weights=normal(count, MAX_INFLUENCES).abs(),
        layer=integers(3, count, dtype=torch.uint8),
        observed=integers(2, count, dtype=torch.bool),
    )


def standing_pose(template: Template) -> Pose:
    """Arms down, 10 m in front of the frontal camera, the neck near the picture's middle."""
    pose = Pose.rest(template)
    joints = pose.joints.clone()
    joints[0, template.joint("left_shoulder"), 2] = -1.2
    joints[0, template.joint("right_shoulder"), 2] = 1.2
    return replace(pose, joints=joints, translation=torch.tensor([[0.0, -0.45, -12.0]]))


def small_avatar(template: Template | None = None, size: int = 96, hands_seen=(True, True)) -> Avatar:
    """A grey figure: one Gaussian on every fourth triangle of the neutral template."""
    template = template or load_template()
    identity = Identity.neutral(template)
    with torch.no_grad():
        vertices = EHM(template)(identity, Pose.rest(template)).vertices[0]
    faces = torch.arange(0, len(template.faces), 4)
    count = len(faces)
    gaussians = bind_to_triangles(
        vertices,
        template.faces,
        faces,
        torch.full((count, 3), 1 / 3),
        rotations=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        scales=torch.full((count, 3), 0.012),
        opacities=torch.full((count,), 0.95),
        features=torch.full((count, 3), 0.5),
    )
    scale = torch.diag(torch.tensor([0.5, 0.5, 1.0]))
    source = SourceView(
        standing_pose(template),
        Camera.frontal(size),
        scale,
        2 * size,
        2 * size,
        "ab" * 32,
        "made-up.png",
        hands_seen,
    )
    provenance = Provenance(
        "test",
        {"a": 1, "nested": {"b": [1.5, None, "x"]}},
        "guava-avatar 0",
        "2026-01-01T00:00:00+00:00",
        0.25,
        subject_consent="it is made up",
        notes=("A note.", "Zweite Anmerkung: ä."),
    )
    return Avatar(gaussians, identity, template.hash, source, provenance, template_name=template.name)
