"""Saving outputs: the same bytes twice, nothing of the machine, nothing lost by a failure."""

from types import SimpleNamespace

import jupytext
import nbformat
import pandas as pd
import pytest
from nbclient.exceptions import CellExecutionError
from notebook_files import is_paired

from gqc_lab.publish import notebooks
from gqc_lab.publish import shown as shown_cells

SCRIPT = """# %% tags=["parameters"]
device = "auto"

# %%
import sys

print("a bar 10%\\r", file=sys.stderr)
print(device)

# %%
import plotly.graph_objects as go

go.Figure(go.Scatter(y=[1, 2]))
"""


@pytest.fixture
def pair(tmp_path):
    """A pair in a folder with the repository's jupytext settings."""
    (tmp_path / "jupytext.toml").write_text(
        'formats = "ipynb,py:percent"\nnotebook_metadata_filter = "kernelspec,jupytext"\n'
        'cell_metadata_filter = "tags"\n'
    )
    path = tmp_path / "small.ipynb"
    content = jupytext.reads(SCRIPT, "py:percent")
    content.metadata["widgets"] = {"state": "x" * 1000}
    nbformat.write(content, path)
    path.with_suffix(".py").write_text(jupytext.writes(content, "py:percent"))
    return path


def cells(path):
    return nbformat.read(path, as_version=4).cells


def test_a_refresh_saves_outputs_and_no_traces(pair):
    notebooks.refresh(pair, "plotly_mimetype")
    parameters, printing, drawing = cells(pair)
    assert parameters.source == 'device = "auto"'  # run on the CPU, saved as it was
    assert [o.text for o in printing.outputs] == ["cpu\n"]
    assert "application/vnd.plotly.v1+json" in drawing.outputs[0].data
    assert "widgets" not in nbformat.read(pair, as_version=4).metadata
    assert is_paired(pair)


def test_a_second_refresh_changes_no_byte(pair):
    notebooks.refresh(pair, "plotly_mimetype")
    files = [pair, pair.with_suffix(".py")]
    before = [f.read_bytes() for f in files]
    notebooks.refresh(pair, "plotly_mimetype")
    assert [f.read_bytes() for f in files] == before


def test_a_failing_cell_leaves_the_file_as_it_was(pair):
    content = nbformat.read(pair, as_version=4)
    content.cells.append(nbformat.v4.new_code_cell("1 / 0"))
    nbformat.write(content, pair)
    pair.with_suffix(".py").write_text(jupytext.writes(content, "py:percent"))
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        notebooks.refresh(pair, "plotly_mimetype")
    assert not any(cell.get("outputs") for cell in cells(pair))


def test_only_the_parameters_cell_is_put_on_the_cpu():
    source = 'device = "auto"'
    new = nbformat.v4.new_code_cell
    chosen = new(f"{source}  # one of\nmy_{source}", metadata={"tags": ["parameters"]})
    content = nbformat.v4.new_notebook(cells=[chosen, new(source)])
    chosen, other = notebooks.on_cpu(content).cells
    assert chosen.source == f'device = "cpu"  # one of\nmy_{source}'
    assert other.source == source


def test_what_is_not_a_notebook_is_named(tmp_path, capsys):
    assert notebooks.main([str(tmp_path / "no.ipynb")]) == 2
    assert "no.ipynb: expected .ipynb files" in capsys.readouterr().err
    assert notebooks.main([]) == 2


def test_verdicts_are_brought_up_to_date_without_running(tmp_path, monkeypatch):
    def table(name, paper):
        return SimpleNamespace(data=f"{name} of {paper.resolve().name}")

    monkeypatch.setattr(shown_cells.claims, "show_verdicts", table)
    new = nbformat.v4.new_code_cell
    old = nbformat.v4.new_output("execute_result", {"text/markdown": "old", "text/plain": "M"})
    shown = new('claims.show_verdicts("01_x")', outputs=[old])
    other = new("1 / 0", outputs=[nbformat.v4.new_output("stream", text="old")])
    path = tmp_path / "notebooks" / "01_x.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[shown, other]), path)
    assert notebooks.main(["--verdicts", str(path)]) == 0
    shown, other = cells(path)
    assert shown.outputs[0].data == {"text/markdown": "01_x of paper", "text/plain": "M"}
    assert other.outputs[0].text == "old"


def test_a_table_has_headings_with_units_and_short_numbers_and_no_nan():
    columns = {"val_loss": [2.5, None], "checkpoint_bytes": [1052804, 12], "share": [0.1, 1 / 3]}
    index = pd.Index(["3.0", "adamw"], name="method")
    html = pd.DataFrame(columns, index=index)._repr_html_()
    shown = notebooks.readable(html)
    cells = [cell[2] for cell in notebooks.CELL.finditer(shown)]
    assert cells[:4] == ["", "held-out loss [nat/token]", "checkpoint [bytes]", "share"]
    assert cells[8:] == ["3.0", "2.5", "1,052,804", "0.1", "adamw", "–", "12", "0.3333"]
    assert "<style" not in shown
    assert notebooks.readable(shown) == shown


def test_an_empty_list_is_none_and_other_text_stays():
    assert notebooks.readable("above [], below []\n") == "above none, below none\n"
    kept = "x[], [1], nan and 1.234567890\n"
    assert notebooks.readable(kept) == kept
