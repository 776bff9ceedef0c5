"""Order of protection: rank correlations known by hand, and what each normalization does."""

import pytest
import torch

from gqc_lab.studies.continual import upgd_order
from gqc_lab.studies.continual.upgd_order import correlation


def test_correlations_that_are_known():
    utilities = [-3.0, -1.0, 0.0, 5.0]
    assert correlation(utilities, [0.7, 0.6, 0.5, 0.3]) == pytest.approx(1)
    assert correlation(utilities, [0.3, 0.5, 0.6, 0.7]) == pytest.approx(-1)  # reversed
    assert correlation(utilities, [0.5] * 4) == 0
    # 1 - 6 sum d^2 / (n (n^2 - 1)), two neighbours swapped
    assert correlation(utilities, [0.6, 0.7, 0.5, 0.3]) == pytest.approx(1 - 6 * 2 / (4 * 15))


def table(frame, column):
    return frame.set_index(["case", "normalization", "when"])[column]


def test_constructed_cases():
    frame = upgd_order.constructed_orders()
    assert len(frame) == 3 * 4 * 2
    kept, rank = table(frame, "is_kept"), table(frame, "correlation")
    assert kept.xs("minmax", level="normalization").all()
    assert kept.xs(("minmax_published", "late"), level=("normalization", "when")).all()
    assert not kept.xs(("minmax_published", "first"), level=("normalization", "when")).any()
    for when in ("first", "late"):
        assert rank["negative", "max", when] == pytest.approx(-1)
        assert kept["mixed", "max", when]
    assert rank["negative", "minmax_published", "first"] == 0


def test_random_utilities_are_of_their_kinds():
    u = torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    negative, mixed, extreme = (upgd_order.RANDOM[k](u) for k in ("negative", "mixed", "extreme"))
    assert negative.max() < 0
    assert 0.4 < (mixed > 0).double().mean() < 0.6
    assert mixed.std() == pytest.approx(1, abs=0.05)
    assert extreme.abs().max() > 500 * extreme.abs().median()


def test_random_orders():
    rank = table(upgd_order.random_orders(num_weights=300, seed=2), "correlation")
    assert rank.xs("minmax", level="normalization").min() > 0.999
    assert rank["negative", "max", "first"] < -0.9
    assert rank["negative", "minmax_published", "first"] == 0
    assert rank.xs(("minmax_published", "late"), level=("normalization", "when")).min() > 0.999
    again = table(upgd_order.random_orders(num_weights=300, seed=2), "correlation")
    assert again.equals(rank)
    other = table(upgd_order.random_orders(num_weights=300, seed=3), "correlation")
    assert not other.equals(rank)


def test_a_normalization_that_reverses_is_told(monkeypatch):
    positive = {"positive": lambda u: u + 1, "negative": lambda u: -u - 1}
    monkeypatch.setattr(upgd_order, "RANDOM", positive)
    frame = upgd_order.random_orders(50)
    rank = table(frame, "correlation")
    assert rank["positive", "max", "late"] == pytest.approx(1)
    assert rank["negative", "max", "late"] == pytest.approx(-1, abs=1e-3)  # float32 may tie
