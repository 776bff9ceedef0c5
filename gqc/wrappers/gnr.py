"""Gradient norm rescaler: give every gradient the same norm, keep its direction."""

from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from gqc.checks import check_finite, one_of
from gqc.clipping import is_usual, rescale_, rescale_extreme_
from gqc.gradients import collect, is_on_host, local, magnitudes, tensor_norms, total_norm
from gqc.wrappers.base import OptimizerWrapper
from gqc.wrappers.options import WindowOptions

MODES = ("global", "independent")


class OptimizerWrapperGNR(OptimizerWrapper):
    r"""Step every microbatch with :math:`g\,\tau/\|g\|`.

    A zero gradient has no direction: it is left alone and not stepped with (momentum and weight
    decay would move the parameters), so the window stays open for the next draw.  Any other that
    is finite is rescaled, also where its norm is too large or too small for float32.

    Args:
        optimizer: see :class:`~gqc.wrappers.base.OptimizerWrapper`, as are the other keywords;
            ``min_draws`` > 1 rescales the mean of that many draws.
        target_gradient_norm: :math:`\tau` > 0, [loss / parameter].
        mode: ``"global"`` gives all parameters together the norm :math:`\tau`, ``"independent"``
            each tensor on its own (one with a zero gradient is left alone).
    Raises: ValueError: an argument out of its range.

    Source: torch-gqc 0.10.4 and its README (there a zero gradient is scaled to zero and steps).
    """

    strictest = {"target_gradient_norm": min}

    def __init__(
        self,
        optimizer: Optimizer,
        target_gradient_norm: float = 1.0,
        mode: str = "global",
        *,
        max_draws: int | None = 64,
        **options: Unpack[WindowOptions],
    ) -> None:
        self.mode = one_of("mode", mode, MODES)
        tunables = {"target_gradient_norm": target_gradient_norm}
        super().__init__(optimizer, tunables, max_draws=max_draws, **options)

    def needs_grad_norm(self) -> bool:
        return True

    def measure(self, totals: list[Tensor]) -> Tensor:
        if self.mode == "global":
            return super().measure(totals)
        norms = tensor_norms(totals)
        return torch.hstack([torch.linalg.vector_norm(norms), norms])

    def should_step(self) -> bool:
        return self.grad_norm != 0.0 or bool(magnitudes(self._window.totals()).max() > 0)

    def transform(self) -> None:
        target, grads = self.tunable("target_gradient_norm"), collect(self._params())
        check_finite(target_gradient_norm=target)
        if self.mode == "global":
            norm = float(total_norm(grads)) if self.grad_norm is None else self.grad_norm
            rescale_(grads, norm, target)
            return
        norms = self.tensor_norms or tensor_norms(grads).tolist()
        usual = [i for i, norm in enumerate(norms) if is_usual(norm)]
        shards = local([grads[i] for i in usual])
        factors = [target / norms[i] for i in usual]
        if all(map(is_on_host, shards)):  # a list of numbers is rounded to 16 bits there
            for shard, factor in zip(shards, factors, strict=True):
                shard.mul_(factor)
        else:
            torch._foreach_mul_(shards, factors)
        for i in set(range(len(grads))) - set(usual):
            rescale_extreme_([grads[i]], target)
