"""Figures for print: scripts in ``paper/figures`` that turn committed results into matplotlib.

A script defines ``draw(results) -> Figure``, where ``results`` maps names of batches to
`gqc_lab.claims.Frozen`; it reads, and never trains.  `print_figures` runs scripts and writes each
figure as PDF, SVG and PNG with the fingerprints of what it was drawn from in the files' metadata.
The same results give the same bytes.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gqc_lab.claims import Frozen, load_frozen
from gqc_lab.errors import BadInput, nearest
from gqc_lab.stats.analysis import at_equal, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 2)))
MARKERS = "os^DvP*X"
STYLE = "gqc.mplstyle"


class Read(dict[str, Frozen]):
    """Batches by name; remembers which were looked at."""

    def __init__(self, batches: Mapping[str, Frozen]) -> None:
        super().__init__(batches)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Frozen:
        if name not in self:
            raise BadInput(f"no committed results of {name!r}{nearest(name, self)}")
        self.used.add(name)
        return super().__getitem__(name)


def scripts(paper: Path) -> dict[str, Path]:
    """The figure scripts of a paper, by name."""
    return {path.stem: path for path in sorted((paper / "figures").glob("*.py"))}


def print_figures(
    paper: Path, names: Sequence[str] = (), to: Path | None = None
) -> Iterator[tuple[str, list[Path]]]:
    """Draw the figures (all, or those named) and yield each one's name and files.

    Args:
        to: folder; None: ``build/figures`` of the paper.
    Raises: BadInput: an unknown figure, or results that are not committed.
    """
    import matplotlib as mpl
    from matplotlib import pyplot

    known = scripts(paper)
    for name in names:
        if name not in known:
            raise BadInput(f"{name!r}: no such figure{nearest(name, known)}")
    folder = to or paper / "build" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    committed = load_frozen(paper / "results")
    with mpl.rc_context(), mpl.rc_context(fname=paper / "figures" / STYLE):
        mpl.use("agg")
        for name in names or known:
            results = Read(committed)
            figure = runpy.run_path(str(known[name]))["draw"](results)
            yield name, _save(figure, folder / name, results)
            pyplot.close(figure)


def _save(figure: Figure, path: Path, results: Read) -> list[Path]:
    source = "; ".join(f"{name} {results[name].fingerprint}" for name in sorted(results.used))
    metadata: dict[str, dict[str, Any]] = {
        "pdf": {"Subject": source, "CreationDate": None},
        "svg": {"Description": source, "Date": None},
        "png": {"Description": source},
    }
    paths = [path.with_suffix(f".{kind}") for kind in metadata]
    for place, fields in zip(paths, metadata.values(), strict=True):
        figure.savefig(place, metadata=fields)
    return paths


def curve(
    axes: Axes, rows: pd.DataFrame, x: str, y: str, place: int, label: str, points: int = 60
) -> None:
    """The mean of ``y`` over seeds against ``x``, in a band of its 95 % interval.

    Args:
        rows: records of one method with ``method``, ``seed``, ``x`` and ``y``.
        place: of its colour and dash.
    """
    grids = {tuple(run[x]) for _, run in rows.dropna(subset=[x, y]).groupby("seed")}
    aligned = at_equal(rows, x, y, points=None if len(grids) == 1 else points)
    line = summarize(aligned, x, y)
    color = f"C{place}"
    axes.plot(line[x], line["mean"], color=color, linestyle=DASHES[place], label=label)
    axes.fill_between(line[x], line["low"], line["high"], color=color, alpha=0.15, linewidth=0)


def intervals(
    axes: Axes, rows: pd.DataFrame, labels: Sequence[str], colors: Sequence[str] | None = None
) -> None:
    """Means as dots with their intervals as bars, one below the other, the first on top.

    Args:
        rows: ``mean``, ``low``, ``high``.
        labels: of the rows.
    """
    heights = range(len(rows) - 1, -1, -1)
    for height, color, (_, row) in zip(
        heights, colors or ["C0"] * len(rows), rows.iterrows(), strict=True
    ):
        axes.plot([row["low"], row["high"]], [height, height], color=color)
        axes.plot([row["mean"]], [height], "o", color=color)
    axes.set_yticks(list(heights), list(labels))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="y", visible=False)
