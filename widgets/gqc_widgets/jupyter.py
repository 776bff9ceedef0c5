"""What views need from Jupyter: the running cell, output from threads, custom widgets in Colab."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass


def enable_custom_widgets() -> bool:
    """Turn on Colab's custom widget manager, which our figures need; returns whether this is Colab.

    Colab's kernel imports ``google.colab`` before any cell runs; elsewhere nothing happens.
    """
    if "google.colab" not in sys.modules:
        return False
    importlib.import_module("google.colab.output").enable_custom_widget_manager()
    return True


@dataclass(frozen=True)
class Cell:
    """The cell that is running.

    Args:
        owner: the id of the cell if the front end sends one, else a name for all cells.
        turn: identifies this execution of the cell.
        enter: called first in a thread, it sends what the thread prints to this cell; otherwise
            ipykernel sends it to whichever cell happens to be running.
    """

    owner: str
    turn: str
    enter: Callable[[], None]


def current_cell() -> Cell | None:
    """Return the running cell, or None outside Jupyter.

    From then on the pool of processor threads is released after every cell, so that none of them
    slows down a run.
    """
    from IPython import get_ipython

    from gqc_widgets.openmp import release_threads

    shell = get_ipython()
    if shell is None or not hasattr(shell, "get_parent"):
        return None
    parent = shell.get_parent()
    shell.events.register("post_run_cell", release_threads)  # IPython registers it only once
    owner = parent.get("metadata", {}).get("cellId", "a cell")
    turn = parent.get("header", {}).get("msg_id", "")

    def enter() -> None:
        if hasattr(shell, "set_thread_parent"):  # ipykernel 7
            shell.set_thread_parent(parent)

    return Cell(owner, turn, enter)
