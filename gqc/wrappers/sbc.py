r"""Scheduled batch controller: draw until the logical batch has the size that a schedule asks for.

The control for adaptive wrappers: it never looks at a gradient, so it needs no host sync to decide.
"""

from typing import Unpack

from torch.optim import Optimizer

from gqc.checks import check_count
from gqc.wrappers.base import OptimizerWrapper
from gqc.wrappers.options import WindowOptions


class OptimizerWrapperSBC(OptimizerWrapper):
    r"""Step when the draws' weights add up to the logical batch B: :math:`n\,b \ge B` [examples].

    Args:
        optimizer: see :class:`~gqc.wrappers.base.OptimizerWrapper`, as are the keywords; but
            ``max_draws`` is None unless it is given, since B says when to step.
        physical_batch_size: b, examples behind one ``step()``, over all data-parallel ranks
            together; an integer >= 1.  It is the weight of a draw; ``step(weight=...)`` replaces it
            (a short last batch, or B in tokens).
        logical_batch_size: B, examples per optimizer step, > 0; schedulable; the largest of
            several groups decides.
    Raises: ValueError: a size out of its range.

    Source: torch-gqc 0.10.4 and its README (there B starts at 1.0 until it is scheduled, and 64
    draws step whatever it is).
    """

    strictest = {"logical_batch_size": max}
    needs_gradient = False
    counts_examples = True

    def __init__(
        self,
        optimizer: Optimizer,
        physical_batch_size: int,
        logical_batch_size: float,
        *,
        max_draws: int | None = None,
        **options: Unpack[WindowOptions],
    ) -> None:
        self.physical_batch_size = check_count("physical_batch_size", physical_batch_size, 1)
        tunables = {"logical_batch_size": logical_batch_size}
        super().__init__(optimizer, tunables, max_draws=max_draws, **options)

    @property
    def default_weight(self) -> float:  # type: ignore[override]
        return float(self.physical_batch_size)

    def may_close(self, weight: float) -> bool:  # ten weights of 0.1 add up to a little less than 1
        return self.weight + weight >= self.tunable("logical_batch_size") * (1 - 1e-9)

    def should_step(self) -> bool:
        return self.may_close(0.0)
