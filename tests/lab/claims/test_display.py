"""What is shown of committed verdicts beside a small run."""

import json

import pytest

from gqc_lab.claims import show_verdicts

CLAIMS = """
- id: x-faster
  group: X
  statement: a | b
  source: here
  notebook: 01_x
  scale: laptop
  parts:
    - {name: loss, batch: 01_x, value: max(loss), holds: "< 1.5", unit: nat/token}
    - {name: steps, batch: 01_x, value: max(steps), holds: "> 2"}
- {id: x-untold, group: X, statement: c, source: here, notebook: 01_x, scale: laptop,
   not_tested: too large}
- {id: y, group: X, statement: d, source: here, notebook: 02_y, scale: laptop, not_tested: why}
"""


def effect(name, mean, status):
    numbers = {"mean": mean, "low": mean - 1, "high": mean + 1, "n": 5, "p": 0.01}
    return {"name": name, **numbers, "status": status}


@pytest.fixture
def paper(tmp_path):
    effects = [effect("loss", 1.25, "open"), effect("steps", 4, "holds")]
    tested = {"id": "x-faster", "verdict": "undecided", "num_runs": 10, "effects": effects}
    tested |= {"p": 0.03, "p_holm": 0.12}
    untested = {"id": "x-untold", "verdict": "not tested", "num_runs": 0, "effects": []}
    (tmp_path / "claims.yaml").write_text(CLAIMS)
    (tmp_path / "verdicts.json").write_text(json.dumps([tested, untested]))
    return tmp_path


def test_a_notebook_shows_the_claims_that_it_decides(paper):
    text = show_verdicts("01_x", paper).data
    assert text.startswith("**At laptop scale**")
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    assert rows == [
        "| **x-faster** a \\| b | undecided (parts: some hold; "
        "no number of seeds up to 1000 would decide)"
        "<br>p (Holm) = 0.12 | "
        "loss (< 1.5 nat/token): 1.25 [0.25, 2.25], n = 5: open<br>"
        "steps (> 2): 4 [3, 5], n = 5: holds | 10 |",
        "| **x-untold** c | not tested | too large | 0 |",
    ]


def test_one_claim_is_shown_by_its_id(paper):
    text = show_verdicts("x-untold", paper).data
    assert [line for line in text.splitlines() if line.startswith("| **")] == [
        "| **x-untold** c | not tested | too large | 0 |"
    ]


def test_a_claim_whose_verdict_is_not_committed_yet_is_left_out(paper):
    (paper / "verdicts.json").write_text("[]")
    assert "x-faster" not in show_verdicts("01_x", paper).data


def test_a_notebook_without_claims_is_named(paper):
    with pytest.raises(ValueError, match="name='03_z': no claim"):
        show_verdicts("03_z", paper)


def test_all_claims_stand_under_their_verdicts(paper):
    *rows, blank, words = show_verdicts("all", paper).data.splitlines()
    assert blank == ""
    assert words.startswith("With p corrected for all claims (Holm) a claim is *reproduced*, ")
    assert rows[2:] == [
        '| **undecided** (1) | [x-faster](01_x.ipynb "a / b") |',
        '| **not tested** (1) | [x-untold](01_x.ipynb "c") |',
    ]


def test_without_a_checkout_one_line_says_so(tmp_path):
    text = show_verdicts("01_x", tmp_path / "paper").data
    assert "\n" not in text
    assert text.endswith("paper` here.")
