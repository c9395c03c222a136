"""Pictures over backgrounds in 8 bits: the native kernel against its reference, and both by rules."""

import pytest
import torch

from guava import native
from guava.rendering.frame import FAINT, to_rgb8

needs_native = pytest.mark.skipif(not native.available(), reason="the native library cannot load")


def picture(height, width, channels=3, seed=0, refined=False):
    """Premultiplied features and alpha with empty and full places, and colours beyond their bounds."""
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.rand(height, width, generator=generator).mul(1.6).sub(0.3).clamp(0, 1)
    color = torch.rand(height, width, channels, generator=generator) * 1.2 - 0.1
    if not refined:
        color = color * alpha[..., None]
    return color, alpha


@needs_native
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("refined", [False, True])
def test_the_kernel_draws_what_the_reference_draws(isa, samples, refined):
    if isa not in native.available_isas():
        pytest.skip(f"no {isa} here")
    backgrounds = [(0.2, 0.5, 1.0), torch.rand(37, 21, 3, generator=torch.Generator().manual_seed(1))]
    for channels in (3, 4, 32):
        features, alpha = picture(37 * samples, 21 * samples, channels, refined=refined)
        for background in backgrounds:
            options = {"samples": samples, "refined": refined}
            wanted = to_rgb8(features, alpha, background, backend="torch", **options)
            with native.forced_isa(isa):
                got = to_rgb8(features, alpha, background, backend="native", **options)
            difference = (wanted.int() - got.int()).abs()
            assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01
            assert wanted.float().std() > 30


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_native)])
def test_what_is_behind_shows_through(backend):
    alpha = torch.tensor([[0.0, 0.25, 1.0]])
    color = torch.tensor([[[0.0, 0, 0], [0.25, 0.1, 0.0], [1.0, 0.5, 0.0]]])
    got = to_rgb8(color, alpha, (0.0, 1.0, 0.4), backend=backend)
    assert got.tolist() == [[[0, 255, 102], [64, 217, 77], [255, 128, 0]]]
    # Colours that exceed their alpha are held to it.
    assert to_rgb8(4 * color, alpha, (0.0, 0.0, 0.0), backend=backend)[0, 1].tolist() == [64, 64, 0]


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_native)])
def test_a_refined_picture_over_black_is_itself_and_its_veil_is_nothing(backend):
    color = torch.tensor([[[0.9, 0.2, 0.1], [0.5 * FAINT] * 3, [0.004, 0.0, 0.0]]])
    alpha = torch.tensor([[0.3, 0.0, 0.5]])
    got = to_rgb8(color, alpha, (0.0, 0.0, 0.0), refined=True, backend=backend)
    assert got.tolist() == [[[230, 51, 26], [0, 0, 0], [1, 0, 0]]]
    white = to_rgb8(color, alpha, (1.0, 1.0, 1.0), refined=True, backend=backend)
    assert white.tolist() == [[[255, 77, 51], [255, 255, 255], [129, 128, 128]]]


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_native)])
def test_rows_that_lie_apart_are_written_and_nothing_else(backend):
    features, alpha = picture(10, 7)
    wanted = to_rgb8(features, alpha, (1.0, 1.0, 1.0), backend=backend)
    buffer = torch.full((10, 32), 9, dtype=torch.uint8)
    out = buffer[:, :21].unflatten(1, (7, 3))
    assert to_rgb8(features, alpha, (1.0, 1.0, 1.0), out=out, backend=backend) is out
    assert torch.equal(out, wanted) and (buffer[:, 21:] == 9).all()


def test_shapes_that_do_not_fit_are_refused():
    features, alpha = picture(8, 8)
    with pytest.raises(ValueError, match="samples"):
        to_rgb8(features, alpha, (0, 0, 0), samples=3)
    with pytest.raises(ValueError, match="samples"):
        to_rgb8(features[:4], alpha, (0, 0, 0))
    with pytest.raises(ValueError, match="write"):
        to_rgb8(features, alpha, (0, 0, 0), out=torch.empty(8, 8, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="backend"):
        to_rgb8(features, alpha, (0, 0, 0), backend="cuda")
