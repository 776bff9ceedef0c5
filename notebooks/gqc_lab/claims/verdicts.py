r"""Verdicts: each part's effect with its 95 % interval, and what they say of the claim together.

A part **holds** where its 95 % interval lies on the claim's side of the bound, **fails** where it
lies on the other, and is **open** where the bound is inside.  Its p value is two-sided, of
Student's t over seeds against the bound; equal values of all seeds (a count, a size in bytes) have
p = 0.

A verdict covers all m parts of a claim at once, and is corrected for the other claims.  A claim is
true if all its parts are, and false if one is not:

.. math:: p = m \min_{i\,\mathrm{fails}} p_i \text{ where a part fails (Bonferroni), else }
          \max_i p_i \text{ (intersection and union).}

Where Holm's correction over the tested claims leaves p < 0.05 it is known which: the claim is
**reproduced** (all parts hold), **refuted** (some fail and none holds) or **mixed** (some fail and
some hold).  That a true claim is called refuted or mixed, or a false one reproduced, is as unlikely
as the corrected p says; refuted and mixed are told apart by the parts' own intervals.  Else the
claim is mixed too, and **open**: the seeds do not tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from gqc_lab.claims.frozen import Frozen
from gqc_lab.claims.rules import SIDES, Claim, Part
from gqc_lab.errors import BadInput
from gqc_lab.stats.analysis import holm, summarize

LEVEL = 0.05


@dataclass(frozen=True)
class Effect:
    """What a part measured.

    Args:
        mean, low, high: the effect and its interval; as a factor where the part is a ratio.
        n: seeds; p: two-sided, against the bound.
        status: holds, fails or open.
    """

    name: str
    mean: float
    low: float
    high: float
    n: int
    p: float
    status: str


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict, its effects and how many runs they come from.

    Args:
        p, p_holm: of the verdict, by itself and among all tested claims; NaN where not tested.
        reason: why it was not tested, if so.
    """

    claim: Claim
    verdict: str
    effects: tuple[Effect, ...] = ()
    num_runs: int = 0
    p: float = math.nan
    p_holm: float = math.nan
    reason: str = ""

    @property
    def is_open(self) -> bool:
        """Whether the claim was tested and these seeds do not decide it."""
        return bool(self.effects) and not self.p_holm < LEVEL

    def plain(self) -> dict[str, Any]:
        """Return what is committed as JSON: id, verdict, number of runs, effects."""
        effects = [asdict(effect) for effect in self.effects]
        numbers = {"num_runs": self.num_runs, "effects": effects}
        if effects:
            numbers |= {"p": self.p, "p_holm": self.p_holm, "is_open": self.is_open}
        return {"id": self.claim.id, "verdict": self.verdict, **numbers}

    @classmethod
    def of_plain(cls, claim: Claim, row: Mapping[str, Any]) -> Verdict:
        """Rebuild the verdict that :meth:`plain` wrote."""
        rows: list[dict[str, Any]] = [
            {key: math.nan if value is None else value for key, value in effect.items()}
            for effect in row["effects"]  # JSON has null for NaN
        ]
        effects = tuple(Effect(**effect) for effect in rows)
        numbers = {key: row[key] for key in ("num_runs", "p", "p_holm") if key in row}
        return cls(claim, row["verdict"], effects, **numbers, reason=claim.not_tested)


def evaluate(claims: Sequence[Claim], results: Mapping[str, Frozen]) -> list[Verdict]:
    """Decide each claim from the committed results alone.

    A claim that needs a batch without committed results is not tested, and says so.

    Raises: BadInput: an SQL expression fails, or a group that is compared is not there.
    """
    reasons = [_untested(claim, results) for claim in claims]
    effects, runs = [], []
    for claim, reason in zip(claims, reasons, strict=True):
        parts = () if reason else claim.parts
        measured = [_differences(claim, part, results) for part in parts]
        effects.append(tuple(map(_effect, parts, [values for values, _ in measured])))
        runs.append(set().union(*(used for _, used in measured)))
    p_values = [_p_together(row) for row in effects if _is_measured(row)]
    corrected = iter(zip(p_values, holm(p_values) if p_values else [], strict=True))
    verdicts = []
    for claim, reason, row, used in zip(claims, reasons, effects, runs, strict=True):
        if not _is_measured(row):
            reason = reason or "its runs are not finished"
            verdicts.append(Verdict(claim, "not tested", reason=reason))
            continue
        p, p_holm = map(float, next(corrected))
        verdicts.append(Verdict(claim, _together(row, p_holm), row, len(used), p, p_holm))
    return verdicts


def _untested(claim: Claim, results: Mapping[str, Frozen]) -> str:
    missing = sorted({part.batch for part in claim.parts} - results.keys())
    return claim.not_tested or (f"no committed results of {', '.join(missing)}" if missing else "")


def changes(verdicts: Sequence[Verdict], committed: Sequence[Mapping[str, Any]]) -> list[str]:
    """List where verdicts or numbers differ from the committed ones.

    Numbers agree within 1e-6 of themselves.
    """
    old = {row["id"]: row for row in committed}
    new = {verdict.claim.id: verdict.plain() for verdict in verdicts}
    lines = [f"{key}: is not in the committed verdicts" for key in new if key not in old]
    lines += [f"{key}: is committed, but no claim any more" for key in old if key not in new]
    for key in new.keys() & old.keys():
        lines += [f"{key}: {line}" for line in _differing(old[key], new[key])]
    return sorted(lines)


def _differing(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return [line for k in new for line in _differing(old[k], new[k], f"{name} {k}".strip())]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True), start=1)
        return [line for i, (a, b) in pairs for line in _differing(a, b, f"{name} {i}")]
    old = math.nan if old is None else old  # as JSON has it
    if isinstance(old, float | int) and isinstance(new, float | int):
        both_nan = math.isnan(old) and math.isnan(new)
        if both_nan or math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-12):
            return []
    return [] if old == new else [f"{name} is committed as {old!r}, the results give {new!r}"]


def _differences(
    claim: Claim, part: Part, results: Mapping[str, Frozen]
) -> tuple[np.ndarray, set[str]]:
    """Return a number per seed (the value, or its difference or log ratio) and the runs used."""
    import duckdb

    frozen, compare = results[part.batch], part.compare
    keys = [part.pair, *([compare.by] if compare else [])]
    shown = ", ".join(f'"{key}"' for key in keys)
    where = f"WHERE {part.where}" if part.where else ""
    columns = f"{shown}, {part.value} AS value, list(DISTINCT run) AS runs"
    query = f"SELECT {columns} FROM {part.table} {where} GROUP BY {shown}"
    with duckdb.connect() as connection:
        connection.register(part.table, getattr(frozen, part.table))
        try:
            frame = connection.execute(query).df()
        except duckdb.Error as error:
            raise BadInput(f"{claim.id}: {part.name!r}: {error}") from None
    is_partial = frozen.record.get("missing", 0) > 0
    return _by_seed(claim, part, frame.astype({"value": float}), is_partial)


def _by_seed(
    claim: Claim, part: Part, frame: pd.DataFrame, is_partial: bool
) -> tuple[np.ndarray, set[str]]:
    """Pair the two groups by seed; empty if one of them is among the missing runs."""
    compare = part.compare
    if compare is None:
        return frame.sort_values(part.pair)["value"].to_numpy(), set(frame["runs"].explode())
    known = sorted(map(str, frame[compare.by].unique()))
    groups = {}
    for name in (compare.of, compare.against):
        mine = frame[frame[compare.by].astype(str) == str(name)]
        if mine.empty and is_partial:
            return np.empty(0), set()
        if mine.empty:
            raise BadInput(f"{claim.id}: {part.name!r}: no {compare.by} {name!r}; has {known}")
        groups[name] = mine.set_index(part.pair)
    of, against = groups[compare.of], groups[compare.against]
    common = of.index.intersection(against.index).sort_values()
    pair = [group.loc[common] for group in (of, against)]
    left, right = (np.log(side["value"]) if compare.ratio else side["value"] for side in pair)
    return (left - right).to_numpy(), set(pd.concat(pair)["runs"].explode())


def _bound(part: Part) -> float:
    return math.log(part.bound) if part.compare and part.compare.ratio else part.bound


def _p_value(values: np.ndarray, part: Part) -> float:
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    if np.ptp(values) == 0:
        return 1.0 if values[0] == _bound(part) else 0.0
    error = values.std(ddof=1) / math.sqrt(len(values))
    return 2 * float(stats.t.sf(abs(values.mean() - _bound(part)) / error, len(values) - 1))


def _effect(part: Part, values: np.ndarray) -> Effect:
    mean, low, high = math.nan, math.nan, math.nan
    if len(values):
        row = summarize(pd.DataFrame({"all": 0, "value": values}), "all", "value").iloc[0]
        mean, low, high = float(row["mean"]), float(row["low"]), float(row["high"])
    p, status = _p_value(values, part), "open"
    if p < LEVEL:
        status = "holds" if SIDES[part.side](mean, _bound(part)) else "fails"
    if part.compare and part.compare.ratio:
        mean, low, high = math.exp(mean), math.exp(low), math.exp(high)
    return Effect(part.name, mean, low, high, len(values), p, status)


def _is_measured(effects: Sequence[Effect]) -> bool:
    return any(effect.n for effect in effects)


def _p_together(effects: Sequence[Effect]) -> float:
    """Combine the p values of all parts as the module says; 1 if nothing is known."""
    if fails := [effect.p for effect in effects if effect.status == "fails"]:
        return min(1.0, len(effects) * min(fails))
    return max(1.0 if math.isnan(effect.p) else effect.p for effect in effects)


def _together(effects: Sequence[Effect], p: float) -> str:
    statuses = {effect.status for effect in effects}
    if p < LEVEL and statuses == {"holds"}:
        return "reproduced"
    return "refuted" if p < LEVEL and "holds" not in statuses else "mixed"
