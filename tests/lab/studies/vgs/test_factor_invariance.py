"""A factor that falls with time, under Adam and SGD: against what the averages' memory predicts."""

import math

import pytest
import torch

from gqc_lab.studies.vgs import factor_invariance
from gqc_lab.studies.vgs.factor_invariance import BETAS, FACTOR, MEMORY, WARMUP


@pytest.mark.parametrize("duration", [1000, 3000])
def test_a_slow_fall_is_seen_as_much_as_second_moments_lag_behind(duration):
    ratio = factor_invariance.ratios("adamw", duration)
    predicted = math.exp(math.log(FACTOR) / duration / (1 - BETAS[1]))
    fall = slice((WARMUP + 3 * MEMORY) // MEMORY, (WARMUP + duration) // MEMORY)  # lag settled
    assert ratio[fall].mean() == pytest.approx(predicted, rel=0.03)
    assert ratio[: WARMUP // MEMORY].tolist() == [1.0] * (WARMUP // MEMORY)


def test_a_sudden_fall_is_forgotten_by_adam_and_never_by_sgd():
    frame = factor_invariance.measure([1]).set_index("optimizer")
    assert frame.loc["adamw", "least_ratio"] < 0.5
    assert frame.loc["adamw", "last_ratio"] > 0.9
    assert frame.loc["sgd", "last_ratio"] < 0.5
    assert frame.equals(factor_invariance.measure([1]).set_index("optimizer"))
    assert not frame.equals(factor_invariance.measure([1], seed=1).set_index("optimizer"))


def test_the_global_stream_stays_where_it_is():
    before = torch.get_rng_state()
    factor_invariance.ratios("sgd", 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("durations", [[], [0, 5]])
def test_bad_durations(durations):
    with pytest.raises(ValueError, match=r"durations=.*: expected at least one, each at least 1"):
        factor_invariance.measure(durations)
