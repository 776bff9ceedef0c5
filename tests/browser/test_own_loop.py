"""Loops of one's own and trainers, steered while their cell runs: edit, pause, resume, stop."""

import nbformat
import pytest
from lab_page import NOTEBOOKS, THEMES
from steered_loops import DATA, LOOPS
from watching import PLOTS, look, nothing_is_wrong, until


def run_cells(lab, server, *codes):
    cells = [nbformat.v4.new_code_cell(c) for c in (*codes, "ended = True")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, server.folder / "own_loop.ipynb")
    lab.open("own_loop.ipynb")
    lab.run_all()


def open_loop(lab, server, *codes):
    run_cells(lab, server, *codes)
    lab.page.locator(f".gqc-live {PLOTS}").first.wait_for()
    until(lambda: lab.curve("gqc-live", "loss") or lab.curve("gqc-live", "train/loss"))


def field(lab, name):
    return lab.page.locator(".gqc-live").get_by_role("textbox", name=name, exact=True)


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_steered_while_its_cell_runs(lab, server, name):
    code, control = LOOPS[name]
    open_loop(lab, server, DATA, code)
    field(lab, control).fill("0.02")
    assert "gqc-pending" in field(lab, control).get_attribute("class")
    lab.page.keyboard.press("Escape")  # takes it back
    assert field(lab, control).input_value() != "0.02"
    field(lab, control).fill("0.03")
    lab.page.keyboard.press("Enter")
    lab.page.locator(".gqc-state", has_text="steered").wait_for()
    lab.button("Pause").click()
    lab.button("Resume").wait_for()
    lab.button("Resume").click()
    lab.page.locator(".gqc-state", has_text="running").wait_for()
    lab.button("Stop").click()
    lab.page.locator(".gqc-state", has_text="stopped").wait_for()
    assert lab.ask("ended")  # waits for the cell
    change = lab.ask("live.changes")[0]
    assert (change["name"], change["value"]) == (control, 0.03)
    assert lab.ask("live.state") == "stopped"
    nothing_is_wrong(lab)
    lab.close()


def test_the_file_of_the_guide_keeps_a_picture_and_all_is_legible(lab, server, tmp_path_factory):
    cells = nbformat.read(NOTEBOOKS / "guides/steer_your_own_loop.ipynb", as_version=4).cells
    codes = [cell.source for cell in cells if cell.cell_type == "code"]
    assert "\nepochs = 3 " in "\n" + "\n".join(codes)
    long = [code.replace("epochs = 3 ", "epochs = 10_000 ") for code in codes]
    open_loop(lab, server, *long)
    until(lambda: lab.page.locator(".gqc-state", has_text="steered").count())  # at batch 61
    lab.button("Pause").click()
    lab.button("Resume").wait_for()
    for theme in THEMES:
        code = "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})"
        lab.page.evaluate(code, THEMES[theme])
        look(lab, ("gqc-live",), theme, tmp_path_factory.getbasetemp() / "pictures")
    lab.button("Stop").click()
    lab.page.locator(".gqc-state", has_text="stopped").wait_for()
    assert lab.ask("ended")
    assert lab.page.locator(".jp-RenderedImage").first.is_hidden()  # the view is there
    lab.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    file = server.folder / "own_loop.ipynb"
    until(lambda: "image/png" in file.read_text())
    assert file.stat().st_size < 500_000
    nothing_is_wrong(lab)


def test_a_page_that_is_loaded_again_shows_and_steers_a_cell_that_trains(lab, server):
    open_loop(lab, server, DATA, LOOPS["mlp"][0])
    lab.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    until(lambda: "widget-view" in (server.folder / "own_loop.ipynb").read_text())
    lab.open("own_loop.ipynb", is_idle=False)
    lab.page.locator(f".gqc-live {PLOTS}").first.wait_for()
    lab.button("Stop").click()
    lab.page.locator(".gqc-state", has_text="stopped").wait_for()
    assert lab.errors == []
    lab.close()


def test_the_bar_stays_in_sight_arrows_step_and_a_kernel_that_is_gone_is_said(lab, server):
    open_loop(lab, server, DATA, LOOPS["mlp"][0])
    field(lab, "weight_decay").press("ArrowUp")
    until(lambda: field(lab, "weight_decay").input_value() == "0.011")
    lab.page.set_viewport_size({"width": 1280, "height": 500})
    lab.page.locator(".gqc-live .widget-slider").scroll_into_view_if_needed()
    bar = lab.page.locator(".gqc-bar").bounding_box()
    assert 0 < bar["y"] < 200
    lab.page.set_viewport_size({"width": 1280, "height": 900})
    restart = "() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"
    lab.page.evaluate(restart)
    lab.page.locator(".gqc-gone").wait_for()
    assert lab.page.locator(".gqc-state").is_hidden()


MILLION = """
import random, torch
from gqc_widgets import Live
live = Live(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
for i in live(range(3)):
    live.log(loss=float(i), accuracy=1.0, reward=2.0)
run = live.experiment
for name in run._columns:
    run._columns[name] = [random.random() for _ in range(999_999)]
run._columns["microbatch"] = list(range(1, 1_000_000))
run.microbatch = run.done = 999_999
live._tell()
"""


def test_a_million_records_are_a_small_page(lab, server):
    run_cells(lab, server, MILLION)
    until(lambda: lab.ask("'ended' in dir()"))
    until(lambda: max(lab.page.evaluate(X), default=0) == 999_999)
    devtools = lab.page.context.new_cdp_session(lab.page)
    devtools.send("HeapProfiler.collectGarbage")  # of the notebooks that were open before
    size = devtools.send("Runtime.getHeapUsage")["usedSize"]
    print(f"a million records: the page holds {size / 1e6:.0f} MB")
    assert size < 200e6
    assert len(lab.curve("gqc-live", "loss")) <= 400
    nothing_is_wrong(lab)


#: the x of the curves
X = """() => [...document.querySelectorAll('.gqc-live .js-plotly-plot')].flatMap(
  plot => (plot.data ?? []).flatMap(t => [...t.x]))"""
