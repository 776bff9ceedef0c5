"""What windows have to do with their noise: on histories whose reaction is known."""

import math

import numpy as np
import pandas as pd
import pytest

from gqc_lab.studies import pretraining
from gqc_lab.studies.pretraining import noisy_batches


def history(draws_of, num_windows, seed=0):
    """Windows of ``draws_of(first_is_noisy, chance)`` microbatches, a tenth of them noisy."""
    rng = np.random.default_rng(seed)
    rows, steps = [], 0
    for _ in range(num_windows):
        first = rng.random() < 0.1
        draws = draws_of(first, rng.random())
        for k in range(1, draws + 1):
            is_noisy = bool(first if k == 1 else rng.random() < 0.1)
            steps += k == draws
            rows.append(
                {"num_draws": k, "stepped": k == draws, "steps": steps, "is_noisy": is_noisy}
                | {"loss": 2.0 + is_noisy + 0.01 * rng.standard_normal()}
            )
    return pd.DataFrame(rows)


def test_windows_are_numbered_and_know_their_draws():
    frame = history(lambda first, chance: 1 + int(3 * chance), 40)
    open_window = frame.iloc[[-1]].assign(num_draws=1, stepped=False)
    found = noisy_batches.windows(pd.concat([frame, open_window], ignore_index=True))
    window = -1
    for row in found.itertuples():
        window += row.num_draws == 1
        assert row.window == window
        assert row.is_first == (row.num_draws == 1)
    closed = found.iloc[:-1]
    assert (closed["window_draws"] == closed.groupby("window")["num_draws"].transform("max")).all()
    assert math.isnan(found["window_draws"].iloc[-1])


def test_difficulty_is_without_the_fall_of_the_loss():
    frame = history(lambda first, chance: 1, 400)
    frame["loss"] = np.linspace(4, 2, 400)
    difficulty = noisy_batches.windows(frame)["difficulty"]
    assert difficulty[50:350].abs().max() < 1e-12
    assert difficulty.abs().max() <= 25.5 * 2 / 399  # half a median's width at the ends


def test_a_known_reaction_is_found():
    frame = history(lambda first, chance: 5 if first else 2, 300)
    found = noisy_batches.reaction(noisy_batches.windows(frame))
    assert (found["draws_noisy_first"], found["draws_clean_first"]) == (5, 2)
    assert found["extra_draws"] == 3
    assert found["correlation"] > 0.3
    assert math.isnan(found["clean_correlation"])  # the clean ones all draw 2
    assert found["windows"] == 300


def test_long_windows_without_reaction_are_not_taken_for_one():
    frame = history(lambda first, chance: 1 if chance < 0.5 else 8, 4000)
    found = noisy_batches.reaction(noisy_batches.windows(frame))
    # A draw is 1 or 8: sd 3.5; about 400 windows start noisy.  Four standard errors.
    assert abs(found["extra_draws"]) < 4 * 3.5 / math.sqrt(380)
    assert abs(found["correlation"]) < 4 / math.sqrt(4000)
    naive = found["draws_with_noisy"] - found["draws_without_noisy"]
    assert naive > 2  # what telling windows apart by any of their microbatches would make of it


def test_configs_share_all_but_the_method():
    configs = noisy_batches.comparison("smoke", 0.2, seed=4)
    assert list(configs) == list(noisy_batches.METHODS)
    assert {(c.noisy_share, c.seed, c.tokens) for c in configs.values()} == {(0.2, 4, 2**16)}
    assert [label for label, c in configs.items() if c.gns_reactive] == ["gns, reactive"]


def test_a_replay_has_the_draws_and_other_noise():
    small = {"tokens": 2**14, "evaluation_sequences": 2, "device": "cpu", "width": 8}
    config = noisy_batches.comparison("smoke", 0.3, **small)["gnts"]
    run = pretraining.build(config)
    for _ in run:
        pass
    replay = pretraining.build(pretraining.replay_config(run, data_seed=9))
    for _ in replay:
        pass
    frames = [noisy_batches.windows(r.history) for r in (run, replay)]
    assert frames[0]["window_draws"].equals(frames[1]["window_draws"])
    assert not frames[0]["is_noisy"].equals(frames[1]["is_noisy"])


def test_without_noise_nothing_is_invented():
    frame = history(lambda first, chance: 2, 50)
    frame["is_noisy"] = False
    found = noisy_batches.reaction(noisy_batches.windows(frame))
    assert math.isnan(found["extra_draws"])
    assert found["draws_clean_first"] == 2


@pytest.mark.parametrize("share", [-0.1, math.nan])
def test_a_bad_share_is_named(share):
    with pytest.raises(ValueError, match="noisy_share="):
        noisy_batches.comparison("smoke", share)
