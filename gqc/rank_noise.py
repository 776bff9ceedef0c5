r"""The noise scale from the gradients of ranks: an estimate at every backward, for one scalar sent.

Data-parallel training averages the gradients :math:`g_r` of W ranks anyway.  Each is a small batch
and their mean :math:`G_W` a large one, so :func:`gqc.noise.two_batch` needs no accumulation:
:math:`S_1 = \mathrm{mean}_r |g_r|^2`, :math:`S_2 = |G_W|^2`, n = W.

Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A.1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gqc.gradients import total_norm
from gqc.noise.estimates import NoiseScaleEMA, two_batch


class RankNoise:
    """Feed an average of noise estimates with the gradients of ranks, under DDP or FSDP2.

    ``OptimizerWrapperGNS(rank_noise=...)`` decides by it.  It looks at gradients where they are
    reduced: as a communication hook of ``DistributedDataParallel`` (which can have one only), as
    the ``reduce_scatter`` of FSDP2 modules.  What is reduced does not change.

    Args:
        model: a ``DistributedDataParallel``, or a model that ``fully_shard`` was applied to, all of
            whose trainable parameters are sharded.  With hybrid sharding the ranks of one group
            that shards are compared.
        average: what takes the estimates; None: a new :class:`~gqc.noise.NoiseScaleEMA`.
    Attributes:
        average: its ``noise_scale`` is in microbatches of one rank.
        num_skipped: backwards with a NaN or an infinity, or that reduced nothing.
    Raises:
        TypeError: ``model`` is neither.
        RuntimeError: this torch has no hook for FSDP2; or DDP has a hook already.
        ValueError: one rank, which tells nothing.
    """

    def __init__(self, model: nn.Module, average: NoiseScaleEMA | None = None) -> None:
        self.average = NoiseScaleEMA() if average is None else average
        self.num_skipped = 0
        self._small: list[Tensor] = []  # squared norms of this rank's gradient, by bucket
        self._buckets: list[Tensor] = []  # of DDP, which hold the mean after the backward
        self._large: list[Tensor] = []  # squared norms of this rank's shards of the mean
        self._group: Any = None
        if isinstance(model, nn.parallel.DistributedDataParallel):
            self._take_group(model.process_group)
            # DDP compares annotations with types, and finds text: a lambda has none.
            model.register_comm_hook(None, lambda _, bucket: self._reduce_bucket(bucket))
            return
        modules = [m for m in model.modules() if hasattr(m, "set_requires_gradient_sync")]
        if not modules:
            raise TypeError(
                f"model is a {type(model).__name__}: expected a DistributedDataParallel, or a "
                "module that fully_shard was applied to"
            )
        for module in modules:
            if not hasattr(module, "set_custom_reduce_scatter"):
                raise RuntimeError(
                    f"torch {torch.__version__} has no set_custom_reduce_scatter for FSDP2: "
                    "expected torch 2.8 or newer"
                )
            if any(p.requires_grad for p in module.parameters()):
                module.set_custom_reduce_scatter(_MeasuredReduceScatter(self))  # type: ignore[operator]

    @torch.no_grad()
    def update(self, scaler: torch.amp.GradScaler | None = None) -> float | None:
        """After each backward, before gradients are changed: average its estimate in.

        Clear gradients before each backward: what DDP finds in ``.grad`` would count as signal.

        One scalar message for all tensors, and one host sync.  Every rank has to call it.

        Args:
            scaler: whose ``scale`` the loss went through, if any.
        Returns: the noise scale as averaged so far [microbatches of a rank]; None while the signal
            is not distinguishable from the noise.
        """
        buckets, small, large = self._buckets, self._small, self._large
        if buckets:
            large = [total_norm(buckets).square()]
        self._small, self._buckets, self._large = [], [], []
        if not small:
            self.num_skipped += 1  # gradients were not reduced, as in no_sync()
            return self.average.noise_scale
        sums = torch.stack([torch.stack(small).sum(), torch.stack(large).sum()])
        torch.distributed.all_reduce(sums, group=self._group)
        size = torch.distributed.get_world_size(self._group)
        if scaler is not None:
            sums = sums / scaler.scale(torch.ones_like(sums)).square()
        small_sq, large_sq = sums.tolist()
        if buckets:
            large_sq /= size  # every rank has the whole mean
        if math.isfinite(small_sq) and math.isfinite(large_sq):
            self.average.update(*two_batch(small_sq / size, large_sq, size))
        else:
            self.num_skipped += 1
        return self.average.noise_scale

    def _take_group(self, group: Any) -> None:
        if torch.distributed.get_world_size(group) < 2:
            raise ValueError("one rank: expected at least two, whose gradients can be compared")
        self._group = group

    def _reduce_bucket(self, bucket: Any) -> Any:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        self._buckets.append(bucket.buffer())
        self._small.append(total_norm(self._buckets[-1:]).square())
        return allreduce_hook(self._group, bucket)


class _MeasuredReduceScatter:
    """FSDP2's ``reduce_scatter``, which also measures what goes in and what comes out."""

    def __init__(self, noise: RankNoise) -> None:
        self._noise = noise

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: Any,
        op: Any,
        async_op: Any = False,
    ) -> Any:
        distributed: Any = torch.distributed
        is_sum = op == distributed.ReduceOp.SUM
        if not is_sum and op != distributed.ReduceOp.AVG:
            raise ValueError(
                f"reduce_scatter with {op}: expected no gradient divide factor of yours"
            )
        noise = self._noise
        noise._take_group(group)
        noise._small.append(total_norm([input_tensor]).square())
        send = getattr(distributed, "reduce_scatter_single", distributed.reduce_scatter_tensor)
        work = send(output_tensor, input_tensor, group=group, op=op, async_op=async_op)
        if async_op:
            work.wait()
        share = 1 / distributed.get_world_size(group) if is_sum else 1.0
        noise._large.append((share * total_norm([output_tensor])).square())
        return work
