"""Known faults of the peer and what ours does instead, side by side; the table is held to them.

If one of these fails after an upgrade of torch-gqc, the peer has changed: renew the table.
"""

from __future__ import annotations

import math

import pytest
from peer import differences, estimates, mechanics
from scipy import stats

from gqc_lab.studies.noise.streams import two_batch_errors


def test_torch_schedulers_refuse_the_peer():
    assert mechanics.torch_scheduler() == ("TypeError", "accepted")


def test_a_scheduler_in_a_window_makes_torch_warn_of_the_peer():
    theirs, ours = mechanics.scheduler_in_a_window()
    assert theirs >= 1
    assert ours == 0


def test_zero_grad_stops_the_peer():
    assert mechanics.zero_grad_in_the_loop() == ("NotImplementedError", "cleared")


def test_copies():
    theirs, ours = mechanics.copies()
    assert "works" not in theirs
    assert ours == ("works", "works")


def test_clipped_draws():
    theirs, ours = mechanics.clipped_draws()
    assert (round(theirs, 4), round(ours, 4)) == (0.25, 1.0)


def test_a_draw_without_a_backward():
    assert mechanics.draw_without_backward() == (0.5, "RuntimeError")


def test_unequal_microbatches():
    assert mechanics.unequal_microbatches() == ((1 + 9) / 2, (7 * 1 + 1 * 9) / 8)


def test_a_threshold_that_cannot_be_met():
    assert mechanics.threshold_that_cannot_be_met() == (0, 1)


def test_resume_in_mid_window():
    assert mechanics.resume_in_mid_window() == ((3 + 4) / 4, (1 + 2 + 3 + 4) / 4)


def test_smaller_max_draws():
    assert mechanics.smaller_max_draws() == ("RuntimeError", "steps")


def test_a_batch_of_256_is_256_draws_of_one():
    assert mechanics.batch_of_256() == (64, 256)


def test_nan_reaches_the_parameters_of_the_peer_at_max_draws():
    assert mechanics.nan_microbatch() == (64, "never")


def test_sixteen_bit_sums():
    assert mechanics.sixteen_bit_sum() == (256 / 1024, 1.0)


def test_the_published_noise_scale_is_the_variance_of_the_norms():
    theirs, ours = estimates.noise_scale()
    d, n, truth = 10_000, 32, 100.0
    # |g|^2 = |G|^2 + T + noise; to first order Var |g| = (4 |G|^2 T/d + 2 T^2/d) / (4 (|G|^2 + T)).
    predicted = (4 * truth + 2 * truth**2) / d / 4 / (1 + truth) / (1 + truth)
    assert theirs == pytest.approx(predicted, rel=4 * math.sqrt(2 / (n - 1)))  # 4 errors of s^2
    # 40 windows under an average with decay 0.95: weights sum(w)^2 / sum(w^2) = 30 effective ones
    error = two_batch_errors(1.0, truth, n, d, 30)[2]
    assert ours == pytest.approx(truth, rel=4 * error)
    assert 4 * error < 0.05


def test_gns_and_the_unit_of_the_loss():
    theirs, ours = estimates.gns_scale_invariance()
    mean_sq = sum((1 + 0.1 * (i % 3)) ** 2 for i in range(16)) / 16
    assert theirs == pytest.approx(mean_sq * 2**-40 / (mean_sq * 2**-40 + 1e-8), rel=1e-3)
    assert ours == 1.0


def test_gns_and_parameters_without_gradients():
    assert estimates.gns_unused_parameter() == ("RuntimeError", "works")
    assert estimates.gns_frozen_parameter() == ("RuntimeError", "works")


def test_mht_at_its_default_confidence():
    assert estimates.mht_default_confidence() == (64, 2)


def test_mht_and_negative_metrics():
    assert estimates.mht_negative_metric() == (64, 2)


def test_mht_steps_at_its_first_call():
    metrics = [1.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]

    def is_narrow(n):
        low, high = stats.t.interval(0.98, n - 1, 0.0, stats.sem(metrics[:n]))
        return (high - low) / 2 <= 0.5 * 2.0

    first = next(n for n in range(2, 9) if is_narrow(n))
    assert first > 2
    assert estimates.mht_first_call() == (1, first)


def test_gnr_and_a_zero_gradient():
    theirs, ours = estimates.gnr_zero_gradient()
    first = 1.0 + 0.1 * 1.0  # the gradient and the decay of a parameter at 1, momentum's start
    at = 1.0 - 0.1 * first
    assert theirs == pytest.approx(-0.1 * (0.9 * first + 0.1 * at), rel=1e-5)
    assert ours == 0.0


def test_reported_threshold():
    assert mechanics.reported_threshold() == (2.0, 1.0)


def test_added_group():
    assert mechanics.added_group() == (False, True)


def test_schedule_past_its_end():
    theirs, ours = mechanics.schedule_past_its_end()
    assert theirs == pytest.approx(math.cos(math.pi / 2 * 25 / 20), abs=1e-6)
    assert theirs < 0
    assert ours == 0.0


def test_scaled_norms():
    assert mechanics.scaled_norms() == (64, 1)


def test_unscaled_twice():
    theirs, ours = mechanics.unscaled_twice()
    assert theirs == pytest.approx((1.0 / 65536 + 3.0) / 2, rel=1e-6)
    assert ours == 2.0


def test_overflow_under_a_scaler():
    theirs, ours = mechanics.overflow_under_a_scaler()
    assert theirs == (0, 0.0)
    assert ours == (200, 32768.0)


@pytest.mark.slow
def test_sharded_norm():
    theirs, ours = mechanics.sharded_norm()
    assert theirs == pytest.approx(5 / math.sqrt(2), rel=1e-6)
    assert ours == 5.0


@pytest.mark.slow
def test_the_committed_table_is_what_is_measured():
    text = differences.document()
    assert differences.TABLE.read_text() == text
    assert text.count("\n| ") == len(differences.ROWS) + 1


def test_every_row_of_the_table_is_asserted_here():
    """A row without an assertion could say anything."""
    source = differences.Path(__file__).read_text()
    for row in differences.ROWS:
        assert f"{row.measure.__module__.removeprefix('peer.')}.{row.measure.__name__}()" in source


def test_the_page_for_users_repeats_a_row_of_the_table():
    [row] = [line for line in differences.TABLE.read_text().splitlines() if "scale 100" in line]
    peer, ours = (cell.strip().partition(":")[0] for cell in row.split("|")[2:4])
    page = differences.TABLE.parents[2] / "docs/torch_gqc.md"
    assert f"| noise scale of a stream with true value 100 | {peer} | {ours} |" in page.read_text()
