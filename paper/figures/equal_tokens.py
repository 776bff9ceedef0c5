"""Validation loss against tokens, and against what the threshold makes of the batch."""

from matplotlib import pyplot

from gqc_lab.figures.style import PLACES
from gqc_lab.publish import printing

NAMES = {"adamw": "AdamW, tuned", "gnts": "GNTS, tuned"}


def draw(results):
    history = results["01_gnts_pretraining"].history
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(6.9, 2.4))
    for method, name in NAMES.items():
        rows = history[(history["method"] == method) & history["val_loss"].notna()]
        printing.curve(left, rows, "tokens", "val_loss", PLACES[method], name)
    left.set(xlabel="training tokens", ylabel="validation loss [nat/token]", title="a")
    left.set_ylim(1.4, 2.8)
    left.legend()
    steps = history[history["stepped"] & (history["method"] == "gnts")]
    for seed, rows in steps.groupby("seed"):  # in colours that no method has on the left
        draws = rows["num_draws"].astype(float).rolling(40, min_periods=1).mean()
        style = {"linestyle": printing.DASHES[seed], "lw": 0.9, "color": f"C{seed + len(NAMES)}"}
        right.plot(rows["tokens"], draws, label=f"seed {seed}", **style)
    right.set(xlabel="training tokens", ylabel="microbatches per step", title="b", yscale="log")
    right.set_ylim(0.8, 300)
    right.set_yticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    right.minorticks_off()
    right.legend(ncols=2)
    for axes in (left, right):
        axes.set_xticks([0, 5e5, 1e6], ["0", "0.5M", "1M"])
    return figure
