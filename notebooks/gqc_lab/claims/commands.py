"""What ``gqc claims`` and ``gqc freeze`` do.

``paper/results.yaml`` says which of ``notebooks/batches`` the paper rests on, and what of their
histories is kept::

    01_gnts_pretraining:
      columns: [method, seed, tokens, val_loss]   # none: no history
      rows: val_loss IS NOT NULL                  # SQL; default: all
      trained: GPT, 156,352 parameters; a text    # model, its size and its data, for the paper
      compared: [method]                          # result columns, for the paper; default: method
      tuning: ten runs a method on seed 100       # ranges and budget, for the appendix
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqc_lab.claims import appendix, tables
from gqc_lab.claims.frozen import Frozen, freeze, load_frozen
from gqc_lab.claims.readme import fill
from gqc_lab.claims.rules import read_claims
from gqc_lab.claims.verdicts import Verdict, changes, evaluate
from gqc_lab.errors import BadInput, nearest
from gqc_lab.runs.plan import read_batch
from gqc_lab.runs.store import write_json

if TYPE_CHECKING:
    from rich.table import Table

CLAIMS, RESULTS, PLAN, VERDICTS = "claims.yaml", "results", "results.yaml", "verdicts.json"
KEYS = ("columns", "rows", "trained", "compared", "tuning")


def decide(paper: Path) -> list[Verdict]:
    """The verdicts on the claims of a paper's folder, from its committed results."""
    return evaluate(read_claims(paper / CLAIMS), load_frozen(paper / RESULTS))


def check(paper: Path) -> list[str]:
    """Where the committed verdicts differ from what the results give; none: they agree."""
    path = paper / VERDICTS
    if not path.is_file():
        raise BadInput(f"{path}: no committed verdicts; `gqc claims` writes them")
    return changes(decide(paper), json.loads(path.read_text(encoding="utf-8")))


def write(verdicts: Sequence[Verdict], paper: Path) -> list[Path]:
    """Write the verdicts, tables and macros; returns the paths.

    ``verdicts.json`` and the README's blocks are to be committed; the rest is under ``build``.
    """
    build = paper / "build"
    build.mkdir(parents=True, exist_ok=True)
    write_json(paper / VERDICTS, [verdict.plain() for verdict in verdicts])
    results, plan = load_frozen(paper / RESULTS), read_plan(paper)
    texts = {
        "reproducibility.md": appendix.markdown(results, plan),
        "reproducibility.tex": appendix.latex(results, plan),
        "claims.md": tables.markdown(verdicts),
        "claims.html": tables.page(verdicts),
        "claims.tex": tables.latex(verdicts),
        "claims-macros.tex": tables.macros(verdicts),
    }
    for name, text in texts.items():
        (build / name).write_text(text, encoding="utf-8")
    readme = paper.resolve().parent / "README.md"
    if readme.is_file():
        old = readme.read_text(encoding="utf-8")
        new = fill(old, verdicts, results)
        if new != old:
            readme.write_text(new, encoding="utf-8")
    return [paper / VERDICTS, *(build / name for name in texts)]


def overview(verdicts: Sequence[Verdict]) -> Table:
    """For the terminal: a row per part of a claim."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("claim", "verdict", "p (Holm)", "measured", "rule", "effect [95 %]", "n", "part"):
        table.add_column(name)
    for verdict in verdicts:
        claim = verdict.claim
        rows = [
            (part.name, part.holds, tables.interval(e), str(e.n), e.status)
            for part, e in zip(claim.parts, verdict.effects, strict=False)
        ] or [(verdict.reason, "", "", "", "")]
        for place, row in enumerate(rows):
            p = tables.p_number(verdict) if verdict.effects else ""
            head = (claim.id, tables.verdict_text(verdict), p)
            table.add_row(*(head if place == 0 else ("", "", "")), *row)
    return table


def read_plan(paper: Path) -> dict[str, dict[str, Any]]:
    """What of which batches is committed, by name.  Raises: BadInput: the file is not as said."""
    import yaml

    path = paper / PLAN
    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: {error}") from None
    for name, entry in plan.items():
        for key in entry or ():
            if key not in KEYS:
                hint = nearest(key, KEYS)
                raise BadInput(f"{path}: {name}: unknown key {key!r}{hint}")
    return {name: entry or {} for name, entry in plan.items()}


def batch_path(paper: Path, name: str) -> Path:
    """The batch file of an entry of the plan."""
    return paper.resolve().parent / "notebooks" / "batches" / f"{name}.yaml"


def freeze_all(
    paper: Path, store: Path, names: Sequence[str] = (), *, is_partial: bool = False
) -> list[Frozen]:
    """Commit the batches of the plan (or those named) from a run store to the paper's results."""
    plan = read_plan(paper)
    for name in names:
        if name not in plan:
            raise BadInput(f"{name!r}: not in {paper / PLAN}{nearest(name, plan)}")
    frozen = []
    for name in names or plan:
        entry = plan[name]
        batch = read_batch(batch_path(paper, name))
        columns, rows = entry.get("columns", []), entry.get("rows", "")
        options = {"is_partial": is_partial}
        frozen.append(freeze(batch, store, paper / RESULTS, columns, rows, **options))
    return frozen
