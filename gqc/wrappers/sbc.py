r"""Scheduled batch controller: draw until the logical batch has the size that a schedule asks for.

The control for adaptive wrappers: it never looks at a gradient, so it needs no host sync to decide.

Source: torch-gqc and its README.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from gqc.wrappers.base import OptimizerWrapper


class OptimizerWrapperSBC(OptimizerWrapper):
    r"""Step when :math:`n\,b \ge B`, physical batch b, logical batch B [examples].

    Args:
        optimizer: see :class:`~gqc.wrappers.base.OptimizerWrapper`, as are the keywords; but
            ``max_draws`` is None unless it is given, since B says when to step.
        physical_batch_size: b, examples behind one ``step()``, over all data-parallel ranks
            together; an integer >= 1.
        logical_batch_size: B, examples per optimizer step, > 0; schedulable; the largest of
            several groups decides.
    Raises: ValueError: a size out of its range.

    Source: torch-gqc 0.10.4 (there B starts at 1.0 until it is scheduled, and 64 draws step
    whatever it is).
    """

    strictest = {"logical_batch_size": max}
    needs_gradient = False

    def __init__(
        self,
        optimizer: Optimizer,
        physical_batch_size: int,
        logical_batch_size: float,
        **options: Any,
    ) -> None:
        if not isinstance(physical_batch_size, int) or not physical_batch_size >= 1:
            raise ValueError(
                f"physical_batch_size={physical_batch_size!r}: expected an integer >= 1"
            )
        self.physical_batch_size = physical_batch_size
        options.setdefault("max_draws", None)
        super().__init__(optimizer, logical_batch_size=logical_batch_size, **options)

    def should_step(self) -> bool:
        return self.num_draws * self.physical_batch_size >= self.tunable("logical_batch_size")
