"""The methods that pretraining compares: what decides when AdamW steps.

A further method is one entry of `METHODS`; a setting of its own is a field of
`gqc_lab.studies.pretraining.settings.PretrainingConfig`.  The wrapper is made in
`gqc_lab.studies.pretraining.training`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gqc.wrappers import OptimizerWrapper

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
        "OptimizerWrapperSBC",
        lambda c: _batch_of(c, 1, c.final_accumulation),
        has_draws=False,
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


class TypicalNorm:
    r"""Running mean of the norms of single microbatches: what a relative threshold multiplies.

    :math:`\bar r = \sum_k \beta^{k} r_{t-k} / \sum_k \beta^{k}` over the first draws of windows,
    whose norm GNTS reads anyway.
    """

    BETA = 0.99

    def __init__(self) -> None:
        self.total = self.weight = 0.0

    def update(self, wrapper: OptimizerWrapper, stepped: bool) -> None:
        """Take in the norm of the last draw, if it was the first of its window."""
        window: Any = wrapper.last_window if stepped else wrapper
        if window.num_draws == 1 and window.grad_norm is not None:
            self.total = self.BETA * self.total + window.grad_norm
            self.weight = self.BETA * self.weight + 1

    @property
    def mean(self) -> float:
        """The mean; infinite before the first draw, so that it steps at once."""
        return self.total / self.weight if self.weight else math.inf

    def state_dict(self) -> dict[str, float]:
        return {"total": self.total, "weight": self.weight}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.total, self.weight = state["total"], state["weight"]
