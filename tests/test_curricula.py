"""Curricula of loss weights: exact values, shapes, and shares that hold."""

import math
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gqc.curricula import RAMPS, Curriculum, cap_shares, compute_inverse_loss_curriculum_weight


@pytest.mark.parametrize(
    ("epoch", "base", "expected"),
    [
        *((0, 0.5, 0.0), (14.999, 0.5, 0.0), (15, 0.5, 0.0), (22.5, 0.5, 0.05)),
        *((30, 0.5, 0.05), (35, 0.5, 0.05), (16, 0.3, 0.02)),
        *((0, 0.001, 0.0), (14.999, 0.001, 0.0), (15, 0.001, 0.0), (22.5, 0.001, 0.0005)),
        *((30, 0.001, 0.001), (35, 0.001, 0.001)),
    ],
)
def test_published_values(epoch, base, expected):
    assert compute_inverse_loss_curriculum_weight(epoch, base) == pytest.approx(expected, rel=1e-15)
    if expected in (0.0, base, 0.05):
        assert compute_inverse_loss_curriculum_weight(epoch, base) == expected


def slow_reference(epoch, base, warmup, cap):
    if epoch < warmup:
        return 0.0
    if epoch < 2 * warmup:
        return min(base * (epoch - warmup) / warmup, cap)
    return min(base, cap)


@pytest.mark.parametrize("warmup", [0, 0.5, 5, 15])
@pytest.mark.parametrize("cap", [0.0, 0.05, 1.0])
def test_published_formula_at_every_epoch(warmup, cap):
    for epoch, base in product([i / 8 for i in range(300)], (0.0, 0.001, 0.5)):
        found = compute_inverse_loss_curriculum_weight(epoch, base, warmup, cap)
        assert found == pytest.approx(slow_reference(epoch, base, warmup, cap), rel=1e-14)


def test_five_epochs_never_leave_a_warmup_of_fifteen():
    """Why the published diagnostic cannot test the fix."""
    assert {compute_inverse_loss_curriculum_weight(e / 10, 0.001) for e in range(50)} == {0.0}


@pytest.mark.parametrize("shape", RAMPS)
def test_a_ramp_rises_from_zero_to_one(shape):
    curve = Curriculum(2.0, delay=3, ramp=4, shape=shape)
    values = [curve(3 + i / 25) for i in range(101)]
    assert values[0] == curve(0) == curve(2.999) == 0
    assert values[-1] == curve(1e6) == 2.0
    assert all(b > a for a, b in pairwise(values))
    half = {"linear": 1, "cosine": 1, "exponential": 2 * math.expm1(2.5) / math.expm1(5)}[shape]
    assert values[50] == pytest.approx(half)
    capped = Curriculum(2.0, 3, 4, shape, cap=0.5)
    assert [capped(3 + i / 25) for i in range(101)] == [min(v, 0.5) for v in values]


def test_no_ramp_is_a_step():
    step = Curriculum(0.5, delay=2)
    assert (step(1.999), step(2), step(3)) == (0.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": -0.1}, "base=-0.1: expected a finite number >= 0"),
        ({"base": math.nan}, "base=nan"),
        ({"delay": -1}, "delay=-1"),
        ({"ramp": math.inf}, "ramp=inf"),
        ({"cap": math.nan}, "cap=nan: expected a number >= 0; math.inf for none"),
        ({"shape": "step"}, "shape='step': expected one of linear, cosine, exponential"),
    ],
)
def test_bad_curricula(options, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(**{"base": 1.0, **options})


@pytest.mark.parametrize("name", ["epoch", "base_weight", "warmup_epochs", "max_weight"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_bad_arguments_of_the_published_function(name, value):
    values = {"epoch": 1.0, "base_weight": 0.5, name: value}
    with pytest.raises(ValueError, match=f"{name}={value!r}: expected a finite number >= 0"):
        compute_inverse_loss_curriculum_weight(**values)


def shares(losses, weights):
    total = sum(weights[n] * losses[n] for n in losses)
    return {n: weights[n] * losses[n] / total for n in losses}


def by_bisection(losses, weights, limits):
    """The total T = sum_i min(w_i L_i, s_i T), found from above where there is one > 0."""
    low, high = 0.0, sum(weights[n] * losses[n] for n in losses)
    for _ in range(200):
        middle = (low + high) / 2
        reached = sum(min(weights[n] * losses[n], limits.get(n, math.inf) * middle) for n in losses)
        low, high = (middle, high) if reached >= middle else (low, middle)
    return low


@pytest.mark.parametrize("forward", [1e-6, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("inverse", [(0.01, 0.01), (1.0, 5.0), (1e9, 0.3), (0.0, 3.0)])
@pytest.mark.parametrize("limit", [0.05, 0.3, 0.45])
def test_shares_are_capped_and_no_lower_than_that(forward, inverse, limit):
    losses = {"forward": forward, "a": inverse[0], "b": inverse[1]}
    weights = {"forward": 1.0, "a": 0.5, "b": 0.25}
    limits = {"a": limit, "b": limit}
    found = cap_shares(losses, weights, limits)
    assert found["forward"] == 1.0
    for name, share in shares(losses, found).items():
        if name in limits:
            assert share <= limit * (1 + 1e-12)
            is_lowered = found[name] < weights[name]
            assert share == pytest.approx(limit) if is_lowered else found[name] == weights[name]
    total = sum(found[n] * losses[n] for n in losses)
    assert total == pytest.approx(by_bisection(losses, weights, limits), rel=1e-9)


def test_a_cap_of_the_weight_does_not_cap_the_share():
    """The published comment promises a share of 5 %; its code lets 0.05 of a loss of 1000 in."""
    weight = compute_inverse_loss_curriculum_weight(30, 0.5)
    losses, weights = {"forward": 0.1, "inverse": 1000.0}, {"forward": 1.0, "inverse": weight}
    assert shares(losses, weights)["inverse"] > 0.99
    capped = cap_shares(losses, weights, {"inverse": 0.05})
    assert shares(losses, capped)["inverse"] == pytest.approx(0.05)


def test_bounded_terms_alone_get_nothing():
    assert cap_shares({"a": 1.0}, {"a": 0.5}, {"a": 0.05}) == {"a": 0.0}
    assert cap_shares({"a": 1.0}, {"a": 0.5}, {"a": 1.0}) == {"a": 0.5}
    assert cap_shares({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, {"a": 0.0}) == {"a": 0.0, "b": 1}


@given(st.lists(st.integers(1, 18), min_size=2, max_size=5), st.data())
def test_shares_that_sum_to_one_leave_every_term_something(twentieths, data):
    """In hundredths or so a sum of shares is 1 up to rounding, on either side."""
    shares_of = [n / sum(twentieths) for n in twentieths]
    names = "abcde"[: len(shares_of)]
    limits = dict(zip(names, shares_of, strict=True))
    losses = {n: data.draw(st.floats(1e-3, 1e3)) for n in names}
    found = cap_shares(losses, dict.fromkeys(names, 1.0), limits)
    assert all(0 < weight <= 1 for weight in found.values())
    for name, share in shares(losses, found).items():
        assert share <= limits[name] * (1 + 1e-9)


def test_the_weight_of_a_tensor_is_a_number_that_leaves_its_gradient():
    """A weight of 1 / (9 x) would take all gradient out of the term 9 x."""
    x = torch.tensor(2.0, requires_grad=True)
    losses, weights = {"a": 1.0 * x, "b": 9.0 * x}, {"a": 1.0, "b": 1.0}
    found = cap_shares(losses, weights, {"b": 0.5})
    assert found == {"a": 1.0, "b": pytest.approx(1 / 9)}
    sum(found[name] * losses[name] for name in losses).backward()
    assert x.grad == pytest.approx(2.0)


def test_losses_that_are_not_finite_keep_their_weights():
    losses = {"forward": 1.0, "a": math.nan, "b": math.inf, "c": 9.0}
    weights = dict.fromkeys(losses, 1.0)
    found = cap_shares(losses, weights, {"a": 0.1, "b": 0.1, "c": 0.1})
    assert found == {"forward": 1.0, "a": 1.0, "b": 1.0, "c": pytest.approx(1 / 81)}


@pytest.mark.parametrize(
    ("losses", "weights", "limits", "message"),
    [
        ({"a": 1.0}, {"b": 1.0}, {}, "expected one each"),
        ({"a": -1.0}, {"a": 1.0}, {}, "expected both >= 0"),
        ({"a": 1.0}, {"a": math.nan}, {}, "expected both >= 0"),
        ({"a": 1.0}, {"a": 1.0}, {"a": 1.5}, r"max_shares\['a'\]=1.5"),
        ({"a": 1.0}, {"a": 1.0}, {"a": math.nan}, r"max_shares\['a'\]=nan"),
    ],
)
def test_bad_arguments_of_cap_shares(losses, weights, limits, message):
    with pytest.raises(ValueError, match=message):
        cap_shares(losses, weights, limits)
