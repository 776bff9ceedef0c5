"""The tuner: equal budgets, honest seeds, every trial kept, and nothing done twice."""

import json
import math

import pandas as pd
import pytest
import torch

from gqc_lab.loop.placement import make_generator
from gqc_lab.loop.tune import Range, read_tuned, settings, tune

SPACES = {"a": {"x": Range(0.01, 1.0)}, "b": {"x": Range(0.01, 1.0), "y": [1, 2, 3]}}
CHOICES = {"budget": 6, "seeds": [100, 101], "report_seeds": range(5), "metric": "loss"}
CHOICES |= {"is_larger_better": False, "has_bar": False}


def bowl(method, values, seed):
    """Least at x = 0.1, y = 2, with some noise that is the seed's own."""
    loss = math.log10(values["x"] / 0.1) ** 2 + (values.get("y", 2) - 2) ** 2
    return {"loss": loss + 1e-3 * (seed - 100), "other": 1.0}


def generator():
    return make_generator(0, "test")


@pytest.mark.parametrize("ends", [(0.99, 0.9999), (1.0, 1.001), (1e-300, 1e300)])
def test_a_range_proposes_different_numbers_within_itself(ends):
    found = [each["x"] for each in settings({"x": Range(*ends)}, 8, generator())]
    assert len(set(found)) == 8
    assert all(ends[0] < x < ends[1] for x in found)


def test_each_part_of_a_range_holds_one_trial():
    found = settings({"x": Range(1e-3, 10.0), "y": Range(-1.0, 3.0, is_log=False)}, 8, generator())
    assert len(found) == 8
    logs = sorted(math.log10(s["x"] / 1e-3) / 4 * 8 for s in found)
    assert [math.floor(v) for v in logs] == list(range(8))
    plain = sorted((s["y"] + 1) / 4 * 8 for s in found)
    assert [math.floor(v) for v in plain] == list(range(8))
    ranks = [[sorted(s[n] for s in found).index(s[n]) for s in found] for n in ("x", "y")]
    assert ranks[0] != ranks[1]  # the two are not tried in step


def test_a_list_beside_a_range_is_used_evenly():
    found = settings({"x": Range(1e-3, 10.0), "k": ["p", "q", "r"]}, 9, generator())
    assert sorted(s["k"] for s in found) == ["p"] * 3 + ["q"] * 3 + ["r"] * 3


def test_lists_alone_are_a_grid():
    space = {"x": [1, 2, 3], "y": ["p", "q"]}
    assert settings(space, 6, generator()) == [
        {"x": x, "y": y} for x in (1, 2, 3) for y in ("p", "q")
    ]
    some = settings(space, 4, generator())
    assert len({tuple(s.values()) for s in some}) == 4


def test_settings_are_of_the_generator_alone():
    before = torch.get_rng_state()
    first = settings({"x": Range(1e-3, 10.0)}, 5, make_generator(1, "test"))
    assert first == settings({"x": Range(1e-3, 10.0)}, 5, make_generator(1, "test"))
    assert first != settings({"x": Range(1e-3, 10.0)}, 5, make_generator(2, "test"))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_method_gets_the_budget_on_every_seed():
    calls = []

    def measure(method, values, seed):
        calls.append((method, tuple(values.items()), seed))
        return bowl(method, values, seed)

    tuning = tune(measure, SPACES, **CHOICES)
    trials = tuning.trials
    assert len(calls) == len(set(calls)) == len(trials) == 2 * 6 * 2
    assert trials.groupby("method")["trial"].nunique().tolist() == [6, 6]
    assert trials["seed"].value_counts().to_dict() == {100: 12, 101: 12}
    for row in trials.to_dict("records"):
        values = {n: row[n] for n in SPACES[row["method"]]}
        assert row["loss"] == bowl(row["method"], values, row["seed"])["loss"]
        assert row["other"] == 1.0
    assert trials.loc[trials["method"] == "a", "y"].isna().all()


@pytest.mark.parametrize("is_larger_better", [False, True])
def test_the_best_is_by_the_mean_over_seeds(is_larger_better):
    tuning = tune(bowl, SPACES, **{**CHOICES, "is_larger_better": is_larger_better})
    for method, best in tuning.best.items():
        tried = settings(SPACES[method], 6, make_generator(0, f"tune {method}"))
        sign = -1 if is_larger_better else 1
        expected = min(tried, key=lambda v: sign * bowl(method, v, 100)["loss"])
        assert best == expected
        losses = tuning.table.loc[tuning.table["method"] == method, "loss"]
        assert losses.is_monotonic_increasing != is_larger_better
        assert len(losses) == 6
    assert list(tuning.table["method"]) == ["a"] * 6 + ["b"] * 6


def test_a_trial_that_diverged_has_lost_whatever_the_other_seed():
    def measure(method, values, seed):
        bad = values["x"] < 0.2
        return {"loss": math.nan if bad and seed == 101 else values["x"]}

    tuning = tune(measure, SPACES, **CHOICES)
    for method, best in tuning.best.items():
        tried = [s["x"] for s in settings(SPACES[method], 6, make_generator(0, f"tune {method}"))]
        assert best["x"] == min(x for x in tried if x >= 0.2)
        assert min(tried) < 0.2


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_method_that_always_diverged_is_an_error(bad):
    tuning = tune(lambda m, v, s: {"loss": bad if m == "b" else 1.0}, SPACES, **CHOICES)
    assert len(tuning.trials) == 24
    with pytest.raises(ValueError, match="method='b': no trial ended in a finite loss"):
        _ = tuning.best


def test_a_best_value_at_the_edge_is_told():
    spaces = {"edge": {"x": Range(0.2, 2.0)}, "inside": {"x": Range(0.001, 10.0)}}
    tuning = tune(bowl, spaces, **CHOICES)
    assert tuning.at_edge == {"edge": ["x"], "inside": []}


def test_trials_on_disk_are_not_repeated(tmp_path):
    path, calls = tmp_path / "trials.jsonl", []

    def measure(method, values, seed):
        if len(calls) == 9:
            raise KeyboardInterrupt
        calls.append(seed)
        return bowl(method, values, seed)

    with pytest.raises(KeyboardInterrupt):
        tune(measure, SPACES, **CHOICES, path=path)
    with open(path, "a") as file:
        file.write('{"method": "b", "tri')  # as a killed process leaves it
    resumed = tune(lambda *a: calls.append(0) or bowl(*a), SPACES, **CHOICES, path=path)
    assert len(calls) == 24
    uncut = tune(bowl, SPACES, **CHOICES)
    pd.testing.assert_frame_equal(resumed.trials, uncut.trials)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 25
    assert lines[1]["values"] == settings(SPACES["a"], 6, make_generator(0, "tune a"))[0]


def test_the_file_of_another_tuning_is_refused(tmp_path):
    path = tmp_path / "trials.jsonl"
    tune(bowl, SPACES, **CHOICES, path=path)
    before = path.read_text()
    with pytest.raises(ValueError, match=r"of another tuning, whose budget is 6; here it is 5"):
        tune(bowl, SPACES, **{**CHOICES, "budget": 5}, path=path)
    other = {**SPACES, "a": {"x": Range(0.01, 2.0)}}
    with pytest.raises(ValueError, match="of another tuning, whose spaces is"):
        tune(bowl, other, **CHOICES, path=path)
    assert path.read_text() == before
    path.write_text(before.replace('"trial": 2', "trial", 1))
    with pytest.raises(ValueError, match="line 4 is not of a trial"):
        tune(bowl, SPACES, **CHOICES, path=path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": [100, 3]}, r"seeds=\[100, 3\]: the report uses \[3\]"),
        ({"seeds": []}, r"seeds=\[\]: expected some"),
        ({"seeds": [100, 100]}, "none twice"),
        ({"budget": 0}, "budget=0"),
        ({"budget": 2.0}, "budget=2.0"),
        ({"metric": "lose"}, "metric='lose': measure gave loss, other"),
    ],
)
def test_bad_arguments_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        tune(bowl, SPACES, **{**CHOICES, **changed})


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({}, "expected a space for each method"),
        ({"a": {}}, "expected a Range or some values"),
        ({"a": {"x": []}}, "expected a Range or some values"),
        ({"a": {"x": [1, 2]}}, "has 2 points, expected at least budget=6"),
    ],
)
def test_a_space_that_cannot_fill_the_budget_is_refused(spaces, message):
    with pytest.raises(ValueError, match=message):
        tune(bowl, spaces, **CHOICES)


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
