"""Inverse losses: what their weight does to the gradient, and what each fix does."""

import numpy as np
from matplotlib import pyplot

from gqc_lab.publish import printing
from gqc_lab.stats.analysis import paired_difference

VARIANTS = {
    "as published": "as published",
    "no norms": "no layer norms",
    "lr 0.1": "learning rate 0.1",
}
METHODS = {
    "exploding": "weight 0.5",
    "weight only": "weight 0.001",
    "clip only": "clip by group",
    "curriculum only": "curriculum",
    "fixed": "all three",
}
MEASURES = {"nrmse": "error of one step", "conservation_gap": "conservation gap"}


def draw(results):
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(6.9, 2.7))
    rows = results["12_upt_explosion"].results
    for place, (variant, label) in enumerate(VARIANTS.items()):
        mine = rows[rows["variant"] == variant].dropna(subset=["max_grad_norm"])
        medians = mine.groupby("inverse_weight")["max_grad_norm"].agg(["median", "min", "max"])
        left.plot(
            medians.index,
            medians["median"],
            color=f"C{place}",
            marker=printing.MARKERS[place],
            linestyle=printing.DASHES[place],
            label=label,
        )
        left.fill_between(
            medians.index,
            medians["min"],
            medians["max"],
            color=f"C{place}",
            alpha=0.15,
            linewidth=0,
        )
    left.plot([0.5], [6.16e10], "*", color="0.0", markersize=8, label="reported")
    left.axhline(100, color="0.4", linewidth=0.8, linestyle=":")
    left.set(xscale="log", yscale="log", xlabel="weight of the inverse losses", title="a")
    left.set(ylabel="largest gradient norm")
    weights = sorted(rows["inverse_weight"].unique())
    left.set_xticks(weights, [f"{w:g}" for w in weights])
    left.minorticks_off()
    left.legend(loc="upper left")
    rows = results["13_upt_fix"].results
    for place, (measure, label) in enumerate(MEASURES.items()):
        logs = rows.assign(log=np.log(rows[measure].astype(float)))
        means = paired_difference(logs, "log", by="method", control="baseline")
        means = means.set_index("method").reindex(list(METHODS))
        heights = [4 - i + 0.12 * (1 - 2 * place) for i in range(len(METHODS))]
        factor = np.exp(means[["mean", "low", "high"]])
        error = [factor["mean"] - factor["low"], factor["high"] - factor["mean"]]
        style = {"marker": printing.MARKERS[place], "linestyle": "none", "elinewidth": 0.9}
        right.errorbar(factor["mean"], heights, xerr=error, color=f"C{place}", label=label, **style)
    right.axvline(1.0, color="0.3", linewidth=0.8)
    right.set(xscale="log", xlabel="over that of no inverse losses", title="b")
    ticks = [0.3, 0.5, 1, 2, 4]
    right.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    right.minorticks_off()
    right.set_yticks(range(len(METHODS)), list(METHODS.values())[::-1])
    right.grid(axis="y", visible=False)
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure
