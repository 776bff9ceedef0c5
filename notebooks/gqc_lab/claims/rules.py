"""The rules of ``paper/claims.yaml``: which numbers decide a claim, and when it holds.

::

    - id: gqc-perplexity
      group: Gradient quality control
      statement: 41% better perplexity with GNTS
      source: torch-gqc 0.10.4
      notebook: 15_equal_tokens
      scale: laptop
      parts:
        - name: perplexity, over the tuned control's
          batch: 15_equal_tokens          # a folder of paper/results
          table: history                  # or results
          value: "exp(arg_max(val_loss, tokens))"   # SQL aggregate, one number for each seed
          where: "comparison = 'control'"
          compare: {by: method, of: gnts, against: adamw, ratio: true}
          holds: "< 1"
          margin: 1.01                    # smaller effects are of no interest
    - id: another
      kind: statement                     # of algebra, code or definitions
      ...
      not_tested: "budget: 16 times the parameters"

``value`` is evaluated by DuckDB once for each seed (and each value of ``by``), over the rows of all
its runs, and is not known where one of them lacks a number, as of a run that diverged.  With
``compare`` the effect is the mean over seeds of the difference ``of`` - ``against`` (with
``ratio``: of logarithms, shown as a factor); without, the mean over seeds of the value itself.
``holds`` is what the claim says of the effect, such as "< 1", "> 0.5" or "within 0.01" (of 0; a
factor lies between 1 / 1.01 and 1.01 "within 1.01").  ``margin`` is the smallest effect of
interest: a difference of at most so much, or a factor between 1 / margin and margin, counts as
none.  ``least`` is what a value cannot be below, where its interval is shown to end.

``kind`` says what a failed test means: a ``statement`` about algebra, code or definitions is
refuted, an ``effect`` on training (the default) was not reproduced at this scale, and a
``question`` gets no verdict.  ``earlier`` is the verdict of an exploratory round whose runs are no
longer kept, as their settings were wrong; the note says what was.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gqc_lab.errors import BadInput, nearest

TABLES = ("history", "results")
PROSE = ("name", "unit", "least")  #: of a part; they decide nothing
KINDS = ("effect", "statement", "question")
WITHIN = "within"  #: the side besides < and >: no further than the bound from 0, or a factor from 1
_HOLDS = re.compile(r"\s*([<>]|within)\s*(-?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*")


@dataclass(frozen=True)
class Comparison:
    """Which two values of the column ``by`` are compared, seed by seed; see the module."""

    by: str
    of: str
    against: str
    ratio: bool = False


@dataclass(frozen=True)
class Part:
    """One number that decides a claim; see the module."""

    name: str
    batch: str
    value: str
    side: str
    bound: float
    table: str = "history"
    where: str = ""
    pair: str = "seed"
    unit: str = ""
    least: float | None = None
    margin: float | None = None
    compare: Comparison | None = None

    @property
    def holds(self) -> str:
        """The rule as it is written."""
        return f"{self.side} {self.bound:g}"


@dataclass(frozen=True)
class Claim:
    """A published statement, where it comes from, and what decides it."""

    id: str
    group: str
    statement: str
    source: str
    notebook: str
    scale: str
    parts: tuple[Part, ...] = ()
    not_tested: str = ""
    note: str = ""
    kind: str = "effect"
    earlier: str = ""

    @property
    def rule(self) -> str:
        """The hash of what decides the claim: its parts without their names, and its kind."""
        parts = [{k: v for k, v in asdict(p).items() if k not in PROSE} for p in self.parts]
        content = json.dumps({"kind": self.kind, "parts": parts}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_yaml(path: Path) -> Any:
    """Read a file of the paper.  Raises: BadInput: it is no YAML, or a key is given twice."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            for key in {key for key in keys if keys.count(key) > 1}:
                raise BadInput(f"{path}: {key!r} is given twice; keep one")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(path.read_bytes(), Loader)
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: {error}") from None


def read_claims(path: Path | str) -> list[Claim]:
    """Read the claims of a file, in order.

    Raises: BadInput: a file that cannot be read, a repeated id, an unknown key, a rule that is no
        rule; the message names the claim.
    """
    path = Path(path)
    rows = read_yaml(path)
    if not isinstance(rows, list):
        raise BadInput(f"{path}: expected a list of claims")
    claims: list[Claim] = []
    for number, row in enumerate(rows, start=1):
        name = row.get("id", f"claim {number}") if isinstance(row, dict) else f"claim {number}"
        try:
            claims.append(_claim(row))
        except BadInput as error:
            raise BadInput(f"{path.name}: {name}: {error}") from None
        if sum(claim.id == name for claim in claims) > 1:
            raise BadInput(f"{path.name}: {name}: there are two of that id")
    return claims


def _claim(row: Any) -> Claim:
    values = _known(row, [f.name for f in fields(Claim)])
    for key in ("id", "group", "statement", "source", "notebook", "scale"):
        if not isinstance(values.get(key), str):
            raise BadInput(f"{key}={values.get(key)!r}: expected a text")
    if values.get("kind", "effect") not in KINDS:
        raise BadInput(f"kind={values['kind']!r}: expected one of {', '.join(KINDS)}")
    parts = values.pop("parts", [])
    if not isinstance(parts, list):
        raise BadInput(f"parts={parts!r}: expected a list")
    if bool(parts) == bool(values.get("not_tested")):
        raise BadInput("expected either parts or not_tested (the reason)")
    return Claim(**values, parts=tuple(_part(part) for part in parts))


def _part(row: Any) -> Part:
    names = [f.name for f in fields(Part) if f.name not in ("side", "bound")]
    values = _known(row, [*names, "holds"])
    for key in ("name", "batch", "value", "holds"):
        if not isinstance(values.get(key), str):
            raise BadInput(f"part {values.get('name')!r}: {key}={values.get(key)!r}: a text")
    rule = _HOLDS.fullmatch(values.pop("holds"))
    if rule is None:
        raise BadInput(f"part {values['name']!r}: holds={row['holds']!r}: expected such as '< 1.5'")
    if values.get("table", "history") not in TABLES:
        raise BadInput(f"table={values['table']!r}: expected one of {', '.join(TABLES)}")
    if compare := values.pop("compare", None):
        compare = _known(compare, [f.name for f in fields(Comparison)])
        if missing := [k for k in ("by", "of", "against") if k not in compare]:
            raise BadInput(f"part {values['name']!r}: compare lacks {', '.join(missing)}")
        if not isinstance(compare.get("ratio", False), bool):
            raise BadInput(f"part {values['name']!r}: ratio={compare['ratio']!r}: true or false")
        values["compare"] = Comparison(**compare)
    bound, is_ratio = float(rule[2]), bool(compare) and values["compare"].ratio
    if is_ratio and not bound > 0:
        raise BadInput(f"part {values['name']!r}: holds={row['holds']!r}: a ratio is above 0")
    if rule[1] == WITHIN and not bound > (1 if is_ratio else 0):
        floor = "1 of a factor" if is_ratio else "0"
        raise BadInput(f"part {values['name']!r}: holds={row['holds']!r}: expected above {floor}")
    if (margin := values.get("margin")) is not None:
        least = 1 if is_ratio else 0
        if not compare or type(margin) not in (int, float) or not margin > least:
            what = f"a number > {least}, in a part that compares"
            raise BadInput(f"part {values['name']!r}: margin={margin!r}: expected {what}")
    if (end := values.get("least")) is not None and (compare or type(end) not in (int, float)):
        what = "expected a number, in a part that does not compare"
        raise BadInput(f"part {values['name']!r}: least={end!r}: {what}")
    return Part(**values, side=rule[1], bound=bound)


def _known(row: Any, names: list[str]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadInput(f"{row!r}: expected a mapping")
    for key in row:
        if key not in names:
            raise BadInput(f"unknown key {key!r}{nearest(key, names)}")
    return {**row}
