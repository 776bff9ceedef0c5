"""The gallery shows each finished run, and opens from a folder, without a network."""

import base64
import re

import nbformat
import pytest

from gqc_lab.errors import BadInput
from gqc_lab.publish.gallery import PLOTLY, build_gallery
from gqc_lab.runs.plan import read_batch
from gqc_lab.runs.store import Store, write_json

PICTURE = base64.b64encode(b"a picture").decode()
FIGURE = {"data": [{"type": "scatter", "y": [3, 1, 2]}], "layout": {"title": {"text": "Loss"}}}


def finish(store, run, data, rows):
    """Store a run whose notebook shows one output."""
    folder = store.partial(run.id)
    folder.mkdir(parents=True)
    cell = nbformat.v4.new_code_cell(
        "draw()", outputs=[nbformat.v4.new_output("display_data", data)] if data else []
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "notebook.ipynb")
    common = {"notebook": "tiny", "parameters": run.parameters}
    write_json(folder / "result.json", {"run": run.id, **common, "results": rows, "info": {}})
    record = {"id": run.id, **common, "inputs": run.inputs, "started": 0.0, "seconds": 1.0}
    store.publish(run.id, record)


@pytest.fixture
def batch(tmp_path, request):
    fixtures = request.path.parents[2] / "fixtures" / "notebooks"
    (tmp_path / "b.yaml").write_text(
        f"notebook: {fixtures / 'tiny.ipynb'}\ngrid: {{method: [plain, double]}}\nseeds: 2\n"
        "report: {by: [method], columns: [loss]}\n"
    )
    return read_batch(tmp_path / "b.yaml")


@pytest.fixture
def store(tmp_path, batch):
    store = Store(tmp_path / "runs")
    shown = [{PLOTLY: FIGURE}, {"image/png": PICTURE}, {"text/plain": "<i>"}]
    for run, data, loss in zip(batch.runs, shown, [1.25, 1.75, 1e6 / 3], strict=False):
        finish(store, run, data, [{"loss": loss, "note": "a<b", "steps": 300}])
    return store


def rows_of(page):
    """Texts of the cells of the page's last table."""
    table = page[page.rindex("<table>") :]
    lines = re.findall(r"<tr>(.*?)</tr>", table)
    return [re.sub(r"<[^>]+>", "", re.sub("</t[dh]>", "|", line)).split("|") for line in lines]


def test_each_run_has_a_line_a_page_and_a_picture(store, batch, tmp_path):
    target = tmp_path / "gallery"
    index = build_gallery(store, target, batch)
    text = index.read_text()
    head, *lines = rows_of(text)
    assert head[:5] == ["", "run", "method", "seed", "loss"]
    ids = [run.id[:8] for run in batch.runs]
    assert [line[1:5] for line in lines] == [
        [ids[0], "plain", "0", "1.25"],
        [ids[1], "plain", "1", "1.75"],
        [ids[2], "double", "0", "3.3333e+05"],
    ]  # the fourth run has not finished
    assert "steps = 300" in text
    assert "note = a&lt;b" in text
    assert "1.5 [-1.7, 4.7]" in text  # mean and t interval of 1.25 and 1.75
    first, second, third = (run.id for run in batch.runs[:3])
    assert (target / f"{first}.js").read_text().startswith(f'thumbnail("{first}", {{"data"')
    assert (target / f"{second}.png").read_bytes() == base64.b64decode(PICTURE)
    assert not list(target.glob(f"{third}.[jp]*"))
    assert "Plotly.newPlot" in (target / f"{first}.html").read_text()


def test_the_whole_store_is_shown_sorted_by_parameters(store, batch, tmp_path):
    text = build_gallery(store, tmp_path / "gallery").read_text()
    assert [line[2:5] for line in rows_of(text)[1:]] == [
        ["double", "0", "3.3333e+05"], ["plain", "0", "1.25"], ["plain", "1", "1.75"],
    ]  # fmt: skip


def test_a_run_with_several_results_is_named_once(store, batch, tmp_path):
    finish(store, batch.runs[3], {}, [{"loss": 2.0, "part": "a"}, {"loss": 3.0, "part": "b"}])
    text = build_gallery(store, tmp_path / "gallery", batch).read_text()
    assert text.count(f'href="{batch.runs[3].id}.html">{batch.runs[3].id[:8]}') == 1
    assert [line[4] for line in rows_of(text)[-2:]] == ["2", "3"]


def test_pages_ask_no_other_host_and_link_to_what_exists(store, batch, tmp_path):
    index = build_gallery(store, tmp_path / "gallery", batch)
    for path in index.parent.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', text), path
        for target in re.findall(r'<(?:a|img|script)[^>]+(?:href|src)="([^"#:]+)"', text):
            assert (path.parent / target).is_file(), (path, target)


def test_pages_of_finished_runs_are_kept(store, batch, tmp_path):
    page = build_gallery(store, tmp_path / "gallery", batch).parent / f"{batch.runs[0].id}.html"
    page.write_text("kept")
    build_gallery(store, tmp_path / "gallery", batch)
    assert page.read_text() == "kept"


def test_the_page_of_a_run_that_was_made_again_is_made_again(store, batch, tmp_path):
    run = batch.runs[0]
    page = build_gallery(store, tmp_path / "gallery", batch).parent / f"{run.id}.html"
    assert "second try" not in page.read_text()
    store.quarantine(run.id)
    finish(store, run, {"text/plain": "second try"}, [{"loss": 2.0}])
    build_gallery(store, tmp_path / "gallery", batch)
    assert "second try" in page.read_text()


def test_what_cannot_be_shown_is_named(store, batch, tmp_path):
    with pytest.raises(BadInput, match="no such run store"):
        build_gallery(Store(tmp_path / "none"), tmp_path / "gallery")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no finished run to show"):
        build_gallery(Store(tmp_path / "empty"), tmp_path / "gallery")
    assert not (tmp_path / "gallery").exists()
    notebook = store.folder(batch.runs[0].id) / "notebook.ipynb"
    notebook.write_text(notebook.read_text() + " ")
    text = build_gallery(store, tmp_path / "gallery", batch).read_text()
    assert f"Without {batch.runs[0].id}, which is corrupt (notebook.ipynb: does not match" in text
    assert f'href="{batch.runs[0].id}.html"' not in text
    assert f'href="{batch.runs[1].id}.html"' in text
