"""Each wrapper's perplexity over that of AdamW at its best constant batch, at equal tokens."""

import numpy as np
from matplotlib import pyplot

from gqc_lab.figures.style import method_styles
from gqc_lab.publish import printing
from gqc_lab.stats.analysis import paired_difference, summarize

NAMES = {
    "gnts": "GNTS",
    "gns": "GNS",
    "normtest": "norm test",
    "mht": "MHT",
    "sbc": "SBC",
    "gnr": "GNR",
    "replay": "replay of GNTS",
}


def draw(results):
    rows = results["02_all_wrappers"].results
    colors = [style["color"] for style in method_styles(NAMES).values()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(6.9, 2.3), sharey=True)
    logs = rows.assign(log=np.log(rows["perplexity"].astype(float)))
    ratio = paired_difference(logs, "log", by="method", control="adamw").set_index("method")
    ratio = np.exp(ratio.loc[list(NAMES), ["mean", "low", "high"]])
    printing.intervals(left, ratio, list(NAMES.values()), colors)
    left.axvline(1.0, color="0.3", linewidth=0.8)
    left.set(xlabel="perplexity, over tuned AdamW's", title="a")
    batch = rows.assign(draws=rows["microbatches"] / rows["steps"])
    draws = summarize(batch, "method", "draws").set_index("method").loc[list(NAMES)]
    printing.intervals(right, draws, list(NAMES.values()), colors)
    right.set(xlabel="microbatches per step", title="b")
    return figure
