"""What the figures of memory and of protection say about data that are known exactly."""

import pandas as pd
import pytest

from gqc_lab.figures import without_training as figures


def memory():
    rows = [
        {"method": m, "accumulate": a, "num_draws": n, "peak_bytes": 100 * peak}
        for m, a, peaks in [("gnts", "buffer", (3, 3)), ("list of gradients", "list", (3, 17))]
        for n, peak in zip((2, 16), peaks, strict=True)
    ]
    return pd.DataFrame(rows).assign(gradient_bytes=100)


def orders():
    rows = [
        {"case": c, "normalization": n, "when": w, "correlation": -1.0 if n == "max" else 1.0}
        for c in ("negative", "mixed")
        for n in ("minmax", "max")
        for w in ("first", "late")
    ]
    return pd.DataFrame(rows)


def test_constant_memory_is_a_flat_line_and_equal_methods_share_it():
    frame = memory()
    same = frame[(frame["method"] == "gnts") & (frame["num_draws"] > 2)].assign(method="mht")
    frame = pd.concat([frame, same])
    constant, growing = figures.peak_memory(frame).data
    assert constant.name == "gnts, mht:<br>sum in a buffer"
    assert (constant.x, constant.y) == ((2, 16), (3, 3))
    assert (growing.name, growing.y) == ("list of gradients", (3, 17))


def test_protection_has_a_panel_for_each_moment():
    figure = figures.protection(orders())
    assert [a.text for a in figure.layout.annotations] == ["first step", "late"]
    assert len(figure.data) == 4
    assert [t.showlegend for t in figure.data] == [True, False, True, False]
    first = figure.data[0]
    assert list(first.x) == [1, -1]
    assert [round(y) for y in first.y] == [0, -1]  # in the rows of minmax and max
    assert list(figure.layout.yaxis.ticktext) == ["minmax", "max"]


def falling():
    rows = [
        {"optimizer": o, "duration": n, "least_ratio": 0.9 if o == "adamw" and n > 1 else 0.2}
        for o in ("adamw", "sgd")
        for n in (1, 1000)
    ]
    return pd.DataFrame(rows).assign(factor=1 / 6)


def test_a_line_for_each_optimizer_and_the_factor_itself():
    figure = figures.falling_factor(falling())
    adam, sgd = figure.data
    assert (adam.name, adam.x, adam.y) == ("adamw", (1, 1000), (0.2, 0.9))
    assert (sgd.name, sgd.y) == ("sgd", (0.2, 0.2))
    assert figure.layout.shapes[0].y0 == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("draw", "data"),
    [("peak_memory", memory), ("protection", orders), ("falling_factor", falling)],
)
def test_the_same_data_give_the_same_figure_and_a_lack_is_named(draw, data):
    make = getattr(figures, draw)
    assert make(data()).to_json() == make(data()).to_json()
    with pytest.raises(ValueError, match=draw):
        make(data().iloc[:, 1:])
