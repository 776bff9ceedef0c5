"""Replay a recorded list of draws: the batch sizes of an adaptive run without its reactivity.

The control that tells "it reacts to noise" from "it uses larger batches".
"""

from collections.abc import Sequence
from operator import index
from typing import Unpack

from torch.optim import Optimizer

from gqc.wrappers.base import OptimizerWrapper
from gqc.wrappers.options import WindowOptions


class OptimizerWrapperReplay(OptimizerWrapper):
    """Step k happens after ``draws[k]`` microbatches; no gradient is looked at to decide.

    Args:
        optimizer: see :class:`~gqc.wrappers.base.OptimizerWrapper`, as are the other keywords.
        draws: n of every step, integers >= 1, as another run's ``last_num_draws`` recorded them.
        repeat_last: past the end of the list, continue with its last n.
    Raises:
        ValueError: an empty list, or an n < 1.
        IndexError: a draw past the end of the list, unless ``repeat_last``; the draw is not taken.
    """

    needs_gradient = False
    kept = ("_position",)

    def __init__(
        self,
        optimizer: Optimizer,
        draws: Sequence[int],
        repeat_last: bool = False,
        *,
        max_draws: int | None = None,
        **options: Unpack[WindowOptions],
    ) -> None:
        self.draws = [index(n) for n in draws]
        self.repeat_last = repeat_last
        if not self.draws:
            raise ValueError("draws=[]: expected the n of at least one step")
        if not min(self.draws) >= 1:
            raise ValueError(f"draws holds {min(self.draws)}: expected integers >= 1")
        self._position = 0
        super().__init__(optimizer, max_draws=max_draws, **options)

    def before_draw(self) -> None:
        if self._position >= len(self.draws) and not self.repeat_last:
            raise IndexError(
                f"all {len(self.draws)} recorded steps were replayed; repeat_last=True goes on"
            )

    def should_step(self) -> bool:
        return self.num_draws >= self._size()

    def may_close(self, weight: float) -> bool:
        return self.num_draws + 1 >= self._size()

    def _size(self) -> int:
        return self.draws[min(self._position, len(self.draws) - 1)]

    def on_close(self, stepped: bool) -> None:
        self._position += stepped
