r"""Verdicts: what the effects of a claim's parts (:mod:`gqc_lab.claims.effects`) say together.

A verdict covers all m parts of a claim at once, and is corrected for the other claims.  A claim is
true if all its parts are, and false if one is not:

.. math:: p_r = m \min_{i\,\mathrm{fails}} p_i \text{ where a part fails (Bonferroni), else }
          \max_i p_i \text{ (intersection and union).}

Where all parts have a margin, their effects are all smaller with :math:`p_0 = \max_i p_{0,i}`, and
the claim has :math:`p = \min(1, 2 \min(p_r, p_0))`.  Where Holm's correction over the tested claims
leaves p < 0.05, the verdict is

- **without effect**: no effect is larger than the margin;
- **reproduced**: all parts hold;
- **refuted**, of a statement about algebra, code or definitions: a part fails;
- **not reproduced**, of an effect on training: a part fails, at this scale.

Else the claim is **undecided**, and :attr:`Verdict.needs` says how many seeds would decide it with
a power of 0.8, if the effects and their spread are as seen and its parts vary independently.  A
**question** is measured, but has no verdict and does not count for the correction.

The verdict is that of a claim's confirmatory runs (:mod:`gqc_lab.claims.registration`) as soon as
all its batches have some; that of the others is then shown as the earlier one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from gqc_lab.claims.effects import LEVEL, Effect, differences, measure, seeds_to_decide
from gqc_lab.claims.frozen import Frozen
from gqc_lab.claims.rules import Claim
from gqc_lab.stats.analysis import holm


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict, its effects and how many runs they come from.

    Args:
        p, p_holm: of the verdict, by itself and among all tested claims; NaN where not tested.
        reason: why it was not tested, if so.
        stage: exploratory or confirmatory, of the runs that decide it.
        earlier: the exploratory verdict of a claim that has a confirmatory one.
        needs: seeds that would decide an undecided claim; None where 1000 are too few.
    """

    claim: Claim
    verdict: str
    effects: tuple[Effect, ...] = ()
    num_runs: int = 0
    p: float = math.nan
    p_holm: float = math.nan
    reason: str = ""
    stage: str = "exploratory"
    earlier: str = ""
    needs: int | None = None

    def plain(self) -> dict[str, Any]:
        """Return what is committed as JSON: id, verdict, number of runs, effects."""
        effects = [asdict(effect) for effect in self.effects]
        numbers = {"num_runs": self.num_runs, "effects": effects}
        if effects:
            numbers |= {"p": self.p, "p_holm": self.p_holm, "needs": self.needs}
        stage = {"stage": self.stage, "earlier": self.earlier}
        return {"id": self.claim.id, "verdict": self.verdict, **stage, **numbers}

    @classmethod
    def of_plain(cls, claim: Claim, row: Mapping[str, Any]) -> Self:
        """Rebuild the verdict that :meth:`plain` wrote."""

        def numbers(row: Mapping[str, Any]) -> dict[str, Any]:
            return {k: math.nan if v is None else v for k, v in row.items()}  # JSON has no NaN

        keys = {"num_runs", "p", "p_holm", "stage", "earlier"} & row.keys()
        known = numbers({key: row[key] for key in keys})
        known |= {"reason": claim.not_tested, "needs": row.get("needs")}
        effects = tuple(Effect(**numbers(effect)) for effect in row["effects"])
        return cls(claim, row["verdict"], effects, **known)


def evaluate(claims: Sequence[Claim], results: Mapping[str, Frozen]) -> list[Verdict]:
    """Decide each claim from the committed results alone.

    A claim that needs a batch without committed results is not tested, and says so.

    Raises: BadInput: an SQL expression fails, or a group that is compared is not there.
    """
    chosen = [_stages(claim, results) for claim in claims]
    explored = _evaluate(claims, [stages["exploratory"] for stages in chosen])
    if not any("confirmatory" in stages for stages in chosen):
        return explored
    last = [stages.get("confirmatory", stages["exploratory"]) for stages in chosen]
    return [
        replace(new, stage="confirmatory", earlier=new.claim.earlier or old.verdict)
        if "confirmatory" in stages
        else new
        for new, old, stages in zip(_evaluate(claims, last), explored, chosen, strict=True)
    ]


def _stages(claim: Claim, results: Mapping[str, Frozen]) -> dict[str, dict[str, Frozen]]:
    """Return the results of each stage that a claim has, by batch."""
    mine = {part.batch: results[part.batch] for part in claim.parts if part.batch in results}
    fresh = {name: frozen.confirmatory(claim.id, claim.rule) for name, frozen in mine.items()}
    old = {
        name: frozen.only({run["id"] for run in frozen.runs} - fresh[name])
        for name, frozen in mine.items()
        if fresh[name]
    }
    if mine and all(fresh.values()):
        explored = {name: frozen for name, frozen in old.items() if frozen.runs}
        decided = {name: mine[name].only(ids) for name, ids in fresh.items()}
        return {"exploratory": explored, "confirmatory": decided}
    # Until all batches have fresh runs, one that has no others counts with them.
    return {"exploratory": mine | {name: frozen for name, frozen in old.items() if frozen.runs}}


def _evaluate(claims: Sequence[Claim], results: Sequence[Mapping[str, Frozen]]) -> list[Verdict]:
    reasons = list(map(_untested, claims, results))
    tested = sum(not r and c.kind != "question" for c, r in zip(claims, reasons, strict=True))
    verdicts = []
    for claim, reason, mine in zip(claims, reasons, results, strict=True):
        found = [differences(claim, part, mine) for part in (() if reason else claim.parts)]
        if any(len(values) for values, _ in found):
            effects = [measure(p, v) for p, (v, _) in zip(claim.parts, found, strict=True)]
            used: set[str] = set().union(*(runs for _, runs in found))
            p = math.nan if claim.kind == "question" else _p_together(effects)
            level, needs = LEVEL / max(tested, 1), None
            if p >= level:  # it may stay undecided
                needs = seeds_to_decide(claim.parts, [v for v, _ in found], level)
            verdicts.append(Verdict(claim, "", tuple(effects), len(used), p, needs=needs))
        else:
            reason = reason or "the results have no rows for it"
            verdicts.append(Verdict(claim, "not tested", reason=reason))
    corrected = map(float, holm([verdict.p for verdict in verdicts]))
    return [_corrected(v, p) if v.effects else v for v, p in zip(verdicts, corrected, strict=True)]


def _corrected(verdict: Verdict, p_holm: float) -> Verdict:
    found = _together(verdict.claim, verdict.effects, verdict.p, p_holm)
    needs = verdict.needs if found == "undecided" else None
    return replace(verdict, verdict=found, p_holm=p_holm, needs=needs)


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
    if old is None and new is not None:
        old = math.nan  # as JSON has it
    if isinstance(old, float | int) and isinstance(new, float | int):
        both_nan = math.isnan(old) and math.isnan(new)
        if both_nan or math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-12):
            return []
    return [] if old == new else [f"{name} is committed as {old!r}, the results give {new!r}"]


def _p_of_none(effects: Sequence[Effect]) -> float:
    """Return the p value that all effects are smaller than their margins; 1 without one."""
    return max(1.0 if math.isnan(effect.p_none) else effect.p_none for effect in effects)


def _p_together(effects: Sequence[Effect]) -> float:
    """Combine the p values of all parts as the module says; 1 if nothing is known."""
    if fails := [effect.p for effect in effects if effect.status == "fails"]:
        p = min(1.0, len(effects) * min(fails))
    else:
        p = max(1.0 if math.isnan(effect.p) else effect.p for effect in effects)
    if any(math.isnan(effect.p_none) for effect in effects):
        return p
    return min(1.0, 2 * min(p, _p_of_none(effects)))


def _together(claim: Claim, effects: Sequence[Effect], p: float, p_holm: float) -> str:
    if claim.kind == "question":
        return "question"
    if not p_holm < LEVEL:
        return "undecided"
    # The same factor as Holm's has to leave the second of the two tests significant.
    factor = p_holm / p if p else 1.0
    if 2 * _p_of_none(effects) * factor < LEVEL:
        return "without effect"
    if {effect.status for effect in effects} == {"holds"}:
        return "reproduced"
    return "refuted" if claim.kind == "statement" else "not reproduced"
