r"""Peak memory of tensors while microbatches are drawn until a step, against the draws n.

A small network draws n microbatches and steps once: under every wrapper that accumulates, with
plain accumulation in ``.grad``, and, for contrast, with a list of all gradients until the step.

Bytes are counted: a dispatch mode sees every tensor that an operation makes, and a weak reference
to its storage tells when it is gone; allocators keep what was freed.  What an operation allocates
and frees within itself is not seen; a test holds the count against the allocator's own record.
SGD steps, which has no state and no temporaries: they would hide what the window holds.

On the CPU `gqc.gradients.total_norm` copies gradients of up to 1 MB to read their norm at once;
that copy is counted, so networks on both sides of this size are measured.
"""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gqc import wrappers
from gqc.gradients import HALF
from gqc_lab.loop.placement import find_dtype, make_generator
from gqc_lab.loop.settings import read_scales
from gqc_lab.models.mlp import make_mlp

#: scale -> of what is measured without training (notebook 20)
SCALES = read_scales(Path(__file__).with_name("window_memory.csv"))
PLAIN, STORED = "plain accumulation", "list of gradients"
NEVER = 1e-30  #: a tolerance that no gradient or metric meets: ``max_draws`` ends the window
EXAMPLES, DEPTH = 4, 2  #: of a microbatch; hidden layers

#: name -> class, its arguments for a window of n draws.  VGS is no controller: it never waits.
WRAPPERS: dict[str, tuple[type[wrappers.OptimizerWrapper], Callable[[int], dict[str, Any]]]] = {
    "gnts": (wrappers.OptimizerWrapperGNTS, lambda n: {"gradient_norm_threshold": NEVER}),
    "gns": (wrappers.OptimizerWrapperGNS, lambda n: {"noise_tolerance": NEVER, "min_draws": n}),
    "normtest": (wrappers.OptimizerWrapperNormTest, lambda n: {"theta": NEVER}),
    "mht": (wrappers.OptimizerWrapperMHT, lambda n: {"error_tolerance": NEVER}),
    "sbc": (
        wrappers.OptimizerWrapperSBC,
        lambda n: {"physical_batch_size": 1, "logical_batch_size": n},
    ),
    "gnr": (wrappers.OptimizerWrapperGNR, lambda n: {"min_draws": n}),
    "replay": (wrappers.OptimizerWrapperReplay, lambda n: {"draws": [n]}),
}

Draw = Callable[[], Tensor]


class _LiveBytes(TorchDispatchMode):
    """Count the bytes of all storages that are made under it and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._watch(tensor.untyped_storage())
        return made

    def _watch(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place in self._sizes:
            return
        self._sizes[place] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, place).atexit = False

    def _forget(self, place: int) -> None:
        self.now -= self._sizes.pop(place)


def peak_bytes(action: Callable[[], object]) -> int:
    """Return the peak bytes of the tensors that ``action`` makes."""
    with _LiveBytes() as live:
        action()
    return live.peak


def measure(
    draws: Sequence[int], widths: Sequence[int] = (64,), seed: int = 0, dtype: str = "float32"
) -> pd.DataFrame:
    """Return peak bytes by network, method, place of the sum, and number of draws; on the CPU.

    Args:
        draws: numbers n, each >= 1; a method that waits for two at least is not run with one.
        widths: of the networks: inputs, and channels of their ``DEPTH`` hidden layers.
    Returns: a row each: ``width``, ``method``, ``accumulate`` ("grad", "buffer", or "list"),
        ``num_draws``, ``peak_bytes`` (weights and data included), ``gradient_bytes`` (of one).
    Raises: RuntimeError: a wrapper did not step at the last draw and only there.
    """
    rows, kind = [], find_dtype(dtype)
    for width in widths:
        gradient_bytes = sum(p.nbytes for p in _network(width, seed, kind).parameters())
        for method, accumulate in [(PLAIN, "grad"), (STORED, "list"), *_variants(kind)]:
            fewest = WRAPPERS[method][0].fewest_draws if method in WRAPPERS else 1
            for n in (n for n in draws if n >= fewest):
                peak = peak_bytes(partial(_window, width, seed, kind, method, accumulate, n))
                row = {"width": width, "method": method, "accumulate": accumulate, "num_draws": n}
                rows.append({**row, "peak_bytes": peak, "gradient_bytes": gradient_bytes})
    return pd.DataFrame(rows)


def compare(memory: pd.DataFrame) -> pd.DataFrame:
    """Return what the draws add, and what a method holds above plain accumulation.

    Returns: a row for each network, method and place: ``growth`` (peak at the most draws over that
        at the fewest that are >= 2: the second gradient is the first that meets a sum),
        ``over_plain`` (over plain accumulation's) and ``more_gradients`` (difference to it, in
        sizes of one gradient), both at ``num_draws``, the most.
    Raises: ValueError: there are no two such numbers.
    """
    several = memory[memory["num_draws"] >= 2]
    few, most = several["num_draws"].min(), several["num_draws"].max()
    if not most > few:
        known = sorted(memory["num_draws"].unique().tolist())
        raise ValueError(f"compare: draws={known}: expected two numbers of 2 or more")
    keys = ["width", "method", "accumulate"]
    at_most = several[several["num_draws"] == most].set_index(keys)
    peak = at_most["peak_bytes"]
    at_few = several[several["num_draws"] == few].set_index(keys)["peak_bytes"]
    plain = peak.xs((PLAIN, "grad"), level=("method", "accumulate"))
    plain = plain.loc[peak.index.get_level_values("width")].to_numpy()
    numbers = {"growth": peak / at_few, "over_plain": peak / plain}
    numbers["more_gradients"] = (peak - plain) / at_most["gradient_bytes"]
    return pd.DataFrame(numbers).assign(num_draws=most).reset_index()


def _variants(dtype: torch.dtype) -> list[tuple[str, str]]:
    """Each method in each place of the sum that it takes; ``.grad`` sums no 16 bits."""
    return [
        (name, mode)
        for name, (kind, _) in WRAPPERS.items()
        for mode in ("grad", "buffer")
        if mode == "buffer" or not (kind.needs_draw_norm or dtype in HALF)
    ]


def _network(width: int, seed: int, dtype: torch.dtype) -> nn.Module:
    return make_mlp(width, width, DEPTH, 1, make_generator(seed, "weights")).to(dtype)


def _window(
    width: int, seed: int, dtype: torch.dtype, method: str, accumulate: str, n: int
) -> None:
    """Draw n microbatches and step once; network and data are made here, so that all is seen."""
    model, data = _network(width, seed, dtype), make_generator(seed, "data")
    optimizer = SGD(model.parameters(), lr=0.01)

    def draw() -> Tensor:
        inputs = torch.randn(EXAMPLES, width, generator=data).to(dtype)
        return (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()

    if method == PLAIN:
        _accumulate(optimizer, draw, n)
    elif method == STORED:
        _store(optimizer, draw, n)
    else:
        kind, options = WRAPPERS[method]
        wrapper = kind(optimizer, max_draws=n, accumulate=accumulate, **options(n))
        _wrap(wrapper, draw, n)


def _accumulate(optimizer: Optimizer, draw: Draw, n: int) -> None:
    for _ in range(n):
        (draw() / n).backward()
    optimizer.step()
    optimizer.zero_grad()


def _store(optimizer: Optimizer, draw: Draw, n: int) -> None:
    params = optimizer.param_groups[0]["params"]
    stored = [torch.autograd.grad(draw(), params) for _ in range(n)]
    for param, *grads in zip(params, *stored, strict=True):
        param.grad = grads[0]
        for grad in grads[1:]:
            param.grad.add_(grad)
        param.grad.div_(n)
    optimizer.step()
    optimizer.zero_grad()


def _wrap(wrapper: wrappers.OptimizerWrapper, draw: Draw, n: int) -> None:
    steps = []
    for _ in range(n):
        loss = draw()
        loss.backward()
        steps.append(wrapper.step(metric=loss.item()))
    if steps != [False] * (n - 1) + [True]:
        where = [i for i, stepped in enumerate(steps, 1) if stepped]
        raise RuntimeError(f"{type(wrapper).__name__}: stepped at draws {where} of {n}, not at {n}")
