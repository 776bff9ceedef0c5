"""What wrappers do on streams of known noise, against the definition and the prediction."""

import math
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from gqc_lab.studies.noise.streams import COLUMNS, stream
from gqc_lab.studies.noise.wrappers import CHUNK, measure_draws, measure_reach, measure_reports


@pytest.mark.slow
def test_only_gns_reports_without_bias_in_few_dimensions():
    """A window of 20 draws in 30 dimensions knows R = 10 to 15 %; the running averages know it to
    about 4 %, and the median over 1000 of them better; the biases are 20 % and more."""
    frame = measure_reports([30], 2000).set_index("measurement")
    assert frame["truth"].tolist() == [10] * 3
    assert frame.loc["gns reports", "measured"] == pytest.approx(10, rel=0.05)
    assert frame.loc["normtest reports", "measured"] < 8
    assert frame.loc["gnts reports", "measured"] > 12


def test_all_reports_are_right_in_many_dimensions():
    frame = measure_reports([10_000], 20)
    assert frame["measured"].tolist() == pytest.approx([10] * 3, rel=0.05)
    assert frame["num_windows"].tolist() == [20] * 3


def test_draws_are_those_predicted_in_high_dimension():
    """Norms of 10^4 parameters hardly vary: up to 8 draws no window is off by one."""
    frame = measure_draws([1.5, 3.5, 7.5], [10_000], 12)
    assert frame["measured"].tolist() == [2, 4, 8]
    assert frame["truth"].tolist() == [2, 4, 8]
    assert frame["num_windows"].tolist() == [12] * 3
    assert frame["num_forced"].tolist() == [0] * 3
    expected = [math.sqrt(1 + 10 / n) for n in (1.5, 3.5, 7.5)]
    assert frame["threshold"].tolist() == pytest.approx(expected, abs=1e-4)


def slow_draws(noise_scale, dimension, threshold, max_draws, num_windows):
    """Windows from the definition: the mean of the gradients so far, element by element."""
    draws, window = [], []
    for gradient in chain.from_iterable(stream(noise_scale, dimension, CHUNK)):
        window.append(gradient)
        norm = (sum(g.double() for g in window) / len(window)).norm()
        if norm <= threshold or len(window) == max_draws:
            draws.append(len(window))
            window = []
        if len(draws) == num_windows:
            break
    return draws


def test_mean_draws_are_those_of_the_definition():
    draws = slow_draws(10.0, 30, 1.3, 20, 25)
    assert len(set(draws)) > 5
    row = measure_reach([1.3], [30], 25, max_draws=20).iloc[0]
    assert row["measured"] == pytest.approx(np.mean(draws))
    low, high = stats.t.interval(0.95, 24, loc=np.mean(draws), scale=stats.sem(draws))
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert row["truth"] == math.ceil(10 / (1.3**2 - 1))


def test_below_the_signal_every_window_is_forced_and_flagged():
    frame = measure_reach([0.5, 0.9, 1.02, 1.4], [10_000], 15, max_draws=32)
    assert frame["truth"].tolist() == [32, 32, 32, 11]
    assert frame["is_flagged"].tolist() == [True, True, False, False]
    assert frame["num_forced"].tolist() == [15, 15, 15, 0]  # 1.02 can be reached, by 248 draws
    assert frame["measured"][:3].tolist() == [32] * 3
    assert frame["low"][:3].tolist() == [32] * 3


@pytest.mark.parametrize("measure", [measure_draws, measure_reach])
def test_measurements_repeat_and_seeds_differ(measure):
    def measured(seed):
        return measure([1.3], [30], 20, seed=seed)

    pd.testing.assert_frame_equal(measured(0), measured(0))
    assert measured(0)["measured"].item() != measured(1)["measured"].item()


def test_nothing_touches_the_global_random_stream():
    before = torch.get_rng_state()
    for frame in (measure_draws([1.5], [10], 3), measure_reach([2.0], [10], 3)):
        assert list(frame.columns) == list(COLUMNS)
    assert torch.equal(torch.get_rng_state(), before)
