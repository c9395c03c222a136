"""The template "smplx-flame" and its EHM against a second implementation, vertex by vertex from the owners'
arrays, that was written from the facts alone."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import reference_body as reference
import torch
from synthetic_models import synthetic_sources, synthetic_template

from guava.body import EHM, Identity, Pose


@pytest.fixture(scope="module")
def sources():
    return synthetic_sources()


def doubles(model) -> dict:
    return {
        key: value.astype(np.float64) if value.dtype.kind == "f" else value
        for key, value in asdict(model).items()
    }


def parameters(seed: int) -> tuple[dict, dict]:
    g = np.random.default_rng(seed)
    body = {
        "shape": g.normal(size=200), "exp": 0.5 * g.normal(size=50), "joints": 0.4 * g.normal(size=(55, 3)),
        "joints_offset": 0.01 * g.normal(size=(55, 3)), "head_scale": 1 + 0.1 * g.normal(size=3),
        "hand_scale": 1 + 0.1 * g.normal(size=3),
    }  # fmt: skip
    head = {
        "shape": g.normal(size=300), "exp": g.normal(size=50), "jaw": np.array([0.3, 0.05, -0.04]),
        "eyes": 0.2 * g.normal(size=6), "lids": np.array([0.8, 0.3]),
    }  # fmt: skip
    return body, head


@pytest.mark.parametrize("seed", [0, 1])
def test_ehm(sources, seed: int) -> None:
    template = synthetic_template()
    body, head = parameters(seed)
    lids = [np.asarray(lid, dtype=np.float64) for lid in sources.eyelids]
    vertices, blended, transforms, rest_joints, posed_joints = reference.ehm(
        doubles(sources.smplx), doubles(sources.flame), sources.flame_ids, sources.hands, body, head, *lids
    )

    joints = body["joints"].copy()
    joints[22], joints[23], joints[24] = head["jaw"], head["eyes"][:3], head["eyes"][3:]

    def row(value: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(value, dtype=np.float32))[None]

    shape = np.zeros(template.body.num_shape)
    shape[:200] = body["shape"]
    identity = Identity(
        row(shape), row(head["shape"]), row(body["joints_offset"]), row(body["head_scale"]),
        row(body["hand_scale"]),
    )  # fmt: skip
    pose = Pose(row(joints), row(head["exp"]), row(body["exp"]), row(head["lids"]), torch.zeros(1, 3))
    out = EHM(template)(identity, pose)
    np.testing.assert_allclose(out.rest_joints[0], rest_joints, atol=2e-6)
    np.testing.assert_allclose(out.joints[0], posed_joints, atol=5e-6)
    np.testing.assert_allclose(out.joint_transforms[0], transforms, atol=1e-5)
    np.testing.assert_allclose(out.transforms[0], blended, atol=1e-5)
    np.testing.assert_allclose(out.vertices[0], vertices, atol=1e-5)


def test_teeth_lie_in_the_scrambled_slots(sources) -> None:
    template = synthetic_template()
    flame = doubles(sources.flame)
    natural = reference.teeth(flame["v_template"])
    head = template.head
    np.testing.assert_allclose(head.v_template[5023:], natural, atol=1e-6)
    # Which body vertex each FLAME tooth overwrites.
    ids = template.head_vertex_ids
    assert len(ids) == 5143
    for group, slot in reference.SLOT_OF_GROUP.items():
        assert ids[5023 + group : 5023 + group + 15].tolist() == list(range(10475 + slot, 10475 + slot + 15))
