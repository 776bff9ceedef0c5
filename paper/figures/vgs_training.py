"""What VGS does to training: steadier and slower, as a constant factor does."""

import numpy as np
from matplotlib import pyplot

from gqc_lab.publish import printing
from gqc_lab.stats import analysis

MEASURES = {"loss_sd": "sd of the training loss", "tail_val_loss": "held-out loss, last quarter"}
METHODS = {
    "VGS, alpha 0.05": "alpha 0.05",
    "VGS, alpha 0.1": "alpha 0.1",
    "VGS, alpha 0.5": "alpha 0.5",
    "constant factor": "constant 1/6",
}
TASKS = {
    ("digits", "sgd"): "digits, SGD",
    ("digits", "adamw"): "digits, AdamW",
    ("values", "sgd"): "values, SGD",
    ("values", "adamw"): "values, AdamW",
}


def draw(results):
    rows = results["06_vgs_alpha"].results
    rows = rows[rows["lr_of"] == "control"]
    figure, panels = pyplot.subplots(1, 2, figsize=(6.9, 2.6), sharey=True)
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for place, (task, optimizer) in enumerate(TASKS):
            mine = rows[(rows["task"] == task) & (rows["optimizer"] == optimizer)]
            logs = mine.assign(log=np.log(mine[measure]))
            means = analysis.paired_difference(logs, "log", by="method", control="no scaling")
            means = np.exp(means.set_index("method").loc[list(METHODS), ["mean", "low", "high"]])
            heights = [3 - i + 0.15 * (1.5 - place) for i in range(len(METHODS))]
            error = [means["mean"] - means["low"], means["high"] - means["mean"]]
            style = {"marker": printing.MARKERS[place], "linestyle": "none", "elinewidth": 0.9}
            name = TASKS[task, optimizer]
            axes.errorbar(
                means["mean"], heights, xerr=error, color=f"C{place}", label=name, **style
            )
        axes.axvline(1.0, color="0.3", linewidth=0.8)
        axes.set(xscale="log", xlabel=f"{label}, over that without scaling")
        ticks = [0.5, 0.7, 1] if measure == "loss_sd" else [1, 2, 4]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(METHODS)), list(METHODS.values())[::-1])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure
