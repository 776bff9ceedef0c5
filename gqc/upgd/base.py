"""The step that the UPGD optimizers share.

First all utilities are brought up to date, then their extrema are known, then every weight moves.
A subclass says which direction a weight would take without gates and noise.  Parameters are sorted
into lists that one kernel call may take, and these are cut for the cache.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from gqc.checks import untraced
from gqc.gradients import collect, count_nonfinite, tensor_norms, wide
from gqc.ranks import refuse_different_noise
from gqc.upgd import utility
from gqc.upgd.checkpoints import CheckpointedOptimizer, check
from gqc.upgd.utility import Limits, Tensors
from gqc.wrappers.saved import is_asked_for_state


@dataclass
class Block:
    """A part of a batch: pieces of tensors, as parallel lists."""

    rows: list[int]  #: place in the batch of the parameter that each piece belongs to
    stored: Tensors  #: the weights
    stored_grads: Tensors
    kept: list[Tensors]  #: state, utility first

    @cached_property
    def params(self) -> Tensors:
        """The weights in the dtype of the state: copies of 16-bit ones."""
        return _cast(self.stored, self.kept[0][0].dtype)

    @cached_property
    def grads(self) -> Tensors:
        return _cast(self.stored_grads, self.kept[0][0].dtype)


@dataclass
class Batch:
    """Parameters with a gradient that agree in group, device and dtype, as parallel lists."""

    group: dict[str, Any]
    lr: float
    device: torch.device
    dtype: torch.dtype  #: of state and arithmetic
    params: Tensors = field(default_factory=list)
    grads: Tensors = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    corrections: list[float] = field(default_factory=list)  #: of the utilities, for their bias
    limits: Limits = None  #: what the corrected utilities are scaled by
    stds: float | Tensors = 0.0  #: of the noise

    @property
    def is_published(self) -> bool:
        return str(self.group["normalization"]).endswith("_published")

    @property
    def is_row_wise(self) -> bool:
        """Are utilities scaled by norms along the last dimension, which needs whole tensors?"""
        return self.group["scope"] == "local" and self.group["normalization"].startswith("max")

    @property
    def steps(self) -> list[int]:
        return [state["step"] for state in self.states]

    @property
    def block_size(self) -> int:
        """Elements of a block at most; 0: a tensor each."""
        if self.device.type != "cpu":
            return sys.maxsize  # one kernel takes all and has nothing to gain
        return 0 if self.group["foreach"] is False else utility.BLOCK

    def blocks(self, kept: tuple[str, ...], piece: int | None = None) -> Iterator[Block]:
        """Cut the batch by :func:`gqc.upgd.utility.blocks`; ``kept`` names what comes along."""
        columns = [self.params, self.grads]
        columns += [[state[key] for state in self.states] for key in kept]
        is_split = self.block_size > 0 and not self.is_row_wise
        for pieces in utility.blocks(columns, self.block_size, piece=piece, is_split=is_split):
            rows, stored, grads, *state = map(list, zip(*pieces, strict=True))
            yield Block(rows, stored, grads, state)


class UtilityOptimizer(CheckpointedOptimizer):
    """The base of :class:`~gqc.upgd.upgd.UPGD` and its kin; not for use on its own."""

    _has_compared = False  # noise, over the ranks

    def utility_decay(self, group: dict[str, Any]) -> float:
        return float(group["beta_utility"])

    def accumulate(self, batch: Batch, block: Block) -> None:
        """Take the gradients into what is kept besides the utility; no weight has moved yet."""

    def directions(self, batch: Batch, block: Block) -> Tensors:
        """Where the weights would go without gates and noise."""
        return block.grads

    @untraced
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient, and needs one: a frozen one stays.

        Args:
            closure: called first, with gradients enabled, to make the gradients.
        Returns: what ``closure`` returned.
        Raises:
            ValueError: a NaN or infinite gradient, or a bad hyperparameter; nothing was changed.
            TypeError: a sparse gradient, a complex or ``DTensor`` parameter; nothing was changed.
            RuntimeError: at the first noise, ranks of DDP whose generators differ.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        if not self.state and is_asked_for_state(self):
            return loss  # state_dict() has it
        for group in self.param_groups:
            check(group, self.rules)
        batches = make_batches(self.param_groups)
        if not batches or not self._is_finite(batches):
            return loss
        self._compare_noise(batches)
        self._scale(batches, [pair for batch in batches for pair in self._update_state(batch)])
        for batch in batches:
            batch.stds = self._noise_stds(batch)
            move = partial(self._move, batch)
            generator = self._generators.on(batch.device) if batch.stds != 0 else None
            is_shared = 0 < batch.block_size < sum(param.numel() for param in batch.params)
            if generator is not None and is_shared:  # by threads
                blocks = batch.blocks(self.kept, utility.SERIAL)
                hand_out(move, blocks, utility.noise_streams(generator))
            else:
                for block in batch.blocks(self.kept):
                    move(block, generator)
        return loss

    def _compare_noise(self, batches: list[Batch]) -> None:
        """At the first noise: do DDP's ranks draw the same, or would they drift apart?"""
        if self._has_compared:
            return
        if drawn := [b for b in batches if b.group["sigma"] or b.group["adaptive_noise"]]:
            refuse_different_noise(drawn[0].params, self._generators.on(drawn[0].device))
            self._has_compared = True

    def _is_finite(self, batches: list[Batch]) -> bool:
        """May the step proceed?  Waits for the host once, unless told not to look."""
        if self.nonfinite == "ignore":
            return True
        needs_norms = any(batch.group["adaptive_noise"] for batch in batches)

        def are_finite(grads: Tensors) -> bool:
            if tensor_norms(grads).isfinite().all().item():
                return True
            # A norm may overflow though each element is finite: only then they are looked at.
            return not needs_norms and count_nonfinite(grads) == 0

        if are_finite([grad for batch in batches for grad in batch.grads]):
            return True
        if self.nonfinite == "skip":
            self.num_skipped += 1
            return False
        params = [p for group in self.param_groups for p in group["params"]]
        with_grad = [(i, p) for i, p in enumerate(params) if p.grad is not None and p.requires_grad]
        index, param = next((i, p) for i, p in with_grad if not are_finite([p.grad]))
        raise ValueError(
            f"parameter {index} of shape {tuple(param.shape)} has a NaN or infinite gradient"
            f"{', or one whose norm overflows,' if needs_norms else ''}: "
            'expected finite ones; nothing was changed. nonfinite="skip" passes over such steps'
        )

    def _update_state(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Advance the state.  Returns: least and largest utility of each parameter."""
        for param in batch.params:
            state: dict[str, Any] = self.state[param]
            if not state:
                state.update(self._empty_state(param, batch.group))
            elif state[self.kept[0]].dtype != batch.dtype:  # model.double() in mid-run
                self._fit(state, param)
            state["step"] += 1
            batch.states.append(state)
        beta = self.utility_decay(batch.group)
        extrema: dict[int, tuple[Tensor, Tensor]] = {}
        for block in batch.blocks(self.kept):
            utilities, tensors = block.kept[0], (block.grads, block.params)
            is_published = batch.is_published
            utility.accumulate_utility_(utilities, *tensors, beta, is_published=is_published)
            self.accumulate(batch, block)
            for row, (low, high) in zip(block.rows, map(torch.aminmax, utilities), strict=True):
                if row in extrema:  # of its pieces so far
                    low, high = low.minimum(extrema[row][0]), high.maximum(extrema[row][1])
                extrema[row] = low, high
        return list(extrema.values())

    def _scale(self, batches: list[Batch], extrema: list[tuple[Tensor, Tensor]]) -> None:
        """Give each batch the bias corrections and limits of its utilities."""
        decay = self.utility_decay
        factors = [c for b in batches for c in utility.corrections(decay(b.group), b.steps)]
        # Gates do not change with a factor common to all utilities: only in a model whose
        # parameters took different numbers of steps is there something to correct.
        relative = [factor / factors[0] for factor in factors]
        corrected = extrema
        if set(relative) != {1.0}:
            pairs = zip(extrema, relative, strict=True)
            corrected = [(low / c, high / c) for (low, high), c in pairs]
        last = 0
        for batch in batches:
            mine = slice(last, last := last + len(batch.params))
            name = batch.group["normalization"]
            chosen = extrema if batch.is_published else corrected
            if batch.group["scope"] == "global":
                to = batch.device, batch.dtype
                low = torch.stack([low.to(*to) for low, _ in chosen]).amin()
                high = torch.stack([high.to(*to) for _, high in chosen]).amax()
                batch.limits = utility.bounds(low, high, name)
            elif not batch.is_row_wise:
                batch.limits = [utility.bounds(low, high, name) for low, high in chosen[mine]]
            is_absolute = batch.is_published or batch.is_row_wise
            batch.corrections = (factors if is_absolute else relative)[mine]

    def _noise_stds(self, batch: Batch) -> float | Tensors:
        """Sigma; or relative to each gradient, or to the average of its norms."""
        group = batch.group
        if not group["adaptive_noise"]:
            return float(group["sigma"])
        norms = [norm.to(batch.dtype) for norm in tensor_norms(batch.grads).unbind()]
        if not group["instant_noise_scale"]:
            beta = group["noise_beta"]
            for state, norm in zip(batch.states, norms, strict=True):
                if "grad_norm_ema" not in state:  # as if all norms before had been this one
                    state["grad_norm_ema"] = norm * (1 - beta ** (state["step"] - 1))
            averages = [state["grad_norm_ema"] for state in batch.states]
            torch._foreach_mul_(averages, beta)
            torch._foreach_add_(averages, norms, alpha=1 - beta)
            norms = list(torch._foreach_div(averages, utility.corrections(beta, batch.steps)))
        numels = [param.numel() for param in batch.params]
        return utility.noise_stds(
            norms, numels, group["sigma"], group["noise_reference"], group["min_noise_std"]
        )

    def _move(self, batch: Batch, block: Block, generator: torch.Generator | None) -> None:
        """Move the weights of a block, with noise from ``generator`` if there is one."""
        group, rows, stds, limits = batch.group, block.rows, batch.stds, batch.limits
        noise = None
        if generator is not None:
            std = [stds[row] for row in rows] if isinstance(stds, list) else stds
            noise = utility.draw_noise(block.params, std, generator)
        gate = utility.gates(
            block.kept[0],
            [batch.corrections[row] for row in rows],
            [limits[row] for row in rows] if isinstance(limits, list) else limits,
            group["normalization"],
        )
        utility.update_(
            block.params,
            self.directions(batch, block),
            noise,
            gate,
            protect=group["protect"],
            decay=1 - batch.lr * group["weight_decay"],
            rate=group["step_scale"] * batch.lr,
            is_published=batch.is_published,
        )
        if block.params is not block.stored:  # copies, to be rounded
            torch._foreach_copy_(block.stored, block.params)


def hand_out(work: Callable[..., None], *columns: Iterator[Any]) -> None:
    """``list(map(work, *columns))``, on as many threads as torch has.

    For work that torch does on the thread that calls it, as drawing noise.  Items are disjoint, so
    that the result does not depend on who does what.
    """
    workers = torch.get_num_threads()
    # whether gradients are recorded is each thread's own affair
    with ThreadPoolExecutor(workers, initializer=torch.set_grad_enabled, initargs=(False,)) as pool:
        list(pool.map(work, *columns))  # raises what a thread has raised


def make_batches(groups: list[dict[str, Any]]) -> list[Batch]:
    """Batches of all parameters that have a gradient and need one, in their order.

    Raises: as :meth:`UtilityOptimizer.step`, all but of gradients.
    """
    batches: dict[Any, Batch] = {}
    placed = [(place, param) for place, group in enumerate(groups) for param in group["params"]]
    collect([param for _, param in placed])  # refuses sparse gradients
    for index, (place, param) in enumerate(placed):
        grad = param.grad
        if grad is None or not grad.numel() or not param.requires_grad:
            continue
        _check_kind(param, index)
        key = (place, param.device, param.dtype, grad.dtype)
        if key not in batches:
            lr = float(groups[place]["lr"])
            batches[key] = Batch(groups[place], lr, param.device, wide(param.dtype))
        batches[key].params.append(param)
        batches[key].grads.append(grad)
    return list(batches.values())


def _check_kind(param: Tensor, index: int) -> None:
    name = f"parameter {index} of shape {tuple(param.shape)}"
    if param.is_complex():
        raise TypeError(
            f"{name} is {param.dtype}: expected a real one, since utilities have to be ordered "
            "(optimize torch.view_as_real of it)"
        )
    if hasattr(param, "device_mesh"):  # an isinstance check would import torch.distributed
        raise TypeError(
            f"{name} is a DTensor: expected a plain tensor, since the utilities of other ranks' "
            "shards are not compared (DDP works, FSDP2 does not)"
        )


def _cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    return tensors if tensors[0].dtype == dtype else [t.to(dtype) for t in tensors]
