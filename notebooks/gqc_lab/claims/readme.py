"""Blocks of the README that are written from the committed results, between two comments::

<!-- begin claims -->
...
<!-- end claims -->
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from gqc_lab.claims.frozen import Frozen
from gqc_lab.claims.tables import SHOWN, count, leaning, number, shown
from gqc_lab.claims.verdicts import Verdict
from gqc_lab.runs.report import summarize_column

FLAGSHIP = "01_gnts_pretraining"
COLUMNS = ("val_loss", "perplexity", "mean_logical_batch_examples", "steps")
GEOMETRIC = COLUMNS[1:]  # as in the report of its batch file


def fill(text: str, verdicts: Sequence[Verdict], results: Mapping[str, Frozen]) -> str:
    """``text`` with its blocks written anew; blocks that are not there are not added."""
    for name in ("claims", "flagship"):
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if match := pattern.search(text):
            is_claims = name == "claims"
            body = claims_block(verdicts) if is_claims else flagship_block(results[FLAGSHIP])
            text = text[: match.start()] + match[1] + body + match[2] + text[match.end() :]
    return text


def claims_block(verdicts: Sequence[Verdict]) -> str:
    """How many claims of each group have which verdict, and which ones; of open ones, what their
    parts say."""
    lines = [f"| claims of | {' | '.join(SHOWN)} |", "|---|" + "---|" * len(SHOWN)]
    for group in dict.fromkeys(v.claim.group for v in verdicts):
        mine = [v for v in verdicts if v.claim.group == group]
        cells = []
        for verdict, n in count(mine).items():
            names = ", ".join(_name(v) for v in mine if shown(v) == verdict)
            cells.append(f"{n}: {names}" if n else "0")
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _name(verdict: Verdict) -> str:
    name = verdict.claim.id.partition("-")[2]
    return f"{name} ({leaning(verdict)})" if verdict.is_open else name


def flagship_block(frozen: Frozen) -> str:
    """Mean and 95 % interval over seeds of each method of the flagship, as its batch reports."""
    lines = [f"| method | runs | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    frames = [
        summarize_column(frozen.results, ["method"], c, is_geometric=c in GEOMETRIC)
        for c in COLUMNS
    ]
    for rows in zip(*(frame.to_dict("records") for frame in frames), strict=True):  # of one method
        cells = " | ".join(_cell(row) for row in rows)
        lines.append(f"| {rows[0]['method']} | {rows[0]['n']} | {cells} |")
    return "\n".join([*lines, ""])


def _cell(row: Mapping[Hashable, Any]) -> str:
    mean = number(row["mean"]) if row["mean"] < 1000 else f"{row['mean']:,.0f}"
    if not row["high"] > row["low"]:
        return mean
    return f"{mean} [{number(row['low'])}, {number(row['high'])}]"
