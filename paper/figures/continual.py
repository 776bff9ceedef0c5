"""Online accuracy over a stream of tasks, each method with its own tuned values."""

from matplotlib import pyplot

from gqc_lab.figures.style import PLACES
from gqc_lab.publish import printing

STREAMS = {"input_permuted": "pixels permuted", "label_permuted": "labels permuted"}
METHODS = {"sgd": "SGD", "adamw": "AdamW", "shrink_perturb": "shrink & perturb", "upgd": "UPGD"}


def draw(results):
    history = results["10_upgd_continual"].history
    figure, panels = pyplot.subplots(1, 2, figsize=(6.9, 2.5), sharey=True)
    for axes, (stream, title) in zip(panels, STREAMS.items(), strict=True):
        for method, name in METHODS.items():
            rows = history[(history["stream"] == stream) & (history["method"] == method)]
            printing.curve(axes, rows, "task", "online_accuracy", PLACES[method], name)
        axes.set(xlabel="task", title=title)
    panels[0].set(ylabel="online accuracy")
    panels[0].legend(ncols=2)
    return figure
