"""Figures for print: the notebooks' figures of committed results, drawn with matplotlib.

``paper/figures.yaml`` names them; each is a function of `gqc_lab.figures` and its frame::

    losses:
      figure: loss_against             # or claims.angles: in gqc_lab.figures
      batch: 01_gnts_pretraining       # a folder of paper/results
      table: history                   # or results
      where: method in ["gnts"]        # a condition of pandas' `query`; default: all rows
      arguments: {x: tokens}           # further arguments of the function
      size: [3.4, 2.4]                 # [inch]

`print_figures` writes each as PDF, SVG and PNG with the fingerprint of what it was drawn from in
the files' metadata.  The same results give the same bytes, and no browser is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqc_lab.claims import Frozen, load_frozen
from gqc_lab.errors import BadInput, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES, STYLE = "figures.yaml", "gqc.mplstyle"
KEYS = ("figure", "batch", "table", "where", "arguments", "size")


def read_figures(paper: Path) -> dict[str, dict[str, Any]]:
    """Read figures.yaml.  Raises: BadInput: a key is unknown or missing."""
    import yaml

    path = paper / FIGURES
    try:
        entries: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: {error}") from None
    for name, entry in entries.items():
        for key in entry:
            if key not in KEYS:
                raise BadInput(f"{path}: {name}: unknown key {key!r}{nearest(key, KEYS)}")
        if missing := [key for key in ("figure", "batch") if key not in entry]:
            raise BadInput(f"{path}: {name}: lacks {', '.join(missing)}")
    return entries


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

    from gqc_lab.publish.matplotlib_figure import draw

    known = read_figures(paper)
    for name in names:
        if name not in known:
            raise BadInput(f"{name!r}: no such figure{nearest(name, known)}")
    folder = to or paper / "build" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    committed = load_frozen(paper / "results")
    with mpl.rc_context(), mpl.rc_context(fname=paper / STYLE):
        mpl.use("agg")
        for name in names or known:
            entry = known[name]
            batch = entry["batch"]
            if batch not in committed:
                raise BadInput(f"no committed results of {batch!r}{nearest(batch, committed)}")
            figure = draw(_described(entry, committed[batch]), entry.get("size", (3.4, 2.5)))
            yield name, _save(figure, folder / name, committed[batch])
            pyplot.close(figure)


def _described(entry: dict[str, Any], frozen: Frozen) -> Any:
    """Make the plotly figure of an entry."""
    from gqc_lab import figures

    try:
        function = attrgetter(entry["figure"])(figures)
    except AttributeError as error:
        raise BadInput(f"{FIGURES}: figure: {entry['figure']!r}: {error}") from None
    frame = getattr(frozen, entry.get("table", "results"))
    frame = frame.query(entry["where"]) if "where" in entry else frame
    return function(frame, **entry.get("arguments", {}))


def _save(figure: Figure, path: Path, source: Frozen) -> list[Path]:
    text = f"{source.name} {source.fingerprint}"
    metadata: dict[str, dict[str, Any]] = {
        "pdf": {"Subject": text, "CreationDate": None},
        "svg": {"Description": text, "Date": None},
        "png": {"Description": text},
    }
    paths = [path.with_suffix(f".{kind}") for kind in metadata]
    for place, fields in zip(paths, metadata.values(), strict=True):
        figure.savefig(place, metadata=fields)
    return paths
