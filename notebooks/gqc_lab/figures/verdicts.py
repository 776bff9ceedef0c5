"""What the committed results say on a notebook's question, to be shown beside its small run.

A saved notebook holds a run of seconds.  What decides its claims is in ``paper``: this module shows
it, as Markdown, without deciding or training anything.  It is here, and not in `gqc_lab.claims`,
since what is shown is no part of a run: a run's id must not change with a verdict.

``python -m gqc_lab.publish.notebooks --verdicts notebooks/*.ipynb`` brings saved notebooks up to
date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqc_lab.claims import Claim, load_frozen, read_claims
from gqc_lab.claims.commands import CLAIMS, RESULTS, VERDICTS
from gqc_lab.claims.readme import flagship_block
from gqc_lab.claims.tables import interval, markdown_row, said
from gqc_lab.claims.verdicts import Effect, Verdict

if TYPE_CHECKING:
    from IPython.display import Markdown

__all__ = ["means_of", "of_notebook"]

PAPER = "../paper"  #: of a notebook in a checkout
LEGEND = (
    "A number *holds* or *fails* where its 95 % interval lies on the claim's side of the bound in "
    "brackets or on the other, and is *open* where the bound is inside. A verdict is of all of a "
    "claim's numbers, its p corrected for all claims; *open*: the seeds do not tell (notebook 00)."
)


def of_notebook(name: str, paper: Path | str = PAPER) -> Markdown:
    """The claims that a notebook decides: verdict, each effect with its 95 % interval, runs.

    Args:
        name: of the notebook, without ending.
        paper: folder of the claims and committed verdicts; where it has none, a line says so.
    Raises: ValueError: no claim is of that notebook.
    """
    paper = Path(paper)
    if not (paper / VERDICTS).is_file():
        return _without(paper)
    claims = [claim for claim in read_claims(paper / CLAIMS) if claim.notebook == name]
    if not claims:
        raise ValueError(f"name={name!r}: no claim in {paper / CLAIMS} is decided by that notebook")
    committed = json.loads((paper / VERDICTS).read_text(encoding="utf-8"))
    rows = {row["id"]: row for row in committed}
    scales = " and ".join(dict.fromkeys(claim.scale for claim in claims))
    lines = [f"**At {scales} scale**, of the committed results:", ""]
    lines += ["| claim | verdict | measured: mean over seeds [95 %] | runs |", "|---|---|---|---|"]
    lines += [_row(claim, rows[claim.id]) for claim in claims if claim.id in rows]
    return _markdown("\n".join([*lines, "", LEGEND]))


def means_of(name: str, paper: Path | str = PAPER) -> Markdown:
    """Losses, batches and steps of each method in a committed batch, with 95 % intervals.

    Args:
        name: of the batch; paper: as of :func:`of_notebook`.
    Raises: KeyError: no batch of that name is committed.
    """
    paper = Path(paper)
    if not (paper / RESULTS).is_dir():
        return _without(paper)
    frozen = load_frozen(paper / RESULTS)[name]
    scale = frozen.runs[0]["parameters"]["scale"]
    heading = f"**At {scale} scale**, means over seeds [95 %] of the committed results:"
    return _markdown(f"{heading}\n\n{flagship_block(frozen)}")


def _row(claim: Claim, row: dict[str, Any]) -> str:
    effects = tuple(Effect(**effect) for effect in row["effects"])
    values = {key: row[key] for key in ("verdict", "num_runs", "p", "p_holm") if key in row}
    verdict = Verdict(claim, effects=effects, **values)
    parts = []
    for part, effect in zip(claim.parts, effects, strict=False):
        unit = f" {part.unit}" if part.unit else ""
        bound = f"{part.name} ({part.holds}{unit})"
        parts.append(f"{bound}: {interval(effect)}, n = {effect.n}: {effect.status}")
    measured = "<br>".join(parts) or claim.not_tested
    name = f"**{claim.id}** {claim.statement}"
    return markdown_row([name, said(verdict), measured, str(verdict.num_runs)])


def _without(paper: Path) -> Markdown:
    where = f"there is no `{paper.as_posix()}` here"
    return _markdown(f"Committed results are shown in a checkout of the kit; {where}.")


def _markdown(text: str) -> Markdown:
    from IPython.display import Markdown

    return Markdown(text)
