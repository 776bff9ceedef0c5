"""Notebook 07 in a real JupyterLab and a real browser, with nothing but localhost to talk to."""

import json
import re
import time

import nbformat
import pytest
from lab_page import THEMES
from watching import PLOTS, look, microbatch, nothing_is_wrong, settle, threads, until

from gqc_lab.loop.controls import NORM_SETTINGS

LONG = {"interactive": True, "changes": [], "tokens": 2**21}  # half a minute at least


@pytest.fixture(scope="module")
def opened(lab, server):
    lab.open(server.put("07_norm_schedule_live", **LONG))
    lab.run_all()
    for view in ("gqc-live-run", "gqc-norm-schedule"):
        lab.page.locator(f".{view} {PLOTS}").first.wait_for()
    until(lambda: lab.ask("'summary' in dir()"))  # all cells have run
    lab.tell("at_first = dict(experiment.controls)")
    return lab


@pytest.fixture
def live(opened):
    """The notebook with a run that waits for a person."""
    opened.page.set_viewport_size({"width": 1280, "height": 900})
    opened.tell("live.stop(), experiment.controls.update(at_first)")
    opened.tell("live.reset()")
    until(lambda: opened.curve("gqc-live-run", "loss") == [])
    assert microbatch(opened) == threads(opened) == 0
    return opened


def field(lab, name):
    view = lab.page.locator(".gqc-norm-schedule")
    return view.get_by_role("textbox", name=NORM_SETTINGS[name].axis, exact=True)


def type_into(lab, name, text):
    field(lab, name).fill(text)
    field(lab, name).press("Enter")


def test_a_run_is_started_held_steered_and_stopped(live):
    lab = live
    nothing_is_wrong(lab)

    lab.button("Start").click()
    first = len(until(lambda: lab.curve("gqc-live-run", "loss")))
    until(lambda: len(lab.curve("gqc-live-run", "loss")) > first)
    until(lambda: len(lab.curve("gqc-norm-schedule", "gradient_norm_threshold")) > first)
    assert threads(lab) == 1

    lab.button("Pause").click()
    until(lambda: threads(lab) == 0)
    held = microbatch(lab)
    time.sleep(0.3)
    assert microbatch(lab) == held
    assert threads(lab) == 0
    until(lambda: len(lab.curve("gqc-live-run", "loss")) >= min(held, 300))
    lab.button("Resume").click()
    until(lambda: microbatch(lab) > held)

    before = lab.ask("experiment.controls['start_norm']")
    type_into(lab, "start_norm", "")
    error = lab.page.locator(".gqc-norm-schedule .gqc-error")
    error.wait_for()
    assert "='': expected a number of at least 0" in error.inner_text()
    assert lab.ask("experiment.controls['start_norm']") == before
    type_into(lab, "start_norm", "1.25")
    asked = time.monotonic()
    change = until(lambda: lab.ask("experiment.changes"))[0]
    waited, asked = time.monotonic() - asked, time.monotonic()
    microbatch(lab)
    assert waited < 2.0 + 10 * (time.monotonic() - asked)  # 0.25 s is asked for
    assert (change["name"], change["value"]) == ("start_norm", 1.25)
    at = change["microbatch"]
    until(lambda: microbatch(lab) > at + 2)
    rows = lab.ask(f"experiment.history['gradient_norm_threshold'].tolist()[{at - 2}:{at}]")
    module = "__import__('gqc_lab.loop.controls', fromlist=['a'])"
    plan = f"{module}.norm_schedule(experiment.controls)"
    total = "experiment.config.num_microbatches"
    assert rows[1] == lab.ask(f"{plan}.threshold({at - 1}, {total})")
    assert rows[1] / rows[0] == pytest.approx(1.25 / before, rel=0.01)  # the plan itself falls
    assert lab.page.locator(".gqc-norm-schedule .gqc-error").count() == 0
    until(lambda: "steered" in lab.page.locator(".gqc-live-run").inner_text())

    lab.button("Stop").click()
    until(lambda: threads(lab) == 0)
    lab.page.locator(".gqc-live-run").get_by_text("stopped").wait_for()
    assert lab.button("Start").is_disabled()
    assert (lab.elsewhere, lab.errors) == ([], [])


#: what the boxes of each panel say, top to bottom, and the ends of its y axis
PANELS = """() => [...document.querySelectorAll('.gqc-live-run .js-plotly-plot')].map(plot => ({
  box: [...plot.querySelectorAll('.hoverlayer text')].map(t => t.textContent),
  ends: plot._fullLayout.yaxis.range.map(plot._fullLayout.yaxis.l2c ?? (v => v)),
  y: plot.data.flatMap(t => [...t.y]).filter(Number.isFinite)}))"""


def test_what_is_hovered_over_has_its_unit_in_all_panels_and_axes_fit_the_data(live):
    lab = live
    lab.button("Start").click()
    until(lambda: microbatch(lab) > 60)
    lab.button("Pause").click()
    lab.button("Resume").wait_for()
    settle(lambda: lab.curve("gqc-live-run", "loss"))
    plot = lab.page.locator(".gqc-live-run .js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    place = plot.locator(".draglayer .xy .nsewdrag").bounding_box()
    lab.page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2, steps=5)
    panels = until(lambda: len((p := lab.page.evaluate(PANELS))[1]["box"]) > 1 and p)
    loss, norm = panels[0]["box"], panels[1]["box"]
    assert loss[0] == norm[0]  # they share x
    assert re.fullmatch(r"[\d,]+ training tokens", loss[0])
    assert re.search(r"batch : \d\.\d+ nat/token", " ".join(loss[1:]))
    assert re.search(r"threshold : \d", " ".join(norm[1:]))
    low, high = panels[1]["ends"]
    values = [v for v in panels[1]["y"] if v > 0]
    assert low < min(values)
    assert high > max(values)
    assert (max(values) / min(values)) ** 1.2 > high / low  # no empty decades


#: where on the page the hand-drawn point nearest to x is
PLACE_OF_POINT = """at => {
  const plot = document.querySelector('.gqc-norm-schedule .js-plotly-plot');
  const {x, y} = plot.data.find(t => t.meta === 'points');
  const far = Array.from(x, v => Math.abs(v - at));
  const i = far.indexOf(Math.min(...far)), box = plot.getBoundingClientRect();
  const {xaxis, yaxis} = plot._fullLayout;
  return [box.left + xaxis._offset + xaxis.d2p(x[i]), box.top + yaxis._offset + yaxis.d2p(y[i])];
}"""


def test_points_are_drawn_by_clicks_and_the_saved_file_is_small(live, server, tmp_path):
    lab = live
    lab.page.locator(".gqc-norm-schedule select").select_option("points")
    until(lambda: lab.curve("gqc-norm-schedule", "points"))
    before = lab.ask("len(experiment.controls['norm_points'])")
    plot = lab.page.locator(".gqc-norm-schedule .js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    panel = plot.locator(".draglayer .xy .nsewdrag").bounding_box()
    lab.page.mouse.move(panel["x"] + 0.5 * panel["width"], panel["y"] + 0.2 * panel["height"])
    time.sleep(0.2)  # plotly finds what is hovered over before it takes a click
    lab.page.mouse.click(panel["x"] + 0.5 * panel["width"], panel["y"] + 0.2 * panel["height"])
    until(lambda: lab.ask("len(experiment.controls['norm_points'])") == before + 1)
    drawn = [x for x, _ in lab.ask("experiment.controls['norm_points']")]
    assert min(abs(x - 0.5) for x in drawn) < 0.02
    until(lambda: len(lab.curve("gqc-norm-schedule", "points")) == before + 1)
    x, y = lab.page.evaluate(PLACE_OF_POINT, 0.5 * lab.ask("experiment.config.num_microbatches"))
    lab.page.mouse.move(x, y)
    lab.page.mouse.down()
    lab.page.mouse.move(x + 40, y + 60, steps=6)
    lab.page.mouse.up()  # a drag moves the point, and zooms nothing
    points = "[x for x, _ in experiment.controls['norm_points']]"
    until(lambda: min(abs(x - 0.5) for x in lab.ask(points)) > 0.02)
    assert len(lab.ask(points)) == before + 1

    lab.button("Start").click()
    until(lambda: microbatch(lab) > 20)
    lab.button("Stop").click()
    until(lambda: threads(lab) == 0)
    lab.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    file = server.folder / "07_norm_schedule_live.ipynb"
    until(lambda: "widget-view" in file.read_text())
    assert file.stat().st_size < 2_000_000
    nbformat.validate(json.loads(file.read_text()))


@pytest.mark.parametrize("theme", THEMES)
def test_it_is_legible(live, theme, tmp_path_factory):
    """What overlaps is measured; the pictures are kept for eyes (in pytest's --basetemp)."""
    lab = live
    lab.page.evaluate(
        "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", THEMES[theme]
    )
    low = "start_norm=0.7, end_norm=0.3, norm_warmup_microbatches=80"  # so that draws are needed
    lab.tell(f"experiment.controls.update({low})")
    lab.button("Start").click()
    until(lambda: lab.curve("gqc-live-run", "noise_scale") and microbatch(lab) > 150)
    lab.button("Pause").click()
    lab.button("Resume").wait_for()
    folder = tmp_path_factory.getbasetemp() / "pictures"
    look(lab, ("gqc-live-run", "gqc-norm-schedule"), theme, folder)


def test_an_exception_shows_and_a_cell_that_runs_again_leaves_no_thread(live):
    """The last one: the new view of the run begins where the cell found the run."""
    lab = live
    lab.button("Start").click()
    until(lambda: microbatch(lab) > 3)
    cells = lab.ask("len([c for c in In if 'LiveRun(' in c])")
    lab.page.evaluate(
        """() => { const notebook = jupyterapp.shell.currentWidget.content;
        const at = notebook.widgets.findIndex(
            c => c.model.sharedModel.source.includes('live = LiveRun('));
        notebook.activeCellIndex = at;
        return jupyterapp.commands.execute('notebook:run-cell'); }"""
    )
    until(lambda: lab.ask("len([c for c in In if 'LiveRun(' in c])") == cells + 1)
    until(lambda: threads(lab) == 0)
    lab.page.locator(".gqc-live-run").get_by_text("paused").wait_for()

    lab.tell("def broken():\n    raise ValueError('no such text')\nexperiment.draw_batch = broken")
    lab.button("Resume").click()
    error = lab.page.locator(".gqc-live-run .gqc-error")
    error.wait_for()
    text = error.inner_text()
    assert "ValueError: no such text" in text
    assert "in broken" in text
    until(lambda: threads(lab) == 0)
    lab.tell("del experiment.draw_batch")
    lab.button("Reset").click()
    lab.button("Start").click()
    until(lambda: microbatch(lab) > 2)
    lab.button("Stop").click()
    until(lambda: threads(lab) == 0)
