"""One person's body frame by frame is the EHM's, on every kind of template."""

from dataclasses import fields, replace

import pytest
import torch
from synthetic_models import synthetic_template

from guava import native
from guava.avatar.animate import with_identity
from guava.body import EHM, Identity, Pose, load_template, plain_head
from guava.body.person import PersonEHM

needs_native = pytest.mark.skipif(not native.available(), reason="the native library cannot load")
TEMPLATES = {
    "open": load_template,
    "open, plain head": lambda: plain_head(load_template()),
    "release": synthetic_template,
    "release, plain head": lambda: plain_head(synthetic_template()),
}


def somebody(template, generator) -> Identity:
    def normal(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator) * scale

    return Identity(
        normal(1, template.body.num_shape), normal(1, template.head.num_shape, scale=0.5),
        normal(1, template.body.num_joints, 3, scale=0.01), 1 + normal(1, 3, scale=0.1),
        1 + normal(1, 3, scale=0.1),
    )


def somehow(template, generator) -> Pose:
    rest = Pose.rest(template)
    values = {f.name: getattr(rest, f.name) for f in fields(rest)}
    moved = {k: torch.randn(v.shape, generator=generator) * 0.3 for k, v in values.items()}
    return replace(rest, **moved)


@needs_native
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_native_body_is_the_ehm(name):
    generator = torch.Generator().manual_seed(3)
    template = TEMPLATES[name]()
    template, identity = with_identity(template, somebody(template, generator))
    ehm, person = EHM(template), PersonEHM(template, identity, use_native=True)
    for isa in [*native.available_isas(), "best"]:  # buffers are used again
        pose = somehow(template, generator)
        with torch.no_grad():
            wanted = ehm(identity, pose)
        with native.forced_isa(isa):
            got = person(pose)
        for field in fields(wanted):
            torch.testing.assert_close(
                getattr(got, field.name), getattr(wanted, field.name), atol=1e-5, rtol=0, msg=field.name
            )
        assert (wanted.vertices - wanted.rest_vertices).abs().max() > 0.1


def test_without_the_library_the_plain_ehm_runs(monkeypatch):
    monkeypatch.setenv("GUAVA_NATIVE", "off")
    template = load_template()
    template, identity = with_identity(template, Identity.neutral(template))
    pose = somehow(template, torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = EHM(template)(identity, pose)
    got = PersonEHM(template, identity)(pose)
    assert torch.equal(got.vertices, wanted.vertices) and not got.vertices.requires_grad
    with pytest.raises(native.NativeUnavailable):
        PersonEHM(template, identity, use_native=True)


def test_one_frame_at_a_time():
    template = load_template()
    person = PersonEHM(*with_identity(template, Identity.neutral(template)))
    with pytest.raises(ValueError, match="one frame"):
        person(Pose.rest(template, 2))
