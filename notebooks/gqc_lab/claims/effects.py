"""Effects: what each part of a claim measured over seeds, with its 95 % interval.

A part **holds** where its 95 % interval lies on the claim's side of the bound, **fails** where it
lies on the other, and is **open** where the bound is inside.  Its p value is two-sided, of
Student's t over seeds against the bound; equal values of all seeds (a count, a size in bytes) have
p = 0.  Where a part has a margin, a second p is that of two one-sided tests for an effect that is
smaller than it.  These tests also decide a part whose effect has to be *within* its bound.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import duckdb
import numpy as np
import pandas as pd
import pyarrow
from scipy import stats

from gqc_lab.claims.frozen import Frozen
from gqc_lab.claims.rules import WITHIN, Claim, Part
from gqc_lab.errors import BadInput
from gqc_lab.stats.analysis import seeds_needed, t_interval

LEVEL = 0.05
#: an empty database in memory: opening one for each part took most of the time
_database = cache(partial(duckdb.connect, config={"threads": 1}))


@dataclass(frozen=True)
class Effect:
    """What a part measured.

    Args:
        mean, low, high: the effect and its interval; as a factor where the part is a ratio.
        n: seeds; p: two-sided, against the bound.
        status: holds, fails or open.
        p_none: of an effect smaller than the margin; NaN without one.
    """

    name: str
    mean: float
    low: float
    high: float
    n: int
    p: float
    status: str
    p_none: float = math.nan


def differences(
    claim: Claim, part: Part, results: Mapping[str, Frozen]
) -> tuple[np.ndarray, set[str]]:
    """Return a number per seed (the value, or its difference or log ratio) and the runs used.

    It is NaN where a row has none in a column that the value names: aggregates would skip it.
    """
    connection = _database().cursor()
    table, compare = getattr(results[part.batch], part.table), part.compare
    keys = [part.pair, *([compare.by] if compare else [])]
    shown = ", ".join(f'"{key}"' for key in keys)
    where = f"WHERE {part.where}" if part.where else ""
    named = [name for name in table if re.search(rf"(?i)\b{re.escape(name)}\b", part.value)]
    gaps = " OR ".join(["false", *(f'"{name}" IS NULL' for name in named)])
    columns = f"{shown}, {part.value} AS value, list(DISTINCT run) AS runs, bool_or({gaps}) AS gaps"
    query = f"SELECT {columns} FROM {part.table} {where} GROUP BY {shown}"
    # As Arrow: DuckDB looks at every value of a frame's columns of objects.
    connection.register(part.table, pyarrow.Table.from_pandas(table))
    try:
        frame = connection.execute(query).df()
        frame["value"] = frame["value"].astype(float).mask(frame["gaps"].astype(bool))
    except (duckdb.Error, TypeError, ValueError) as error:
        raise BadInput(f"{claim.id}: {part.name!r}: {error}") from None
    finally:
        connection.close()
    if frame[part.pair].isna().any():
        raise BadInput(f"{claim.id}: {part.name!r}: rows without a {part.pair}")
    return _by_seed(claim, part, frame)


def _by_seed(claim: Claim, part: Part, frame: pd.DataFrame) -> tuple[np.ndarray, set[str]]:
    """Pair the two groups by seed."""
    compare = part.compare
    if compare is None:
        return frame.sort_values(part.pair)["value"].to_numpy(), set(frame["runs"].explode())
    known = sorted(map(str, frame[compare.by].unique()))
    groups = {}
    for name in (compare.of, compare.against):
        mine = frame[frame[compare.by].astype(str) == str(name)]
        if mine.empty:
            raise BadInput(f"{claim.id}: {part.name!r}: no {compare.by} {name!r}; has {known}")
        groups[name] = mine.set_index(part.pair)
    of, against = groups[compare.of], groups[compare.against]
    common = of.index.intersection(against.index).sort_values()
    pair = [group.loc[common] for group in (of, against)]
    left, right = (np.log(side["value"]) if compare.ratio else side["value"] for side in pair)
    return (left - right).to_numpy(), set(pd.concat(pair)["runs"].explode())


def _t_values(part: Part, values: np.ndarray, side: str, bound: float) -> list[float]:
    """Return t for each bound, positive on the claim's side; none where nothing is known.

    Where all seeds are alike it is infinite, and NaN on the bound itself.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return []
    mean, error = float(values.mean()), float(stats.sem(values))
    if part.compare and part.compare.ratio:
        bound = math.log(bound)  # on the scale of the values
    if np.ptp(values) == 0:
        mean, error = float(values[0]), 0.0
    gaps = {"<": [bound - mean], ">": [mean - bound], WITHIN: [bound - mean, bound + mean]}[side]
    return [gap / error if error else gap * math.inf for gap in gaps]


def _p_value(t_values: Sequence[float], n: int, *, is_one_sided: bool) -> float:
    """Return the p value of the bound that is nearest, or passed furthest; 1 on the bound."""
    if not t_values:
        return math.nan
    t = np.min(t_values)
    p = stats.t.sf(t, n - 1) if is_one_sided else 2 * stats.t.sf(abs(t), n - 1)
    return 1.0 if math.isnan(t) else float(p)


def measure(part: Part, values: np.ndarray) -> Effect:
    """Return the effect of a part from its number per seed."""
    n, (low, high, _) = len(values), t_interval(values)
    mean, status, p_none = float(values.mean()) if n else math.nan, "open", math.nan
    t_values = _t_values(part, values, part.side, part.bound)
    holds = bool(t_values) and bool(np.min(t_values) > 0)
    p = _p_value(t_values, n, is_one_sided=holds and part.side == WITHIN)
    if p < LEVEL:
        status = "holds" if holds else "fails"
    if part.margin is not None:
        p_none = _p_value(_t_values(part, values, WITHIN, part.margin), n, is_one_sided=True)
    if part.compare and part.compare.ratio:
        mean, low, high = math.exp(mean), math.exp(low), math.exp(high)
    low = low if part.least is None else max(low, part.least)
    return Effect(part.name, mean, low, high, n, p, status, p_none)


def seeds_to_decide(
    parts: Sequence[Part], values: Sequence[np.ndarray], level: float
) -> int | None:
    """Return the fewest seeds that would decide a claim at ``level``; None where 1000 are too few.

    All its parts hold, one of them fails, or no effect is larger than its margin: with a power of
    0.8, if the means and deviations of ``values`` are the true ones.
    """

    def distances(part: Part, v: np.ndarray, side: str, bound: float) -> list[float]:
        return [t / math.sqrt(len(v)) for t in _t_values(part, v, side, bound)] or [math.nan]

    pairs = list(zip(parts, values, strict=True))
    rules = [distances(part, v, part.side, part.bound) for part, v in pairs]
    margins = [distances(p, v, WITHIN, p.margin) for p, v in pairs if p.margin is not None]
    ways = [rules, margins] if len(margins) == len(parts) else [rules]
    level /= len(ways)
    worst = min((d for of_part in rules for d in of_part if d == d), default=math.nan)
    needs = [seeds_needed([-worst], [level / len(parts)])]
    for way in ways:  # tests against two bounds are one-sided
        tests = [(d, level * len(of_part)) for of_part in way for d in of_part]
        needs.append(seeds_needed(*zip(*tests, strict=True)))
    return min((n for n in needs if n), default=None)
