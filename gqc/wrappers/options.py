"""The keywords that every wrapper takes: named once, spelled out in each signature, checked once.

A misspelt keyword is a ``TypeError`` that names the nearest one.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypedDict

from torch.amp import GradScaler

from gqc.checks import check_positive, one_of

PUBLISHED = "; the names and argument order of torch-gqc are those of gqc.compat.torch_gqc"


class WindowOptions(TypedDict, total=False):
    """The keywords of every wrapper.

    Args:
        min_draws: n below which no window closes; None: the fewest that make sense.
        decide_every: decide at n = ``min_draws``, every so many draws after it, and ``max_draws``.
        accumulate: ``"buffer"`` takes each gradient out of ``.grad`` and sums in float32 apart:
            one more gradient in memory; a bad draw is dropped alone; clearing or clipping ``.grad``
            acts on the draw in progress alone.  The tensors that it finds there become its own,
            unless somebody holds them; clone what you keep through ``.data``, ``detach()`` or
            numpy.  ``"grad"`` sums in ``.grad`` itself, which nobody else may touch:
            clearing it in an open window, changing it in place after ``backward`` and gradients
            that ``backward`` did not make are errors (:mod:`gqc.wrappers.watch` says what cannot
            be seen), as is a sum of 16-bit gradients.
        loss: what ``backward`` is called on, the ``"mean"`` or the ``"sum"`` over a microbatch's
            tokens (or examples); with ``step(weight=num_tokens)`` both give the mean over the
            window's.  Mean losses of unequal weights need the buffer.
        clip_norm: clip what the wrapped optimizer gets to this norm, after the decision has read
            the true one; counted as ``num_clipped``.
        nonfinite: on NaN or inf ``"discard"`` the draw (with ``"grad"``: its window), ``"raise"``
            ``FloatingPointError``, or ``"ignore"`` (no check at all).
        grad_scaler: the ``torch.amp.GradScaler`` whose ``scale`` the losses go through.  The
            wrapper calls its ``unscale_``, ``step`` and ``update``, once a window; a scale that
            others change in an open window is an error.  A disabled one is as None.
        reduce_at_step: the loop leaves gradients local to each rank (``DDP.no_sync()``), and the
            wrapper averages them over the ranks once a step.  Only where the decision needs no
            gradient.
        process_group: the ranks that train these parameters together, where the loop averages
            gradients itself.  None: those of the DDP or FSDP modules that hold the parameters.
        on_step: called after each step with the numbers of the closed window (``numbers()``).
    """

    min_draws: int | None
    decide_every: int
    accumulate: str
    loss: str
    clip_norm: float | None
    nonfinite: str
    grad_scaler: GradScaler | None
    reduce_at_step: bool
    process_group: Any
    on_step: Callable[[dict[str, float]], object] | None


def spell_out(cls: Any) -> inspect.Signature:
    """The signature of ``cls`` with what its ``**options`` stand for, as others declare it."""
    own = [*inspect.signature(cls.__init__).parameters.values()][1:]
    if not own or own[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        return inspect.Signature(own)
    parents = [parent.__init__ for parent in cls.__mro__[1:] if "__init__" in vars(parent)]
    found = {p.name: p for p in own[:-1]}
    for source in [*parents, *getattr(cls, "sources", ())]:
        for name, parameter in inspect.signature(source).parameters.items():
            if name in cls.options.__annotations__:
                found.setdefault(name, parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    return inspect.Signature([*found.values()])


def check_ways(wrapper: Any, accumulate: str, clip_norm: float | None) -> None:
    """Raises: ValueError: a way to go about gradients that is unknown, or that is not possible."""
    name = type(wrapper).__name__
    one_of("accumulate", accumulate, ("buffer", "grad"))
    one_of("nonfinite", wrapper.nonfinite, ("discard", "raise", "ignore"))
    one_of("loss", wrapper.loss, ("mean", "sum"))
    if clip_norm is not None:
        check_positive("clip_norm", clip_norm)
    if wrapper.reduce_at_step and wrapper.needs_gradient:
        raise ValueError(
            f"reduce_at_step=True: {name} decides by the gradient of all ranks, which "
            "no_sync() holds back; leave no_sync() out, or use SBC, Replay or MHT"
        )
    if accumulate == "grad" and wrapper.needs_draw_norm:
        raise ValueError(f'accumulate="grad": {name} reads norms of draws, which needs "buffer"')
