"""No text of the lab reads as zero for a number that is not."""

import math

import pytest

from gqc_lab.runs.overview import _duration
from gqc_lab.runs.report import show_interval
from gqc_lab.stats.numbers import decimals


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (3e-9, 3, "3e-09"),
        (-4.9e-4, 3, "-0.00049"),
        (6e-4, 3, "0.001"),
        (0.0, 3, "0.000"),
        (1234567.8, 1, "1,234,567.8"),
        (0.3, 0, "0.3"),
        (0.04, 0, "0.04"),
        (math.nan, 2, "nan"),
        (-math.inf, 2, "-inf"),
    ],
)
def test_only_zero_reads_as_zero(value, places, text):
    assert decimals(value, places) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((3e-9, 2e-9, 4e-9), "3e-09 [2e-09, 4e-09]"),
        ((2.5, -1e-9, 5.0), "2.5 [-1e-09, 5.0]"),
        ((1.5e-6, 1.49e-6, 1.51e-6), "1.5e-06 [1.49e-06, 1.51e-06]"),
        ((1.2345678901, 1.2345678896, 1.2345678906), "1.2345678901 [1.2345678896, 1.2345678906]"),
        ((2.345678, 2.345677, 2.345679), "2.345678 [2.345677, 2.345679]"),
        ((0.0, -1e-12, 1e-12), "0 [-1e-12, 1e-12]"),
    ],
)
def test_an_interval_has_the_digits_that_it_tells_apart(values, text):
    assert show_interval(dict(zip(("mean", "low", "high"), values, strict=True))) == text


def test_a_short_time_is_not_none():
    assert [_duration(s) for s in (0.3, 1.2, 150.0)] == ["0.3 s", "1 s", "2 min"]
