"""Saved runs compared: against the numbers that made them."""

import numpy as np
import pandas as pd
import pytest

from gqc_lab import Live
from gqc_lab.runs import Runs
from gqc_lab.runs.store import Store
from gqc_widgets import Compare
from gqc_widgets.compare import MAX_POINTS, SavedRuns


def history(run, method, seed, length=400, **more):
    draws = np.arange(1, length + 1)
    frame = {"run": run, "method": method, "seed": seed, "microbatch": draws, **more}
    frame |= {"tokens": 512 * draws, "steps": (draws + 1) // 2, "seconds": draws / 10.0}
    frame |= {"loss": 3.0 + seed + 1.0 / draws, "changes": None}
    val = np.where(draws % 100 == 0, 2.0 + seed + (method == "gnts"), np.nan)
    return pd.DataFrame(frame | {"val_loss": val})


class Loaded(Runs):
    """What `runs.load` returns, without a store on disk."""

    def __init__(self, parts, results, tmp_path):
        super().__init__(Store(tmp_path), results, list(pd.DataFrame(results).columns), {})
        self.history = pd.concat(parts, ignore_index=True)


@pytest.fixture
def loaded(tmp_path):
    parts, results = [], []
    for method in ("adamw", "gnts"):
        for seed in (0, 1, 2):
            run = f"{method}{seed}"
            parts.append(history(run, method, seed))
            came_out = {"hours": seed + 0.5, "steps_made": 9 if method == "adamw" else seed}
            result = {"run": run, "method": method, "seed": seed, "lr": 0.1, "x": method[0]}
            results.append(result | came_out)
    return Loaded(parts, results, tmp_path)


def test_it_offers_what_was_recorded(loaded):
    model = SavedRuns(loaded)
    assert model.metrics == ["loss", "val_loss"]
    assert model.axes == ["tokens", "steps", "draws", "seconds"]
    assert model.groups == ["method", "x"]


@pytest.mark.parametrize(("axis", "last"), [("tokens", 204800), ("steps", 200), ("draws", 400)])
def test_the_mean_over_seeds_is_drawn_with_its_interval(loaded, axis, last):
    traces = SavedRuns(loaded).panel("val_loss", axis)["traces"]
    curves = {t["legendgroup"]: t for t in traces if not t.get("fill")}
    assert set(curves) == {"adamw", "gnts"}
    assert curves["adamw"]["x"][-1] == last
    assert set(curves["adamw"]["y"]) == {3.0}  # the mean of 2, 3, 4
    assert set(curves["gnts"]["y"]) == {4.0}
    # Student's t of 2, 3, 4: 3 -+ 4.303 / sqrt(3)
    band = next(t for t in traces if t["legendgroup"] == "adamw" and t.get("fill"))
    assert max(band["y"]) == pytest.approx(3 + 4.30265 / 3**0.5, rel=1e-4)


def test_smoothing_is_an_exponential_average_of_each_run(loaded):
    rows = SavedRuns(loaded).rows("loss", "tokens", smoothing=9)
    part = rows[(rows["method"] == "gnts") & (rows["seed"] == 1)]
    raw = 4.0 + 1.0 / np.arange(1, 401)
    weights = (1 - 2 / 10) ** np.arange(400)[::-1]
    assert part["loss"].iloc[-1] == pytest.approx((weights * raw).sum() / weights.sum(), rel=1e-12)
    assert len(part) <= MAX_POINTS
    assert part["tokens"].iloc[-1] == 204800
    unsmoothed = SavedRuns(loaded).rows("val_loss", "tokens")
    assert set(unsmoothed["val_loss"]) == {2.0, 3.0, 4.0, 5.0}


def test_runs_that_cannot_be_told_apart_are_refused_until_they_are_grouped(tmp_path):
    parts = [history("a", "gnts", 0), history("b", "gnts", 0)]
    results = [{"run": r, "method": "gnts", "seed": 0, "lr": lr} for r, lr in (("a", 1), ("b", 2))]
    model = SavedRuns(Loaded(parts, results, tmp_path))
    with pytest.raises(ValueError, match=r"2 runs of gnts, seed 0: .* instead of method"):
        model.panel("loss", "tokens")
    rows = model.rows("loss", "tokens", group="lr")
    assert set(rows["method"]) == {"gnts, lr=1", "gnts, lr=2"}


def test_a_method_is_grouped_by_its_own_setting_in_its_run(tmp_path):
    parts, results = [], []
    for seed in (0, 1):
        for method, lr in (("gnts", 0.1), ("adamw", 0.003)):
            parts.append(history(f"r{seed}", method, seed))
            results.append({"run": f"r{seed}", "method": method, "seed": seed, "lr": lr})
    model = SavedRuns(Loaded(parts, results, tmp_path))
    methods = set(model.rows("loss", "tokens", group="lr")["method"])
    assert methods == {"gnts, lr=0.1", "adamw, lr=0.003"}
    twice = [*results, *({**row, "lr": 0.5} for row in results)]
    model = SavedRuns(Loaded(parts, twice, tmp_path))
    with pytest.raises(ValueError, match="group='lr': a run has several values of it"):
        model.rows("loss", "tokens", group="lr")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"metric": "los"}, "metric='los': did you mean 'loss'"),
        ({"axis": "hours"}, "axis='hours'"),
        ({"group": "lr"}, "group='lr'"),
        ({"smoothing": 0}, "smoothing=0"),
    ],
)
def test_unknown_choices_are_refused(loaded, choice, message):
    with pytest.raises(ValueError, match=message):
        SavedRuns(loaded).rows(**{"metric": "loss", "axis": "tokens"} | choice)


def test_a_store_without_histories_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected runs with histories"):
        SavedRuns(Loaded([pd.DataFrame({"run": []})], [{"run": "a"}], tmp_path))
    texts = pd.DataFrame({"run": ["a"], "method": "gnts", "seed": 0, "microbatch": 1, "x": "b"})
    with pytest.raises(ValueError, match="expected runs with histories"):
        SavedRuns(Loaded([texts], [{"run": "a"}], tmp_path))
    with pytest.raises(FileNotFoundError, match="no such run store"):
        SavedRuns(tmp_path / "none")


def test_the_view_draws_what_is_chosen_and_says_what_cannot_be(tmp_path):
    parts = [history("a", "gnts", 0), history("b", "gnts", 0)]
    results = [{"run": r, "method": "gnts", "seed": 0, "lr": lr} for r, lr in (("a", 1), ("b", 2))]
    view = Compare(Loaded(parts, results, tmp_path))
    assert "2 runs of gnts, seed 0" in view.message.value
    assert view.panels.panels == []
    view.group.value = "lr"
    assert view.message.value == ""
    assert view.metric.value == "val_loss"
    assert len(view.panels.panels[0]["traces"]) == 2
    view.metric.value, view.axis.value = "loss", "steps"
    assert view.panels.panels[0]["traces"][0]["x"][-1] == 200


def test_runs_that_a_live_view_saved_are_drawn_next_to_those_of_the_store(tmp_path):
    import torch

    live = Live(
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), folder=tmp_path / "live"
    )
    for i in live(range(5)):
        live.log(loss=5.0 - i)
    place = live.save()
    view = Compare(tmp_path)
    (trace,) = view.panels.panels[0]["traces"]
    assert (trace["name"], list(trace["y"])) == (f"loop: {place.name}", [5, 4, 3, 2, 1])


def test_ten_methods_have_ten_colours(tmp_path):
    parts = [history(f"r{i}", f"m{i}", 0) for i in range(10)]
    results = [{"run": f"r{i}", "method": f"m{i}", "seed": 0} for i in range(10)]
    traces = Compare(Loaded(parts, results, tmp_path)).panels.panels[0]["traces"]
    assert len({trace["line"]["color"] for trace in traces}) == 10
