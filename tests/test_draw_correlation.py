"""The correlation of successive draws, on streams where it is known."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from vgs_reference import normal

from gqc.diagnostics import DrawCorrelation

SHAPES = ((90, 60), (40,))  # one hashed, one whole


def stream(correlation, noise_scale, num, seed=0):
    """A mean of norm 1 and noise of trace ``noise_scale``, with this correlation of neighbours."""
    numel = sum(math.prod(shape) for shape in SHAPES)
    mean = normal(numel, seed=seed + 10_000)
    mean /= mean.norm()
    noise = normal(numel, seed=seed + 10_001)
    for t in range(num):
        noise = correlation * noise + math.sqrt(1 - correlation**2) * normal(numel, seed=seed + t)
        flat = mean + math.sqrt(noise_scale / numel) * noise
        parts = flat.split([math.prod(shape) for shape in SHAPES])
        yield [part.view(shape) for part, shape in zip(parts, SHAPES, strict=True)]


def seen(*args, **options):
    found = DrawCorrelation(**options)
    for grads in stream(*args):
        found.update(grads)
    return found


@pytest.mark.parametrize("noise_scale", [0.1, 1.0, 10.0, 1000.0])
def test_independent_draws_have_none_whatever_their_noise_scale(noise_scale):
    """A cosine of neighbours reads 0.91 to 0.001 on these; 0.1 is where the warning begins."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert abs(seen(0.0, noise_scale, 150).correlation()) < 0.05


@pytest.mark.parametrize("noise_scale", [1.0, 10.0])
@pytest.mark.parametrize("correlation", [0.3, 0.5, 0.8])
def test_correlated_draws_are_found_and_named(correlation, noise_scale):
    with pytest.warns(UserWarning, match="successive draws have a correlation of 0") as caught:
        found = seen(correlation, noise_scale, 200)
    assert len(caught) == 1
    lost = correlation**found.far  # what noise remembers after so many draws
    expected = (correlation - lost) / (1 - lost)
    assert found.correlation() == pytest.approx(expected, abs=0.06)


def test_it_says_nothing_before_it_can():
    found = seen(0.5, 1.0, 16)
    assert (found.num_draws, found.correlation()) == (16, None)
    constant = DrawCorrelation(far=2)
    for _ in range(5):
        constant.update([torch.ones(3)])
    assert constant.correlation() is None


def test_bad_draws_are_passed_over_and_bad_arguments_refused():
    found = seen(0.0, 1.0, 30)
    before = found.correlation(), found.num_draws
    found.update([torch.full(SHAPES[0], torch.nan), torch.zeros(SHAPES[1])])
    assert (found.correlation(), found.num_draws) == before
    with pytest.raises(ValueError, match=r"tensors of \[3\] elements: expected \[5400, 40\]"):
        found.update([torch.zeros(3)])
    with pytest.raises(TypeError, match="gradient 0 is None: expected a tensor"):
        found.update([None, torch.zeros(SHAPES[1])])
    with pytest.raises(ValueError, match="far=1"):
        DrawCorrelation(far=1)
