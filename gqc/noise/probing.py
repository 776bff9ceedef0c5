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
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gqc.checks import check_count, expect
from gqc.diagnostics import ProductSketch
from gqc.gradients import dense, is_sharded, total_norm, wide
from gqc.noise.batches import alike, length, unchanged

if TYPE_CHECKING:
    from gqc.schedules import DrawsSchedule
    from gqc.wrappers import OptimizerWrapperGNTS

FEWEST = 16
FAR = 8  # draws after which noise counts as without memory
SEVERAL = 8  # draws in a window: GNTS can then react by one more or less
LONGEST = 4  # times the wanted draws: about `max_draws`
ORDERS = 256  # in which the draws are put to simulate windows
SPLITS = 8  # in halves


@dataclass(frozen=True, repr=False)
class Probe:
    r"""What :func:`probe` measured, and the settings that follow.

    Attributes:
        products: :math:`\langle g_i, g_j\rangle` [draws, draws]; exact for i = j and in their sum,
            estimated for each pair.
        seconds: per microbatch, the median.
        examples: in a microbatch; None where batches hold no tensor.
    """

    products: Tensor
    seconds: float
    examples: int | None

    @property
    def signal_sq(self) -> float:
        r""":math:`|G|^2`, without bias; not positive where it is not resolved."""
        n, own = len(self.products), self.products.diagonal()
        return float((self.products.sum() - own.sum()) / (n * (n - 1)))

    @property
    def noise_trace(self) -> float:
        """T, the noise of one microbatch, without bias."""
        return float(self.products.diagonal().mean()) - self.signal_sq

    @property
    def noise_scale(self) -> float | None:
        """:math:`R = T / |G|^2` in microbatches; None while the signal is not resolved."""
        return self.noise_trace / self.signal_sq if self.signal_sq > 0 else None

    @property
    def noise_scale_error(self) -> float:
        """Standard error of the noise scale, by the jackknife; inf where that is None.

        A bound: that of the sketches is in it, 25 times as large where a few large tensors have
        noise in all directions.
        """
        if self.noise_scale is None:
            return math.inf
        k, own, n = self.products, self.products.diagonal(), len(self.products)
        signals = (k.sum() - 2 * k.sum(1) - own.sum() + 2 * own) / ((n - 1) * (n - 2))
        scales = (own.sum() - own) / (n - 1) / signals - 1  # without each draw
        return float(scales.std(correction=0)) * math.sqrt(n - 1)

    @property
    def correlation(self) -> float:
        """Correlation of the noise of successive draws, from products at distance 1 and >= 8."""
        return float(self._near().mean())

    @property
    def correlation_error(self) -> float:
        """Standard error of the correlation."""
        near = self._near()
        return float(near.std()) / math.sqrt(len(near))

    def _near(self) -> Tensor:
        """Products of neighbours without the signal, in units of the noise."""
        k, far = self.products, len(self.products) - FAR
        signal = k.triu(FAR).sum() / (far * (far + 1) / 2)
        unit = (k.diagonal().mean() - signal).clamp(min=torch.finfo(k.dtype).tiny)
        return (k.diagonal(1) - signal) / unit

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

        From windows of at most four times as many draws, made of those that were measured in random
        orders: a norm happens to fall below its expectation early, and the more so the fewer
        directions the noise has.  From the formula above a quarter of the draws there are.

        Raises: ValueError: fewer than one draw.
        """
        expect(draws >= 1, "draws", draws, "a number >= 1")
        if LONGEST * draws > len(self.products):
            return math.sqrt(max(self.signal_sq, 0.0) + self.noise_trace / draws)
        return _norm_for(draws, _lowest_norms(self.products, math.ceil(LONGEST * draws)))

    def draws_error(self, draws: float) -> float:
        """Return the standard error of the mean draws that :meth:`norm` gives here.

        A norm that half of the draws suggest is tried on the other half, in several splits: that is
        twice the error, whatever shape the noise has.  It is large where R is far below the wanted
        draws, since a little more norm is then many draws less.  inf above an eighth of the draws.
        """
        half, errors = len(self.products) // 2, []
        if LONGEST * draws > half:
            return math.inf
        for seed in range(SPLITS):
            order = _orders(1, 2 * half, seed)[0]
            low = [
                _lowest_norms(self.products[part][:, part], math.ceil(LONGEST * draws), ORDERS // 4)
                for part in order.split(half)
            ]
            for here, there in (low, low[::-1]):
                found = 1 + int((there[:, :-1] > _norm_for(draws, here)).sum()) / len(there)
                errors.append((found - draws) ** 2)
        return math.sqrt(fmean(errors)) / 2

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
            "max_draws": 2 ** math.ceil(math.log2(LONGEST * draws)),
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
        Raises: ValueError: ``loss="sum"``, or ``min_draws`` above 1.
        """
        if options.get("loss") == "sum":
            raise ValueError(
                'loss="sum": the probe has measured whole sums, and the wrapper reads norms of a '
                "unit of weight. With w, the weight of a microbatch, make the wrapper and "
                "DrawsSchedule(wrapper, draws, signal_sq / w**2, noise_trace / w**2)"
            )
        from gqc.schedules import DrawsSchedule
        from gqc.wrappers import OptimizerWrapperGNTS

        if not callable(draws):
            options = {"max_draws": self.gnts_options(draws)["max_draws"], **options}
        wrapper = OptimizerWrapperGNTS(optimizer, **options)
        return wrapper, DrawsSchedule(wrapper, draws, self.signal_sq, self.noise_trace)

    def __repr__(self) -> str:
        size = "" if self.examples is None else f" of {self.examples} examples"
        options = self.gnts_options(SEVERAL)
        said = "independent" if self.is_independent else "NOT independent: R comes out too small"
        rows = {
            "|G|": f"{math.sqrt(max(self.signal_sq, 0)):.3g}",
            "tr Sigma": f"{self.noise_trace:.3g} of one microbatch",
            "noise scale": "not resolved: probe more draws",
            "draws": f"{said} (correlation {self.correlation:.2f} ± {self.correlation_error:.2f})",
            f"for {SEVERAL} draws": ", ".join(f"{k} {v:.4g}" for k, v in options.items()),
            "they give": f"{SEVERAL} ± {self.draws_error(SEVERAL):.2g} draws",
        }
        if self.noise_scale is not None:
            error = self.noise_scale_error
            rows["noise scale"] = f"{self.noise_scale:.3g} ± {error:.2g} microbatches"
        if self.critical_batch is not None:
            rows["critical batch"] = f"{self.critical_batch:.0f} examples"
            rows["physical batch"] = f"about {self.physical_batch} examples"
        head = f"{len(self.products)} microbatches{size}, {1e3 * self.seconds:.3g} ms each"
        return "\n".join([head, *(f"  {name:<15} {value}" for name, value in rows.items())])


def probe(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    loader: Iterable[Any],
    optimizer: Optimizer | None = None,
    draws: int = 100,
    examples: Callable[[Any], int | None] = length,
) -> Probe:
    """Measure how noisy the gradient of ``model`` is, and what follows, without a step.

    Parameters, ``.grad``, buffers, training modes, and the generators of torch, numpy, Python and
    the loader are afterwards as before, except what ``loss_fn`` itself changes in parameters, as an
    embedding with ``max_norm`` does.  Memory: two gradients, and a sketch of each draw.

    Args:
        model: as it is trained, in its present mode; not in DDP, and not sharded.
        loss_fn: ``loss_fn(model, batch)`` returns the loss of training, not scaled by a GradScaler.
        loader: of microbatches as training draws them, in their order; an iterator loses what is
            read.  Batches of another size than the first, by ``examples``, are passed over.
        optimizer: whose parameters count, a wrapper or not; None: all that need a gradient.
        draws: to take, >= 16; fewer where the loader ends.  Errors, which the table shows, fall as
            their root: two percent of the microbatches of a run are well spent.
        examples: counts those of a batch: the length of its tensors; ``len`` for single images.
    Raises:
        ValueError: under 16 microbatches, nothing to train, gradients of 0, tensors of two lengths.
        TypeError: DDP, sharded parameters, a sparse gradient, or more than one loss with a graph.
        FloatingPointError: a gradient is NaN or infinite.
    Source: arXiv:1812.06162, appendix A; the threshold is that of torch-gqc.
    """
    check_count("draws", draws, FEWEST)
    params = _trained(model, optimizer)
    sketch, vectors, norms, seconds, size = ProductSketch(), [], [], [], None
    total = [torch.zeros_like(p, dtype=wide(p.dtype)) for p in params]
    with unchanged(model, loader):
        for batch in alike(loader, draws, examples):
            started = time.perf_counter()
            with torch.enable_grad():
                grads = _gradients(loss_fn(model, batch), params)
            with torch.no_grad():
                norms.append(float(total_norm(dense(grads))))
                widened = [g.to(t.dtype) for g, t in zip(grads, total, strict=True)]
                torch._foreach_add_(total, widened)
                vectors.append(sketch(widened))
            seconds.append(time.perf_counter() - started)
            size = examples(batch)
            if not math.isfinite(norms[-1]):
                raise FloatingPointError(f"gradient {len(norms)} has the norm {norms[-1]}")
    if len(norms) < FEWEST:
        raise ValueError(f"{len(norms)} microbatches of size {size}: expected >= {FEWEST} alike")
    return Probe(_products(vectors, norms, float(total_norm(total))), median(seconds), size)


def _gradients(loss: Any, params: list[Tensor]) -> Sequence[Tensor]:
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return torch.autograd.grad(loss, params, materialize_grads=True)
    kind = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise TypeError(f"loss_fn returned {kind}: expected the loss alone, one element with a graph")


def _trained(model: nn.Module, optimizer: Optimizer | None) -> list[Tensor]:
    groups = [{"params": model.parameters()}] if optimizer is None else optimizer.param_groups
    params = [p for group in groups for p in group["params"] if p.requires_grad]
    if not params:
        raise ValueError("no parameter needs a gradient")
    if isinstance(model, nn.parallel.DistributedDataParallel) or is_sharded(params):
        raise TypeError("probe of a model in DDP or FSDP: probe it on one process, before wrapping")
    return params


def _products(vectors: list[Tensor], norms: list[float], norm_of_sum: float) -> Tensor:
    """Products of all pairs from sketches; the sketch errs in their sum too, which is known."""
    if not any(norms):
        raise ValueError("all gradients are 0: expected parameters that the loss depends on")
    n, own = len(norms), torch.tensor(norms, dtype=torch.double, device="cpu").square()
    sketched = torch.stack(vectors).double().cpu()
    products = (sketched @ sketched.T).fill_diagonal_(0.0)
    products += (norm_of_sum**2 - own.sum() - products.sum()) / (n * (n - 1))
    products.diagonal().copy_(own)
    return products


def _orders(num: int, n: int, seed: int = 0) -> Tensor:
    """Random orders of n draws [num, n]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num, n, generator=generator, device="cpu").argsort(1)


def _lowest_norms(products: Tensor, most: int, num: int = ORDERS) -> Tensor:
    """Lowest norm so far of the mean of the first 1 to ``most`` draws, by order [num, most]."""
    order = _orders(num, len(products))[:, :most]
    sums = products[order[:, :, None], order[:, None, :]].cumsum(1).cumsum(2)
    squares = sums.diagonal(dim1=1, dim2=2).clamp(min=0)
    return (squares.sqrt() / torch.arange(1, most + 1, device="cpu")).cummin(1).values


def _norm_for(draws: float, lowest: Tensor) -> float:
    """The threshold that is still above so many of ``lowest``: a window draws while it is below."""
    above = round((draws - 1) * len(lowest))
    return float(lowest[:, :-1].flatten().sort(descending=True).values[above])
