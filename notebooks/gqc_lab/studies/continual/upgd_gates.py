r"""Which weights UPGD protects under each normalization, by construction and in training.

A gate is what multiplies a weight's step: near its lower end the weight is protected, near its
upper end it moves and is shaken.  The published normalizations divide bias-corrected utilities by
uncorrected bounds, which with a decay of 0.999 are 1000 times too small at the first step.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gqc.upgd import UPGD, utility
from gqc.upgd.utility import NORMALIZATIONS
from gqc_lab.errors import check_name
from gqc_lab.studies import continual
from gqc_lab.studies.continual.settings import ContinualConfig

#: name -> utilities, ascending [loss]: from a weight that does harm to the most useful one
CASES: dict[str, tuple[float, ...]] = {
    "negative": (-4.0, -3.0, -2.0, -1.0, -0.5),
    "mixed": (-4.0, -1.0, 0.0, 1.0, 2.0),
    "extreme": (-1e-3, -1e-6, 0.0, 1.0, 1e6),
    "tiny": (-4e-12, -1e-12, 0.0, 1e-12, 2e-12),
    "equal": (3.0, 3.0, 3.0, 3.0, 3.0),
    "zero": (0.0, 0.0, 0.0, 0.0, 0.0),
}

LOW, HIGH = 1 / (1 + math.e), math.e / (1 + math.e)

#: normalization -> the ends of its gates' range
ENDS = {
    "minmax": (LOW, HIGH),
    "minmax_published": (LOW, HIGH),
    "max": (0.0, 1.0),
    "max_published": (0.0, 1.0),
}


def gates_of(
    utilities: Sequence[Tensor], normalization: str, beta: float, step: int
) -> list[Tensor]:
    """Return the gates of weights whose averages at that step are ``utilities``.

    Args:
        utilities: uncorrected averages u, any shapes.
        normalization: one of `gqc.upgd.utility.NORMALIZATIONS`.
        beta: decay of the averages; step: from 1.
    Raises: ValueError: unknown normalization.
    """
    check_name("normalization", normalization, NORMALIZATIONS)
    low = torch.stack([u.amin() for u in utilities]).amin()
    high = torch.stack([u.amax() for u in utilities]).amax()
    limits = utility.bounds(low, high, normalization)
    # A factor that bounds and utilities share changes no gate; the published bounds lack it.
    correction = 1 - beta**step if normalization.endswith("_published") else 1.0
    return utility.gates(list(utilities), [correction] * len(utilities), limits, normalization)


def constructed_gates(
    normalizations: Sequence[str] = NORMALIZATIONS, beta: float = 0.999, step: int = 1
) -> pd.DataFrame:
    r"""Return the gates of `CASES`, whose utilities are bias-corrected: :math:`\hat u`.

    Returns: a row per weight: ``case``, ``normalization``, ``step``, ``utility``, ``gate``.
    """
    rows = []
    for case, values in CASES.items():
        corrected = torch.tensor(values, dtype=torch.float64)
        for normalization in normalizations:
            (gates,) = gates_of([corrected * (1 - beta**step)], normalization, beta, step)
            where = {"case": case, "normalization": normalization, "step": step}
            pairs = zip(values, gates.tolist(), strict=True)
            rows += [{**where, "utility": u, "gate": g} for u, g in pairs]
    return pd.DataFrame(rows)


def order_of_protection(gates: pd.DataFrame) -> pd.DataFrame:
    """Return whether gates, as of `constructed_gates`, keep the order of utilities.

    Returns: a row per case and normalization: ``least_useful`` and ``most_useful`` (their gates)
        and ``order``: "kept" (more useful weights have smaller gates, none equal), "partly" (some
        are equal), "lost" (all equal though utilities are not), "reversed", or "none to keep".
    """
    rows = []
    for (case, normalization), group in gates.groupby(["case", "normalization"], sort=False):
        group = group.sort_values("utility")
        rises = group["gate"].diff().dropna()
        row = {"case": case, "normalization": normalization}
        row |= {"least_useful": group["gate"].iloc[0], "most_useful": group["gate"].iloc[-1]}
        rows.append(row | {"order": _name_of_order(group["utility"].nunique(), rises.tolist())})
    return pd.DataFrame(rows)


def _name_of_order(num_utilities: int, rises: list[float]) -> str:
    if num_utilities == 1:
        return "none to keep"
    if not any(rises):
        return "lost"
    if all(rise <= 0 for rise in rises):
        return "kept" if all(rises) else "partly"
    return "reversed" if all(rise >= 0 for rise in rises) else "mixed up"


def read_gates(optimizer: UPGD) -> tuple[Tensor, Tensor]:
    """Return the gates of the last step and their utilities, of all parameters, flat.

    Args:
        optimizer: one group, ``scope="global"``, and every parameter has taken every step.
    Raises: ValueError: it is another, or no step was taken.
    """
    if len(optimizer.param_groups) != 1 or optimizer.param_groups[0]["scope"] != "global":
        raise ValueError("read_gates: expected one group with scope='global'")
    group = optimizer.param_groups[0]
    states = [optimizer.state[p] for p in group["params"] if p in optimizer.state]
    steps = {state["step"] for state in states}
    if len(steps) != 1:
        raise ValueError(f"read_gates: steps {sorted(steps)}: expected one number for all")
    utilities = [state["avg_utility"] for state in states]
    gates = gates_of(utilities, group["normalization"], group["beta_utility"], steps.pop())
    return _flat(gates), _flat(utilities)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def histogram(gates: Tensor, normalization: str, bins: int = 40) -> pd.DataFrame:
    """Return the ``share`` of gates from ``left`` to ``right``, over the normalization's range."""
    low, high = ENDS[normalization]
    counts = torch.histc(gates.double().clamp(low, high), bins, low, high)
    edges = [low + (high - low) * i / bins for i in range(bins + 1)]
    shares = (counts / gates.numel()).tolist()
    return pd.DataFrame({"left": edges[:-1], "right": edges[1:], "share": shares})


def describe(gates: Tensor, utilities: Tensor, normalization: str) -> dict[str, float]:
    """Return summary numbers of gates: ``least``, ``median`` and ``largest``, and shares.

    Returns: ``at_ends``: share of them within 1e-3 of an end of their range;
        ``unused``: share of weights whose utility is exactly 0, as of a pixel that never was on;
        ``at_ends_used``: ``at_ends`` of the others.
    """
    gates, used = gates.double(), utilities != 0
    is_at_end = torch.stack([(gates - end).abs() < 1e-3 for end in ENDS[normalization]]).any(0)
    return {
        "at_ends": is_at_end.double().mean().item(),
        "unused": 1 - used.double().mean().item(),
        "at_ends_used": is_at_end[used].double().mean().item(),
        "least": gates.min().item(),
        "median": gates.median().item(),
        "largest": gates.max().item(),
    }


def comparison(
    scale: str,
    streams: Sequence[str],
    normalizations: Sequence[str],
    lr_factors: Sequence[float],
    seeds: Iterable[int],
    **options: Any,
) -> list[ContinualConfig]:
    """Return configs of UPGD with every normalization, at its lr, tuned with minmax, times factors.

    ``options`` are for `gqc_lab.studies.continual.settings.config`.
    """
    configs = []
    for stream in streams:
        lr = continual.config(scale, stream=stream, method="upgd", **options).lr
        configs += [
            continual.config(
                scale, stream=stream, normalization=name, lr=lr * factor, seed=seed, **options
            )
            for seed in seeds
            for name in normalizations
            for factor in lr_factors
        ]
    return configs


def watch(
    config: ContinualConfig, steps: Iterable[int] = (1, 10, 100, 1000), bins: int = 40
) -> tuple[pd.DataFrame, pd.DataFrame, continual.Continual]:
    """Train with UPGD to the end, and read its gates after ``steps``, without those beyond the end.

    Returns: histograms (rows of `histogram`), numbers (of `describe`), both with ``stream``,
        ``normalization``, ``lr``, ``seed`` and ``step``; the experiment, trained.
    Raises: ValueError: another method than upgd and upgd_nonprotecting.
    """
    experiment = continual.build(config)
    if not isinstance(experiment.inner, UPGD):
        raise ValueError(f"method={config.method!r}: expected 'upgd' or 'upgd_nonprotecting'")
    wanted, bars, numbers = set(steps), [], []
    for record in experiment:
        step = record["microbatch"]
        if step in wanted:
            (gates, utilities), name = read_gates(experiment.inner), config.normalization
            where: dict[str, Any] = {"stream": config.stream, "normalization": name}
            where |= {"lr": config.lr, "seed": config.seed, "step": step}
            bars.append(histogram(gates, name, bins).assign(**where))
            numbers.append({**where, **describe(gates, utilities, name)})
    return pd.concat(bars, ignore_index=True), pd.DataFrame(numbers), experiment
