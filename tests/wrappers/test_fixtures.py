"""Checkpoints of commit 24ffc06, taken in the middle of a window, load and lead where they led."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures.wrappers.make import FILES, feed, make

from gqc.scalers import VGSMigrationWarning

FOLDER = Path(__file__).parents[1] / "fixtures" / "wrappers"


EXACT = [name for name in FILES if not name.startswith("vgs_sketch")]


@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
def test_a_file_with_the_sketch_of_24ffc06_keeps_its_window_and_starts_its_statistics_again(
    accumulate,
):
    name = f"vgs_sketch-{accumulate}"
    saved = torch.load(FOLDER / f"{name}.pt", weights_only=True)
    wrapper = make(name, [p.clone().requires_grad_() for p in saved["params"]])
    with pytest.warns(VGSMigrationWarning, match=r"VGS 4.0: its sketch"):
        wrapper.load_state_dict(saved["state"])
    assert wrapper.num_draws == saved["num_draws"]
    assert (wrapper.scaler.step_count, wrapper.scaler.alpha) == (0, 0.2)


@pytest.mark.filterwarnings("ignore:10 windows in a row ran to max_draws=2:UserWarning")
@pytest.mark.parametrize("name", EXACT)
def test_a_file_of_24ffc06_goes_on_to_the_parameters_of_the_uncut_run(name):
    saved = torch.load(FOLDER / f"{name}.pt", weights_only=True)
    params = [p.clone().requires_grad_() for p in saved["params"]]
    wrapper = make(name, params)
    wrapper.load_state_dict(saved["state"])
    assert wrapper.num_draws == saved["num_draws"] >= 1
    pending = wrapper.state_dict()["wrappers"][-1]["pending"]
    expected = saved["state"]["wrappers"][-1]["pending"]
    assert pending.keys() == expected.keys()
    assert all(torch.equal(pending[index], expected[index]) for index in expected)
    draws = [list(draw) for draw in zip(*saved["grads"], strict=True)]
    assert feed(wrapper, params, draws, saved["start"]) == saved["stepped"]
    statistics = wrapper.statistics()
    for key, value in saved["statistics"].items():
        is_number = isinstance(value, float)
        assert statistics[key] == (pytest.approx(value, rel=1e-5) if is_number else value), key
    for param, end in zip(params, saved["end"], strict=True):
        # The order of sums is the processor's: some 20 steps of 0.05 with rounded norms.
        torch.testing.assert_close(param.detach(), end, rtol=1e-6, atol=1e-6)
