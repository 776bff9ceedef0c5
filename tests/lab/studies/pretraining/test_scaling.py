"""Power laws of budgets: on losses that follow one exactly, and what the configs share."""

import numpy as np
import pandas as pd
import pytest

from gqc_lab.studies.pretraining import scaling

TOKENS = [2**k for k in range(12, 20)]


@pytest.mark.parametrize("floor", [0.0, 0.8, 1.3])
def test_the_best_floor_is_that_of_the_law(floor):
    y = 9.0 * np.asarray(TOKENS, dtype=float) ** -0.35 + floor
    law = scaling.best_floor(TOKENS, y)
    step = y.min() / scaling.FLOORS
    assert law.floor == pytest.approx(floor, abs=step)
    assert law.exponent == pytest.approx(0.35, abs=0.35 * 4 * step / (y.min() - floor))


def test_fits_have_both_floors_for_each_method_and_seed():
    rows = [
        {"method": m, "seed": s, "tokens": t, "val_loss": a * t**-0.2 + 1.0}
        for m, a in (("adamw", 8.0), ("gnts", 9.0))
        for s in (0, 1)
        for t in TOKENS
    ]
    found = scaling.fits(pd.DataFrame(rows))
    assert found.groupby(["method", "seed"], sort=False)["floor_kind"].agg(list).tolist() == (
        [["zero", "fitted"]] * 4
    )
    fitted = found[found["floor_kind"] == "fitted"]
    assert fitted["exponent"].tolist() == pytest.approx([0.2] * 4, abs=0.01)
    zero = found[found["floor_kind"] == "zero"]
    assert (zero["exponent"] < 0.15).all()  # a floor that is left out looks like a slower law
    assert (zero["floor"] == 0).all()
    assert (zero["r_squared"] < fitted["r_squared"].to_numpy()).all()
    assert set(found["budgets"]) == {len(TOKENS)}
    assert ((found["low"] < found["exponent"]) & (found["exponent"] < found["high"])).all()


def test_budgets_are_whole_runs():
    configs = scaling.budgets("smoke", ["adamw", "gnts"], [2**13, 2**14, 2**15], seed=5)
    assert [(c.method, c.tokens) for c in configs] == [
        (m, t) for m in ("adamw", "gnts") for t in (2**13, 2**14, 2**15)
    ]
    assert all(c.evaluation_tokens == c.tokens and c.seed == 5 for c in configs)


def test_two_budgets_are_too_few():
    with pytest.raises(ValueError, match=r"tokens=\[8192, 16384, 8192\]: expected three"):
        scaling.budgets("smoke", ["adamw"], [2**13, 2**14, 2**13])
