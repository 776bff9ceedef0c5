r"""Gradient norm rescaler: give every gradient the same norm, keep its direction.

Source: torch-gqc and its README.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from gqc.gradients import collect, local, multiply_, tensor_norms, total_norm
from gqc.wrappers.base import OptimizerWrapper

MODES = ("global", "independent")


class OptimizerWrapperGNR(OptimizerWrapper):
    r"""Step every microbatch with :math:`g\,\tau/\|g\|`.

    A zero gradient has no direction: it is left alone and not stepped with (momentum and weight
    decay would move the parameters), so the window stays open for the next draw.

    Args:
        optimizer: see :class:`~gqc.wrappers.base.OptimizerWrapper`, as are the other keywords;
            ``min_draws`` > 1 rescales the mean of that many draws.
        target_gradient_norm: :math:`\tau` > 0, [loss / parameter].
        mode: ``"global"`` gives all parameters together the norm :math:`\tau`, ``"independent"``
            each tensor on its own (one with a zero gradient is left alone).
    Raises: ValueError: an argument out of its range.

    Source: torch-gqc 0.10.4, which rescales a zero gradient to zero and steps.
    """

    strictest = {"target_gradient_norm": min}

    def __init__(
        self,
        optimizer: Optimizer,
        target_gradient_norm: float = 1.0,
        mode: str = "global",
        **options: Any,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: expected one of {MODES}")
        self.mode = mode
        super().__init__(optimizer, target_gradient_norm=target_gradient_norm, **options)

    def needs_grad_norm(self) -> bool:
        return True

    def should_step(self) -> bool:
        return self.grad_norm is None or self.grad_norm != 0.0

    def transform(self) -> None:
        target, grads = self.tunable("target_gradient_norm"), collect(self._params())
        if self.mode == "global":
            norm = float(total_norm(grads)) if self.grad_norm is None else self.grad_norm
            multiply_(grads, target / norm if norm else 1.0)
            return
        norms = tensor_norms(grads)
        factors = torch.where(norms > 0, target / norms, 1.0)
        for device in {grad.device for grad in grads}:
            here = [i for i, grad in enumerate(grads) if grad.device == device]
            factor = factors.to(device).unbind()
            torch._foreach_mul_(local([grads[i] for i in here]), [factor[i] for i in here])
