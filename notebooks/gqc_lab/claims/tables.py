"""The claims and their verdicts as Markdown, LaTeX and HTML, and as macros for the paper's text."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

from gqc_lab.claims.verdicts import Effect, Verdict


def number(value: float) -> str:
    """Three significant digits; thousands with commas; text for what is not finite."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else ("-inf" if value < 0 else "inf")
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.2e}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def interval(effect: Effect) -> str:
    """``mean [low, high]``."""
    bounds = f" [{number(effect.low)}, {number(effect.high)}]"
    return number(effect.mean) + (bounds if math.isfinite(effect.low) else "")


def _rows(verdict: Verdict) -> list[tuple[str, str, str]]:
    """(what, rule, effect) of each part; none where the claim was not tested."""
    rows = []
    for part, effect in zip(verdict.claim.parts, verdict.effects, strict=False):
        unit = f" {part.unit}" if part.unit else ""
        measured = f"{interval(effect)}{unit}, n = {effect.n}: {effect.status}"
        rows.append((part.name, f"{part.holds}{unit}", measured))
    return rows


#: verdicts as they are shown: mixed where the parts disagree, open where the seeds do not tell
SHOWN = ("reproduced", "refuted", "mixed", "open", "not tested")
LEAST_P = 1e-16  #: below, p is that of rounding, or of values that are the same for all seeds


def shown(verdict: Verdict) -> str:
    """Of `SHOWN`."""
    return "open" if verdict.is_open else verdict.verdict


def leaning(verdict: Verdict) -> str:
    """What the parts of a claim say, each by its own interval: that all (or some) hold or fail.

    ``disagree`` where some hold and some fail; ``say nothing`` where all are open themselves.
    """
    said = [effect.status for effect in verdict.effects]
    if {"holds", "fails"} <= set(said):
        return "disagree"
    for status in ("holds", "fails"):
        if status in said:
            return f"{'some' if 'open' in said else 'all'} {status.removesuffix('s')}"
    return "say nothing"


def verdict_text(verdict: Verdict) -> str:
    """``open (parts: all fail)``, or the verdict."""
    return f"open (parts: {leaning(verdict)})" if verdict.is_open else verdict.verdict


def p_number(verdict: Verdict) -> str:
    """``0.05`` or ``< 1e-16``: the corrected p."""
    return f"< {LEAST_P:g}" if verdict.p_holm < LEAST_P else number(verdict.p_holm)


def p_text(verdict: Verdict) -> str:
    """``p (Holm) = 0.05``; empty where nothing was tested."""
    if not verdict.effects:
        return ""
    p = p_number(verdict)
    return f"p (Holm) {p if p.startswith('<') else f'= {p}'}"


def said(verdict: Verdict) -> str:
    """The verdict and its p, for a cell of a Markdown table."""
    return "<br>".join(filter(None, (verdict_text(verdict), p_text(verdict))))


def markdown_row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def count(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many claims have each verdict of `SHOWN`."""
    return {name: sum(shown(v) == name for v in verdicts) for name in SHOWN}


def markdown(verdicts: Sequence[Verdict], links: str = "../../notebooks") -> str:
    """One table for each group of claims.

    Args:
        links: folder of the notebooks, from where the text will be.
    """
    lines = []
    for group in dict.fromkeys(v.claim.group for v in verdicts):
        lines += [f"## {group}", "", "| claim | verdict | measured | scale | notebook |"]
        lines += ["|---|---|---|---|---|"]
        for verdict in (v for v in verdicts if v.claim.group == group):
            claim = verdict.claim
            parts = [f"{what} ({rule}): {effect}" for what, rule, effect in _rows(verdict)]
            measured = "<br>".join(parts) or verdict.reason
            link = f"[{claim.notebook[:2]}]({links}/{claim.notebook}.ipynb)"
            text = f"**{claim.id}** {claim.statement}<br>{claim.source}"
            text += f"<br>*{claim.note}*" if claim.note else ""
            scale = f"{claim.scale}, {verdict.num_runs} runs" if parts else ""
            cells = [text, said(verdict), measured, scale, link if claim.notebook else ""]
            lines.append(markdown_row(cells))
        lines.append("")
    return "\n".join(lines)


def page(verdicts: Sequence[Verdict], links: str = "../../notebooks") -> str:
    """An HTML page that opens offline."""
    counted = ", ".join(f"{n} {name}" for name, n in count(verdicts).items())
    body = [f"<h1>Claims and verdicts</h1><p>{len(verdicts)} claims: {counted}.</p>"]
    for group in dict.fromkeys(v.claim.group for v in verdicts):
        heads = "".join(f"<th>{h}</th>" for h in ("claim", "verdict", "rule", "measured", "runs"))
        body.append(f"<h2>{html.escape(group)}</h2><table><tr>{heads}</tr>")
        body += [_html_row(v, links) for v in verdicts if v.claim.group == group]
        body.append("</table>")
    return _PAGE.format(body="\n".join(body))


def _html_row(verdict: Verdict, links: str) -> str:
    claim, rows = verdict.claim, _rows(verdict)
    certainty = f"<br><small>{html.escape(p_text(verdict))}</small>" if rows else ""
    kind = "open" if verdict.is_open else verdict.verdict.replace(" ", "-")
    note = f"<br><em>{html.escape(claim.note)}</em>" if claim.note else ""
    name = f"<b>{html.escape(claim.id)}</b>"
    if claim.notebook:
        name = f'<a href="{links}/{html.escape(claim.notebook)}.ipynb">{name}</a>'
    cells = [
        f"{name}<br>{html.escape(claim.statement)}<br><small>{html.escape(claim.source)}</small>"
        f"{note}",
        f'<span class="{kind}">{verdict_text(verdict)}</span>{certainty}',
        "<br>".join(html.escape(f"{what}: {rule}") for what, rule, _ in rows),
        "<br>".join(html.escape(effect) for _, _, effect in rows) or html.escape(verdict.reason),
        f"{verdict.num_runs}, {html.escape(claim.scale)}" if rows else "",
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def latex(verdicts: Sequence[Verdict]) -> str:
    """A longtable: claim and source, verdict, effects."""
    wide = r">{\raggedright\arraybackslash}p"
    columns = "".join(f"{wide}{{{width}\\linewidth}}" for width in (0.31, 0.18, 0.43))
    lines = [rf"\begin{{longtable}}{{@{{}}{columns}@{{}}}}"]
    lines += [r"\toprule Claim & Verdict & Measured \\ \midrule \endhead \bottomrule \endfoot"]
    for group in dict.fromkeys(v.claim.group for v in verdicts):
        lines.append(rf"\multicolumn{{3}}{{@{{}}l}}{{\textbf{{{escape(group)}}}}} \\*")
        for verdict in (v for v in verdicts if v.claim.group == group):
            parts = [f"{what} (${rule}$): {effect}" for what, rule, effect in _tex_rows(verdict)]
            measured = r" \newline ".join(parts) or escape(verdict.reason)
            claim = rf"\textit{{{escape(verdict.claim.id)}}}: {escape(verdict.claim.statement)}"
            source = rf"\newline {{\footnotesize Source: {escape(verdict.claim.source)}}}"
            decided = r" \newline ".join(filter(None, (verdict_text(verdict), _tex_p(verdict))))
            lines.append(rf"{claim} {source} & {decided} & {measured} \\ \addlinespace[3pt]")
    return "\n".join([*lines, r"\end{longtable}", ""])


def _tex_p(verdict: Verdict) -> str:
    text = p_text(verdict).replace(f"{LEAST_P:g}", "$10^{-16}$")
    return text.replace("p", "$p$", 1).replace("<", "$<$")


def _tex_rows(verdict: Verdict) -> list[tuple[str, str, str]]:
    rows = _rows(verdict)
    parts = zip(rows, verdict.claim.parts, strict=False)
    return [
        (escape(what), _tex_rule(part.holds), escape(effect)) for (what, _, effect), part in parts
    ]


def _tex_rule(rule: str) -> str:
    """A rule in mathematics: 1e-06 is a power of ten."""
    power = re.sub(r"e([+-]\d+)", lambda m: rf"\cdot 10^{{{int(m[1])}}}", rule)
    return power.replace(r" 1\cdot ", " ")


def macros(verdicts: Sequence[Verdict]) -> str:
    r"""LaTeX macros for every verdict and effect.

    Of claim ``gqc-x16``, whose first part is A: ``\verdictGqcXOneSix``, ``\effectGqcXOneSixA``
    (with interval), ``\meanGqcXOneSixA``, ``\seedsGqcXOneSixA``; and ``\numClaims``,
    ``\numReproduced``, ``\numRefuted``, ``\numMixed``, ``\numOpen``, ``\numNotTested``.
    """
    lines = [rf"\newcommand{{\numClaims}}{{{len(verdicts)}}}"]
    for name, n in count(verdicts).items():
        lines.append(rf"\newcommand{{\num{camel(name)}}}{{{n}}}")
    for verdict in verdicts:
        key = camel(verdict.claim.id)
        lines.append(rf"\newcommand{{\verdict{key}}}{{{shown(verdict)}}}")
        for place in range(len(verdict.claim.parts)):
            effect = verdict.effects[place] if verdict.effects else None
            texts = ("not measured", "not measured", "no")
            if effect is not None:
                texts = (escape(interval(effect)), escape(number(effect.mean)), str(effect.n))
            for kind, text in zip(("effect", "mean", "seeds"), texts, strict=True):
                lines.append(rf"\newcommand{{\{kind}{key}{chr(ord('A') + place)}}}{{{text}}}")
    return "\n".join([*lines, ""])


def camel(name: str) -> str:
    """A name of letters alone, for a LaTeX macro: digits are spelt out."""
    digits = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
    words = [word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", name)]
    return re.sub(r"\d", lambda m: digits[int(m[0])], "".join(words))


def escape(text: str) -> str:
    """Plain text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: "\\" + c for c in "&%$#_{}"} | {"<": r"$<$", ">": r"$>$"}
    special |= {"≤": r"$\le$", "≥": r"$\ge$", "×": r"$\times$", "°": r"$^\circ$", "≈": r"$\approx$"}
    return "".join(special.get(character, character) for character in text)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Claims and verdicts</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem;
  padding: 0 1rem; color: #1a1a1a; background: #fff; }}
table {{ border-collapse: collapse; width: 100%; }}
td, th {{ text-align: left; vertical-align: top; padding: .4rem .6rem;
  border-bottom: 1px solid #ddd; }}
td:first-child {{ width: 32%; }} td:nth-child(2) {{ white-space: nowrap; }}
small {{ color: #666; }}
span {{ padding: .1rem .5rem; border-radius: .6rem; background: #eee; }}
.reproduced {{ background: #cfe8d5; }} .refuted {{ background: #f6d1cc; }}
.mixed {{ background: #fbe8c0; }} .open {{ background: none; outline: 1px dashed #999; }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #181818; color: #ddd; }} td, th {{ border-color: #444; }}
  span {{ color: #111; }} .open {{ color: inherit; }}
  a {{ color: #8ab4f8; }} small {{ color: #999; }} }}
</style></head><body>
{body}
</body></html>
"""
