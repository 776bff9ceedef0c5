r"""Verdicts: each part's effect with its 95 % interval, and what they say of the claim together.

A part **holds** where its effect lies on the claim's side of the bound and Holm's correction over
all parts of all claims leaves p < 0.05; it **fails** where the same is true of the other side; else
it is **unresolved**.  The p value is two-sided, of Student's t over seeds against the bound; equal
values of all seeds (a count, a size in bytes) have p = 0.  A claim is *reproduced* where all its
parts hold, *refuted* where all fail, *not tested* at this scale where there are none, and *mixed*
otherwise: where parts disagree or the seeds leave them open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from gqc.lab.analysis import holm, summarize
from gqc.lab.claims.frozen import Frozen
from gqc.lab.claims.rules import SIDES, Claim, Part
from gqc.lab.runs.parameters import BadInput

LEVEL = 0.05
VERDICTS = ("reproduced", "refuted", "mixed", "not tested")


@dataclass(frozen=True)
class Effect:
    """What a part measured.

    Args:
        mean, low, high: the effect and its interval; as a factor where the part is a ratio.
        n: seeds; p, p_holm: against the bound, by itself and among all parts.
        status: holds, fails or unresolved.
    """

    name: str
    mean: float
    low: float
    high: float
    n: int
    p: float
    p_holm: float
    status: str


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict, its effects and how many runs they come from.

    Args:
        reason: why it was not tested, if so.
    """

    claim: Claim
    verdict: str
    effects: tuple[Effect, ...] = ()
    num_runs: int = 0
    reason: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON: id, verdict, number of runs, effects."""
        effects = [asdict(effect) for effect in self.effects]
        return {"id": self.claim.id, "verdict": self.verdict, "num_runs": self.num_runs,
                "effects": effects}  # fmt: skip


def evaluate(claims: Sequence[Claim], results: Mapping[str, Frozen]) -> list[Verdict]:
    """A verdict for each claim, from the committed results alone.

    A claim that needs a batch of which none are committed is not tested, and says so.

    Raises: BadInput: an SQL expression fails, or a group that is compared is not there.
    """
    reasons = [_untested(claim, results) for claim in claims]
    tested = [claim for claim, reason in zip(claims, reasons, strict=True) if not reason]
    decided = iter(_decide(tested, results))
    return [
        Verdict(claim, "not tested", reason=reason) if reason else next(decided)
        for claim, reason in zip(claims, reasons, strict=True)
    ]


def _untested(claim: Claim, results: Mapping[str, Frozen]) -> str:
    missing = sorted({part.batch for part in claim.parts} - results.keys())
    return claim.not_tested or (f"no committed results of {', '.join(missing)}" if missing else "")


def _decide(claims: Sequence[Claim], results: Mapping[str, Frozen]) -> list[Verdict]:
    values = [[_differences(claim, part, results) for part in claim.parts] for claim in claims]
    p_values = [_p_value(d, p) for c, row in zip(claims, values, strict=True)
                for d, p in zip(row, c.parts, strict=True)]  # fmt: skip
    corrected = iter(zip(p_values, holm(p_values) if p_values else [], strict=True))
    verdicts = []
    for claim, row in zip(claims, values, strict=True):
        effects = tuple(
            _effect(part, d, *next(corrected)) for part, d in zip(claim.parts, row, strict=True)
        )
        if not any(effect.n for effect in effects):
            verdicts.append(Verdict(claim, "not tested", reason="its runs are not finished"))
            continue
        batches = {part.batch for part in claim.parts}
        num_runs = sum(len(results[name].runs) for name in batches)
        verdicts.append(Verdict(claim, _together(effects), effects, num_runs))
    return verdicts


def changes(verdicts: Sequence[Verdict], committed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines that say where verdicts or numbers differ from the committed ones; none: they agree.

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
    if isinstance(old, float | int) and isinstance(new, float | int):
        both_nan = math.isnan(old) and math.isnan(new)
        if both_nan or math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-12):
            return []
    return [] if old == new else [f"{name} is committed as {old!r}, the results give {new!r}"]


def _differences(claim: Claim, part: Part, results: Mapping[str, Frozen]) -> np.ndarray:
    """One number for each seed: the value, or its (log) difference between the two groups."""
    import duckdb

    frozen, compare = results[part.batch], part.compare
    keys = [part.pair, *([compare.by] if compare else [])]
    shown = ", ".join(f'"{key}"' for key in keys)
    where = f"WHERE {part.where}" if part.where else ""
    query = f"SELECT {shown}, {part.value} AS value FROM {part.table} {where} GROUP BY {shown}"
    with duckdb.connect() as connection:
        connection.register(part.table, getattr(frozen, part.table))
        try:
            frame = connection.execute(query).df()
        except duckdb.Error as error:
            raise BadInput(f"{claim.id}: {part.name!r}: {error}") from None
    is_partial = frozen.record.get("missing", 0) > 0
    return _by_seed(claim, part, frame.astype({"value": float}), is_partial)


def _by_seed(claim: Claim, part: Part, frame: pd.DataFrame, is_partial: bool) -> np.ndarray:
    """Empty where a group is among the runs that are missing."""
    compare = part.compare
    if compare is None:
        return frame.sort_values(part.pair)["value"].to_numpy()
    known = sorted(map(str, frame[compare.by].unique()))
    groups = {}
    for name in (compare.of, compare.against):
        mine = frame[frame[compare.by].astype(str) == str(name)]
        if mine.empty and is_partial:
            return np.empty(0)
        if mine.empty:
            raise BadInput(f"{claim.id}: {part.name!r}: no {compare.by} {name!r}; has {known}")
        groups[name] = mine.set_index(part.pair)["value"]
    of, against = groups[compare.of], groups[compare.against]
    common = of.index.intersection(against.index).sort_values()
    pairs = np.stack([of[common].to_numpy(), against[common].to_numpy()])
    left, right = np.log(pairs) if compare.ratio else pairs
    return left - right


def _bound(part: Part) -> float:
    return math.log(part.bound) if part.compare and part.compare.ratio else part.bound


def _p_value(values: np.ndarray, part: Part) -> float:
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    if np.ptp(values) == 0:
        return 1.0 if values[0] == _bound(part) else 0.0
    error = values.std(ddof=1) / math.sqrt(len(values))
    return 2 * float(stats.t.sf(abs(values.mean() - _bound(part)) / error, len(values) - 1))


def _effect(part: Part, values: np.ndarray, p: float, p_holm: float) -> Effect:
    mean, low, high = math.nan, math.nan, math.nan
    if len(values):
        row = summarize(pd.DataFrame({"all": 0, "value": values}), "all", "value").iloc[0]
        mean, low, high = float(row["mean"]), float(row["low"]), float(row["high"])
    status = "unresolved"
    if p_holm < LEVEL:
        status = "holds" if SIDES[part.side](mean, _bound(part)) else "fails"
    if part.compare and part.compare.ratio:
        mean, low, high = math.exp(mean), math.exp(low), math.exp(high)
    return Effect(part.name, mean, low, high, len(values), p, float(p_holm), status)


def _together(effects: Sequence[Effect]) -> str:
    statuses = {effect.status for effect in effects}
    if statuses == {"holds"}:
        return "reproduced"
    return "refuted" if statuses == {"fails"} else "mixed"
