r"""Clip gradients: the total norm, that of each parameter group, or that of each tensor.

.. math:: g' = g\,\min\Bigl(1, \frac{c}{\|g\| + 10^{-6}}\Bigr)

with the norm over all gradients, over those of the tensor's group, or over the tensor.  Norms are
taken in one batched pass and stay on the device.  Per group, it is bit for bit what
``torch.nn.utils.clip_grad_norm_`` does to one group after the other; 16-bit gradients differ, whose
norm is summed in float32 here and in 16 bits there.

**With wrappers and VGS.**  What is clipped depends on the optimizer that clips
(:func:`clip_before_step`).  The *wrapped* one clips the mean of each window, as scaled by VGS, so
that what it steps with is bounded; decisions and variances are those of raw gradients.  This is the
order that VGS was published with.  The *wrapper* clips each microbatch (with
``accumulate="buffer"``): decisions and VGS see clipped gradients; the step may be smaller still.

Source: Pascanu et al. 2013, arXiv:1211.5063, for the total norm.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gqc.checks import expect, one_of
from gqc.gradients import collect, local, magnitudes, multiply_, tensor_norms, total_norm

EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_
# Below this norm squares of elements are too small for float32, where there are up to 1e9 of them.
SMALL = 1e-15


def clip_grad_norm_per_group_(
    groups: Optimizer | Iterable[Any], max_norm: float, *, error_if_nonfinite: bool = False
) -> Tensor:
    """Clip each parameter group's gradients to a norm of at most ``max_norm``, in place.

    Args:
        groups: an optimizer, its ``param_groups``, parameters (one group), or lists of parameters
            (a group each), named or not, as optimizers take them.  Parameters without a gradient
            are left out, and one given twice is clipped once.  ``DTensor``: the norm of the whole
            tensor, alike on all ranks.
        max_norm: c > 0 [loss / parameter], of each group; ``math.inf`` only measures.
        error_if_nonfinite: raise where a norm is NaN or infinite.  Else, as in torch, an infinite
            norm makes finite elements 0 and infinite ones NaN, and a NaN spreads in its group.
    Returns: the norms before, shape (groups,); 0 for a group without gradients.
    Raises:
        ValueError: ``max_norm`` is not > 0.
        RuntimeError: a norm is not finite; nothing has changed.
        TypeError: a sparse gradient.
    """
    return _clip([collect(params) for params in _groups(groups)], max_norm, error_if_nonfinite)


def clip_grad_norm_per_tensor_(
    groups: Optimizer | Iterable[Any], max_norm: float, *, error_if_nonfinite: bool = False
) -> Tensor:
    """Clip each gradient to a norm of at most ``max_norm``, in place.

    As :func:`clip_grad_norm_per_group_` with a group for each tensor that has a gradient.
    """
    grads = [grad for params in _groups(groups) for grad in collect(params)]
    return _clip([[grad] for grad in grads], max_norm, error_if_nonfinite)


def clip_grad_norm_total_(
    groups: Optimizer | Iterable[Any], max_norm: float, *, error_if_nonfinite: bool = False
) -> Tensor:
    """Clip all gradients together to a norm of at most ``max_norm``, in place.

    As :func:`clip_grad_norm_per_group_` with all parameters in one group.  Returns: shape (1,).
    """
    grads = [grad for params in _groups(groups) for grad in collect(params)]
    return _clip([grads], max_norm, error_if_nonfinite)


#: what a norm is taken over -> the function that clips it
CLIPPERS: dict[str, Callable[..., Tensor]] = {
    "total": clip_grad_norm_total_,
    "group": clip_grad_norm_per_group_,
    "tensor": clip_grad_norm_per_tensor_,
}


def clip_before_step(optimizer: Optimizer, max_norm: float, per: str = "group") -> Any:
    """Clip whenever ``optimizer.step()`` is called, before it does anything else.

    Args:
        optimizer: any; the module says what is clipped in a wrapper and what in the one inside it.
        max_norm: see :func:`clip_grad_norm_per_group_`.
        per: ``"total"``, ``"group"`` or ``"tensor"``.
    Returns: a handle whose ``remove()`` ends it.  As all hooks in torch, it is not part of a
        checkpoint, nor of a copy or pickle of the optimizer, which are refused meanwhile.
    Raises:
        ValueError: a bad argument, one that clips so already, or a wrapper with a ``grad_scaler``,
            which unscales gradients only once a window is full; clip in its wrapped optimizer.
        RuntimeError: at a step: ``.grad`` is the sum of a window that is under way; or gradients
            are made, or unscaled, only after they would have been clipped (a closure; a fused
            optimizer in ``GradScaler.step`` without ``unscale_``).
        TypeError: at a copy.
    """
    one_of("per", per, CLIPPERS)
    expect(max_norm > 0, "max_norm", max_norm, "> 0")
    if per in [getattr(h, "per", None) for h in optimizer._optimizer_step_pre_hooks.values()]:
        raise ValueError(f"it is clipped per {per} already: remove() the handle of that first")
    if getattr(optimizer, "grad_scaler", None) is not None:
        raise ValueError(
            f"{type(optimizer).__name__} has a grad_scaler: its microbatches are scaled; clip in "
            "the wrapped optimizer, wrapper.optimizer"
        )

    def clip(stepping: Optimizer, args: Any, kwargs: Any) -> None:
        _refuse_to_clip(stepping, args, kwargs)
        CLIPPERS[per](stepping, max_norm)

    clip.per = per  # type: ignore[attr-defined]
    optimizer.__getstate__ = partial(_state, weakref.ref(optimizer))  # type: ignore[method-assign]
    return optimizer.register_step_pre_hook(clip)


def _state(weak: Any) -> dict[str, Any]:
    """What a copy or a pickle gets of an optimizer.  Raises: TypeError: it is clipped."""
    optimizer = weak()
    kind: Any = type(optimizer)
    if any(getattr(h, "per", None) for h in optimizer._optimizer_step_pre_hooks.values()):
        raise TypeError(
            f"a copy of this {kind.__name__} would not be clipped, as torch copies no hooks: "
            "remove() the handle of clip_before_step, copy, and clip both; clip_norm= is copied"
        )
    state = kind.__getstate__(optimizer)
    return {key: value for key, value in state.items() if key != "__getstate__"}


def _refuse_to_clip(stepping: Optimizer, args: Any, kwargs: Any) -> None:
    """Raise RuntimeError where there is no gradient yet, or that of several microbatches."""
    if kwargs.get("closure") is not None or any(map(callable, args)):
        raise RuntimeError(
            f"{type(stepping).__name__}.step(closure): gradients are clipped before the "
            "closure makes them; call the closure yourself, then step()"
        )
    if getattr(stepping, "grad_scale", None) is not None:  # set by GradScaler.step()
        raise RuntimeError(
            f"{type(stepping).__name__}: a fused step unscales gradients after they would have "
            "been clipped; call scaler.unscale_(optimizer) before scaler.step(optimizer)"
        )
    if getattr(stepping, "holds_running_sum", False):
        raise RuntimeError(
            f"{type(stepping).__name__}: .grad is the sum of several microbatches, which "
            'cannot be clipped one by one; pass accumulate="buffer" to the wrapper, or clip '
            "in the wrapped optimizer, wrapper.optimizer"
        )


@torch.no_grad()
def _clip(lists: list[list[Tensor]], max_norm: float, error_if_nonfinite: bool) -> Tensor:
    """Returns: the norm of each list before, on the device of the first gradient."""
    expect(max_norm > 0, "max_norm", max_norm, "> 0; math.inf only measures")
    flat, sizes = [grad for grads in lists for grad in grads], [len(grads) for grads in lists]
    if not flat:
        return torch.zeros(len(lists))
    norms, are_single = tensor_norms(flat), set(sizes) == {1}
    if not are_single:
        norms = torch.stack([torch.linalg.vector_norm(part) for part in norms.split(sizes)])
    if error_if_nonfinite and not bool(norms.isfinite().all()):
        bad = [i for i, norm in enumerate(norms.tolist()) if not math.isfinite(norm)]
        raise RuntimeError(
            f"gradient norms {bad[:5]} of {len(lists)} are NaN or infinite; gradients are as they "
            "were. Pass error_if_nonfinite=False to clip them all the same"
        )
    if max_norm == math.inf:  # inf / inf would make NaN of finite elements
        return norms
    factors = (max_norm / (norms + EPS)).clamp(max=1.0).unbind()
    if are_single and len({grad.device for grad in flat}) == 1:
        torch._foreach_mul_(local(flat), list(factors))
        return norms
    for grads, factor in zip(lists, factors, strict=True):
        multiply_(grads, factor)
    return norms


def _groups(groups: Optimizer | Iterable[Any]) -> list[list[Tensor]]:
    given: Any = groups.param_groups if isinstance(groups, Optimizer) else groups
    found = [given] if isinstance(given, Tensor) else list(given)
    is_one = bool(found) and all(_param(item) is not None for item in found)
    lists = [_params(group) for group in ([found] if is_one else found)]
    first = {param: i for i, params in reversed([*enumerate(lists)]) for param in params}
    return [[p for p in dict.fromkeys(ps) if first[p] == i] for i, ps in enumerate(lists)]


def _params(group: Any) -> list[Tensor]:
    params = group["params"] if isinstance(group, dict) else group
    items = [params] if _param(params) is not None else list(params)
    found = [param for item in items if (param := _param(item)) is not None]
    if len(found) < len(items):
        kinds = sorted({type(item).__name__ for item in items if _param(item) is None})
        raise TypeError(f"a group holds {', '.join(kinds)}: expected parameters")
    return found


def _param(item: Any) -> Tensor | None:
    """The parameter, by itself or with its name; None if it is something else."""
    match item:
        case Tensor():
            return item
        case (str(), Tensor() as param):
            return param
    return None


def is_usual(norm: float) -> bool:
    """Can a gradient of this norm be rescaled by one factor?"""
    return SMALL < norm < math.inf


def rescale_(grads: Sequence[Tensor], norm: float, target: float) -> None:
    """Give ``grads``, whose norm is ``norm``, together the norm ``target`` in place."""
    if is_usual(norm):
        multiply_(grads, target / norm)
    else:
        rescale_extreme_(grads, target)


def clip_(grads: Sequence[Tensor], limit: float, norm: float | None = None) -> bool:
    """Shrink ``grads``, of norm ``norm`` if it is known, to ``limit``; False where it is within."""
    expect(limit > 0, "clip_norm", limit, "> 0, or None")  # it may have been edited
    norm = float(total_norm(grads)) if norm is None else norm
    if not norm > limit:
        return False
    rescale_(grads, norm, limit)
    return True


def rescale_extreme_(grads: Sequence[Tensor], target: float) -> None:
    r"""Give ``grads`` together the norm ``target`` in place, also where :math:`g^2` is no number.

    :math:`g' = s^2 g` with :math:`s` the power of two nearest :math:`1/\sqrt{\max|g|}`, then
    :math:`g'\tau/\|g'\|`.  Twice s, since its square may be out of range too.  A zero gradient
    stays zero.  Three more passes; the host does not wait.
    """
    size = magnitudes(grads).max()
    shrink = torch.where(size > 0, torch.exp2(-(size.log2() / 2).round()), 1.0)
    multiply_(grads, shrink)
    multiply_(grads, shrink)
    norm = total_norm(grads)
    multiply_(grads, torch.where(norm > 0, target / norm, 1.0))
