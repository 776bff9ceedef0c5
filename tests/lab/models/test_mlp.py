"""The perceptron against its formula, and its initial weights."""

import math

import pytest
import torch

from gqc_lab.loop.placement import make_generator
from gqc_lab.models.mlp import make_mlp


def test_it_is_relus_between_affine_maps():
    model = make_mlp(3, 5, 2, 4, make_generator(0, "weights"))
    x = torch.randn(7, 3, generator=make_generator(0, "x"))
    a, b, c = [(layer.weight, layer.bias + 0.1) for layer in model[::2]]
    with torch.no_grad():
        for layer in model[::2]:
            layer.bias += 0.1
    hidden = (x @ a[0].T + a[1]).clamp(min=0)
    hidden = (hidden @ b[0].T + b[1]).clamp(min=0)
    torch.testing.assert_close(model(x), hidden @ c[0].T + c[1])


def test_no_hidden_layer_makes_it_linear():
    model = make_mlp(3, 5, 0, 4, make_generator(0, "weights"))
    assert [tuple(p.shape) for p in model.parameters()] == [(4, 3), (4,)]


def test_initial_weights_come_from_the_generator_and_have_hes_size():
    before = torch.get_rng_state()
    one, same, other = (
        make_mlp(400, 300, 1, 200, make_generator(seed, "weights")) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[0].weight, same[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    for layer, variance in zip(one[::2], (2 / 400, 1 / 300), strict=True):
        error = 4 / math.sqrt(2 * layer.weight.numel())  # four standard deviations
        assert layer.weight.std().item() == pytest.approx(math.sqrt(variance), rel=error)
        assert (layer.bias == 0).all()
