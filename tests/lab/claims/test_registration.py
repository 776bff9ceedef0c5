"""Rules are registered before their data: what counts as confirmatory, and what a check finds."""

import json
import os
import subprocess

import numpy as np
import pandas as pd
import pytest

from gqc_lab.claims import evaluate, load_frozen, read_claims
from gqc_lab.claims.commands import check, register_all, write
from gqc_lab.claims.frozen import HISTORY, RESULTS, RUNS
from gqc_lab.claims.registration import FILE, describe, history, read_registration, verify
from gqc_lab.claims.render import describe_claims, render
from gqc_lab.errors import BadInput
from gqc_lab.runs.fingerprint import registration
from gqc_lab.runs.store import file_hash, seal, write_json

RULE = """
- id: lower
  group: Demo
  statement: b is below a
  source: here
  notebook: 01_x
  scale: smoke
  parts:
    - name: loss
      batch: demo
      table: results
      value: max(loss)
      compare: {by: method, of: b, against: a}
      holds: "< 0"
"""

LATER = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "2099-01-01T00:00:00Z")


@pytest.fixture
def project(tmp_path):
    """A repository with a notebook, its batch of an old and some fresh seeds, and one rule."""
    (tmp_path / "paper").mkdir()
    (tmp_path / "notebooks" / "batches").mkdir(parents=True)
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "outputs": []}
    cell |= {"execution_count": None, "source": "seed = 0\nmethod = 'a'", "id": "one"}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "notebooks" / "01_x.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "notebooks" / "batches" / "demo.yaml").write_text(
        "notebook: ../01_x.ipynb\ngrid: {method: [a, b]}\nseeds: [0, 1, 1000, 1001, 1002]\n"
    )
    (tmp_path / "paper" / "claims.yaml").write_text(RULE)
    (tmp_path / "paper" / "results.yaml").write_text("demo: {}\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def git(folder, *arguments, **when):
    names = ("-c", "user.name=a", "-c", "user.email=a@b.invalid")
    how = {"cwd": folder, "check": True, "capture_output": True, "text": True}
    return subprocess.run(
        ["git", *names, *arguments], env={**os.environ, **when}, **how
    ).stdout.strip()


def commit(folder, **when):
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x", **when)
    return git(folder, "rev-parse", "HEAD")


def put(project, seeds, difference, made_under=None, others=()):
    """Results of both methods as `freeze` leaves them; ``others``: results that were there."""
    from gqc_lab.claims.commands import batch_path
    from gqc_lab.runs.plan import read_batch

    runs, rows = [], []
    for run in read_batch(batch_path(project / "paper", "demo")).runs:
        seed, method = run.parameters["seed"], run.parameters["method"]
        if seed in seeds:
            loss = 1 + (method == "b") * (difference + 0.001 * np.sin(seed))
            rows.append({"run": run.id, "method": method, "seed": seed, "loss": loss})
            record = {"id": run.id, "parameters": run.parameters, "environment": 0}
            fresh = {"registration": 0} if made_under else {}
            runs.append({**record, "is_current": True, "seconds": 1.0, "started": 9e9, **fresh})
    folder = project / "paper" / "results" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame([*rows, *(row for other in others for row in other[1])])
    frame.to_parquet(folder / RESULTS)
    frame[["run"]].to_parquet(folder / HISTORY)
    files = {name: file_hash(folder / name) for name in (HISTORY, RESULTS)}
    runs += [run for other in others for run in other[0]]
    place = {"packages": {}, "threads": 1, "cores": 1, "python": "3", "platform": "Linux"}
    record = {"format": 1, "notebook": "01_x", "runs": runs, "files": files}
    record |= {"registrations": [made_under] if made_under else []}
    write_json(folder / RUNS, seal({**record, "inputs": {}, "environments": [place]}))
    return runs, rows


def decide(project):
    paper = project / "paper"
    return evaluate(read_claims(paper / "claims.yaml"), load_frozen(paper / "results"))[0]


def registered(project):
    register_all(project / "paper")
    commit(project)
    return registration(project / "notebooks")


def test_fresh_seeds_under_a_registered_rule_decide_and_old_ones_are_shown(project):
    made_under = registered(project)
    assert made_under["commit"] == git(project, "rev-parse", "HEAD")
    old = put(project, [0, 1], 0.5)
    assert (decide(project).stage, decide(project).verdict) == ("exploratory", "not reproduced")
    put(project, [1000, 1001, 1002], -0.5, made_under, [old])
    verdict = decide(project)
    assert (verdict.stage, verdict.verdict) == ("confirmatory", "reproduced")
    assert (verdict.earlier, verdict.num_runs, verdict.effects[0].n) == ("not reproduced", 6, 3)
    claims = describe_claims([verdict], read_registration(project / "paper"))
    assert "exploratory: not reproduced" in render("claims.md", claims=claims, links=".")
    write([verdict], project / "paper")
    assert check(project / "paper") == []


def test_the_verdict_of_a_round_that_is_no_longer_kept_is_shown_and_changes_no_rule(project):
    path = project / "paper" / "claims.yaml"
    before = read_claims(path)[0].rule
    path.write_text(RULE + "  earlier: undecided\n")
    assert read_claims(path)[0].rule == before
    put(project, [1000, 1001, 1002], -0.5, registered(project))
    verdict = decide(project)
    assert (verdict.stage, verdict.earlier) == ("confirmatory", "undecided")


def test_runs_that_began_before_their_rule_or_under_another_are_exploratory(project):
    made_under = registered(project)
    put(project, [1000, 1001, 1002], -0.5)  # nothing was registered
    assert decide(project).stage == "exploratory"
    put(project, [1000, 1001, 1002], -0.5, {**made_under, "commit": None})  # not committed
    assert decide(project).stage == "exploratory"
    put(project, [1000, 1001, 1002], -0.5, made_under)
    assert decide(project).stage == "confirmatory"
    (project / "paper" / "claims.yaml").write_text(RULE.replace('"< 0"', '"< -0.1"'))
    assert decide(project).stage == "exploratory"  # the rule has changed
    place = project / "paper" / "registration.json"
    assert register_all(project / "paper") == [
        f"1 rules and 6 runs: commit {place} before they run",
        "lower: changed; its row is exploratory until it is run again",
    ]
    (project / "paper" / "claims.yaml").write_text(RULE.replace("name: loss", "name: the loss"))
    assert decide(project).stage == "confirmatory"  # a name decides nothing


def test_a_claim_waits_for_fresh_runs_of_all_its_batches_with_what_there_is(project):
    """One batch has confirmatory runs only, the other none: together they are exploratory."""
    path = project / "paper" / "claims.yaml"
    second = RULE.split("parts:\n")[1].replace("batch: demo", "batch: other")
    path.write_text(RULE + second)
    (project / "paper" / "results.yaml").write_text("demo: {}\nother: {}\n")
    batches = project / "notebooks" / "batches"
    (batches / "other.yaml").write_text((batches / "demo.yaml").read_text())
    made_under = registered(project)
    results = project / "paper" / "results"
    put(project, [1000, 1001, 1002], -0.5)
    (results / "demo").rename(results / "other")
    put(project, [1000, 1001, 1002], -0.5, made_under)
    verdict = decide(project)
    assert (verdict.stage, verdict.verdict, verdict.reason) == ("exploratory", "reproduced", "")
    assert [effect.n for effect in verdict.effects] == [3, 3]


def test_a_rule_is_not_registered_without_its_batch_and_says_that_it_has_no_fresh_seeds(project):
    paper = project / "paper"
    (paper / "results.yaml").write_text("{}\n")
    with pytest.raises(BadInput, match=r"results\.yaml: no batch demo \(of lower\); list it there"):
        register_all(paper)
    assert not (paper / FILE).exists()
    (paper / "results.yaml").write_text("demo: {}\n")
    batch = project / "notebooks" / "batches" / "demo.yaml"
    batch.write_text(batch.read_text().replace(", 1000, 1001, 1002]", "]"))
    why = "lower: demo: no run of it is registered, as no seed is at least 1000; exploratory"
    assert register_all(paper)[1:] == [why]


def test_register_takes_no_check(project):
    from gqc_lab.cli.paper import decide_claims

    with pytest.raises(BadInput, match="register writes"):
        decide_claims("register", project / "paper", is_check=True)
    assert not (project / "paper" / FILE).exists()


def test_a_claim_that_is_gone_is_not_said_to_wait_for_runs(project):
    paper = project / "paper"
    register_all(paper)
    (paper / "claims.yaml").write_text(RULE.replace("id: lower", "id: other"))
    assert register_all(paper)[1:] == ["lower: is no claim with parts any more"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"rules": {}}', "null", "{", '{"rules": []}'])
def test_a_registration_that_is_none_is_named(project, text):
    (project / "paper" / FILE).write_text(text)
    for read in (
        lambda: register_all(project / "paper"),
        lambda: registration(project / "notebooks"),
    ):
        with pytest.raises(BadInput, match=r"registration\.json: "):
            read()


@pytest.mark.parametrize("name", ["claims.yaml", "results.yaml"])
def test_a_key_that_is_given_twice_is_refused(project, name):
    path = project / "paper" / name
    twice = {"claims.yaml": '      holds: "> 0"\n', "results.yaml": "demo: {columns: []}\n"}
    path.write_text(path.read_text() + twice[name])
    with pytest.raises(BadInput, match=rf"{name}: '(holds|demo)' is given twice"):
        register_all(project / "paper")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"commit": "0" * 40}, "began under no committed registration"),
        ({"commit": None}, "began under no committed registration"),
        ({"rules": {"lower": "another"}}, "has registered other rules"),
    ],
)
def test_a_check_asks_git_for_the_order(project, change, message):
    made_under = registered(project)
    results = project / "paper" / "results"
    put(project, [0, 1000], -0.5, made_under)
    assert verify(project / "paper", load_frozen(results)) == []
    put(project, [0, 1000], -0.5, {**made_under, **change})
    lines = verify(project / "paper", load_frozen(results))
    assert len(lines) == 2  # of two methods; the old seed is not asked
    assert all(message in line for line in lines)


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\n- id: [", "lower: 1\n", "- lower\n", "\x00"])
def test_a_commit_that_broke_the_claims_is_passed_over(project, text):
    path = project / "paper" / "claims.yaml"
    before = history(project / "paper", read_claims(path))
    for content, more in ((text, ""), (text, "# the same\n"), (RULE, "")):
        path.write_text(content + more)
        commit(project, **LATER)
    assert history(project / "paper", read_claims(path)) == before


def test_a_check_finds_a_commit_that_is_no_ancestor_and_runs_that_were_not_planned(project):
    git(project, "checkout", "-qb", "other")
    made_under = registered(project)
    git(project, "checkout", "-q", "-")
    put(project, [1000], -0.5, made_under)
    frozen = load_frozen(project / "paper" / "results")
    assert "no committed registration" in verify(project / "paper", frozen)[0]
    git(project, "merge", "-q", "other")
    assert verify(project / "paper", frozen) == []
    batch = project / "notebooks" / "batches" / "demo.yaml"
    batch.write_text(batch.read_text().replace("1002]", "1002, 1003]"))
    put(project, [1003], -0.5, made_under)
    lines = verify(project / "paper", load_frozen(project / "paper" / "results"))
    assert "not among the runs registered" in lines[0]


def test_a_run_records_only_what_is_committed(project):
    assert registration(project / "notebooks") is None
    register_all(project / "paper")
    claim = read_claims(project / "paper" / "claims.yaml")[0]
    assert registration(project / "notebooks") == {
        "commit": None,
        "rules": {"lower": claim.rule},
    }


def test_the_history_tells_a_rule_that_changed_after_its_data(project):
    claim = read_claims(project / "paper" / "claims.yaml")[0]
    register_all(project / "paper")
    text = describe(claim, read_registration(project / "paper"))
    assert text.startswith("written 2")
    assert "changed" not in text
    assert ", registered 2" in text
    history = {"written": "2026-01-01 10:00", "changed": "2026-01-03 10:00"}
    content = {"rules": {}, "since": {}, "history": {"lower": history}}
    assert describe(claim, content) == "written 2026-01-01 10:00, changed 2026-01-03 10:00"
    history["data"] = "2026-01-02 10:00"
    assert describe(claim, content).endswith("(after its first data, 2026-01-02 10:00)")
