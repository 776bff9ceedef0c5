r"""Does a normalization keep the order of protection: the more useful a weight, the better?

Of utilities by construction (`gqc_lab.studies.continual.upgd_gates`), and of random ones:
Spearman's rank correlation between utility and protection, 1 - gate.  It is 1 where the order is
kept, -1 where it is reversed; ties, as of gates that have saturated, take from it, and equal
gates have no order: 0.
"""

import math
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from gqc.upgd.utility import NORMALIZATIONS
from gqc_lab.loop.placement import find_dtype, make_generator
from gqc_lab.studies.continual.upgd_gates import constructed_gates, gates_of, order_of_protection

BETA = 0.999  #: decay of the average utility, UPGD's default
WHEN = {"first": 1, "late": 100_000}  #: steps; at the later one bias corrections are 1

#: what the claim names, of the cases by construction
CASES = ("negative", "mixed", "extreme")

#: name -> bias-corrected utilities from uniform numbers in (0, 1)
RANDOM: dict[str, Callable[[Tensor], Tensor]] = {
    "negative": lambda u: -torch.exp(_normal(u)),
    "mixed": lambda u: _normal(u),
    "extreme": lambda u: torch.tan(math.pi * (u - 0.5)),  # Cauchy's, which have no mean
}


def constructed_orders() -> pd.DataFrame:
    """Return the orders of protection in `CASES`, at the first step and late, in float64.

    Returns: a row each: ``case``, ``normalization``, ``when``, ``order`` (as of
        `upgd_gates.order_of_protection`), ``is_kept``, ``correlation``.
    """
    tables = []
    for when, step in WHEN.items():
        gates = constructed_gates(beta=BETA, step=step)
        gates = gates[gates["case"].isin(CASES)]
        orders = order_of_protection(gates)[["case", "normalization", "order"]]
        groups = gates.groupby(["case", "normalization"], sort=False)[["utility", "gate"]]
        ranks = [correlation(g["utility"].tolist(), g["gate"].tolist()) for _, g in groups]
        tables.append(orders.assign(when=when, correlation=ranks))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(is_kept=table["order"] == "kept")


def random_orders(num_weights: int = 1000, seed: int = 0, dtype: str = "float32") -> pd.DataFrame:
    """Return the rank correlations of random utilities, at the first step and late.

    Returns: a row each: ``case``, ``normalization``, ``when``, ``correlation``.
    """
    rows = []
    for case, shape in RANDOM.items():
        generator = make_generator(seed, f"utilities, {case}")
        uniform = torch.rand(num_weights, generator=generator, dtype=torch.float64)
        corrected = shape(uniform.clamp(1e-12, 1 - 1e-12))
        for normalization in NORMALIZATIONS:
            for when, step in WHEN.items():
                average = (corrected * (1 - BETA**step)).to(find_dtype(dtype))
                (gates,) = gates_of([average], normalization, BETA, step)
                rank = correlation(average.tolist(), gates.tolist())
                row = {"case": case, "normalization": normalization, "when": when}
                rows.append({**row, "correlation": rank})
    return pd.DataFrame(rows)


def correlation(utilities: Sequence[float], gates: Sequence[float]) -> float:
    """Return Spearman's rank correlation of utility and protection; 0 for equal gates."""
    if len(set(gates)) == 1:
        return 0.0
    return float(stats.spearmanr(utilities, [-gate for gate in gates]).statistic)


def _normal(uniform: Tensor) -> Tensor:
    return math.sqrt(2) * torch.erfinv(2 * uniform - 1)
