"""What the figures of the claims say about data that are known exactly."""

import math

import numpy as np
import pandas as pd
import pytest

from gqc_lab.figures import MAX_POINTS, OKABE_ITO
from gqc_lab.figures import claims as figures


def comparison():
    rows = [
        {"comparison": c, "method": m, "seed": s, "tokens": t, "val_loss": base + s + 100 / t}
        for c in ("control", "size")
        for base, m in ((1.0, "adamw"), (2.0, "gnts"))
        for s in (0, 2)
        for t in (50, 100)
    ]
    frame = pd.DataFrame(rows)
    return pd.concat([frame, frame.assign(tokens=75, val_loss=None)], ignore_index=True)


def by_microbatch():
    rows = [
        {
            "microbatch_size": n,
            "seed": s,
            "mean_logical_batch_examples": 16 + s,
            "val_loss": 2.0 + s,
        }
        for n in (1, 2, 4)
        for s in (0, 1, 2)
    ]
    return pd.DataFrame(rows)


def warmups():
    t = np.arange(1, 41)
    frame = pd.DataFrame({"microbatch": t, "steps": t, "loss": 4.0, "is_warmup": t <= 10})
    frame["gradient_norm_threshold"] = 0.5
    runs = [frame.assign(method=m, seed=s) for m in ("inverted", "none") for s in (0, 1)]
    return pd.concat(runs, ignore_index=True)


def reacted():
    rows = [
        {"method": m, "seed": s, "extra_draws": e + s, "correlation": 0.5, "clean_correlation": 0.1}
        for m, e in (("gnts", 3.0), ("gnts, replay", -1.0))
        for s in (0, 1, 2)
    ]
    rows.append({"method": "mht", "seed": 0, "extra_draws": None, "correlation": 0.0})
    return pd.DataFrame(rows)


def angled():
    t = np.arange(1, 101)
    steps = pd.DataFrame(
        {"tokens": t, "angle": [0.0] + [64.0] * 99, "angle_before": [None, *[90.0] * 99]}
    )
    n = [1, 2, 4]
    probes = [
        pd.DataFrame({"microbatch": k, "tokens": k, "num_draws": n, "norm_ratio": [1, 0.7, 0.5]})
        for k in (0, 100)
    ]
    probed = pd.concat(probes).assign(predicted_ratio=0.9, predicted_angle=60.0, kind="probe")
    return pd.concat([steps.assign(kind="step"), probed], ignore_index=True)


def ends():
    rows = [
        {"method": m, "seed": s, "tokens": t, "val_loss": 8 * t**-0.25}
        for m in ("adamw", "gnts")
        for s in (0, 1)
        for t in (2**12, 2**14, 2**16)
    ]
    return pd.DataFrame(rows)


DRAWN = {
    figures.comparison_losses: (comparison, "comparison"),
    figures.batch_invariance: (by_microbatch, "microbatch_size"),
    figures.warmup_panels: (warmups, "is_warmup"),
    figures.angles: (angled, "angle_before"),
    figures.norms_against_draws: (angled, "norm_ratio"),
    figures.power_laws: (ends, "tokens"),
}
each_figure = pytest.mark.parametrize("draw", DRAWN, ids=lambda d: d.__name__)


@each_figure
def test_figures_are_deterministic_plain_and_leave_the_data_alone(draw):
    frame = DRAWN[draw][0]()
    before = frame.copy()
    text = draw(frame).to_json()
    assert text == draw(frame).to_json()
    assert "bdata" not in text
    assert '"uid"' not in text
    pd.testing.assert_frame_equal(frame, before)


@each_figure
def test_a_missing_column_is_named(draw):
    make, column = DRAWN[draw]
    with pytest.raises(ValueError, match=f"{draw.__name__}: no column '{column}'"):
        draw(make().drop(columns=column))


@each_figure
def test_axes_say_what_they_show(draw):
    layout = draw(DRAWN[draw][0]()).to_plotly_json()["layout"]
    titles = [
        a["title"]["text"] for n, a in layout.items() if n.startswith("yaxis") and "title" in a
    ]
    assert titles
    assert all(titles)
    assert any("title" in a for n, a in layout.items() if n.startswith("xaxis"))


def named(figure, name):
    return [t for t in figure.data if t.name == name]


def test_losses_are_means_over_seeds_in_a_panel_for_each_comparison():
    figure = figures.comparison_losses(comparison())
    control, size = named(figure, "gnts")
    assert (control.xaxis, size.xaxis) == ("x", "x2")
    assert (control.x, control.y) == ((50, 100), (5, 4))
    assert {t.line.color for t in (control, size)} == {OKABE_ITO[0]}
    assert {t.line.color for t in named(figure, "adamw")} == {OKABE_ITO[1]}
    assert figure.layout.title.text == "Loss at equal tokens, mean over 2 seeds"


def test_each_panel_has_its_legend_beside_it():
    figure = figures.comparison_losses(comparison())
    assert {(t.xaxis, t.legend) for t in figure.data} == {("x", "legend"), ("x2", "legend2")}
    assert figure.layout.legend.y == 1
    assert figure.layout.legend2.y == pytest.approx(figure.layout.yaxis2.domain[1])


def test_batches_have_their_intervals_over_seeds():
    batch, loss = named(figures.batch_invariance(by_microbatch()), "gnts")
    assert (batch.x, batch.y) == ((1, 2, 4), (17, 17, 17))
    assert loss.y == (3, 3, 3)
    assert batch.error_y.array[0] == pytest.approx(4.3027 / 3**0.5, rel=1e-4)  # t of 2 degrees


def test_a_run_that_diverged_is_not_left_out_of_a_mean():
    history = comparison()
    late = (history["method"] == "gnts") & (history["seed"] == 2) & (history["tokens"] == 100)
    history.loc[late, "val_loss"] = math.nan
    control, _ = named(figures.comparison_losses(history), "gnts")
    assert (control.x, control.y) == ((50,), (5,))
    lost = by_microbatch()
    lost.loc[0, "val_loss"] = math.nan
    batch, loss = named(figures.batch_invariance(lost), "gnts")
    assert (batch.y, loss.y) == ((17, 17, 17), (None, 3, 3))
    results = compared()
    is_lost = (results["method"] == "gnts") & (results["seed"] == 1)
    results["loss"] = results["loss"].mask(is_lost)
    easy_only = results[results["task"] == "easy"]
    (shown,) = figures.by_method(easy_only, {"loss": "loss"}).data
    assert shown.x[1] is None
    assert shown.x[0] == pytest.approx(7 / 3, rel=1e-4)
    (shown,) = figures.by_method(easy_only, {"loss": "loss"}, "adamw").data
    assert shown.x == (None, 0.5)


def test_one_seed_has_no_bars():
    one = by_microbatch()[lambda f: f["seed"] == 0]
    batch, _ = named(figures.batch_invariance(one), "gnts")
    assert batch.error_y.array is None


def test_the_warmup_is_drawn_to_twice_its_length():
    figure = figures.warmup_panels(warmups())
    assert {t.x[-1] for t in figure.data} == {20}
    assert len(figure.data) == 6


def test_values_have_a_row_for_each_method_and_a_level():
    measures = {"extra_draws": "extra draws", "correlation": "rank correlation"}
    figure = figures.by_method(reacted().dropna(subset=["extra_draws"]), measures, level=0)
    assert figure.layout.yaxis.ticktext == ("gnts", "gnts, replay")
    assert figure.data[0].x == (4, 0)
    assert {(shape.x0, shape.xref) for shape in figure.layout.shapes} == {(0, "x"), (0, "x2")}


def test_angles_begin_with_the_first_step_and_keep_the_prediction():
    figure = figures.angles(angled())
    (angle,) = named(figure, "momentum with<br>this gradient")
    assert (angle.x[0], angle.y[0], angle.y[1], angle.y[-1]) == (1, 0, 32, 64)
    (predicted,) = [t for t in figure.data if t.name.startswith("predicted")]
    assert (predicted.x, predicted.y) == ((0, 100), (60, 60))


def test_norms_stand_beside_predictions_and_noise_alone():
    figure = figures.norms_against_draws(angled())
    assert named(figure, "after 100 steps")[0].y == (1, 0.7, 0.5)
    assert [t.y for t in named(figure, "predicted")] == [(0.9, 0.9, 0.9)] * 2
    assert named(figure, "noise alone, 1/√n")[0].y == (1, 0.70711, 0.5)


def test_a_power_law_is_named_by_its_exponent():
    figure = figures.power_laws(ends())
    curves = [t for t in figure.data if "exponent 0.250" in (t.name or "")]
    assert len(curves) == 2
    points = named(figure, "adamw")[0]
    assert curves[0].y == pytest.approx(points.y)


@pytest.mark.slow
def test_long_curves_are_thinned():
    frame = pd.concat([comparison().dropna().assign(tokens=k) for k in range(2000)])
    figure = figures.comparison_losses(frame)
    assert max(len(t.x) for t in figure.data) <= MAX_POINTS


def compared():
    rows = [
        {"method": m, "seed": s, "task": t, "loss": f ** (1 + s) * (2 if t == "hard" else 1)}
        for m, f in (("adamw", 2.0), ("gnts", 6.0), ("sbc", 1.0))
        for s in (-1, 0, 1)
        for t in ("easy", "hard")
    ]
    return pd.DataFrame(rows)


def test_methods_are_compared_with_the_baseline_seed_by_seed():
    measures, series = {"loss": "loss, over the baseline's"}, ["task"]
    figure = figures.by_method(
        compared(), measures, "adamw", series, {"sbc": "SBC", "gnts": "GNTS"}
    )
    easy, hard = figure.data
    assert (easy.name, hard.name) == ("easy", "hard")
    assert easy.x == hard.x == (0.5, 3)  # geometric means of 1, 1/2, 1/4 and of 1, 3, 9
    half = 4.303 * math.log(3) / 3**0.5
    assert easy.error_x.array[1] == pytest.approx(3 * (math.exp(half) - 1), rel=1e-3)
    assert figure.layout.yaxis.ticktext == ("SBC", "GNTS")
    assert figure.layout.xaxis.type == "log"
    easy_only = compared()[compared()["task"] == "easy"]
    assert figure.layout.xaxis.tickvals == (0.1, 0.3, 1, 3, 10)  # bars reach far
    figure = figures.by_method(easy_only, measures, "adamw", title="What costs less")
    assert figure.layout.title.text == (
        "What costs less:<br>paired ratios, mean over 3 seeds, bars: 95 % intervals"
    )
    (plain,) = figures.by_method(easy_only, {"loss": "loss"}).data
    assert plain.x == pytest.approx((7 / 3, 43 / 3, 1), rel=1e-4)
    with pytest.raises(ValueError, match="by_method: no column 'perplexity'"):
        figures.by_method(compared(), {"perplexity": "p"})


def test_angles_of_several_seeds_are_their_mean():
    one = angled()
    both = pd.concat([one, one.assign(angle=one["angle"] + 10)])
    mean = named(figures.angles(both), "momentum with<br>this gradient")[0]
    alone = named(figures.angles(one), "momentum with<br>this gradient")[0]
    assert mean.y == pytest.approx([y + 5 for y in alone.y], rel=1e-4)
