"""Angles between gradient and momentum, and what averaging does to norms, against iid noise."""

import numpy as np
from matplotlib import pyplot

from gqc_lab.publish import printing
from gqc_lab.stats.analysis import summarize


def draw(results):
    history = results["18_angle_paradox"].history
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(6.9, 2.4))
    steps = history[history["kind"] == "step"]
    for place, (column, label) in enumerate(
        {"angle": "with this gradient", "angle_before": "without it"}.items()
    ):
        rows = steps.dropna(subset=[column])
        band = 20 * (rows["microbatch"] // 20)
        means = summarize(rows.assign(band=band), "band", column)
        left.plot(means["band"], means["mean"], label=label, linestyle=printing.DASHES[place], lw=1)
    expected = np.degrees(np.arcsin(0.9))
    left.axhline(expected, color="0.4", lw=0.8, linestyle=":", label="pure noise")
    left.axhline(1.0, color="0.0", lw=0.8, label="claimed: below 1°")
    left.set(xlabel="steps", ylabel="angle to the momentum [°]", title="a", ylim=(-3, 130))
    left.legend(ncols=2, loc="upper center")
    probes = history[(history["kind"] == "probe") & (history["num_draws"] > 0)]
    moments = sorted(probes["microbatch"].unique())
    for place, moment in enumerate(moments):
        rows = probes[probes["microbatch"] == moment]
        measured = summarize(rows, "num_draws", "norm_ratio")
        right.plot(
            measured["num_draws"],
            measured["mean"],
            marker=printing.MARKERS[place],
            linestyle="none",
            color=f"C{place}",
            label=f"step {moment:,}",
        )
        predicted = summarize(rows, "num_draws", "predicted_ratio")
        right.plot(predicted["num_draws"], predicted["mean"], color=f"C{place}", lw=0.8)
    right.axhline(1 / 20, color="0.0", lw=0.8)
    right.annotate(
        "claimed: 20 times less", (16, 1 / 20), (0, 3), textcoords="offset points", size=7
    )
    right.set(xscale="log", yscale="log", xlabel="microbatches averaged", title="b")
    right.set(ylabel="norm, over that of one", ylim=(0.03, 1.3))
    right.set_yticks([0.05, 0.1, 0.2, 0.5, 1], ["0.05", "0.1", "0.2", "0.5", "1"])
    right.set_xticks([1, 10, 100, 500], ["1", "10", "100", "500"])
    right.minorticks_off()
    right.legend(loc="lower left", bbox_to_anchor=(0.0, 0.13))
    return figure
