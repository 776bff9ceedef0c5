"""The paper says what the committed results say, and nobody typed its numbers."""

import re
from pathlib import Path

import pytest
import torch

from gqc_lab.claims import load_frozen, read_claims
from gqc_lab.claims.commands import (
    COLUMNS,
    FILLED,
    FLAGSHIP,
    GEOMETRIC,
    batch_path,
    check,
    current_ids,
    decide,
    fill_readme,
    read_plan,
)
from gqc_lab.claims.render import render, verdict_frame
from gqc_lab.models.operator import make_operator
from gqc_lab.publish.paper_figures import print_figures, read_figures
from gqc_lab.runs.notebook import read_notebook
from gqc_lab.runs.plan import read_batch
from gqc_lab.studies import continual, operator_learning, pretraining
from gqc_lab.studies.vgs import training as vgs_training

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "paper"
LIMIT = 10_000_000  # bytes of all committed results


@pytest.fixture(scope="module")
def verdicts():
    return decide(PAPER)


def test_committed_verdicts_are_what_the_results_give():
    assert check(PAPER) == []


def test_every_claim_has_a_verdict_or_a_reason(verdicts):
    for verdict in verdicts:
        assert verdict.effects or len(verdict.reason) > 10


def test_claims_point_to_notebooks_and_batches_that_exist():
    plan = read_plan(PAPER)
    for claim in read_claims(PAPER / "claims.yaml"):
        if claim.notebook:
            read_notebook(ROOT / "notebooks" / f"{claim.notebook}.ipynb")
        assert {part.batch for part in claim.parts} <= set(plan)
    assert set(load_frozen(PAPER / "results")) <= set(plan)
    assert all(batch_path(PAPER, name).is_file() for name in plan)


def test_the_results_are_small():
    assert sum(path.stat().st_size for path in (PAPER / "results").rglob("*")) < LIMIT


def test_the_readme_says_what_the_results_say(verdicts):
    results = load_frozen(PAPER / "results")
    current = current_ids(PAPER, results)
    for page, block in zip(FILLED, ("claims", "flagship"), strict=True):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert f"<!-- begin {block} -->" in text
        assert fill_readme(text, verdicts, results, current) == text


def test_what_the_readme_says_of_the_evidence_holds(verdicts):
    """It says in words what a norm schedule gains, what holds of memory, and of estimators."""
    found = {verdict.claim.id: verdict for verdict in verdicts}
    untuned, constant, cosine = found["gqc-perplexity"].effects
    assert (untuned.status, constant.status, cosine.status) == ("holds", "holds", "fails")
    over_constant, *of_decays_and_batches = found["gqc-annealing"].effects
    assert over_constant.status == "holds"
    assert {effect.status for effect in of_decays_and_batches} == {"holds"}
    gained = [found[name] for name in ("gqc-controllers", "gqc-16x")]
    assert "holds" not in {effect.status for verdict in gained for effect in verdict.effects}
    assert found["gqc-constant-memory"].verdict == "reproduced"
    assert {effect.status for effect in found["vgs-v4-true"].effects[:2]} == {"holds"}


def test_the_flagship_is_reported_as_its_batch_reports_it():
    report = read_batch(batch_path(PAPER, FLAGSHIP)).report
    timing = ("tokens_per_second",)  # of the machine that it ran on
    assert (report.columns, report.geometric) == (COLUMNS + timing, GEOMETRIC + timing)


def test_no_number_in_the_results_is_typed():
    text = (PAPER / "results-text.tex").read_text(encoding="utf-8")
    text = re.sub(r"\\(ref|label|includegraphics|input|cite)(\[[^]]*\])?\{[^}]*\}", "", text)
    text = re.sub(r"\\[A-Za-z]+", "", text)  # macros have no digits in their names
    text = re.sub(r"(?m)%.*$", "", text)
    assert re.findall(r"[^\n]*[0-9][^\n]*", text) == []


def test_every_macro_of_the_text_is_written(verdicts):
    known = set(
        re.findall(
            r"\\newcommand\{\\(\w+)\}",
            render("claims-macros.tex", frame=verdict_frame(verdicts)),
        )
    )
    text = (PAPER / "results-text.tex").read_text(encoding="utf-8")
    text += (PAPER / "main.tex").read_text(encoding="utf-8")
    used = set(re.findall(r"\\((?:verdict|effect|said|mean|seeds)[A-Z]\w*)", text))
    assert used
    assert used <= known


def test_works_are_cited_and_listed():
    text = (PAPER / "main.tex").read_text(encoding="utf-8")
    text += (PAPER / "results-text.tex").read_text(encoding="utf-8")
    cited = {key for keys in re.findall(r"\\cite\{([^}]*)\}", text) for key in keys.split(",")}
    listed = re.findall(r"\\bibitem\{(\w+)\}", (PAPER / "references.tex").read_text("utf-8"))
    assert sorted(cited) == listed


LAPTOP = {
    "01_gnts_pretraining": lambda: pretraining.build(pretraining.config("laptop")),
    "06_vgs_alpha": lambda: vgs_training.build(vgs_training.config("laptop", task="values")),
    "10_upgd_continual": lambda: continual.build(continual.config("laptop")),
    "13_upt_fix": lambda: make_operator(
        operator_learning.config("laptop").sizes, torch.Generator()
    ),
}


@pytest.mark.parametrize("name", LAPTOP)
def test_the_size_of_a_model_is_what_it_is_said_to_be(name):
    built = LAPTOP[name]()
    size = sum(p.numel() for p in getattr(built, "model", built).parameters())
    assert re.search(rf"\b{size:,}\b", read_plan(PAPER)[name]["trained"])


def test_every_batch_says_what_was_trained():
    assert [name for name, entry in read_plan(PAPER).items() if not entry.get("trained")] == []


@pytest.mark.parametrize("name", read_figures(PAPER))
def test_a_figure_can_be_drawn(name, tmp_path):
    ((_, files),) = print_figures(PAPER, [name], tmp_path)
    assert all(path.stat().st_size > 5_000 for path in files)
