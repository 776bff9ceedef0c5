"""What a wrapper reports: the last window for a record, and numbers to log."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

COUNTERS = ("batches", "steps", "num_discarded", "num_forced", "num_clipped")


@dataclass(frozen=True)
class ClosedWindow:
    """A window that was handed on, as ``wrapper.last_window``: what a record or a logger wants.

    Attributes:
        num_draws: n.
        weight: :math:`W`, of all draws and ranks; n where draws have no weight.
        grad_norm: norm of :math:`G_n` before ``clip_norm``, None where it was not read.
        is_forced: was it closed only because n reached ``max_draws``?
        is_clipped: was what the optimizer got clipped to ``clip_norm``?
        closed_with: what tunables and ``lr`` were then.
    """

    num_draws: int
    weight: float
    grad_norm: float | None = None
    is_forced: bool = False
    is_clipped: bool = False
    closed_with: dict[str, Any] = field(default_factory=dict)


def statistics(wrapper: Any) -> dict[str, Any]:
    """All there is to log.

    ``batches`` and ``num_draws`` count the microbatch in progress: read before ``step()``, they
    are 1 at the start, and ``num_draws`` is n at the step that closes a window of n.

    - ``batches``, ``steps``: microbatches (with the one in progress), optimizer steps (those of
      the innermost one, where a wrapper is wrapped).
    - ``num_draws``, ``last_num_draws``: n of the open and of the last closed window.
    - ``last_grad_norm``: norm of that window's :math:`G_n`, None where it was not read.
    - ``num_discarded``: microbatches thrown away for NaN or inf.
    - ``num_forced``: steps taken only because n reached ``max_draws``.
    - ``num_clipped``: windows that were clipped to ``clip_norm``.
    - each tunable: the value that decides; with several groups also ``key/group_i``.
    - ``lr``: of the first group; with several groups also ``lr/group_i``.
    """
    return {
        **wrapper._counts,
        "batches": wrapper._counts["batches"] + 1,
        "num_draws": wrapper.num_draws + 1,
        "last_num_draws": wrapper.last_num_draws,
        "last_grad_norm": wrapper.last_grad_norm,
        **{name: float(value) for name, value in settings(wrapper).items()},
    }


def settings(wrapper: Any) -> dict[str, Any]:
    """Tunables and learning rates as they are now; tensors as copies, since to read them waits."""
    groups = wrapper.param_groups
    values: dict[str, Any] = {name: wrapper.tunable(name) for name in wrapper.strictest}
    if groups and groups[0].get("lr") is not None:  # as that of Adafactor may be
        values["lr"] = groups[0]["lr"]
    if len(groups) > 1:
        for i, group in enumerate(groups):
            keys = [name for name in (*wrapper.strictest, "lr") if group.get(name) is not None]
            values.update({f"{name}/group_{i}": group[name] for name in keys})
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in values.items()}


def numbers(wrapper: Any) -> dict[str, float]:
    """The numbers of the last closed window, for loggers: no None, no bool, no coming draw.

    As :func:`statistics`, with ``batches`` so far, and of that window ``num_draws``, ``weight``,
    ``grad_norm`` (left out where it was not read), ``is_forced``, ``is_clipped``, and the tunables
    and ``lr`` that it closed with (before the first: the present ones).
    """
    values = {**wrapper.statistics(), "batches": wrapper.batches}
    del values["num_draws"], values["last_num_draws"], values["last_grad_norm"]
    if (last := wrapper.last_window) is not None:
        values.update(vars(last), **last.closed_with)
    read = {k: v.item() if isinstance(v, Tensor) else v for k, v in values.items()}
    kept = {k: v for k, v in read.items() if isinstance(v, (int, float))}
    return {k: int(v) if isinstance(v, bool) else v for k, v in kept.items()}


def closed(own: dict[str, Any], default_weight: float) -> ClosedWindow | None:
    """The last closed window of a file; format 1 had two numbers of it, 0.1.0 norms of draws."""
    if "last_window" not in own:
        n, norm = own["last_num_draws"], own["last_grad_norm"]
        return None if n is None else ClosedWindow(n, n * default_weight, norm)
    if (last := own["last_window"]) is None:
        return None
    return ClosedWindow(**{k: v for k, v in last.items() if k != "draw_norms"})
