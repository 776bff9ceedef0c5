from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gqc_lab.studies.pretraining import critical_batch
from gqc_lab.studies.pretraining.critical_batch import build, config, train

BATCHES = np.array([1, 2, 4, 8, 16, 32, 64])


def results_of(batches, tokens, **columns):
    return pd.DataFrame({"seed": 0, "loss": 2.0, "batch": batches, "tokens": tokens, **columns})


@pytest.mark.parametrize(("fewest", "critical"), [(2e5, 24.0), (1e6, 0.5), (3e4, 900.0)])
def test_a_fit_finds_what_the_tokens_were_made_of(fewest, critical):
    results = results_of(BATCHES, fewest * (1 + BATCHES / critical))
    other = results.assign(loss=1.5, tokens=results["tokens"] * 2)
    found = critical_batch.with_critical_batch(pd.concat([results, other]))
    assert found["critical_batch"].to_numpy() == pytest.approx(critical, rel=0.01)
    twice = np.where(found["loss"] == 1.5, 2.0, 1.0)
    assert (found["fewest_tokens"] / twice).to_numpy() == pytest.approx(fewest, rel=0.01)


def test_two_batches_fit_any_law():
    found = critical_batch.with_critical_batch(results_of(BATCHES[:2], [1e5, 1.1e5]))
    assert found[["fewest_tokens", "critical_batch"]].isna().all(axis=None)


def test_a_loss_is_reached_between_two_evaluations_and_the_run_ends_there():
    run = build(config(8, "smoke", seed=3, device="cpu"))
    rows = train(run, [3.3, 3.0])
    points = run.history.dropna(subset=["val_loss"])
    assert list(rows["loss"]) == [3.3, 3.0]
    assert points["val_loss"].iloc[-1] <= 3.0 < points["val_loss"].iloc[-2]
    assert run.done < run.total
    for loss, tokens in zip(rows["loss"], rows["tokens"], strict=True):
        after = points[points["val_loss"] <= loss].iloc[0]
        before = points[points["tokens"] < after["tokens"]].iloc[-1]
        share = (before["val_loss"] - loss) / (before["val_loss"] - after["val_loss"])
        expected = before["tokens"] + share * (after["tokens"] - before["tokens"])
        assert tokens == pytest.approx(expected)
    assert (rows["steps"] * 8 * run.config.context).to_numpy() == pytest.approx(rows["tokens"])


def test_measuring_the_noise_scale_changes_no_run():
    plain, probed = (build(config(8, "smoke", seed=4, device="cpu")) for _ in range(2))
    rows = train(plain, [3.3, 3.1]), train(probed, [3.3, 3.1], draws=16)
    assert rows[0]["noise_scale"].isna().all()
    assert (rows[1]["noise_scale"] > 0).all()
    same = ["loss", "tokens", "steps"]
    pd.testing.assert_frame_equal(rows[0][same], rows[1][same])


def test_a_loss_that_is_not_reached_has_no_row():
    assert train(build(config(8, "smoke", tokens=2**11, device="cpu")), [0.5]).empty


def test_no_tuned_learning_rate_is_the_outermost_that_was_tried():
    trials = pd.read_csv(Path(critical_batch.__file__).with_suffix(".csv"), comment="#")
    assert set(trials["batch"]) == set(BATCHES)
    for batch, rows in trials.groupby("batch"):
        best = rows.loc[rows["tokens"].idxmin(), "lr"]
        assert rows["lr"].min() < best < rows["lr"].max(), batch
        assert config(batch, "laptop").lr == best
