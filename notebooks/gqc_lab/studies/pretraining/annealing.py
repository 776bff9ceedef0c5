r"""Does a norm schedule do what a learning-rate schedule does?  Arms that anneal steps' noise.

The noise of AdamW's steps falls if the learning rate decays, if the batch grows on a schedule, or
if a falling norm threshold makes it grow; the hypothesis is that nothing else about GNTS matters.
Each arm is a method with a learning rate that is constant or decays:

- ``"adamw, ..."``: a constant batch, with a cosine, a constant, or a constant and then decaying
  learning rate; ``"adamw, untuned"`` has torch's defaults, and steps on every microbatch;
- ``"gnts, ..."``: a falling norm threshold;
- ``"gnts relative, ..."``: the same, relative to the norm of single microbatches;
- ``"sbc, ..."``: a batch that grows on a schedule and looks at no gradient;
- ``"schedule-free"``: a constant batch and learning rate, with an average of the weights in place
  of a schedule (Defazio et al. 2024, arXiv:2405.15682), of the package pytorch-optimizer;
- ``"replay, ..."``: the batches of ``"gnts, ..."`` with the next seed, whatever the gradient;
- ``"adamw, wide"``, ``"gnts, wide"``, ``"adamw, cosine, wide"``: with the half-life of the second
  moment and the weight decay tuned too, which all others share;
- ``"gnts, half"``, ``"gnts, same"``, ``"gnts, twice"``: GNTS at a constant learning rate with 0.5,
  1 and 2 times the threshold that was tuned at 0.16M, whatever the rung.

Microbatches have two sequences, and AdamW's second moment keeps its half-life in tokens.  `RUNGS`
are sizes of the model with `TOKENS_PER_PARAMETER` tokens per parameter, as the source's run had.

All others are tuned in the same way (:func:`tune_arms`), on `TUNING_SEEDS`; the best must not lie
at the edge of what was tried.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from gqc_lab.errors import check_name
from gqc_lab.loop.settings import read_tuned
from gqc_lab.loop.track import track
from gqc_lab.loop.tune import Measure, Range, Space, tune, tune_closer
from gqc_lab.studies.pretraining.equal_tokens import UNTUNED
from gqc_lab.studies.pretraining.methods import recorded_draws
from gqc_lab.studies.pretraining.settings import PretrainingConfig
from gqc_lab.studies.pretraining.settings import config as pretraining_config
from gqc_lab.studies.pretraining.training import Pretraining, build

__all__ = ["ARMS", "RUNGS", "comparison", "config", "turns"]

TOKENS_PER_PARAMETER = 5.6  #: 282M tokens for 50M parameters
BUDGET = 12  #: settings of the whole space
CLOSE_BUDGET, NEAR = 6, 1.6  #: further settings within a factor of the best of these
LEARNING_RATES = Range(8e-4, 1e-2)
TUNING_SEEDS = (100,)
REPORT_SEEDS = (*range(100), *range(1000, 2000))

_CURVES = {"cosine": "cosine", "constant": "constant", "decay": "constant, then decay"}
_NORMS: Space = {"start_norm": Range(1.5, 8.0), "end_norm": Range(0.2, 1.0)}
_RATIOS: Space = {"start_norm": Range(1.5, 5.0), "end_norm": Range(0.2, 0.8)}
_GROWTH: Space = {"final_accumulation": Range(2, 32), "growth_exponent": Range(1.5, 8.0)}
#: method -> what is tried, with its learning rate
SPACES: dict[str, Space] = {
    "adamw": {"accumulation": Range(0.6, 4.4)},
    "gnts": _NORMS,
    "gnts relative": _RATIOS,
    "sbc": _GROWTH,
}
#: arm -> method and curve of the learning rate
ARMS = {
    f"{method}, {curve}": (method, _CURVES[curve])
    for method in SPACES
    for curve in (_CURVES if method == "adamw" else ("constant", "cosine"))
}
ARMS["adamw, untuned"] = ("adamw", "constant")
_WIDE_ARMS = {"adamw, wide": ("adamw", "constant"), "gnts, wide": ("gnts", "constant")}
_WIDE_ARMS["adamw, cosine, wide"] = ("adamw", "cosine")
ARMS |= _WIDE_ARMS
_DECAYS = {"beta2_tokens": Range(2**11, 2**18), "weight_decay": Range(0.003, 0.5)}
#: arm whose space is wider than that of its method -> that space, tried with twice the budget
WIDE: dict[str, Space] = {
    arm: {**SPACES[method], "lr": Range(4e-4, 1e-2), **_DECAYS}
    for arm, (method, _) in _WIDE_ARMS.items()
}
SPACES["schedule-free"] = {**SPACES["adamw"], "beta1": Range(0.8, 0.98)}
ARMS["schedule-free"] = ("schedule-free", "constant")
REPLAYS = {"replay, constant": "gnts, constant", "replay, cosine": "gnts, cosine"}  #: of arms
ARMS |= {replay: ("replay", ARMS[source][1]) for replay, source in REPLAYS.items()}

#: arm -> factor of the threshold of `SHIFTED_FROM`; the learning rate is the rung's own
SHIFTED = {"gnts, half": 0.5, "gnts, same": 1.0, "gnts, twice": 2.0}
SHIFTED_FROM = ("0.16M", "gnts, constant")
ARMS |= dict.fromkeys(SHIFTED, ARMS[SHIFTED_FROM[1]])

TUNABLE = tuple(arm for arm in ARMS if arm not in ("adamw, untuned", *REPLAYS, *SHIFTED))
_WHOLE = ("accumulation", "final_accumulation", "beta2_tokens")  # rounded
_ALL: dict[str, Any] = {"beta2_tokens": 2**14, "context": 64, "microbatch_size": 2}
_GNTS = {"norm_warmup_multiplier": 30.0}  # with 10, first norms above it held some seeds up


def _tokens(parameters: int) -> int:
    return round(TOKENS_PER_PARAMETER * parameters)


#: rung -> fields of its configs
RUNGS: dict[str, dict[str, Any]] = {
    "smoke": {"tokens": 2**14, "max_draws": 16},
    "0.04M": {"width": 32, "depth": 3, "heads": 4, "tokens": _tokens(41_312)},
    "0.16M": {"width": 64, "depth": 3, "heads": 4, "tokens": _tokens(156_352)},
    "0.4M": {"width": 104, "depth": 3, "heads": 4, "tokens": _tokens(403_832)},
    "1M": {"width": 144, "depth": 4, "heads": 4, "tokens": _tokens(1_015_632)},
    "50M": {"tokens": 282_000_000, "context": 512},  # the source's; for a GPU
}
OF_SCALE = {"smoke": "smoke", "laptop": "0.16M", "paper": "50M"}  #: scale -> rung
TRIALS = Path(__file__).with_name("annealing.csv")
#: (rung, arm) -> values; the trials that they were chosen from are in the file
TUNED = read_tuned(TRIALS, ("rung", "arm"), "val_loss")


def config(arm: str, rung: str = "smoke", **overrides: Any) -> PretrainingConfig:
    """Return the config of an arm at a rung, with the values tuned there; ``overrides`` win.

    A replay needs a recorded run: see :func:`comparison`.
    """
    check_name("arm", arm, ARMS)
    check_name("rung", rung, RUNGS)
    method, curve = ARMS[arm]
    sizes = {**_ALL, **RUNGS[rung]} | (_GNTS if method == "gnts" else {})
    if arm == "adamw, untuned":
        sizes |= {**UNTUNED, "beta2_tokens": None}
    sizes["evaluation_tokens"] = sizes["tokens"] // 8
    values = {**sizes, "lr_curve": curve, **_tuned(arm, rung), **overrides}
    scales = {own: scale for scale, own in OF_SCALE.items()}
    return pretraining_config(scales.get(rung, "laptop"), **{**values, "method": method})


def _tuned(arm: str, rung: str) -> dict[str, Any]:
    if arm not in SHIFTED:
        return TUNED.get((rung, arm), {})
    norms = {name: SHIFTED[arm] * TUNED[SHIFTED_FROM][name] for name in _NORMS}
    return {**TUNED.get((rung, SHIFTED_FROM[1]), {}), **norms}


def comparison(
    arms: Sequence[str], rung: str, *, seed: int = 0, **overrides: Any
) -> dict[str, PretrainingConfig]:
    """Return the configs of some arms; a replay trains its source first, with the next seed."""
    configs = {}
    for arm in arms:
        replayed: dict[str, Any] = {}
        if arm in REPLAYS:
            source = build(config(REPLAYS[arm], rung, seed=seed + 1, **overrides))
            for _ in track(source, has_bar=False):
                pass
            replayed = {"lr": source.config.lr, "draws": recorded_draws(source.history)}
        configs[arm] = config(arm, rung, seed=seed, **{**replayed, **overrides})
    return configs


def turns(history: pd.DataFrame, parallel: int) -> int:
    """Return how long a run takes where ``parallel`` microbatches are computed at once, in turns.

    A window of n draws takes n / ``parallel`` turns, rounded up.
    """
    draws = history.loc[history["stepped"], "num_draws"].astype(int)
    return int((-(-draws // parallel)).sum())


def measure(rung: str, arm: str, values: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train once and return what :func:`trained` does."""
    return trained(build(config(arm, rung, seed=seed, device="cpu", **rounded(values))))


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Return a proposed setting with whole numbers where the config wants them."""
    return {name: max(1, round(v)) if name in _WHOLE else v for name, v in values.items()}


def trained(run: Pretraining) -> dict[str, Any]:
    """Train a run to its end; return the held-out loss, and the steps that were forced."""
    for _ in run:
        pass
    summary = run.summary()
    kept = {name: summary[name] for name in ("val_loss", "num_forced", "steps", "seconds")}
    return {"minus_val_loss": -kept["val_loss"], **kept}


def tune_arms(measure: Measure, methods: Mapping[str, str], path: str, **columns: Any) -> None:
    """Try `BUDGET` settings of the whole space of each arm, and `CLOSE_BUDGET` near its best.

    Where all arms are of `WIDE`, twice as many.  Prints the trials as rows of a file of tuned
    values, and which best values lie outermost.

    Args:
        measure: of `gqc_lab.loop.tune.tune`.
        methods: arm -> its method, of `SPACES`.
        path: file that keeps the trials; those that it has are not run again.
        columns: further ones of the printed rows.
    """
    spaces: dict[str, Space] = {
        arm: {"lr": LEARNING_RATES, **WIDE.get(arm, SPACES[method])}
        for arm, method in methods.items()
    }
    known: Any = {"seeds": TUNING_SEEDS, "report_seeds": REPORT_SEEDS, "metric": "minus_val_loss"}
    run = partial(tune, measure, path=path, **known)
    times = 2 if methods.keys() <= WIDE.keys() else 1
    tuning = tune_closer(run, spaces, _around, budgets=(times * BUDGET, times * CLOSE_BUDGET))
    table = tuning.table.rename(columns={"method": "arm"})
    table = table.assign(**columns, val_loss=-table.pop("minus_val_loss"))
    print(table.drop(columns="trial").to_csv(index=False))
    for arm, outermost in tuning.at_edge.items():
        print(f"# {arm}: outermost value of {', '.join(outermost) or 'none'}", file=sys.stderr)


def _around(name: str, value: float) -> Range:
    if name == "beta1":  # by its distance from 1
        return Range(1 - (1 - value) * NEAR, 1 - (1 - value) / NEAR)
    return Range(value / NEAR, value * NEAR)


def main(rung: str, path: str, *arms: str) -> None:
    """Tune arms, or all, at a rung; see :func:`tune_arms`."""
    check_name("rung", rung, RUNGS)
    for arm in arms:
        check_name("arm", arm, TUNABLE)
    tune_arms(partial(measure, rung), {a: ARMS[a][0] for a in arms or TUNABLE}, path, rung=rung)


if __name__ == "__main__":
    main(*sys.argv[1:])
