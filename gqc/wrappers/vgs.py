"""Variance gradient scaler as a wrapper: scale each gradient that is stepped with.

Source: see :mod:`gqc.scalers.vgs`, which holds the method.
"""

import copy
from typing import Any, Unpack

from torch.optim import Optimizer

from gqc.gradients import is_sharded
from gqc.scalers import VarianceGradientScaler
from gqc.wrappers.base import OptimizerWrapper
from gqc.wrappers.delegate import check_optimizer
from gqc.wrappers.options import WindowOptions


class VGSOptions(WindowOptions, total=False):
    """Those, and the keywords of :class:`~gqc.scalers.vgs.VarianceGradientScaler`."""

    enabled: bool
    beta: float
    alpha: float
    eps: float
    warmup_steps: int
    logger: Any
    min_scaling_factor: float
    variance_cap: float | None
    estimator: str
    percentile: float
    aggregate: str
    granularity: str
    sketch_size: int
    sketch_seed: int
    track_spatial: bool


class OptimizerWrapperVGS(OptimizerWrapper):
    """Step every microbatch, with the gradient scaled down by its variance over the steps so far.

    Inside another wrapper (``OptimizerWrapperGNTS(OptimizerWrapperVGS(optimizer))``) it scales the
    mean gradient of each window, and the variance is that of windows.  Its own ``min_draws`` > 1
    scales the mean of that many draws.  After the warmup a step waits for the host twice, for the
    check of the gradient and for the factor.

    Args:
        optimizer: see :class:`~gqc.wrappers.base.OptimizerWrapper`, as are its keywords.
        options: those keywords, and the ones of
            :class:`~gqc.scalers.vgs.VarianceGradientScaler` (``alpha``, ``estimator``, ...).
    Attributes:
        scaler: the :class:`~gqc.scalers.vgs.VarianceGradientScaler`; ``wrapper.scaler.alpha = 0.2``
            acts from the next step on.
    Raises: ValueError, TypeError: as these two.

    ``statistics()`` adds the scaler's ``metrics()``.  The published estimators, which read what
    clipping leaves, read the scaled gradient here.
    """

    needs_gradient = False

    options = VGSOptions
    sources = (VarianceGradientScaler.__init__,)

    def __init__(
        self, optimizer: Optimizer, *, max_draws: int | None = 64, **options: Unpack[VGSOptions]
    ) -> None:
        of_window = WindowOptions.__annotations__
        window: Any = {key: value for key, value in options.items() if key in of_window}
        scaler: Any = {key: value for key, value in options.items() if key not in of_window}
        check_optimizer(optimizer)
        self.scaler = VarianceGradientScaler(optimizer.param_groups, **scaler)
        super().__init__(optimizer, max_draws=max_draws, **window)

    def transform(self) -> None:
        self.scaler.follow(self.param_groups)  # some may have been added since
        self.scaler.scale_gradients()
        self.scaler.step()

    def statistics(self) -> dict[str, Any]:
        return {**super().statistics(), **self.scaler.metrics()}

    def extra_state(self) -> dict[str, Any]:
        self.scaler.follow(self.param_groups)
        return self.scaler.state_dict()

    def _is_by_place(self, own: dict[str, Any]) -> bool:
        return True

    def _own_state(self) -> dict[str, Any]:
        return {**super()._own_state(), "extra_is_of_rank": is_sharded(self._params())}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        self.scaler.follow(self.param_groups)
        self.scaler.load_state_dict(extra)

    def _check_own(self, own: dict[str, Any]) -> None:
        super()._check_own(own)
        self.scaler.follow(self.param_groups)
        copy.copy(self.scaler).load_state_dict(own["extra"])  # a rehearsal, on a copy
