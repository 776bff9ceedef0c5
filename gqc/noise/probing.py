r"""Measure the noise of a model's gradient, and choose settings of GNTS by it.

:func:`probe` draws some microbatch gradients at fixed parameters and changes nothing.  With
:math:`G` the gradient and :math:`T=\mathrm{tr}\,\Sigma` the noise of one microbatch, the mean of n
has :math:`E|G_n|^2=|G|^2+T/n`, so a threshold near

.. math:: \tau(n)^2 = |G|^2 + T/n

makes GNTS draw about n microbatches, **here and now**.  Both terms fall by orders of magnitude
during training, and not together: no norm that is measured once means n draws later on.
:class:`gqc.schedules.DrawsSchedule` is given draws, and moves the threshold along.

A threshold relative to :math:`|G|` is the norm test (:class:`gqc.OptimizerWrapperNormTest`):
:math:`\tau(n)=|G|\sqrt{1+R/n}`.  Prefer that where batches should follow the noise scale R by
themselves, GNTS in draws where you know how many microbatches a step may cost, and GNTS in norms
where gradients are meant to shrink on a schedule of your own.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gqc.checks import check_count
from gqc.diagnostics.correlation import ProductSketch
from gqc.gradients import dense, is_sharded, total_norm

if TYPE_CHECKING:
    from gqc.schedules import DrawsSchedule
    from gqc.wrappers import OptimizerWrapperGNTS

FEWEST = 16
FAR = 8  # draws after which noise counts as without memory
SEVERAL = 8  # draws in a window: GNTS can then react by one more or less
ORDERS = 256  # in which the draws are put to simulate windows


@dataclass(frozen=True, repr=False)
class Probe:
    r"""What :func:`probe` measured, and the settings that follow.

    Attributes:
        products: estimates of :math:`\langle g_i, g_j\rangle` [draws, draws]; exact for i = j.
        seconds: per microbatch, the median.
        examples: in a microbatch; None where batches hold no tensor.
        signal_sq, noise_trace: :math:`|G|^2` (not positive: not resolved) and T.
        noise_scale: :math:`R = T / |G|^2` in microbatches; None while the signal is not resolved.
        noise_scale_error: its standard error, by the jackknife; inf where it is None.
        correlation: of the noise of successive draws, from products at distance 1 and >= 8.
        correlation_error: its standard error.
    """

    products: Tensor
    seconds: float
    examples: int | None
    signal_sq: float = field(init=False)
    noise_trace: float = field(init=False)
    noise_scale: float | None = field(init=False)
    noise_scale_error: float = field(init=False)
    correlation: float = field(init=False)
    correlation_error: float = field(init=False)

    def __post_init__(self) -> None:
        k = self.products
        n, own = len(k), k.diagonal()
        others = k.sum(1) - own
        signal, noise = _split(others.sum(), own.sum(), n)
        left = _split(others.sum() - 2 * others, own.sum() - own, n - 1)  # without each one
        scales = left[1] / left[0]
        near = k.diagonal(1)
        far = k.triu(FAR).sum() / ((n - FAR) * (n - FAR + 1) / 2)
        unit = (own.mean() - far).clamp(min=torch.finfo(k.dtype).tiny)
        found = {
            "signal_sq": float(signal),
            "noise_trace": float(noise),
            "noise_scale": float(noise / signal) if signal > 0 else None,
            "noise_scale_error": math.inf,
            "correlation": float((near.mean() - far) / unit),
            "correlation_error": float(near.std() / math.sqrt(n - 1) / unit),
        }
        if signal > 0:
            found["noise_scale_error"] = float(scales.std(correction=0)) * math.sqrt(n - 1)
        self.__dict__.update(found)

    @property
    def critical_batch(self) -> float | None:
        """The noise scale in examples: far below it batches are mostly noise."""
        known = self.noise_scale is not None and self.examples is not None
        return self.noise_scale * self.examples if known else None  # type: ignore[operator]

    @property
    def physical_batch(self) -> int | None:
        """Examples in a microbatch such that a critical batch is about 8 draws, a power of 2."""
        batch = self.critical_batch
        return None if batch is None else 2 ** max(0, round(math.log2(max(batch, 1) / SEVERAL)))

    @property
    def is_independent(self) -> bool:
        """Are draws independent, as all of this assumes?"""
        return not self.correlation > max(0.1, 4 * self.correlation_error)

    def norm(self, draws: float) -> float:
        """Return the threshold with which windows have so many draws here, on average.

        From windows that are simulated with the draws in other orders, since a norm happens to
        fall below its expectation early; from the formula above a quarter of the draws there are.

        Raises: ValueError: fewer than one draw.
        """
        if not draws >= 1:
            raise ValueError(f"draws={draws!r}: expected a number >= 1")
        norms = self._window_norms()
        if draws > len(self.products) / 4:
            return math.sqrt(max(self.signal_sq, 0.0) + self.noise_trace / draws)
        low, high = float(norms.min()), float(norms.max())
        for _ in range(40):
            middle = math.sqrt(low * high)
            is_met = norms <= middle
            is_met[:, -1] = True
            mean = float(is_met.int().argmax(1).double().mean()) + 1
            low, high = (middle, high) if mean > draws else (low, middle)
        return high

    def gnts_options(self, draws: float = 8.0) -> dict[str, float]:
        """Return settings that mean so many draws here.

        ``start_norm``, ``end_norm`` and ``warmup_multiplier`` are those of
        :func:`gqc.get_norm_threshold_cosine_annealing_with_warmup`: a warmup that begins below the
        norms of the first draws makes long windows at once.  ``max_draws`` is the wrapper's, a
        power of 2 that a window of so many wanted draws seldom meets.
        """
        norm, largest = self.norm(draws), math.sqrt(float(self.products.diagonal().max()))
        return {
            "start_norm": norm,
            "end_norm": norm,
            "warmup_multiplier": max(1.0, 1.25 * largest / norm),
            "max_draws": 2 ** math.ceil(math.log2(4 * draws)),
        }

    def make_gnts(
        self, optimizer: Optimizer, draws: Callable[[int], float] | float = 8.0, **options: Any
    ) -> tuple[OptimizerWrapperGNTS, DrawsSchedule]:
        """Return GNTS around ``optimizer``, and the schedule that keeps it at ``draws``.

        Args:
            optimizer: that of the probed model.
            draws: wanted per step, >= 1: a number, or a function of the microbatch (from 0).
            options: of :class:`gqc.OptimizerWrapperGNTS`.
        Returns: the wrapper and the schedule, to be stepped once a microbatch.
        """
        from gqc.schedules import DrawsSchedule
        from gqc.wrappers import OptimizerWrapperGNTS

        if not callable(draws):
            options = {"max_draws": self.gnts_options(draws)["max_draws"], **options}
        wrapper = OptimizerWrapperGNTS(optimizer, **options)
        return wrapper, DrawsSchedule(wrapper, draws, self.signal_sq, self.noise_trace)

    def __repr__(self) -> str:
        size = "" if self.examples is None else f" of {self.examples} examples"
        said = "independent" if self.is_independent else "NOT independent: R comes out too small"
        rows = {
            "|G|": f"{math.sqrt(max(self.signal_sq, 0)):.3g}",
            "tr Sigma": f"{self.noise_trace:.3g} of one microbatch",
            "noise scale": "not resolved: probe more draws",
            "draws": f"{said} (correlation {self.correlation:.2f} ± {self.correlation_error:.2f})",
            "for 8 draws": ", ".join(f"{k} {v:.3g}" for k, v in self.gnts_options().items()),
        }
        if self.noise_scale is not None:
            error = self.noise_scale_error
            rows["noise scale"] = f"{self.noise_scale:.3g} ± {error:.2g} microbatches"
        if self.critical_batch is not None:
            rows["critical batch"] = f"{self.critical_batch:.0f} examples"
            rows["physical batch"] = f"about {self.physical_batch} examples"
        head = f"{len(self.products)} microbatches{size}, {1e3 * self.seconds:.3g} ms each"
        return "\n".join([head, *(f"  {name:<15} {value}" for name, value in rows.items())])

    def _window_norms(self) -> Tensor:
        """Norms of the mean of the first 1 to n draws, in several orders [ORDERS, n]."""
        k, n = self.products, len(self.products)
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(n, generator=generator) for _ in range(ORDERS)]
        sums = [k[o][:, o].cumsum(0).cumsum(1).diagonal() for o in orders]
        return torch.stack(sums).clamp(min=0).sqrt() / torch.arange(1, n + 1)


def probe(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    loader: Iterable[Any],
    optimizer: Optimizer | None = None,
    draws: int = 64,
) -> Probe:
    """Measure how noisy the gradient of ``model`` is, and what follows, without a step.

    Parameters, ``.grad``, buffers, training modes, and the generators of torch, numpy and Python
    are afterwards as before.  Memory: a gradient, and a sketch of each draw.

    Args:
        model: as it is trained, in its present mode; not in DDP, and not sharded.
        loss_fn: ``loss_fn(model, batch)`` returns the loss that training calls ``backward`` on.
        loader: of microbatches as training draws them, in their order; an iterator loses what is
            read.  Batches of another size than the first are passed over.
        optimizer: whose parameters count, a wrapper or not; None: all that need a gradient.
        draws: to take, >= 16; fewer where the loader ends.  The error of R falls as their root.
    Raises:
        ValueError: fewer than 16 microbatches, or nothing to train.
        TypeError: a model in DDP or with sharded parameters, or a sparse gradient.
        FloatingPointError: a gradient is NaN or infinite.
    Source: arXiv:1812.06162, appendix A; the threshold is that of torch-gqc.
    """
    check_count("draws", draws, FEWEST)
    params = _trained(model, optimizer)
    sketch, vectors, norms, seconds, size = ProductSketch(), [], [], [], None
    with _unchanged(model, loader):
        for batch in _alike(loader, draws):
            started = time.perf_counter()
            with torch.enable_grad():
                loss = loss_fn(model, batch)
                grads = torch.autograd.grad(loss, params, materialize_grads=True)
            with torch.no_grad():
                norms.append(float(total_norm(dense(grads))))
                vectors.append(sketch([g if g.is_complex() else g.float() for g in grads]))
            seconds.append(time.perf_counter() - started)
            size = _size(batch)
            if not math.isfinite(norms[-1]):
                raise FloatingPointError(f"gradient {len(norms)} has the norm {norms[-1]}")
    if len(norms) < FEWEST:
        raise ValueError(f"the loader has {len(norms)} microbatches: expected >= {FEWEST}")
    products = torch.stack(vectors).double().cpu()
    products = products @ products.T
    products.diagonal().copy_(torch.tensor(norms, dtype=torch.double).square())
    return Probe(products, median(seconds), size)


def _trained(model: nn.Module, optimizer: Optimizer | None) -> list[Tensor]:
    groups = [{"params": model.parameters()}] if optimizer is None else optimizer.param_groups
    params = [p for group in groups for p in group["params"] if p.requires_grad]
    if not params:
        raise ValueError("no parameter needs a gradient")
    if isinstance(model, nn.parallel.DistributedDataParallel) or is_sharded(params):
        raise TypeError("probe of a model in DDP or FSDP: probe it on one process, before wrapping")
    return params


def _split(others: Tensor, own: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """:math:`|G|^2` and T from the sums of products of different draws and of the same."""
    signal = others / (n * (n - 1))
    return signal, own / n - signal


def _size(batch: Any) -> int | None:
    """Length of the first tensor in a batch."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = batch.values() if hasattr(batch, "values") else batch
    sizes = map(_size, parts) if isinstance(parts, Iterable) and not isinstance(parts, str) else ()
    return next((size for size in sizes if size is not None), None)


def _alike(loader: Iterable[Any], most: int) -> Iterator[Any]:
    """At most so many batches, those of the size of the first."""
    size, count = None, 0
    for batch in loader:
        size = _size(batch) if count == 0 else size
        if _size(batch) == size:
            yield batch
            count += 1
        if count == most:
            return


@contextmanager
def _unchanged(model: nn.Module, loader: Any) -> Iterator[None]:
    """Put back buffers, modes and generators; the rest is not touched."""
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    owners = (loader, getattr(loader, "sampler", None))
    owned = [getattr(owner, "generator", None) for owner in owners]
    states = [(g, g.get_state()) for g in owned if isinstance(g, torch.Generator)]
    numpy: Any = sys.modules.get("numpy")
    before = random.getstate(), numpy and numpy.random.get_state()
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng([*cuda]):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, mode in modes:
            module.training = mode
        for generator, state in states:
            generator.set_state(state)
        random.setstate(before[0])
        if numpy:
            numpy.random.set_state(before[1])
