"""The tuner: equal budgets, honest seeds, every trial kept, and nothing done twice."""

import math
from functools import partial

import pandas as pd
import pytest
import torch

from gqc_lab.loop.settings import read_tuned
from gqc_lab.loop.tune import Range, propose, tune, tune_closer

SPACES = {"a": {"x": Range(0.01, 1.0)}, "b": {"x": Range(0.01, 1.0), "y": Range(1.0, 4.0)}}
CHOICES = {"budget": 6, "seeds": [100, 101], "report_seeds": range(5), "metric": "score"}


def hill(method, values, seed):
    """Highest at x = 0.1, y = 2, with some noise that is the seed's own."""
    loss = math.log10(values["x"] / 0.1) ** 2 + (values.get("y", 2) - 2) ** 2
    return {"score": -loss + 1e-3 * (seed - 100), "other": 1.0}


def of(method):
    return propose(SPACES[method], 6, 0, f"tune {method}")


@pytest.mark.parametrize("ends", [(0.99, 0.9999), (1.0, 1.001), (1e-300, 1e300)])
def test_a_range_proposes_different_numbers_within_itself(ends):
    found = [each["x"] for each in propose({"x": Range(*ends)}, 8, 0, "test")]
    assert len(set(found)) == 8
    assert all(ends[0] < x < ends[1] for x in found)


def test_each_part_of_a_range_holds_one_trial():
    found = propose({"x": Range(1e-3, 10.0), "y": Range(1.0, 2.0)}, 8, 0, "test")
    assert len(found) == 8
    for name, low, decades in (("x", 1e-3, 4), ("y", 1.0, math.log10(2))):
        logs = sorted(math.log10(s[name] / low) / decades * 8 for s in found)
        assert [math.floor(v) for v in logs] == list(range(8))
    ranks = [[sorted(s[n] for s in found).index(s[n]) for s in found] for n in ("x", "y")]
    assert ranks[0] != ranks[1]  # the two are not tried in step


def test_settings_are_of_seed_and_stream_alone():
    before = torch.get_rng_state()
    first = propose({"x": Range(1e-3, 10.0)}, 5, 1, "test")
    assert first == propose({"x": Range(1e-3, 10.0)}, 5, 1, "test")
    assert first != propose({"x": Range(1e-3, 10.0)}, 5, 2, "test")
    assert torch.equal(torch.get_rng_state(), before)


def test_every_method_gets_the_budget_on_every_seed():
    calls = []

    def measure(method, values, seed):
        calls.append((method, tuple(values.items()), seed))
        return hill(method, values, seed)

    tuning = tune(measure, SPACES, **CHOICES)
    trials = tuning.trials
    assert len(calls) == len(set(calls)) == len(trials) == 2 * 6 * 2
    assert trials.groupby("method")["trial"].nunique().tolist() == [6, 6]
    assert trials["seed"].value_counts().to_dict() == {100: 12, 101: 12}
    for row in trials.to_dict("records"):
        values = {n: row[n] for n in SPACES[row["method"]]}
        assert row["score"] == hill(row["method"], values, row["seed"])["score"]
        assert row["other"] == 1.0
    assert trials.loc[trials["method"] == "a", "y"].isna().all()


def test_the_best_is_by_the_mean_over_seeds():
    tuning = tune(hill, SPACES, **CHOICES)
    for method, best in tuning.best.items():
        assert best == max(of(method), key=lambda v: hill(method, v, 100)["score"])
        scores = tuning.table.loc[tuning.table["method"] == method, "score"]
        assert scores.is_monotonic_decreasing
        assert len(scores) == 6
    assert list(tuning.table["method"]) == ["a"] * 6 + ["b"] * 6


def test_a_trial_that_diverged_has_lost_whatever_the_other_seed():
    def measure(method, values, seed):
        bad = values["x"] < 0.2
        return {"score": math.nan if bad and seed == 101 else -values["x"]}

    tuning = tune(measure, SPACES, **CHOICES)
    for method, best in tuning.best.items():
        tried = [s["x"] for s in of(method)]
        assert best["x"] == min(x for x in tried if x >= 0.2)
        assert min(tried) < 0.2


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_method_that_always_diverged_is_an_error(bad):
    tuning = tune(lambda m, v, s: {"score": bad if m == "b" else 1.0}, SPACES, **CHOICES)
    assert len(tuning.trials) == 24
    with pytest.raises(ValueError, match="method='b': no trial ended in a finite score"):
        _ = tuning.best


def test_a_best_value_at_the_edge_is_told():
    spaces = {"edge": {"x": Range(0.2, 2.0)}, "inside": {"x": Range(0.001, 10.0)}}
    tuning = tune(hill, spaces, **CHOICES)
    assert tuning.at_edge == {"edge": ["x"], "inside": []}


def test_more_settings_close_to_a_best_that_lies_outermost_and_to_no_other():
    """The hill's top, 0.1, lies outside of one space, whose best moves towards it each round."""
    spaces = {"edge": {"x": Range(0.4, 4.0)}, "inside": {"x": Range(0.01, 1.0)}}
    asked, known = [], {name: value for name, value in CHOICES.items() if name != "budget"}

    def around(name, value):
        asked.append(value)
        return Range(value / 2, value * 2)

    run = partial(tune, hill, **known)
    once = tune_closer(run, spaces, around, budgets=(6, 4))
    assert dict(once.trials.groupby("method").size()) == {"edge": 2 * 10, "inside": 2 * 10}
    assert asked == [best["x"] for best in tune(hill, spaces, **CHOICES).best.values()]
    tuning = tune_closer(run, spaces, around, budgets=(6, 4), rounds=5)
    inside = tuning.trials[tuning.trials["method"] == "inside"]
    assert len(inside) == 2 * 10
    assert not inside[["trial", "seed"]].duplicated().any()
    assert once.at_edge["edge"] == ["x"]
    assert once.best["edge"]["x"] > 0.15
    assert tuning.at_edge == {"edge": [], "inside": []}
    assert tuning.best["edge"]["x"] == pytest.approx(0.1, rel=0.3)
    edge = tuning.trials[tuning.trials["method"] == "edge"]
    assert not edge[["trial", "seed"]].duplicated().any()
    assert edge["x"].min() < 0.1


def test_trials_on_disk_are_not_repeated(tmp_path):
    path, calls = tmp_path / "trials.jsonl", []

    def measure(method, values, seed):
        if len(calls) == 9:
            raise KeyboardInterrupt
        calls.append(seed)
        return hill(method, values, seed)

    with pytest.raises(KeyboardInterrupt):
        tune(measure, SPACES, **CHOICES, path=path)
    with open(path, "a") as file:
        file.write('{"method": "b", "tri')  # as a killed process leaves it
    resumed = tune(lambda *a: calls.append(0) or hill(*a), SPACES, **CHOICES, path=path)
    assert len(calls) == 24
    uncut = tune(hill, SPACES, **CHOICES)
    pd.testing.assert_frame_equal(resumed.trials, uncut.trials)
    others = {**SPACES, "a": {"x": Range(0.01, 2.0)}}
    tune(lambda *a: calls.append(0) or hill(*a), others, **CHOICES, path=path)
    assert len(calls) == 24 + 12  # those of b are known


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": [100, 3]}, r"seeds=\[100, 3\]: the report uses \[3\]"),
        ({"metric": "lose"}, "metric='lose': measure gave score, other"),
    ],
)
def test_bad_arguments_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        tune(hill, SPACES, **{**CHOICES, **changed})


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (1.0, math.inf)])
def test_bad_ranges_are_refused(bounds):
    with pytest.raises(ValueError, match="Range"):
        Range(*bounds)
    with pytest.raises(ValueError, match="Range"):
        Range(math.nan, 1.0)


def test_the_best_trials_of_a_file_are_the_tuned_values(tmp_path):
    file = tmp_path / "tuned.csv"
    file.write_text(
        "# what was tried\nscale,method,lr,width,loss\nsmoke,a,0.1,,\n"
        'laptop,a,1e-2,,1.5\nlaptop,a,1e-3,,1.4\nlaptop,a,1e-4,,1.4\nlaptop,"b, c",0.5,8,2.0\n'
    )
    assert read_tuned(file, ("scale", "method"), "loss") == {
        ("smoke", "a"): {"lr": 0.1},  # not tried: as it is
        ("laptop", "a"): {"lr": 1e-3},  # the first of two equally good ones
        ("laptop", "b, c"): {"lr": 0.5, "width": 8},
    }
    assert read_tuned(file, ("scale", "method"), "loss", True)["laptop", "a"] == {"lr": 1e-2}


def test_a_trial_that_diverged_is_never_the_best_of_a_file(tmp_path):
    file = tmp_path / "tuned.csv"
    rows = "a,1,nan\na,2,0.5\na,3,0.4\nb,1,\nb,2,0.5\nc,1,inf\nc,2,-inf\nc,3,0.5\n"
    file.write_text(f"name,lr,loss\n{rows}")
    lowest, highest = (read_tuned(file, ["name"], "loss", larger) for larger in (False, True))
    assert lowest == {("a",): {"lr": 3}, ("b",): {"lr": 2}, ("c",): {"lr": 3}}
    assert highest == {("a",): {"lr": 2}, ("b",): {"lr": 2}, ("c",): {"lr": 3}}


@pytest.mark.parametrize("name", ["x", "method", "trial"])
def test_what_is_measured_cannot_take_the_place_of_a_setting(name):
    """A summary with the learning rate that is left at the end was taken for the one tried."""
    with pytest.raises(ValueError, match=f"measure gave {name}: "):
        tune(lambda *a: hill(*a) | {name: 0.0}, SPACES, **CHOICES)


@pytest.mark.parametrize("changed", [{"budget": 0}, {"seeds": []}])
def test_no_trials_are_refused(changed):
    with pytest.raises(ValueError, match="expected at least one of each"):
        tune(hill, SPACES, **{**CHOICES, **changed})
