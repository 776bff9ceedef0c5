"""How the tuned values of continual learning were found.

Every method, and every cell of the 2x2 of VGS and adaptive noise, gets `BUDGETS` settings on each
stream, at laptop scale or the one named, on `SEEDS`: of the whole space, and within a factor `NEAR`
of the best of these; again near the best, up to `ROUNDS` times, where it lies outermost.  The
criterion is the online accuracy over the whole stream.
"""

import sys
from functools import partial
from typing import Any

from gqc_lab.loop.tune import Range, Space, tune, tune_closer
from gqc_lab.studies import continual
from gqc_lab.studies.continual.methods import METHODS
from gqc_lab.studies.continual.settings import STREAMS

BUDGETS, NEAR, ROUNDS = (10, 10), 2.0, 5  #: settings of each method on each stream
SEEDS = (100,)
REPORT_SEEDS = range(100)  #: those that reports may use

_SCALED = Range(0.1, 5.0)  # with VGS steps are some 1/5 of what they were, at a neutral gate of 1/2
_RATIO = Range(0.03, 3.0)  # of the noise to the gradient, where it is adaptive
_UPGD = METHODS["upgd"].space

#: `ContinualConfig.name` -> what is tried
SPACES: dict[str, Space] = {
    **{name: method.space for name, method in METHODS.items()},
    "upgd, VGS": {**_UPGD, "lr": _SCALED},
    "upgd, adaptive noise": {**_UPGD, "sigma": _RATIO},
    "upgd, adaptive noise, VGS": {**_UPGD, "lr": _SCALED, "sigma": _RATIO},
}


def options_of(name: str) -> dict[str, Any]:
    """Return the fields that a `ContinualConfig.name` stands for."""
    method, *added = name.split(", ")
    return {"method": method, "adaptive_noise": "adaptive noise" in added, "vgs": "VGS" in added}


def measure(stream: str, name: str, values: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train once and return the numbers of the run's `summary`; ``stream`` may name a scale."""
    stream, _, scale = stream.partition(", ")
    options = {"stream": stream, "seed": seed, "device": "cpu", **options_of(name)}
    experiment = continual.build(continual.config(scale or "laptop", **options, **values))
    for _ in experiment:
        pass
    kept = ("online_accuracy", "accuracy_change", "plasticity", "dead_share", "num_not_finite")
    summary = experiment.summary()
    return {key: summary[key] for key in (*kept, "seconds")}


def _around(name: str, value: float) -> Range:
    return Range(value / NEAR, value * NEAR)


def main(path: str, *streams: str) -> None:
    """Tune on streams, such as "label_permuted, long", or all, and print the rows of tuned.csv.

    ``path``: file to keep the trials in, one for each stream.
    """
    for stream in streams or STREAMS:
        run = partial(
            tune,
            partial(measure, stream),
            seeds=SEEDS,
            report_seeds=REPORT_SEEDS,
            metric="online_accuracy",
            path=f"{path}.{stream}",
        )
        tuning = tune_closer(run, SPACES, _around, budgets=BUDGETS, rounds=ROUNDS)
        table = tuning.table.rename(columns={"method": "name"}).assign(stream=stream)
        table["online_accuracy"] = (100 * table["online_accuracy"]).round(1)
        columns = ["stream", "name", "lr", "weight_decay", "sigma", "online_accuracy"]
        print(table[columns].to_csv(index=False))
        at_edge = {name: edge for name, edge in tuning.at_edge.items() if edge}
        print(f"# at the edge of what was tried on {stream}: {at_edge}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
