"""Show in a notebook what the committed results say about its question.

A saved notebook holds a run of seconds; the results that decide its claims are in ``paper``.  This
shows them as Markdown, without deciding or training anything.  To bring saved notebooks up to date:
``python -m gqc_lab.publish.notebooks --verdicts notebooks/*.ipynb``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gqc_lab.claims.commands import CLAIMS, RESULTS, VERDICTS, means_table, read_verdicts
from gqc_lab.claims.frozen import load_frozen
from gqc_lab.claims.render import render, verdict_frame

if TYPE_CHECKING:
    from IPython.display import Markdown

PAPER = "../paper"  #: of a notebook in a checkout


def show_verdicts(name: str, paper: Path | str = PAPER) -> Markdown:
    """Show the claims that a notebook decides: verdict, effects with 95 % intervals, runs.

    Args:
        name: of the notebook, without ending, or the id of one claim.
        paper: folder of the claims and committed verdicts; where it has none, a line says so.
    Raises: ValueError: there is no such claim, or none of that notebook.
    """
    paper = Path(paper)
    if not (paper / VERDICTS).is_file():
        return _without(paper)
    claims, verdicts = read_verdicts(paper)
    mine = [claim for claim in claims if name in (claim.notebook, claim.id)]
    if not mine:
        where = f"no claim in {paper / CLAIMS} has that id or is decided by that notebook"
        raise ValueError(f"name={name!r}: {where}")
    frame = verdict_frame([verdict for verdict in verdicts if verdict.claim in mine])
    scales = " and ".join(dict.fromkeys(claim.scale for claim in mine))
    return _markdown(render("notebook.md", frame=frame, scales=scales).rstrip())


def show_means(batch: str, paper: Path | str = PAPER) -> Markdown:
    """Show losses, batch sizes and steps of each method in a committed batch, with intervals.

    Args:
        batch: its name; paper: as of :func:`show_verdicts`.
    Raises: KeyError: no batch of that name is committed.
    """
    paper = Path(paper)
    if not (paper / RESULTS).is_dir():
        return _without(paper)
    frozen = load_frozen(paper / RESULTS)[batch]
    scale = frozen.runs[0]["parameters"]["scale"]
    heading = f"**At {scale} scale**, means over seeds [95 %] of the committed results:"
    return _markdown(f"{heading}\n\n{means_table(frozen)}")


def _without(paper: Path) -> Markdown:
    where = f"there is no `{paper.as_posix()}` here"
    return _markdown(f"Committed results are shown in a checkout of the kit; {where}.")


def _markdown(text: str) -> Markdown:
    from IPython.display import Markdown

    return Markdown(text)
