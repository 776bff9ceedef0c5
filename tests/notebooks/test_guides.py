"""Guides are short, and docs/guides.md counts the lines that they mark as changed."""

import re
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parents[2]
GUIDES = sorted(ROOT.glob("notebooks/guides/*.py"))
MOST_WORDS = 1_000  # five minutes at 200 words a minute
MOST_LINES_CHANGED = 3

#: tag of the cell with the loop -> what the page calls it, and its guide
LOOPS = {
    "plain-loop": ("a loop like nanoGPT's", "own_loop"),
    "huggingface": ("Trainer of Hugging Face", "with_huggingface"),
    "lightning": ("Lightning", "with_lightning"),
    "accelerate": ("Accelerate", "with_accelerate"),
    "sb3": ("PPO of Stable-Baselines3", "reinforcement_learning"),
}


def count_changed(tag, guide):
    """Lines of the cell tagged ``tag`` that end with a comment which begins with "changed"."""
    cells = jupytext.read(ROOT / f"notebooks/guides/{guide}.py").cells
    (cell,) = [c for c in cells if tag in c.metadata.get("tags", [])]
    return len(re.findall(r"  # changed(?:: .*)?$", cell.source, re.M))


def lines_changed():
    """The table of docs/guides.md."""
    rows = ["| loop | lines changed | guide |", "|---|---|---|"]
    for tag, (name, guide) in LOOPS.items():
        link = f"[{guide}](../notebooks/guides/{guide}.ipynb)"
        rows.append(f"| {name} | {count_changed(tag, guide)} | {link} |")
    return "\n".join(rows)


@pytest.mark.parametrize("tag", LOOPS)
def test_a_loop_takes_few_changed_lines(tag):
    assert 1 <= count_changed(tag, LOOPS[tag][1]) <= MOST_LINES_CHANGED


def test_the_page_has_the_counts():
    page = (ROOT / "docs/guides.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- begin lines changed -->\n(.*?)\n<!-- end", page, re.S)
    assert found[1] == lines_changed()


@pytest.mark.parametrize("path", GUIDES, ids=lambda p: p.stem)
def test_a_guide_is_read_in_five_minutes_and_asks_a_question(path):
    cells = jupytext.read(path).cells
    assert re.match(r"# .*\?\n", cells[0].source)
    assert sum(len(re.findall(r"\w+", cell.source)) for cell in cells) <= MOST_WORDS


def test_the_map_and_the_page_list_every_guide():
    for text in (ROOT / "docs/guides.md", ROOT / "notebooks/00_start_here.py"):
        listed = set(re.findall(r"guides/(\w+)\.ipynb", text.read_text(encoding="utf-8")))
        assert listed == {path.stem for path in GUIDES}, text.name
