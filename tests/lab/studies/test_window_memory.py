"""Peak bytes: the count against known sums and torch's allocator, and leaks that it has to see."""

from functools import partial

import pandas as pd
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import gqc
from gqc_lab.studies import window_memory
from gqc_lab.studies.window_memory import PLAIN, STORED, WRAPPERS, compare, measure, peak_bytes

KB = 4 * 256  # bytes of 256 float32


def allocated(action):
    """The peak from the record that torch's CPU allocator keeps for the profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    events = record.profiler.kineto_results.events()
    moments = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(pd.Series([size for _, size in moments]).cumsum().max())


def test_what_is_kept_adds_up_and_what_is_dropped_does_not():
    def keep():
        return [torch.zeros(256) for _ in range(10)]

    def drop():
        for _ in range(10):
            torch.zeros(256)

    def view():
        x = torch.zeros(256)
        return [x.view(16, 16), x[:3], x.add_(1)]

    assert [peak_bytes(f) for f in (keep, drop, view)] == [10 * KB, KB, KB]


@pytest.mark.parametrize(
    ("method", "accumulate"),
    [(PLAIN, "grad"), (STORED, "list"), ("gnts", "grad"), ("normtest", "buffer"), ("mht", "grad")],
)
@pytest.mark.parametrize("width", [16, 400])
def test_the_count_is_the_allocators_to_the_byte(method, accumulate, width):
    for n in (2, 5):
        draw = partial(window_memory._window, width, 0, torch.float32, method, accumulate, n)
        draw()  # threads and constants that stay are made here
        assert peak_bytes(draw) == allocated(draw)


def test_only_a_list_of_gradients_grows_by_a_gradient_a_draw():
    frame = measure([1, 2, 3, 9], [16]).set_index(["method", "accumulate", "num_draws"])
    peak, gradient = frame["peak_bytes"], frame["gradient_bytes"].iloc[0]
    assert gradient == 4 * (2 * 16 * 17 + 17)
    for (method, accumulate), rows in peak.groupby(["method", "accumulate"]):
        grown = rows.xs(9, level="num_draws").item() - rows.xs(2, level="num_draws").item()
        assert grown == (7 * gradient if method == STORED else 0), (method, accumulate)
    modes = peak.reset_index().groupby("method")["accumulate"].unique().map(list)
    assert modes["gnts"] == ["grad", "buffer"]
    assert modes["gns"] == ["buffer"]


def test_16_bits_are_summed_in_the_buffer_alone():
    frame = measure([2], [16], dtype="bfloat16")
    assert set(frame.loc[frame["method"].isin(WRAPPERS), "accumulate"]) == {"buffer"}


class Hoarder(gqc.OptimizerWrapperSBC):
    """Keeps a copy of one bias' gradient for each draw, a hundredth of the whole."""

    def on_draw(self):
        self.kept = [*getattr(self, "kept", []), self._params()[1].grad.clone()]


def test_a_small_leak_is_seen(monkeypatch):
    leaking = {"sbc": (Hoarder, WRAPPERS["sbc"][1])}
    monkeypatch.setattr(window_memory, "WRAPPERS", leaking)
    monkeypatch.setattr(window_memory, "_variants", lambda _: [("sbc", "grad")])
    found = compare(measure([2, 64], [64])).set_index("method")
    assert found.loc["sbc", "growth"] > 1.05
    assert found.loc[PLAIN, "growth"] == 1


def test_a_window_of_another_length_is_refused(monkeypatch):
    early = {"sbc": (gqc.OptimizerWrapperSBC, lambda n: WRAPPERS["sbc"][1](n - 1))}
    monkeypatch.setattr(window_memory, "WRAPPERS", early)
    with pytest.raises(RuntimeError, match=r"SBC: stepped at draws \[3\] of 4, not at 4"):
        window_memory._window(8, 0, torch.float32, "sbc", "grad", 4)


def test_every_wrapper_that_waits_is_measured():
    known = {getattr(gqc, name) for name in gqc.__all__ if name.startswith("OptimizerWrapper")}
    rest = known - {kind for kind, _ in WRAPPERS.values()}
    assert rest <= {gqc.OptimizerWrapperVGS, gqc.OptimizerWrapper}


def test_comparison_by_hand():
    rows = [
        {"width": 8, "method": m, "accumulate": a, "num_draws": n, "peak_bytes": peak}
        for m, a, peaks in [(PLAIN, "grad", (10, 20, 20)), ("gnts", "buffer", (15, 30, 33))]
        for n, peak in zip((1, 2, 64), peaks, strict=True)
    ]
    memory = pd.DataFrame(rows).assign(gradient_bytes=5)
    found = compare(memory).set_index("method")
    assert found.loc["gnts", "growth"] == pytest.approx(1.1)
    assert found.loc["gnts", "over_plain"] == pytest.approx(1.65)
    assert found.loc["gnts", "more_gradients"] == pytest.approx(13 / 5)
    assert (found["num_draws"] == 64).all()
    with pytest.raises(ValueError, match=r"draws=\[1, 2\]: expected two numbers of 2 or more"):
        compare(memory[memory["num_draws"] <= 2])
