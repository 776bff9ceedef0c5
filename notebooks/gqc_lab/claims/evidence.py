"""Show in a notebook what the committed results answer: a sentence, a figure, verdicts.

A saved notebook holds a run of seconds; the results that decide its claims are in ``paper``.  This
shows them without deciding or training anything.

``paper/answers.yaml`` has the sentences.  Their numbers, directions and yes or no are filled in
from the committed verdicts, and the figure is drawn from the committed frames::

    18_angle_paradox:
      answer: "{gqc-angle!yes}. The angle is {gqc-angle.1}."   # a verdict's word; the first part
      says: {gqc-angle.2: fails}    # what other words of the answer take for granted
      figure: angles                # of figures.yaml, or an entry as there

After ``{claim.part`` may stand ``!yes`` (a part's word), ``!percent`` (of a share), ``!points`` (of
a change of one), ``!10^`` or ``!2^`` (of a logarithm to that base), or words: ``!more/fewer``.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from IPython.display import Markdown, display

from gqc_lab.claims.commands import CLAIMS, RESULTS, VERDICTS, read_verdicts
from gqc_lab.claims.frozen import Frozen, load_frozen
from gqc_lab.claims.render import describe_claims, leaning, render, say
from gqc_lab.claims.rules import read_yaml
from gqc_lab.claims.verdicts import Verdict
from gqc_lab.errors import BadInput, check_keys, nearest

PAPER = "../paper"  #: of a notebook in a checkout
FIGURES, ANSWERS = "figures.yaml", "answers.yaml"
KEYS = ("figure", "batch", "table", "where", "arguments", "size")
WORDS = {
    "reproduced": "Yes",
    "holds": "Yes",
    "without effect": "No difference that matters",
    "not reproduced": "No, not at this scale",
    "refuted": "No",
    "fails": "No",
    "undecided": "Not decided by these seeds",
    "all hold": "Not decided after correction for all claims",
    "open": "Not decided by these seeds",
    "question": "Measured, without a verdict",
    "not tested": "Not tested yet",
}
_SLOT = re.compile(r"\{(?P<claim>[a-z][\w-]*)(?:\.(?P<part>\d+))?(?:!(?P<how>[^}]+))?\}")


def show_evidence(name: str, paper: Path | str = PAPER) -> None:
    """Show what the committed results answer to a notebook's question; nothing is trained.

    In a run of a batch it shows nothing: a run is about its own numbers.

    Args:
        name: of the notebook, without ending.
        paper: folder of the claims and committed results; where it has none, a line says so.
    Raises: ValueError: the notebook has no answer in ``answers.yaml``.
    """
    if "GQC_RUN_DIR" not in os.environ:
        for shown in evidence(name, Path(paper)):
            display(shown)


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
        where = f"there is no `{paper.as_posix()}` here"
        return Markdown(f"Committed results are shown in a checkout of the kit; {where}.")
    claims, verdicts = read_verdicts(paper)
    if name == "all":
        return Markdown(render("all.md", claims=describe_claims(verdicts)).rstrip())
    mine = [claim for claim in claims if name in (claim.notebook, claim.id)]
    if not mine:
        where = f"no claim in {paper / CLAIMS} has that id or is decided by that notebook"
        raise ValueError(f"name={name!r}: {where}")
    shown = describe_claims([verdict for verdict in verdicts if verdict.claim in mine])
    scales = ", ".join(dict.fromkeys(s for claim in mine for s in claim.scale.split(", ")))
    return Markdown(render("notebook.md", claims=shown, scales=scales).rstrip())


def evidence(name: str, paper: Path) -> list[Any]:
    """Return what :func:`show_evidence` shows: Markdown, a plotly figure, Markdown."""
    if not (paper / VERDICTS).is_file():
        return [show_verdicts(name, paper)]
    entry = read_answers(paper).get(name)
    if entry is None:
        raise ValueError(f"name={name!r}: no such notebook in {paper / ANSWERS}")
    claims, verdicts = read_verdicts(paper)
    known = {verdict.claim.id: verdict for verdict in verdicts}
    _check_words(name, entry.get("says", {}), known)
    shown: list[Any] = [Markdown(answer(entry["answer"], known))]
    if figure := figure_of(entry, paper):
        committed = load_frozen(paper / RESULTS)
        if figure["batch"] in committed:
            shown.append(draw(figure, committed[figure["batch"]]))
    if any(claim.notebook == name for claim in claims):
        shown.append(show_verdicts(name, paper))
    return shown


def answer(text: str, verdicts: Mapping[str, Verdict]) -> str:
    """Fill the slots of an answer, and say of how many seeds its intervals are.

    Raises: BadInput: a claim or part that does not exist.
    """
    seeds: set[int] = set()

    def fill(match: re.Match[str]) -> str:
        if (verdict := verdicts.get(match["claim"])) is None:
            raise BadInput(f"{match[0]}: no such claim{nearest(match['claim'], verdicts)}")
        if match["part"] is None:
            said = verdict.verdict
            is_close = (said, leaning(verdict)) == ("undecided", "all hold")
            word = WORDS["all hold" if is_close else said]
            return word if match["how"] == "yes" else said
        place = int(match["part"])
        if not 1 <= place <= len(verdict.claim.parts):
            raise BadInput(f"{match[0]}: the claim has {len(verdict.claim.parts)} parts")
        if not verdict.effects:
            return "not measured"
        return _filled(verdict, place - 1, match["how"] or "", seeds)

    filled = _SLOT.sub(fill, text).strip().replace(" %", "\u00a0%")
    counted = " or ".join(str(n) for n in sorted(seeds))
    counted += " seeds, as the table says" if len(seeds) > 1 else " seeds"
    note = f"<small>Means over {counted}, in brackets their 95 % interval.</small>"
    return f"{filled}\n\n{note}" if seeds else filled


def _check_words(name: str, says: Mapping[str, Any], verdicts: Mapping[str, Verdict]) -> None:
    for key, expected in says.items():
        claim, _, part = key.partition(".")
        verdict = verdicts[claim]
        is_part = part and verdict.effects  # not of a claim that is not tested
        found = verdict.effects[int(part) - 1].status if is_part else verdict.verdict
        if found not in ([expected] if isinstance(expected, str) else expected):
            raise BadInput(
                f"{ANSWERS}: {name}: says {key} {expected}, but it is {found}: rewrite it"
            )


def _filled(verdict: Verdict, place: int, how: str, seeds: set[int]) -> str:
    part, effect = verdict.claim.parts[place], verdict.effects[place]
    if how == "yes":
        return WORDS[effect.status]
    if effect.high > effect.low:
        seeds.add(effect.n)
    scales = {"10^": lambda x: 10.0**x, "2^": lambda x: 2.0**x}
    scales |= dict.fromkeys(("percent", "points"), lambda x: 100 * x)
    if how in scales:
        mean, low, high = (scales[how](x) for x in (effect.mean, effect.low, effect.high))
        if how == "percent" and part.compare is None and 0 <= mean <= 100:
            low, high = max(low, 0.0), min(high, 100.0)
        effect = replace(effect, mean=mean, low=low, high=high)
        units = {"10^": part.unit, "2^": "times"} | ({} if part.compare else {"percent": "%"})
        ratio = replace(part.compare, ratio=True) if part.compare and "^" in how else part.compare
        part, how = replace(part, unit=units.get(how, "points"), compare=ratio), ""
    words = how.split("/") if how else []
    if len(words) > 2:
        raise BadInput(f"!{how}: expected at most two words, such as !more/fewer")
    return say(part, effect, *words)


def read_answers(paper: Path) -> dict[str, dict[str, Any]]:
    """Read answers.yaml: the answer of each notebook, and its figure."""
    return dict(read_yaml(paper / ANSWERS))


def read_figures(paper: Path) -> dict[str, dict[str, Any]]:
    """Read figures.yaml.  Raises: BadInput: a key is unknown or missing."""
    path = paper / FIGURES
    entries: dict[str, dict[str, Any]] = read_yaml(path)
    for name, entry in entries.items():
        check_keys(f"{path}: {name}: ", entry, KEYS)
        if missing := [key for key in ("figure", "batch") if key not in entry]:
            raise BadInput(f"{path}: {name}: lacks {', '.join(missing)}")
    return entries


def figure_of(entry: Mapping[str, Any], paper: Path) -> dict[str, Any] | None:
    """Return what figures.yaml, or the answer itself, says of its figure; None if it has none."""
    figure: str | dict[str, Any] | None = entry.get("figure")
    return read_figures(paper)[figure] if isinstance(figure, str) else figure


def draw(entry: Mapping[str, Any], frozen: Frozen) -> Any:
    """Make the plotly figure of an entry of figures.yaml."""
    from gqc_lab import figures

    try:
        function = attrgetter(entry["figure"])(figures)
    except AttributeError as error:
        raise BadInput(f"{FIGURES}: figure: {entry['figure']!r}: {error}") from None
    rows, where = getattr(frozen, entry.get("table", "results")), entry.get("where")
    return function(rows.query(where) if where else rows, **entry.get("arguments", {}))
