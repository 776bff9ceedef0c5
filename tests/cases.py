"""One row per optimizer wrapper: all of ``tests/wrappers/test_every_wrapper.py`` runs on each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from problems import global_norm, mean_of
from torch import Tensor
from torch.optim import Optimizer

import gqc

Window = list[list[Tensor]]


@dataclass(frozen=True)
class Case:
    """How to make a wrapper, and what it should do, written from its formula.

    Attributes:
        make: the wrapper at settings that give windows of several lengths on ``problems.stream``.
        plain: the wrapper at its identity limit, where it must be the bare optimizer, bit for bit.
        decides: the slow reference: the window's draws and the steps so far -> step now?
        changes: the slow reference of the gradient that the optimizer sees, from the mean.
        bad: keyword arguments that must be refused, and a part of the message.
    """

    make: Callable[..., gqc.OptimizerWrapper]
    plain: Callable[[Optimizer], gqc.OptimizerWrapper]
    decides: Callable[[Window, int], bool]
    changes: Callable[[list[Tensor]], list[Tensor]] = field(default=lambda mean: mean)
    bad: tuple[tuple[dict[str, Any], str], ...] = ()


REPLAYED = [1, 3, 2, 5, 1, 4] * 10

CASES: dict[str, Case] = {
    "gnts": Case(
        make=lambda opt, **kw: gqc.OptimizerWrapperGNTS(opt, 10.0, **{"max_draws": 6, **kw}),
        plain=lambda opt: gqc.OptimizerWrapperGNTS(opt, 1e30),
        decides=lambda window, step: global_norm(mean_of(window)) <= 10.0 or len(window) >= 6,
        bad=(
            ({"gradient_norm_threshold": 0.0}, "gradient_norm_threshold=0.0: expected a finite"),
            ({"gradient_norm_threshold": -1.0}, "gradient_norm_threshold=-1.0"),
            ({"gradient_norm_threshold": math.nan}, "gradient_norm_threshold=nan"),
        ),
    ),
    "sbc": Case(
        make=lambda opt, **kw: gqc.OptimizerWrapperSBC(opt, 4, 13.0, **kw),
        plain=lambda opt: gqc.OptimizerWrapperSBC(opt, 1, 1.0),
        decides=lambda window, step: 4 * len(window) >= 13.0,
        bad=(
            ({"physical_batch_size": 0, "logical_batch_size": 8}, "physical_batch_size=0"),
            ({"physical_batch_size": 4, "logical_batch_size": math.nan}, "logical_batch_size=nan"),
        ),
    ),
    "replay": Case(
        make=lambda opt, **kw: gqc.OptimizerWrapperReplay(opt, REPLAYED, **kw),
        plain=lambda opt: gqc.OptimizerWrapperReplay(opt, [1], repeat_last=True),
        decides=lambda window, step: len(window) == REPLAYED[step],
        bad=(({"draws": []}, "at least one step"), ({"draws": [2, 0]}, "draws holds 0")),
    ),
}
