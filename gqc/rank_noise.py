r"""The noise scale from the gradients of ranks: an estimate at every backward, for one scalar sent.

Data-parallel training averages the gradients :math:`g_r` of W ranks anyway.  Each is a small batch
and their mean :math:`G_W` a large one, so :func:`gqc.noise.two_batch` needs no accumulation:
:math:`S_1 = \mathrm{mean}_r |g_r|^2`, :math:`S_2 = |G_W|^2`, n = W.

Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A.1.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gqc.gradients import shard, total_norm
from gqc.noise.estimates import NoiseScaleEMA, two_batch

SEVERAL = (
    "several backwards were reduced as one gradient, whose noise is not that of a microbatch: add "
    "the losses of a microbatch and go back once, without no_sync(), closes_next() or "
    "set_requires_gradient_sync(False), and clear gradients before each backward. A wrapper "
    "accumulates by itself; under FSDP2 each sharded module may run once in a forward"
)


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
        self._group: Any = None
        self._start()
        if isinstance(model, nn.parallel.DistributedDataParallel):
            self._take_group(model.process_group)
            # DDP wants annotations of its own, or none, as a lambda has.
            model.register_comm_hook(None, lambda _, bucket: self._reduce_bucket(bucket))
            for param in filter(lambda param: param.requires_grad, model.parameters()):
                param.register_hook(partial(self._look, param))
            return
        modules = [m for m in model.modules() if hasattr(m, "set_requires_gradient_sync")]
        if not modules:
            raise TypeError(
                f"model is a {type(model).__name__}: expected a DistributedDataParallel, or a "
                "module that fully_shard was applied to"
            )
        taken: set[Tensor] = set()
        for module in reversed(modules):  # the innermost first, which have parameters of their own
            if not hasattr(module, "set_custom_reduce_scatter"):
                raise RuntimeError(
                    f"torch {torch.__version__} has no set_custom_reduce_scatter: expected >= 2.8"
                )
            if own := [p for p in module.parameters() if p.requires_grad and p not in taken]:
                module.set_custom_reduce_scatter(_MeasuredReduceScatter(self, own))  # type: ignore
                taken.update(own)
            module.register_forward_pre_hook(self._look_at_sync)

    @torch.no_grad()
    def update(self, scaler: torch.amp.GradScaler | None = None) -> float | None:
        """After each backward: average its estimate in.

        Gradients have to be cleared before each backward, with ``set_to_none=True``, or at the cost
        of a look at them.  One message for all tensors, of three numbers, and one host sync.  Every
        rank has to call it.

        Args:
            scaler: whose ``scale`` the loss went through, if any.
        Returns: the noise scale as averaged so far [microbatches of a rank]; None while the signal
            is not distinguishable from the noise.
        Raises: RuntimeError, on every rank: several backwards were reduced as one gradient, or none
            was cleared before.
        """
        small, large, left, was_local = self._small, self._large, self._left, self._was_local
        if not small:
            self._left.clear()
            self.num_skipped += 1  # gradients were not reduced, as in no_sync()
            return self.average.noise_scale
        self._start()
        left.append(small[0].new_full((), float(was_local)))
        sums = torch.stack([torch.stack(each).sum() for each in (small, large, left)])
        torch.distributed.all_reduce(sums, group=self._group)
        size = torch.distributed.get_world_size(self._group)
        if scaler is not None:
            sums = sums / scaler.scale(torch.ones_like(sums)).square()
        small_sq, large_sq, is_several = sums.tolist()
        if is_several:
            raise RuntimeError(SEVERAL)
        if math.isfinite(small_sq) and math.isfinite(large_sq):
            self.average.update(*two_batch(small_sq / size, large_sq, size))
        else:
            self.num_skipped += 1
        return self.average.noise_scale

    def _take_group(self, group: Any) -> None:
        if torch.distributed.get_world_size(group) < 2:
            raise ValueError("one rank: expected at least two, whose gradients can be compared")
        self._group = group

    def _start(self) -> None:
        """Wait for the next backward."""
        self._small: list[Tensor] = []  # squared norms of this rank's gradient, by bucket
        self._large: list[Tensor] = []  # of this rank's shards of the mean; a share of DDP's whole
        self._left: list[Tensor] = []  # was there a gradient, to which that of a backward is added?
        self._was_local = False  # under FSDP2, where such a gradient is not to be seen

    def _look(self, param: Tensor, _: Any = None) -> None:
        if param.grad is not None:
            self._left.append(shard(param.grad).any().float())

    def _look_at_sync(self, module: Any, _: Any) -> None:
        """Will this rank's gradients stay, and be reduced with later ones?"""
        state = module._get_fsdp_state()  # torch 2.8 has one group of parameters
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
        are_reduced = all(getattr(group, "reduce_grads", True) for group in groups)
        self._was_local |= torch.is_grad_enabled() and not are_reduced

    def _reduce_bucket(self, bucket: Any) -> Any:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        share = 1 / torch.distributed.get_world_size(self._group)  # every rank has the whole mean

        def measure(reduced: Any) -> Tensor:  # now, since .grad may be a view, to be clipped
            mean: Tensor = reduced.value()
            self._large.append(share * total_norm([mean]).square())
            return mean

        self._small.append(total_norm([bucket.buffer()]).square())
        return allreduce_hook(self._group, bucket).then(measure)


class _MeasuredReduceScatter:
    """FSDP2's ``reduce_scatter``, which also measures what goes in and what comes out."""

    def __init__(self, noise: RankNoise, params: list[Tensor]) -> None:
        self._noise, self._params = noise, params

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
            raise ValueError(f"reduce_scatter with {op}: expected no divide factor of yours")
        noise = self._noise
        noise._take_group(group)
        for param in self._params:
            noise._look(param)
        noise._small.append(total_norm([input_tensor]).square())
        send = getattr(distributed, "reduce_scatter_single", distributed.reduce_scatter_tensor)
        work = send(output_tensor, input_tensor, group=group, op=op, async_op=async_op)
        if async_op:
            work.wait()
        share = 1 / distributed.get_world_size(group) if is_sum else 1.0
        noise._large.append((share * total_norm([output_tensor])).square())
        return work
