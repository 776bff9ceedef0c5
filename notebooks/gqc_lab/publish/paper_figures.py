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

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqc_lab.claims import Frozen, load_frozen
from gqc_lab.claims.evidence import draw as described
from gqc_lab.claims.evidence import read_figures
from gqc_lab.errors import BadInput, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = "gqc.mplstyle"


def print_figures(
    paper: Path, names: Sequence[str] = (), to: Path | None = None
) -> Iterator[tuple[str, list[Path]]]:
    """Draw the figures (all, or those named) and yield each one's name and files.

    ``to``: folder; None: ``build/figures`` of the paper.

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
            figure = draw(described(entry, committed[batch]), entry.get("size", (3.4, 2.5)))
            yield name, _save(figure, folder / name, committed[batch])
            pyplot.close(figure)


def _save(figure: "Figure", path: Path, source: Frozen) -> list[Path]:
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
