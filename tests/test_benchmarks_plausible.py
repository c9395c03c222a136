"""The weights that benchmarks run with: as many Gaussians, of the size and opacity, as they say."""

import sys
from pathlib import Path

import pytest
import torch
from tiny_network import tiny_config

from guava.body import load_template
from guava.model.generate import Generator

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import plausible  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Random weights")


def test_plausible_weights_have_the_stated_spread(monkeypatch):
    pytest.importorskip("transformers")
    template, config = load_template(), tiny_config()
    monkeypatch.setattr(plausible, "KEPT", template.body.num_vertices + 1700)
    weights = plausible.plausible_weights(config, template, 3)
    generator = Generator(weights, template)
    source, pose, camera = plausible.benchmark_source(template, config.encoder.image_size)
    output = generator.predict(source)
    (uv,) = output.uv
    count = uv.opacities.shape[1]
    kept = int((uv.opacities > config.opacity_threshold).sum())
    assert count > 2300 and abs(kept - 1700) < 0.12 * count
    scale, opacity = uv.scales.log(), torch.logit(uv.opacities, eps=1e-7)
    assert abs(float(scale.mean()) + 0.9) < 0.25 and abs(float(scale.std()) - 0.4) < 0.25
    assert float(opacity.std()) > 3 and abs(float(uv.local_offsets.std()) - 0.4) < 0.2
    assert abs(float(output.template.scales.median()) - 0.05 / (1 + 2.718281828**2.4)) < 5e-4

    # The picture that it is measured on shows a person before the camera that it says.
    assert 0.1 < float(source.mask.mean()) < 0.9
    pixels, _ = source.camera.project(source.vertices[0])
    inside = ((pixels >= 0) & (pixels < config.encoder.image_size)).all(1)
    at = pixels[inside].long()
    assert (source.mask[0, 0, at[:, 1], at[:, 0]] > 0).float().mean() > 0.95
    moved = camera.project(source.vertices[0] + pose.translation[0])[0]
    assert (moved * config.encoder.image_size / camera.width - pixels).abs().max() < 0.05
