"""What each VGS estimator says of streams whose noise-to-signal ratio is known."""

import numpy as np
from matplotlib import pyplot

from gqc_lab.publish.printing import MARKERS

STREAMS = {
    "constant, heterogeneous": "constant,\nheterogeneous",
    "uniform noise, ratio 0.25": "uniform\nnoise, 0.25",
    "iid noise, ratio 0.1": "iid\nnoise, 0.1",
    "iid noise, ratio 1": "iid\nnoise, 1",
    "iid noise, ratio 10": "iid\nnoise, 10",
    "uniform noise, published": "uniform\nnoise, ∞",
    "iid noise, ratio ∞": "iid\nnoise, ∞",
}
ESTIMATORS = {
    "spatial": "1.x",
    "tensor_spatial": "2.0",
    "tensor_mean": "3.0",
    "mean_square": "3.1",
    "elementwise": "elementwise",
    "sketch": "sketch",
}
FLOOR = 1e-3  # what is drawn for less


def draw(results):
    rows = results["04_vgs_smoking_gun"].results
    rows = rows[rows["kind"].isna()]
    limit = rows["ceiling"].max()
    figure, axes = pyplot.subplots(figsize=(6.9, 2.6))
    for place, (estimator, name) in enumerate(ESTIMATORS.items()):
        mine = rows[rows["estimator"] == estimator].groupby("stream")["variance"]
        center = mine.median().reindex(STREAMS).clip(lower=FLOOR)
        low, high = (q.reindex(STREAMS).clip(lower=FLOOR) for q in (mine.min(), mine.max()))
        x = np.arange(len(STREAMS)) + 0.13 * (place - 2.5)
        error = [center - low, high - center]
        style = {"marker": MARKERS[place], "linestyle": "none", "elinewidth": 0.8}
        axes.errorbar(x, center, error, color=f"C{place}", label=name, **style)
    truth = rows.drop_duplicates("stream").set_index("stream")["truth"].reindex(STREAMS)
    truth = truth.fillna(limit).clip(lower=FLOOR)
    for x, value in enumerate(truth):
        label = "truth, or the most that beta resolves" if x == 0 else None
        axes.plot([x - 0.45, x + 0.45], [value, value], color="0.6", lw=4, zorder=0, label=label)
    axes.set_yscale("log")
    axes.set_ylim(FLOOR / 2, 3e6)
    axes.set_yticks(
        [1e-3, 1e-2, 1, 1e2, 1e4, 1e6], ["< 0.001", "0.01", "1", "100", "$10^4$", "$10^6$"]
    )
    axes.set_xticks(range(len(STREAMS)), STREAMS.values())
    axes.set(ylabel="estimated V")
    axes.grid(axis="x", visible=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=7)
    return figure
