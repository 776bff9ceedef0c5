"""The step that the UPGD optimizers share.

First all utilities are brought up to date, then their extrema are known, then every weight moves.
A subclass says which direction a weight would take without gates and noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gqc.checks import untraced
from gqc.gradients import count_nonfinite, tensor_norms
from gqc.upgd import utility
from gqc.upgd.batches import Batch, Block, hand_out, make_batches
from gqc.upgd.checkpoints import CheckpointedOptimizer
from gqc.upgd.utility import Bounds
from gqc.wrappers.saved import is_asked_for_state

Limits = Bounds | list[Bounds] | None  # for all, or of each


class UtilityOptimizer(CheckpointedOptimizer):
    """The base of :class:`~gqc.upgd.upgd.UPGD` and its kin; not for use on its own."""

    def utility_decay(self, group: dict[str, Any]) -> float:
        return float(group["beta_utility"])

    def accumulate(self, batch: Batch, block: Block) -> None:
        """Take the gradients into what is kept besides the utility; no weight has moved yet."""

    def directions(self, batch: Batch, block: Block) -> list[Tensor]:
        """Where the weights would go without gates and noise."""
        return block.grads

    @untraced
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient.

        Args:
            closure: called first, with gradients enabled, to make the gradients.
        Returns: what ``closure`` returned.
        Raises:
            ValueError: a NaN or infinite gradient (see ``nonfinite``); nothing was changed.
            TypeError: a sparse gradient, a complex or ``DTensor`` parameter; nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.state and is_asked_for_state(self):
            return loss  # state_dict() has it
        batches = make_batches(self.param_groups)
        if not batches or not self._is_finite(batches):
            return loss
        extrema = [pair for batch in batches for pair in self._update_state(batch)]
        for batch, scaling in zip(batches, self._scalings(batches, extrema), strict=True):
            stds = self._noise_stds(batch)
            move = partial(self._move, batch, *scaling, stds)
            generator = self._generators.on(batch.device) if stds != 0 else None
            if generator is not None and batch.is_shared:
                blocks = batch.blocks(self.kept, utility.SERIAL)
                hand_out(move, zip(blocks, utility.noise_streams(generator), strict=False))
            else:
                for block in batch.blocks(self.kept):
                    move(block, generator)
        return loss

    def _is_finite(self, batches: list[Batch]) -> bool:
        """May the step proceed?  Waits for the host once, unless told not to look."""
        if self.nonfinite == "ignore":
            return True
        grads = [grad for batch in batches for grad in batch.grads]
        # A norm may overflow though each element is finite: only then they are looked at.
        if tensor_norms(grads).isfinite().all().item() or count_nonfinite(grads) == 0:
            return True
        if self.nonfinite == "skip":
            self.num_skipped += 1
            return False
        params = [p for group in self.param_groups for p in group["params"]]
        with_grad = [(i, p) for i, p in enumerate(params) if p.grad is not None]
        index, param = next((i, p) for i, p in with_grad if count_nonfinite([p.grad]))
        raise ValueError(
            f"parameter {index} of shape {tuple(param.shape)} has a NaN or infinite gradient: "
            'expected finite ones; nothing was changed. nonfinite="skip" passes over such steps'
        )

    def _update_state(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Advance the state.  Returns: least and largest utility of each parameter."""
        for param in batch.params:
            state: dict[str, Any] = self.state[param]
            if not state:
                state.update(self._empty_state(param, batch.group))
            state["step"] += 1
            batch.states.append(state)
        beta, pieces = self.utility_decay(batch.group), []
        for block in batch.blocks(self.kept):
            utilities = block.kept[0]
            batch.maths.accumulate_utility_(utilities, block.grads, block.params, beta)
            self.accumulate(batch, block)
            extrema = map(torch.aminmax, utilities)
            pieces += [(row, *pair) for row, pair in zip(block.rows, extrema, strict=True)]
        return utility.merge_extrema(pieces, len(batch.params))

    def _scalings(
        self, batches: list[Batch], extrema: list[tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[list[float], Limits]]:
        """For each batch: bias corrections, and what the corrected utilities are scaled by."""
        factors = [
            c for b in batches for c in utility.corrections(self.utility_decay(b.group), b.steps)
        ]
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
            limits: Limits = None
            if batch.group["scope"] == "global":
                to = batch.device, batch.dtype
                low = torch.stack([low.to(*to) for low, _ in chosen]).amin()
                high = torch.stack([high.to(*to) for _, high in chosen]).amax()
                limits = utility.bounds(low, high, name)
            elif not batch.is_row_wise:
                limits = [utility.bounds(low, high, name) for low, high in chosen[mine]]
            is_absolute = batch.is_published or batch.is_row_wise
            yield (factors if is_absolute else relative)[mine], limits

    def _noise_stds(self, batch: Batch) -> float | list[Tensor]:
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
            utility.update_averages_(averages, norms, beta)
            norms = list(torch._foreach_div(averages, utility.corrections(beta, batch.steps)))
        numels = [param.numel() for param in batch.params]
        return utility.noise_stds(
            norms, numels, group["sigma"], group["noise_reference"], group["min_noise_std"]
        )

    def _move(
        self,
        batch: Batch,
        corrections: list[float],
        limits: Limits,
        stds: float | list[Tensor],
        block: Block,
        generator: torch.Generator | None,
    ) -> None:
        """Move the weights of a block, with noise from ``generator`` if there is one."""
        maths, group, rows = batch.maths, batch.group, block.rows
        lr = float(group["lr"])  # may be a tensor, as capturable optimizers have it
        noise = None
        if generator is not None:
            std = [stds[row] for row in rows] if isinstance(stds, list) else stds
            noise = utility.draw_noise(block.params, std, generator)
        gate = maths.gates(
            block.kept[0],
            [corrections[row] for row in rows],
            [limits[row] for row in rows] if isinstance(limits, list) else limits,
            group["normalization"],
        )
        maths.update_(
            block.params,
            self.directions(batch, block),
            noise,
            gate,
            protect=group["protect"],
            decay=1 - lr * group["weight_decay"],
            rate=group["step_scale"] * lr,
        )
        block.write_back()
