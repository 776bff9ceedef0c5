"""Show in a notebook what the committed results say about its question.

A saved notebook holds a run of seconds; the results that decide its claims are in ``paper``.  This
shows them as Markdown, without deciding or training anything.  To bring saved notebooks up to date:
``python -m gqc_lab.publish.notebooks --verdicts notebooks/*.ipynb``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gqc_lab.claims.commands import CLAIMS, VERDICTS, read_verdicts
from gqc_lab.claims.render import render, verdict_frame

if TYPE_CHECKING:
    from IPython.display import Markdown

PAPER = "../paper"  #: of a notebook in a checkout


def show_verdicts(name: str, paper: Path | str = PAPER) -> Markdown:
    """Show the claims that a notebook decides: verdict, effects with 95 % intervals, runs.

    Args:
        name: of the notebook, without ending, the id of one claim, or "all": each claim by its
            name, under its verdict.
        paper: folder of the claims and committed verdicts; where it has none, a line says so.
    Raises: ValueError: there is no such claim, or none of that notebook.
    """
    paper = Path(paper)
    if not (paper / VERDICTS).is_file():
        return _without(paper)
    claims, verdicts = read_verdicts(paper)
    if name == "all":
        return _markdown(render("all.md", frame=verdict_frame(verdicts)).rstrip())
    mine = [claim for claim in claims if name in (claim.notebook, claim.id)]
    if not mine:
        where = f"no claim in {paper / CLAIMS} has that id or is decided by that notebook"
        raise ValueError(f"name={name!r}: {where}")
    frame = verdict_frame([verdict for verdict in verdicts if verdict.claim in mine])
    scales = " and ".join(dict.fromkeys(claim.scale for claim in mine))
    return _markdown(render("notebook.md", frame=frame, scales=scales).rstrip())


def _without(paper: Path) -> Markdown:
    where = f"there is no `{paper.as_posix()}` here"
    return _markdown(f"Committed results are shown in a checkout of the kit; {where}.")


def _markdown(text: str) -> Markdown:
    from IPython.display import Markdown

    return Markdown(text)
