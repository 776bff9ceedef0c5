"""Which cell a view is made in, how a thread tells Jupyter that it speaks for that cell, and what
has to be done after other cells while a run goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gqc_widgets.openmp import release_threads


@dataclass(frozen=True)
class Cell:
    """The cell that runs.

    Args:
        owner: the cell's id where the front end sends one, else a name for all cells.
        turn: this execution of it.
        enter: to be called first in a thread, so that what it prints goes to this cell; ipykernel
            sends it to whichever cell happens to run.
    """

    owner: str
    turn: str
    enter: Callable[[], None]


def current_cell() -> Cell | None:
    """The cell that runs now, or None outside Jupyter.

    From then on no cell leaves processor threads behind that would slow down a run.
    """
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None or not hasattr(shell, "get_parent"):
        return None
    parent = shell.get_parent()
    shell.events.register("post_run_cell", release_threads)  # once, however often it is asked for
    owner = parent.get("metadata", {}).get("cellId", "a cell")
    turn = parent.get("header", {}).get("msg_id", "")

    def enter() -> None:
        if hasattr(shell, "set_thread_parent"):  # ipykernel 7
            shell.set_thread_parent(parent)

    return Cell(owner, turn, enter)
