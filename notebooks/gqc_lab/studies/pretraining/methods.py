"""The methods that pretraining compares: what decides when AdamW steps.

A further method is one entry of `METHODS`; a setting of its own is a field of
`gqc_lab.studies.pretraining.settings.PretrainingConfig`.  The wrapper is made in
`gqc_lab.studies.pretraining.training`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

Config = Any  #: a `PretrainingConfig`, whose module imports this one


@dataclass(frozen=True)
class Method:
    """What decides when AdamW steps.

    Args:
        wrapper: name of its class in `gqc.wrappers`.
        arguments: from a config to the wrapper's own arguments.
        has_draws: whether it takes the config's ``min_draws`` and ``max_draws``.
        tunable: field of the config and entry of the wrapper's param groups that may be changed
            while training.
    """

    wrapper: str
    arguments: Callable[[Config], dict[str, Any]]
    has_draws: bool = True
    tunable: str | None = None


def _batch_of(c: Config, logical: int, most: int) -> dict[str, Any]:
    size = c.microbatch_size
    return {"physical_batch_size": size, "logical_batch_size": logical * size, "max_draws": most}


def _constant_batch(c: Config) -> dict[str, Any]:
    return _batch_of(c, c.accumulation, c.accumulation)


METHODS = {
    # every ``accumulation`` microbatches, a constant batch: the baseline
    "adamw": Method("OptimizerWrapperSBC", _constant_batch, has_draws=False),
    # when the norm of the mean gradient is under a threshold, which comes down over the run
    "gnts": Method("OptimizerWrapperGNTS", lambda c: {}),
    # the same, with a threshold relative to the running mean of the norms of single microbatches
    "gnts relative": Method("OptimizerWrapperGNTS", lambda c: {}),
    # when the batch is as large as the gradient noise scale of past windows asks for
    "gns": Method(
        "OptimizerWrapperGNS",
        lambda c: {"noise_tolerance": c.noise_tolerance, "reactive": c.gns_reactive},
        tunable="noise_tolerance",
    ),
    # when the noise in the mean gradient is small against it, by this window alone
    "normtest": Method("OptimizerWrapperNormTest", lambda c: {"theta": c.theta}, tunable="theta"),
    # when the interval of the mean training loss is narrow
    "mht": Method(
        "OptimizerWrapperMHT",
        lambda c: {"confidence": c.confidence, "error_tolerance": c.error_tolerance},
        tunable="error_tolerance",
    ),
    # every ``min_draws`` microbatches, with the mean gradient rescaled to one norm
    "gnr": Method(
        "OptimizerWrapperGNR",
        lambda c: {"target_gradient_norm": c.target_gradient_norm, "mode": c.gnr_mode},
        tunable="target_gradient_norm",
    ),
    # a batch that grows on a schedule from 1 to ``final_accumulation`` microbatches
    "sbc": Method(
        "OptimizerWrapperSBC", lambda c: _batch_of(c, 1, c.final_accumulation), has_draws=False
    ),
    # as often as a recorded run did, whatever the gradient
    "replay": Method("OptimizerWrapperReplay", lambda c: {"draws": c.draws}, has_draws=False),
    # as adamw, with each step's gradient scaled down by its variance over the steps so far; with
    # ``vgs_alpha`` every other method does so too
    "vgs": Method("OptimizerWrapperSBC", _constant_batch, has_draws=False),
    # as adamw, with schedule-free AdamW inside, which is judged by the average of its weights
    "schedule-free": Method("OptimizerWrapperSBC", _constant_batch, has_draws=False),
}

#: those that are compared with each other; vgs steps every time
CONTROLLERS = [name for name in METHODS if name not in ("vgs", "gnts relative", "schedule-free")]


def recorded_draws(history: pd.DataFrame) -> tuple[int, ...]:
    """Return the draws of a finished run, for the method ``"replay"``.

    Its last window, if the run ended inside it, is listed as one draw longer than it was: the
    replay then leaves it open too.
    """
    draws = history.loc[history["stepped"], "num_draws"].astype(int).tolist()
    if len(history) and not history["stepped"].iloc[-1]:
        draws.append(int(history["num_draws"].iloc[-1]) + 1)
    return tuple(draws)


def replay_config(run: Any, data_seed: int) -> Config:
    """Return the replay of a finished run: its batch sizes in order, on other data.

    Weights, learning rate and all else are those of ``run``; so is the order of the text where
    ``data_seed`` is the run's own, and the replay is then the run over again.
    """
    draws = recorded_draws(run.history)
    return replace(run.config, method="replay", draws=draws, data_seed=data_seed)
