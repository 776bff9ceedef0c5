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

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gqc_lab.claims import appendix
from gqc_lab.claims.frozen import Frozen, freeze, load_frozen
from gqc_lab.claims.registration import read_registration, register, verify
from gqc_lab.claims.render import describe_claims, render
from gqc_lab.claims.rules import Claim, read_claims, read_yaml
from gqc_lab.claims.verdicts import Verdict, changes, evaluate
from gqc_lab.errors import BadInput, check_keys, nearest
from gqc_lab.runs.plan import read_batch
from gqc_lab.runs.report import show_interval
from gqc_lab.runs.store import write_json
from gqc_lab.stats.analysis import mean_over_runs

CLAIMS, RESULTS, PLAN, VERDICTS = "claims.yaml", "results", "results.yaml", "verdicts.json"
KEYS = ("columns", "rows", "trained", "compared", "tuning")
FILLED = ("README.md", "docs/lab.md")  #: pages with blocks of verdicts or means
FLAGSHIP = "22_noise_annealing"
COLUMNS = ("val_loss", "perplexity", "mean_logical_batch_examples", "steps")
GEOMETRIC = COLUMNS[1:]  # as in the report of its batch file


def decide(paper: Path, results: Mapping[str, Frozen] | None = None) -> list[Verdict]:
    """Decide the claims of a paper's folder from its committed results; reads them if need be."""
    results = load_frozen(paper / RESULTS) if results is None else results
    return evaluate(read_claims(paper / CLAIMS), results)


def check(paper: Path) -> list[str]:
    """List where the committed verdicts differ from those that the results give.

    Also the confirmatory runs that began before their rule was registered, or under another.
    """
    committed, results = list(_committed(paper).values()), load_frozen(paper / RESULTS)
    return changes(decide(paper, results), committed) + verify(paper, results)


def _committed(paper: Path) -> dict[str, dict[str, Any]]:
    try:
        rows = json.loads((paper / VERDICTS).read_text(encoding="utf-8"))
        return {row["id"]: row for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        what = "no committed verdicts; `gqc claims` writes them"
        raise BadInput(f"{paper / VERDICTS}: {what}") from None


def register_all(paper: Path) -> list[str]:
    """Register all rules and the confirmatory runs of results.yaml; see `register`."""
    batches = {name: read_batch(batch_path(paper, name)) for name in read_plan(paper)}
    return register(paper, read_claims(paper / CLAIMS), batches)


def read_verdicts(paper: Path) -> tuple[list[Claim], list[Verdict]]:
    """Read the claims and the committed verdicts; a new claim may not have one yet."""
    claims, committed = read_claims(paper / CLAIMS), _committed(paper)
    known = [claim for claim in claims if claim.id in committed]
    return claims, [Verdict.of_plain(claim, committed[claim.id]) for claim in known]


def write(verdicts: Sequence[Verdict], paper: Path) -> list[Path]:
    """Write the verdicts, tables and macros, and return the paths.

    ``verdicts.json`` and the blocks of `FILLED` are to be committed; the rest is under ``build``.
    """
    build = paper / "build"
    build.mkdir(parents=True, exist_ok=True)
    write_json(paper / VERDICTS, [verdict.plain() for verdict in verdicts])
    results = load_frozen(paper / RESULTS)
    current = current_ids(paper, results)
    claims = describe_claims(verdicts, read_registration(paper))
    age = appendix.describe_age(results, current, "behind these results")
    texts = {"reproducibility.tex": appendix.tables(results, read_plan(paper), age)}
    for name in ("claims.md", "claims.tex", "claims-macros.tex", "rules.tex"):
        texts[name] = render(name, claims=claims, links="../../notebooks")
    for name, text in texts.items():
        (build / name).write_text(text, encoding="utf-8")
    for page in (paper.resolve().parent / name for name in FILLED):
        if page.is_file():
            old = page.read_text(encoding="utf-8")
            new = fill_readme(old, verdicts, results, current)
            if new != old:
                page.write_text(new, encoding="utf-8")
    return [paper / VERDICTS, *(build / name for name in texts)]


def fill_readme(
    text: str,
    verdicts: Sequence[Verdict],
    results: Mapping[str, Frozen],
    current: Mapping[str, set[str]],
) -> str:
    """Replace the blocks of ``text`` between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.

    ``claims`` counts the verdicts, ``flagship`` gives the means of one batch.  Both say how many of
    their runs are from an older version of the code.
    """

    def block(name: str) -> str:
        if name == "flagship":
            mine = {FLAGSHIP: results[FLAGSHIP]}
            age = appendix.describe_age(mine, current, "behind this table")
            return means_table(results[FLAGSHIP], age)
        age = appendix.describe_age(results, current, "committed here")
        return render("readme.md", claims=describe_claims(verdicts), age=age)

    blocks = re.compile(
        r"(?s)(<!-- begin (claims|flagship) -->\n).*?(<!-- end (?:claims|flagship) -->)"
    )
    return blocks.sub(lambda match: match[1] + block(match[2]) + match[3], text)


def current_ids(paper: Path, results: Mapping[str, Frozen]) -> dict[str, set[str]]:
    """Return the ids that each batch's runs have with the present code; none without its file."""
    paths = {name: batch_path(paper, name) for name in results}
    return {
        name: {run.id for run in read_batch(path).runs} if path.is_file() else set()
        for name, path in paths.items()
    }


def means_table(frozen: Frozen, age: str = "") -> str:
    """Return a Markdown table of each method's means over seeds with their 95 % intervals."""
    frames = [
        mean_over_runs(frozen.results, ["method"], c, is_geometric=c in GEOMETRIC) for c in COLUMNS
    ]
    methods = zip(*(frame.to_dict("records") for frame in frames), strict=True)
    rows = [[r[0]["method"], r[0]["n"], *map(show_interval, r)] for r in methods]
    return render("means.md", columns=COLUMNS, rows=rows, age=age)


def read_plan(paper: Path) -> dict[str, dict[str, Any]]:
    """Read results.yaml: what is committed of each batch.  Raises: BadInput: an unknown key."""
    plan = {name: entry or {} for name, entry in (read_yaml(paper / PLAN) or {}).items()}
    for name, entry in plan.items():
        check_keys(f"{paper / PLAN}: {name}: ", entry, KEYS)
    return plan


def batch_path(paper: Path, name: str) -> Path:
    """Return the path of the batch file of an entry of results.yaml."""
    return paper.resolve().parent / "notebooks" / "batches" / f"{name}.yaml"


def freeze_all(paper: Path, store: Path, names: Sequence[str] = ()) -> list[Frozen]:
    """Copy the batches of results.yaml (or those named) from a run store to the paper's results."""
    plan = read_plan(paper)
    for name in names:
        if name not in plan:
            raise BadInput(f"{name!r}: not in {paper / PLAN}{nearest(name, plan)}")
    frozen = []
    for name in names or plan:
        entry, batch = plan[name], read_batch(batch_path(paper, name))
        kept = entry.get("columns", []), entry.get("rows", "")
        frozen.append(freeze(batch, store, paper / RESULTS, *kept))
    return frozen
