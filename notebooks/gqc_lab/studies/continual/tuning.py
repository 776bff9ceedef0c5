"""How the values of `continual_tuned.TUNED` were found: run it again with

python -m gqc_lab.studies.continual.tuning trials.jsonl

Every method, and every cell of the 2x2 of VGS and adaptive noise, gets `BUDGET` settings on each
stream, at laptop scale, on `SEEDS`.  The criterion is the online accuracy over the whole stream.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from gqc_lab.data.streams import KINDS
from gqc_lab.loop.tune import Range, Space, Tuning, tune
from gqc_lab.studies import continual

BUDGET = 10  #: settings of each method on each stream
SEEDS = (100,)
REPORT_SEEDS = range(100)  #: those that reports may use

_SGD, _DECAY, _NOISE = Range(0.01, 0.5), Range(1e-4, 3e-2), Range(1e-3, 1e-1)
_ADAM, _ADAM_DECAY, _ADAM_NOISE = Range(3e-4, 1e-2), Range(1e-3, 1.0), Range(1e-2, 1.0)
_GATED, _SCALED = Range(0.02, 1.0), Range(0.1, 5.0)  # a neutral gate is 1/2, VGS some 1/5 more
_RATIO = Range(0.03, 3.0)  # of the noise to the gradient, where it is adaptive

_UPGD: Space = {"lr": _GATED, "weight_decay": _DECAY, "sigma": _NOISE}
_ADAM_UPGD: Space = {"lr": _ADAM, "weight_decay": _ADAM_DECAY, "sigma": _ADAM_NOISE}

#: `ContinualConfig.name` -> what is tried
SPACES: dict[str, Space] = {
    "sgd": {"lr": _SGD},
    "l2": {"lr": _SGD, "weight_decay": _DECAY},
    "pgd": {"lr": _SGD, "sigma": _NOISE},
    "shrink_perturb": {"lr": _SGD, "weight_decay": _DECAY, "sigma": _NOISE},
    "adamw": {"lr": _ADAM, "weight_decay": _ADAM_DECAY},
    "upgd": _UPGD,
    "upgd_nonprotecting": {"lr": _SGD, "weight_decay": _DECAY, "sigma": _NOISE},
    "adaptive_upgd": _ADAM_UPGD,
    "upgdw": _ADAM_UPGD,
    "upgd, VGS": {"lr": _SCALED, "weight_decay": _DECAY, "sigma": _NOISE},
    "upgd, adaptive noise": {"lr": _GATED, "weight_decay": _DECAY, "sigma": _RATIO},
    "upgd, adaptive noise, VGS": {"lr": _SCALED, "weight_decay": _DECAY, "sigma": _RATIO},
}


def options_of(name: str) -> dict[str, Any]:
    """The fields that a `ContinualConfig.name` stands for."""
    method, *added = name.split(", ")
    return {
        "method": method,
        "adaptive_noise": "adaptive noise" in added,
        "vgs": "VGS" in added,
    }


def measure(stream: str, name: str, values: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train once; returns the run's `summary`, but for what names the run."""
    options = {"stream": stream, "seed": seed, "device": "cpu", **options_of(name)}
    experiment = continual.build(continual.config("laptop", **options, **values))
    for _ in experiment:
        pass
    kept = ("online_accuracy", "accuracy_change", "plasticity", "dead_share", "num_not_finite")
    summary = experiment.summary()
    return {key: summary[key] for key in (*kept, "seconds")}


def run(path: str, streams: Sequence[str] = KINDS) -> Iterator[tuple[str, Tuning]]:
    """Tune all methods on each stream; trials are kept in ``path`` with the stream's name added."""
    for stream in streams:
        yield (
            stream,
            tune(
                partial(measure, stream),
                SPACES,
                budget=BUDGET,
                seeds=SEEDS,
                report_seeds=REPORT_SEEDS,
                metric="online_accuracy",
                is_larger_better=True,
                path=f"{path}.{stream}",
            ),
        )


def main(arguments: Sequence[str]) -> int:
    """Tune, and print the trials and what to write into `continual_tuned.TUNED`."""
    if len(arguments) != 1:
        print("expected one argument: the file to keep the trials in", file=sys.stderr)
        return 2
    for stream, tuning in run(arguments[0]):
        print(tuning.table.to_string())
        print({(stream, name): values for name, values in tuning.best.items()})
        print("at the edge of what was tried:", {n: e for n, e in tuning.at_edge.items() if e})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
