"""Statistics of a stream of microbatch gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gqc.diagnostics.angles import cosine
from gqc.gradients import local, tensor_norms, total_norm
from gqc.noise.estimates import NoiseScaleEMA, two_batch

_HALF = (torch.float16, torch.bfloat16)


def expected_norm(signal_sq: float, noise_trace: float, num_draws: float) -> float:
    r"""Root mean square of :math:`\|G_n\|`: :math:`\sqrt{\|G\|^2+\mathrm{tr}\,\Sigma/n}`.

    Args:
        signal_sq, noise_trace: :math:`\|G\|^2`, :math:`\mathrm{tr}\,\Sigma` of a microbatch, >= 0.
        num_draws: n > 0.
    Raises: ValueError: an argument out of its range.
    """
    for name, value in (("signal_sq", signal_sq), ("noise_trace", noise_trace)):
        if not value >= 0:
            raise ValueError(f"{name}={value!r}: expected >= 0")
    if not num_draws > 0:
        raise ValueError(f"num_draws={num_draws!r}: expected > 0")
    return math.sqrt(signal_sq + noise_trace / num_draws)


class ConsecutiveCosine:
    r"""Cosine between each microbatch gradient and the one before it.

    Noise of independent microbatches gives :math:`1/(1+R)` on average, in many dimensions: near 0
    where single microbatches are noise.  It cannot tell signal from correlated noise, which
    :class:`~gqc.diagnostics.correlation.DrawCorrelation` does.  Memory: one gradient, whatever the
    number of microbatches.
    """

    def __init__(self) -> None:
        self._last: list[Tensor] | None = None

    def update(self, grads: Sequence[Tensor]) -> float | None:
        """Take in :math:`g_i` (copied); its cosine with the one before.

        None for the first, and where either is zero or not finite.

        Raises: ValueError: other shapes than before; call :meth:`reset`.
        """
        value = None if self._last is None else cosine(self._last, grads)
        with torch.no_grad():
            if self._last is None:
                self._last = [g.detach().clone() for g in grads]
            else:
                torch._foreach_copy_(local(self._last), local(grads))
        return value

    def reset(self) -> None:
        """Forget the last gradient."""
        self._last = None


class RunningNorm:
    r"""Norm of the running mean, :math:`\|G_1\|, \|G_2\|, \dots`: how averaging shrinks noise.

    To be compared with :func:`expected_norm`.  Memory: one gradient (in float32 or wider), and one
    number a draw.

    Attributes:
        norms: :math:`\|G_n\|` for n = 1, 2, ...; NaN or inf from a draw that holds one on.
    """

    def __init__(self) -> None:
        self.norms: list[float] = []
        self._sums: dict[int, Tensor] = {}

    def update(self, grads: Sequence[Tensor | None]) -> float:
        r"""Take in :math:`g_n`, None for a tensor without a gradient; returns :math:`\|G_n\|`."""
        _accumulate(self._sums, grads)
        total = total_norm(list(self._sums.values())).item()
        self.norms.append(total / (len(self.norms) + 1))
        return self.norms[-1]

    def reset(self) -> None:
        """Start again at n = 1."""
        self.norms, self._sums = [], {}


class NoisePerTensor:
    r"""Noise scale :math:`R_k=\mathrm{tr}\,\Sigma_k/\|G_k\|^2` of each parameter tensor k.

    The unbiased two-batch estimate of :func:`gqc.noise.two_batch` for every tensor, from windows of
    n >= 2 microbatches, averaged over windows before the division: :math:`S_{1k}` is the mean of
    :math:`\|g_{ik}\|^2`, :math:`S_{2k}` the squared norm of the mean.  Windows whose length depends
    on their noise (those of GNTS) bias it; windows of a fixed length do not.

    Memory: one gradient (in float32 or wider) and a few numbers a tensor.  The host waits once a
    window.

    Args:
        names: one for each tensor, all different.
        decay: of the average over windows, in [0, 1).
    Attributes:
        num_draws: microbatches in the open window.
        num_discarded: windows dropped for a NaN or an infinity.
    Raises: ValueError: no names, repeated ones, or a decay outside [0, 1).
    """

    def __init__(self, names: Sequence[str], decay: float = 0.95) -> None:
        if not names or len(set(names)) != len(names):
            raise ValueError(f"names={list(names)}: expected at least one, all different")
        self._noise = {name: NoiseScaleEMA(decay) for name in names}
        self.num_discarded = 0
        self.reset()

    def reset(self) -> None:
        """Drop the open window."""
        self.num_draws = 0
        self._sums: dict[int, Tensor] = {}
        self._squares: Tensor | None = None

    def update(self, grads: Sequence[Tensor | None]) -> None:
        """Take in one microbatch: a gradient for each name, None counting as zero.

        Raises: ValueError: as many gradients as names were expected.
        """
        if len(grads) != len(self._noise):
            raise ValueError(f"{len(grads)} gradients: expected {len(self._noise)}, one a name")
        _accumulate(self._sums, grads)
        self.num_draws += 1
        squares = _squares(dict(enumerate(grads)), len(grads))
        if squares is not None:
            self._squares = squares if self._squares is None else self._squares + squares

    def close(self) -> None:
        """End the window and average it in; one with NaN or inf is dropped and counted.

        Raises: ValueError: fewer than two microbatches, which cannot tell noise from signal.
        """
        n = self.num_draws
        if n < 2:
            raise ValueError(f"num_draws={n}: a window needs at least two microbatches")
        large, small = _squares(self._sums, len(self._noise)), self._squares
        self.reset()
        if large is None or small is None:
            return
        signal, trace = two_batch(small / n, large / n**2, n)
        estimates = torch.stack([signal, trace], dim=1).tolist()
        if not all(math.isfinite(value) for pair in estimates for value in pair):
            self.num_discarded += 1
            return
        for noise, pair in zip(self._noise.values(), estimates, strict=True):
            noise.update(*pair)

    def noise_scale(self) -> dict[str, float | None]:
        """:math:`R_k` [microbatches] by name; None while its signal is not told from the noise."""
        return {name: noise.noise_scale for name, noise in self._noise.items()}

    def moments(self) -> dict[str, tuple[float, float] | None]:
        r"""Averaged :math:`(\|G_k\|^2, \mathrm{tr}\,\Sigma_k)` by name; None before a window."""
        return {
            name: (noise.signal_sq, noise.noise_trace) if noise.num_updates else None
            for name, noise in self._noise.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The averages of closed windows, plain numbers; an open window is not saved."""
        noise = {name: average.state_dict() for name, average in self._noise.items()}
        return {"noise": noise, "num_discarded": self.num_discarded}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the averages that :meth:`state_dict` saved; drops the open window.

        Raises: ValueError: a file of other names.
        """
        if list(state_dict["noise"]) != list(self._noise):
            raise ValueError(
                f"state of {list(state_dict['noise'])} given to {list(self._noise)}: expected the "
                "same names"
            )
        for name, average in self._noise.items():
            average.load_state_dict(state_dict["noise"][name])
        self.num_discarded = state_dict["num_discarded"]
        self.reset()


def _accumulate(sums: dict[int, Tensor], grads: Sequence[Tensor | None]) -> None:
    """Add each gradient to its sum, which is float32 or wider."""
    with torch.no_grad():
        present = {i: grad.detach() for i, grad in enumerate(grads) if grad is not None}
        known = [i for i in present if i in sums]
        if known:
            added = [grad.to(sums[i].dtype) for i, grad in present.items() if i in sums]
            torch._foreach_add_(local([sums[i] for i in known]), local(added))
        for i, grad in present.items():
            if i not in sums:
                sums[i] = grad.float() if grad.dtype in _HALF else grad.clone()


def _squares(tensors: Mapping[int, Tensor | None], length: int) -> Tensor | None:
    """Squared norm of each tensor by its index, 0 where there is none."""
    present = {i: t for i, t in tensors.items() if t is not None}
    if not present:
        return None
    with torch.no_grad():
        norms = tensor_norms(list(present.values())).double()
        return torch.zeros(length, dtype=norms.dtype, device=norms.device).index_copy(
            0, torch.tensor(list(present), device=norms.device), norms.square()
        )
