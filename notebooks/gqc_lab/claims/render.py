"""Put verdicts into one frame, and render it through templates.

:func:`verdict_frame` has a row for each number that decides a claim.  The files in ``templates``
turn it into Markdown, LaTeX and its macros, the README's blocks and the tables of notebooks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gqc_lab.claims.effects import Effect
from gqc_lab.claims.registration import describe
from gqc_lab.claims.verdicts import Verdict

if TYPE_CHECKING:
    from jinja2 import Environment

    from gqc_lab.claims.rules import Part

#: verdicts in the order of their columns (:mod:`gqc_lab.claims.verdicts`)
SHOWN = (
    "reproduced", "without effect", "not reproduced", "refuted", "undecided", "question",
    "not tested",
)  # fmt: skip
LEAST_P = 1e-16  #: below, p is that of rounding, or of values that are the same for all seeds
TEMPLATES = Path(__file__).parent / "templates"
OF_CLAIM = ["group", "id", "statement", "source", "notebook", "scale", "note", "shown", "leaning"]
OF_CLAIM += ["verdict", "stage", "earlier", "rule", "p", "reason", "num_runs", "short"]
NUMBERS = ["mean", "low", "high", "n"]
OF_PART = ["part", "bound", "unit", *NUMBERS, "status", "effect", "said"]


def verdict_frame(
    verdicts: Sequence[Verdict], registration: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Return a row for each part of each claim; a claim without parts has one row.

    Args:
        registration: what :func:`gqc_lab.claims.registration.read_registration` gives, for the
            column ``rule``: when each was written, changed and registered.
    Returns: columns `OF_CLAIM`, the same in all rows of a claim, with ``verdict``, ``p`` and
        ``short`` (the name in a list) as text; then `OF_PART`, with ``effect`` as text
        (``mean [low, high]``) and as :func:`say` puts it, empty or NaN where nothing was measured.
    """
    rows = []
    for verdict in verdicts:
        claim = verdict.claim
        texts = {name: getattr(claim, name) for name in OF_CLAIM[:7]}
        texts |= {"leaning": leaning(verdict), "p": p_text(verdict), "stage": verdict.stage}
        texts |= {"shown": verdict.verdict, "verdict": verdict.verdict, "earlier": verdict.earlier}
        texts |= {"rule": describe(claim, registration) if registration and claim.parts else ""}
        texts["short"] = claim.id.partition("-")[2]
        if verdict.verdict == "undecided":
            seeds = f"{verdict.needs} seeds" if verdict.needs else "more than 1000 seeds"
            texts["verdict"] += f" (parts: {leaning(verdict)}; {seeds} would decide)"
            texts["short"] += f" ({verdict.needs or '> 1000'})"
        texts |= {"reason": verdict.reason, "num_runs": verdict.num_runs}
        texts |= {name: "" for name in OF_PART if name not in NUMBERS}
        for part, effect in zip(claim.parts, verdict.effects or repeat(None), strict=False):
            row = texts | {"part": part.name, "bound": part.holds, "unit": part.unit}
            if effect:
                row |= {"effect": interval(effect), "said": say(part, effect)}
                row |= {name: getattr(effect, name) for name in (*NUMBERS, "status")}
            rows.append(row)
        if not claim.parts:
            rows.append(texts)
    kinds = dict.fromkeys(NUMBERS, "float") | {"n": "Int64"}
    return pd.DataFrame(rows, columns=OF_CLAIM + OF_PART).astype(kinds)


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
    """Return the corrected p as ``= 0.05`` or ``< 1e-16``; empty where nothing was tested."""
    if not verdict.effects or math.isnan(verdict.p_holm):
        return ""
    return f"< {LEAST_P:g}" if verdict.p_holm < LEAST_P else f"= {number(verdict.p_holm)}"


def count(frame: pd.DataFrame) -> dict[str, int]:
    """Count the claims with each verdict of `SHOWN`."""
    found = frame.drop_duplicates("id")["shown"].value_counts()
    return {name: int(found.get(name, 0)) for name in SHOWN}


def number(value: float) -> str:
    """Format a number with three significant digits, and commas between thousands."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else ("-inf" if value < 0 else "inf")
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-4:
        return f"{value:.2e}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def interval(effect: Effect) -> str:
    """Format an effect as ``mean [low, high]``; as ``mean`` where both ends read the same."""
    mean, *ends = map(number, (effect.mean, effect.low, effect.high))
    return mean if set(ends) <= {mean, "-"} else f"{mean} [{', '.join(ends)}]"


def say(part: Part, effect: Effect, more: str = "higher", less: str = "lower") -> str:
    """Say an effect with its direction: ``6.9 % higher [-0.3 %, +14.6 %]``.

    A comparison is a change, of ratios from 0.5 to 2 in per cent; another part a value with a unit.
    """
    is_ratio = part.compare is not None and part.compare.ratio
    values = (effect.mean, effect.low, effect.high)
    if part.compare is None or (is_ratio and not 0.5 < effect.mean < 2):
        value, _, ends = interval(effect).partition(" ")
        return " ".join(filter(None, (value, "times as large" if is_ratio else part.unit, ends)))
    mean, low, high = (100 * (value - 1) for value in values) if is_ratio else values
    if is_ratio and abs(mean) < 0.05:
        is_exact = max(abs(low), abs(high)) < 0.005
        return "unchanged" if is_exact else f"unchanged [{low:+.2f} %, {high:+.2f} %]"
    which = less if mean < 0 else more
    if is_ratio:  # one digit more where an end would read as zero
        digits = 2 if min(abs(mean), abs(low), abs(high)) < 0.1 else 1
        return f"{abs(mean):.{digits}f} % {which} [{low:+.{digits}f} %, {high:+.{digits}f} %]"
    ends = ", ".join(f"{'+' * (end > 0)}{number(end)}" for end in (low, high))
    return " ".join(filter(None, (number(abs(mean)), part.unit, which, f"[{ends}]")))


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


def render(template: str, **values: Any) -> str:
    """Render ``templates/<template>`` with these values.

    A ``frame`` of :func:`verdict_frame` is handed to the template as ``groups`` too: pairs of a
    group's name and its claims, each a mapping of `OF_CLAIM` and ``parts``, the list of its rows.
    """
    if "frame" in values:
        values |= {"groups": _nested(values["frame"]), "counts": count(values["frame"])}
    return _templates().get_template(template).render(**values)


def _nested(frame: pd.DataFrame) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for _, rows in frame.groupby("id", sort=False):
        parts = [part for part in rows.to_dict("records") if part["part"]]
        claim = {str(k): v for k, v in rows.iloc[0][OF_CLAIM].items()} | {"parts": parts}
        claim["is_tested"] = claim["shown"] != "not tested"
        groups.setdefault(claim["group"], []).append(claim)
    return list(groups.items())


@cache
def _templates() -> Environment:
    """Use brackets that neither LaTeX nor Markdown uses."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

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
