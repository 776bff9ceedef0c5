"""What the figures say about a history that is known exactly."""

import json
import math

import numpy as np
import pandas as pd
import plotly.io as pio
import pytest

from gqc_lab.figures import (
    LABELS,
    OKABE_ITO,
    draws_per_step,
    loss_against,
    norm_against_threshold,
    thin,
    write_html,
)
from gqc_lab.figures.style import FAMILIES, mean_curve, method_styles, over_seeds
from gqc_lab.stats.analysis import summarize


def history(methods=("adamw", "gnts"), seeds=3, num_records=60, evaluate_every=10):
    """Records of made-up runs: gnts steps at the third draw, adamw at each and reads no norm."""
    rows = []
    for method in methods:
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            window = 3 if method == "gnts" else 1
            for i in range(1, num_records + 1):
                row = {"method": method, "seed": seed, "microbatch": i, "tokens": 512 * i}
                row |= {"seconds": 0.01 * i * (1 + seed / 10), "num_draws": (i - 1) % window + 1}
                row |= {"stepped": i % window == 0, "grad_norm": None, "val_loss": None}
                row |= {"gradient_norm_threshold": None}
                if method == "gnts":
                    row |= {"grad_norm": rng.uniform(0.2, 1.2), "gradient_norm_threshold": 1.0}
                if i % evaluate_every == 0:
                    row["val_loss"] = 4 / i + rng.normal(0, 0.1)
                rows.append(row)
    return pd.DataFrame(rows)


def trace(figure, name):
    """The only trace whose name starts so."""
    (found,) = [t for t in figure.data if t.name.startswith(name)]
    return found


def visible(figure):
    return [t for t in figure.data if t.showlegend is not False]


FIGURES = [loss_against, norm_against_threshold, draws_per_step]


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize("methods", [["adamw"], ["gnts"], ["adamw", "gnts"]])
@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_are_deterministic_and_carry_no_random_id(draw, methods, seeds):
    frame = history(methods, seeds)
    before = frame.copy()
    text = draw(frame).to_json()
    assert text == draw(frame).to_json()
    assert "uid" not in text
    assert "bdata" not in text  # plain numbers, which every front end reads
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("draw", FIGURES)
def test_a_figure_leaves_the_users_default_template_alone(draw):
    default = pio.templates.default
    figure = draw(history())
    assert pio.templates.default == default
    assert figure.layout.template.layout.colorway == OKABE_ITO
    assert figure.layout.xaxis.title.text == LABELS["tokens"]


@pytest.mark.parametrize("draw", FIGURES)
def test_a_missing_column_is_named(draw):
    with pytest.raises(ValueError, match=f"{draw.__name__}: no column 'tokens'"):
        draw(history().drop(columns="tokens"))


def test_loss_is_the_mean_over_seeds_in_its_t_interval():
    frame = history()
    figure = loss_against(frame)
    gnts = frame[frame["method"] == "gnts"].dropna(subset="val_loss")
    expected = summarize(gnts, "tokens", "val_loss")
    curve, band = trace(figure, "gnts: mean of 3 seeds"), trace(figure, "gnts: interval")
    assert list(curve.x) == [5120 * k for k in range(1, 7)]
    np.testing.assert_allclose(curve.y, expected["mean"], rtol=1e-4)  # shown with five digits
    np.testing.assert_allclose(band.y[:6], expected["high"], rtol=1e-4)
    np.testing.assert_allclose(band.y[6:], expected["low"][::-1], rtol=1e-4)
    assert band.x == curve.x + curve.x[::-1]


@pytest.mark.parametrize("draw", FIGURES)
def test_two_settings_of_a_method_are_not_drawn_as_one_run(draw):
    """Two batch sizes, evaluated after different tokens: no row of a seed is there twice."""
    frame = history(["gnts"])
    other = frame.assign(tokens=frame["tokens"] + 100)
    with pytest.raises(ValueError, match=r"tokens goes back within \('gnts', 0\): keep one"):
        draw(pd.concat([frame, other], ignore_index=True))
    draw(pd.concat([frame, other.assign(method="gnts, larger")], ignore_index=True))


def test_one_seed_has_a_curve_and_no_band():
    figure = loss_against(history(["gnts"], seeds=1))
    assert [t.name for t in figure.data] == ["gnts"]
    assert len(figure.data[0].x) == 6


def test_seeds_on_different_grids_are_compared_where_all_have_data():
    frame = history(["gnts"])
    curve = trace(loss_against(frame, "seconds"), "gnts: mean")
    ends = frame.dropna(subset="val_loss").groupby("seed")["seconds"]
    assert (curve.x[0], curve.x[-1]) == (ends.min().max(), ends.max().min())


@pytest.mark.parametrize("methods", [["adamw", "gnts"], ["gnts", "adamw"], ["x", "gnts", "adamw"]])
def test_methods_keep_their_colour_in_every_figure(methods):
    frame = history(methods)
    for draw in FIGURES:
        traces = [t for t in draw(frame).data if t.mode == "lines" and t.fill is None]
        colors = {t.name.split(":")[0]: t.line.color for t in traces if "threshold" not in t.name}
        assert colors["gnts"] == OKABE_ITO[0]
        assert colors.get("adamw", OKABE_ITO[1]) == OKABE_ITO[1]
        assert colors.get("x") not in OKABE_ITO[:2]


@pytest.mark.parametrize("others", [0, 1, 15])
@pytest.mark.parametrize("placed", [(), ("gnts", "adamw"), *FAMILIES])
def test_no_two_methods_look_alike(placed, others):
    names = [*placed, "replay", *(f"m{i}" for i in range(others))]
    styles = method_styles(names)
    assert list(styles) == names
    assert len({(s["color"], s["dash"]) for s in styles.values()}) == len(names)
    assert all(s["width"] > styles["replay"]["width"] for n, s in styles.items() if n != "replay")


@pytest.mark.parametrize("methods", [["adamw", "gnts"], ["gnts", "adamw"]])
def test_a_dashed_line_lies_above_a_solid_one(methods):
    for draw in (loss_against, draws_per_step):
        lines = [t for t in visible(draw(history(methods))) if t.mode == "lines"]
        assert [t.line.dash for t in lines] == ["solid", "dash"]  # the later, the higher
        ranked = sorted(lines, key=lambda t: t.legendrank)
        assert [t.name.split(":")[0] for t in ranked] == methods


def test_a_title_says_how_many_seeds_there_are():
    assert over_seeds(history(seeds=1)) == "one seed"
    three = history(seeds=3)
    assert over_seeds(three) == "mean over 3 seeds"
    fewer = three[(three["method"] == "gnts") | (three["seed"] < 1)]
    assert over_seeds(fewer) == "mean over 1 to 3 seeds"


def test_forced_steps_are_marked_and_counted():
    frame = history(["gnts"], seeds=1)
    steps = frame[frame["stepped"]]
    above = steps[steps["grad_norm"] > 1.0]
    assert 0 < len(above) < len(steps)  # or this test would say nothing
    figure = norm_against_threshold(frame)
    forced = trace(figure, "gnts: forced")
    assert list(forced.x) == list(above["tokens"])
    assert forced.name.endswith(f"{len(above)} of {len(steps)} steps")
    assert forced.mode == "markers"
    assert trace(figure, "gnts: norm").x == tuple(steps["tokens"])
    assert set(trace(figure, "gnts: threshold").y) == {1}
    assert figure.layout.yaxis.type == "log"


def test_a_figure_without_data_says_why():
    figure = norm_against_threshold(history(["adamw"]))
    assert not figure.data
    assert figure.layout.annotations[0].text == "no method here reads a gradient norm"
    frame = history(["gnts"]).assign(stepped=False)
    assert draws_per_step(frame).layout.annotations[0].text == "no step was made"


def test_draws_are_of_steps_only_with_their_mean():
    figure = draws_per_step(history())
    assert {t.name for t in visible(figure)} == {
        "adamw: 60 steps,<br>mean 1.00",
        "gnts: 20 steps,<br>mean 3.00",
    }
    dots = {t.name: t for t in figure.data if t.mode == "markers"}
    assert set(dots["gnts"].y) == {3}


def test_a_long_legend_has_room():
    heights = [loss_against(history([f"m{i}" for i in range(n)])).layout.height for n in (2, 8)]
    assert heights == [420, 130 + 8 * 50]


def test_many_methods_have_lines_without_dots_and_room_for_the_legend():
    few = draws_per_step(history([f"m{i}" for i in range(4)], seeds=1))
    many = draws_per_step(history([f"m{i}" for i in range(8)], seeds=1))
    assert sorted(t.mode for t in few.data) == ["lines"] * 4 + ["markers"] * 4
    assert [t.mode for t in many.data] == ["lines"] * 8
    styles = {(t.line.color, t.line.dash) for t in many.data}
    assert len(styles) == 8  # told apart though there are seven colours
    assert many.layout.height > few.layout.height == few.layout.template.layout.height


def test_the_first_seed_is_drawn():
    frame = history(["gnts"])
    frame.loc[frame["seed"] == 2, "num_draws"] = 7
    assert set(draws_per_step(frame).data[0].y) == {3}


def test_thinning_keeps_ends_and_peaks():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": range(10_000), "y": rng.normal(size=10_000)})
    frame.loc[4321, "y"], frame.loc[8765, "y"] = 50.0, -50.0
    shown = thin(frame, "y", limit=100)
    assert 50 < len(shown) <= 100
    assert {0, 4321, 8765, 9_999} <= set(shown["x"])
    assert shown["x"].is_monotonic_increasing
    pd.testing.assert_frame_equal(thin(frame, "y", limit=10_000), frame)


def test_thinning_draws_what_is_known_between_gaps():
    frame = pd.DataFrame({"x": range(2000), "y": [float(i % 7) for i in range(2000)]})
    frame.loc[frame["x"] % 3 == 1, "y"] = math.nan
    frame.loc[1000, "y"] = math.nan
    frame.loc[1001, "y"] = 100.0  # a peak beside a gap
    frame.loc[1500:1599, "y"] = math.nan
    shown = thin(frame, "y", limit=102)
    assert 90 < shown["y"].notna().sum() <= 102
    assert shown["y"].max() == 100
    assert shown.loc[1500:1599, "y"].isna().any()  # and the long gap stays one


def test_a_mean_over_seeds_is_never_that_of_the_runs_that_are_left():
    """Losses 1, 2 and 3; the third run is NaN from half on, or its records are left out."""
    rows = [{"seed": s, "x": x, "y": 1.0 + s} for s in range(3) for x in range(1, 21)]
    frame = pd.DataFrame(rows)
    between = pd.DataFrame({"seed": [0, 1, 2], "x": 2.5, "y": math.nan})  # not evaluated
    is_late = (frame["seed"] == 2) & (frame["x"] > 10)
    for runs in (frame.assign(y=frame["y"].mask(is_late)), frame[~is_late]):
        curve = mean_curve(pd.concat([runs, between]), "x", "y")
        assert (curve["x"].tolist(), set(curve["y"])) == (list(range(1, 11)), {2.0})
    lost = (frame["seed"] == 2) & (frame["x"] == 5)
    gap = mean_curve(frame.assign(y=frame["y"].mask(lost)), "x", "y")
    assert gap["x"][gap["y"].isna()].tolist() == [5]
    assert mean_curve(frame.assign(y=frame["y"].mask(frame["seed"] == 2)), "x", "y").empty


def test_a_long_history_makes_a_small_figure():
    frame = history(["gnts"], seeds=1, num_records=60_000, evaluate_every=60)
    for draw in FIGURES:
        assert len(draw(frame).to_json()) < 60_000


def test_numbers_that_json_lacks_become_gaps():
    frame = history(["gnts"], seeds=1)
    frame.loc[frame["tokens"] == 512 * 6, "grad_norm"] = math.inf
    shown = json.loads(norm_against_threshold(frame).to_json())
    (norm,) = [t for t in shown["data"] if t["name"] == "gnts: norm"]
    assert norm["y"][1] is None
    assert all(v is not None for i, v in enumerate(norm["y"]) if i != 1)


def test_html_is_whole_and_the_same_each_time(tmp_path):
    figure = loss_against(history())
    one, two = (write_html(figure, tmp_path / f"new/{name}.html") for name in "ab")
    text = one.read_text(encoding="utf-8")
    assert text == two.read_text(encoding="utf-8")
    assert "<script src" not in text
    assert "<link" not in text.split("plotly.js v")[0]
