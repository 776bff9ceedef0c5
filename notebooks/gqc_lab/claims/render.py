"""Put verdicts into words, and render them through templates.

:func:`describe_claims` says what there is to show of each claim.  The files in ``templates`` turn
it into Markdown, LaTeX and its macros, the README's blocks and the tables of notebooks.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gqc_lab.claims.effects import Effect
from gqc_lab.claims.registration import describe
from gqc_lab.claims.rules import Part
from gqc_lab.claims.verdicts import Verdict

#: verdicts in the order of their columns (:mod:`gqc_lab.claims.verdicts`)
SHOWN = (
    "reproduced", "without effect", "not reproduced", "refuted", "undecided", "question",
    "not tested",
)  # fmt: skip
LEAST_P = 1e-16  #: below, p is that of rounding, or of values that are the same for all seeds
TEMPLATES = Path(__file__).parent / "templates"
OF_CLAIM = ("group", "id", "statement", "source", "notebook", "scale", "note")


def describe_claims(
    verdicts: Sequence[Verdict], registration: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return what templates show of each claim: its texts, its verdict and its ``parts``.

    Args:
        registration: what :func:`gqc_lab.claims.registration.read_registration` gives, for the
            key ``rule``: when each was written, changed and registered.
    """
    claims = []
    for verdict in verdicts:
        claim = verdict.claim
        row = {name: getattr(claim, name) for name in OF_CLAIM}
        row |= {"shown": verdict.verdict, "verdict": verdict.verdict, "stage": verdict.stage}
        row |= {"earlier": verdict.earlier, "p": p_text(verdict), "reason": verdict.reason}
        row |= {"num_runs": verdict.num_runs, "is_tested": verdict.verdict != "not tested"}
        row["rule"] = describe(claim, registration) if registration and claim.parts else ""
        row["short"] = claim.id.partition("-")[2]
        if verdict.verdict == "undecided":
            seeds = f"{verdict.needs} seeds" if verdict.needs else "no number of seeds up to 1000"
            row["verdict"] += f" (parts: {leaning(verdict)}; {seeds} would decide)"
            row["short"] += f" ({verdict.needs or '> 1000'})"
        row["parts"] = list(map(_describe_part, claim.parts, verdict.effects or repeat(None)))
        claims.append(row)
    return claims


def _describe_part(part: Part, effect: Effect | None) -> dict[str, Any]:
    row = {"part": part.name, "bound": part.holds, "unit": part.unit}
    more = {"effect": interval(effect, part.bound), "said": say(part, effect)} if effect else {}
    return {**row, **more, **(asdict(effect) if effect else {})}


def leaning(verdict: Verdict) -> str:
    """Say whether all or some parts of a claim hold or fail, each by its own interval.

    ``disagree`` where some hold and some fail; ``say nothing`` where all are open themselves.
    """
    said = [effect.status for effect in verdict.effects]
    if {"holds", "fails"} <= set(said):
        return "disagree"
    for status in ("holds", "fails"):
        if status in said:
            return f"{'some' if 'open' in said else 'all'} {status.removesuffix('s')}"
    return "say nothing"


def p_text(verdict: Verdict) -> str:
    """Return the corrected p as ``= 0.05`` or ``< 1e-16``; empty where all seeds are alike."""
    if math.isnan(verdict.p_holm) or all(effect.low == effect.high for effect in verdict.effects):
        return ""
    return f"< {LEAST_P:g}" if verdict.p_holm < LEAST_P else f"= {number(verdict.p_holm)}"


def count(claims: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count the claims of :func:`describe_claims` with each verdict of `SHOWN`."""
    return {name: sum(claim["shown"] == name for claim in claims) for name in SHOWN}


def number(value: float, more: int = 0) -> str:
    """Format a number with 3 significant digits + ``more``, 4 or 5 near 1; commas in thousands."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else ("-inf" if value < 0 else "inf")
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-4:
        return f"{value:.2e}"
    if size >= 100:
        return f"{value:,.0f}"
    digits = 4 + (1 < size < 1.0005) if 0.95 < size < 1.05 else 3
    return f"{value:.{digits + more}g}"


def _apart_from(bound: float, value: float) -> str:
    """Format a number with as many digits as tell it from a bound."""
    pairs = ((number(value, n), number(math.copysign(bound, value), n)) for n in range(9))
    return next((own for own, other in pairs if own != other), number(value))


def interval(effect: Effect, bound: float = math.nan) -> str:
    """Format an effect as ``mean [low, high]``; as ``mean`` where both ends read the same."""
    mean, *ends = (_apart_from(bound, value) for value in (effect.mean, effect.low, effect.high))
    return mean if set(ends) <= {mean, "-"} else f"{mean} [{', '.join(ends)}]"


def say(part: Part, effect: Effect, more: str = "higher", less: str = "lower") -> str:
    """Say an effect with its direction: ``6.9 % higher [-0.3 %, +14.6 %]``.

    A comparison is a change, of ratios from 0.5 to 2 in per cent; another part a value with a unit.
    """
    is_ratio = part.compare is not None and part.compare.ratio
    values = (effect.mean, effect.low, effect.high)
    if part.compare is None or (is_ratio and not 0.5 < effect.mean < 2):
        value, _, ends = interval(effect, part.bound).partition(" ")
        return " ".join(filter(None, (value, "times as large" if is_ratio else part.unit, ends)))
    mean, low, high = (100 * (value - 1) for value in values) if is_ratio else values
    least = 1e-5 if low * high > 0 else 0.005  # the former is what float32 rounds
    if max(abs(mean), abs(low), abs(high)) <= least * is_ratio:
        return "unchanged"
    if is_ratio:  # one digit more where an end would read as zero
        digits = 2 if min(abs(mean), abs(low), abs(high)) < 0.1 else 1
        least = 0.5 / 10**digits
        shown = [
            f"{x:+.2g} %" if 0 < abs(x) <= least else f"{x:+.{digits}f} %"
            for x in (mean, low, high)
        ]
    else:
        shown = ["+" * (x > 0) + _apart_from(part.bound, x) for x in (mean, low, high)]
    words = [shown[0].lstrip("+-"), "" if is_ratio else part.unit, less if mean < 0 else more]
    if abs(mean) <= 0.05 * is_ratio and not low * high > 0:  # and the interval has 0
        words = ["unchanged on average"]
    if not math.isnan(low):  # one seed has no interval
        words.append(f"[{', '.join(shown[1:])}]")
    return " ".join(filter(None, words))


def camel(name: str) -> str:
    """Make a LaTeX macro's name of letters only: digits are spelt out."""
    digits = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
    words = [word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", name)]
    return re.sub(r"\d", lambda m: digits[int(m[0])], "".join(words))


def escape(text: str) -> str:
    """Escape plain text for LaTeX; a line ends neither after a minus nor before a per cent sign."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: "\\" + c for c in "&%$#_{}"} | {"<": r"$<$", ">": r"$>$"}
    special |= {"≤": r"$\le$", "≥": r"$\ge$", "×": r"$\times$", "°": r"$^\circ$", "≈": r"$\approx$"}
    escaped = "".join(special.get(character, character) for character in text)
    return re.sub(r"(?<![\w.)}-])-(?=\d)", "$-$", escaped).replace(r" \%", r"~\%")


def powers(text: str) -> str:
    """Write 1e-06 in a rule as a power of ten, for LaTeX's mathematics."""
    power = re.sub(r"e([+-]\d+)", lambda m: rf"\cdot 10^{{{int(m[1])}}}", text)
    return re.sub(r"(^| )1\\cdot ", r"\1", power)


def table_row(cells: Sequence[object]) -> str:
    """Format a line of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def render(
    template: str, *, claims: Sequence[Mapping[str, Any]] | None = None, **values: Any
) -> str:
    """Render ``templates/<template>`` with these values.

    Claims of :func:`describe_claims` become ``groups``, pairs of a group's name and its claims, and
    ``counts`` of their verdicts.
    """
    if claims is not None:
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for claim in claims:
            groups.setdefault(claim["group"], []).append(claim)
        values |= {"groups": list(groups.items()), "counts": count(claims)}
    return _templates().get_template(template).render(**values)


@cache
def _templates() -> Environment:
    """Use brackets that neither LaTeX nor Markdown uses."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        line_statement_prefix="%%",
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"camel": camel, "tex": escape, "powers": powers, "row": table_row}
    environment.filters |= {"number": number}
    return environment
