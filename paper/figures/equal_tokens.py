"""Validation loss at equal tokens: every wrapper against AdamW at its best constant batch."""

from matplotlib import pyplot

from gqc.lab import analysis, printing

NAMES = {
    "adamw": "AdamW",
    "gnts": "GNTS",
    "replay": "its replay",
    "gns": "GNS",
    "normtest": "norm test",
    "mht": "MHT",
    "gnr": "GNR",
    "sbc": "SBC",
}
DRAWN = ("adamw", "gnts", "replay")


def draw(results):
    frozen = results["02_all_wrappers"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(6.9, 2.4))
    history = frozen.history.dropna(subset=["val_loss"])
    for place, method in enumerate(DRAWN):
        rows = history[history["method"] == method]
        printing.curve(left, rows, "tokens", "val_loss", place, NAMES[method])
    left.set(xlabel="training tokens", ylabel="validation loss [nat/token]", title="a")
    left.set_ylim(top=2.6)
    left.legend()
    differences = analysis.paired_difference(frozen.results, "val_loss", control="adamw")
    differences = differences.set_index("method").loc[[m for m in NAMES if m != "adamw"]]
    printing.intervals(right, differences, [NAMES[m] for m in differences.index])
    right.axvline(0.0, color="0.3", linewidth=0.8)
    right.set(xlabel="validation loss minus AdamW's [nat/token]", title="b")
    return figure
