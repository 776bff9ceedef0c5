"""Pages in a real browser, from a folder: figures are drawn, nothing is asked of a host."""

import re

import nbformat
import pandas as pd

from gqc_lab.figures import norm_against_threshold, write_html
from gqc_lab.publish.gallery import PLOTLY, build_gallery
from gqc_lab.runs.store import Store, write_json

FIGURE = {"data": [{"type": "scatter", "y": [3, 1, 2]}], "layout": {"title": {"text": "Loss"}}}
KEY = "{:08x}00000000"


def finish(store, key, seed):
    folder = store.partial(key)
    folder.mkdir(parents=True)
    output = nbformat.v4.new_output("display_data", {PLOTLY: FIGURE})
    cell = nbformat.v4.new_code_cell("draw()", outputs=[output])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "notebook.ipynb")
    common = {"notebook": "drawn", "parameters": {"seed": seed}}
    results = [{"loss": 1.5 + seed}]
    write_json(folder / "result.json", {"run": key, **common, "results": results, "info": {}})
    store.publish(key, {"id": key, **common, "inputs": {}, "started": 0.0, "seconds": 1.0})


def test_thumbnails_and_pages_are_drawn_offline(browser, tmp_path):
    store = Store(tmp_path / "runs")
    for seed in range(20):  # more than fit on a screen
        finish(store, KEY.format(seed), seed)
    index = build_gallery(store, tmp_path / "gallery")
    context = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True)
    page = context.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(index.as_uri())
    page.wait_for_function("document.querySelectorAll('.thumbnail .scatterlayer path').length > 2")
    drawn = page.locator(".thumbnail:has(.main-svg)")
    assert drawn.count() < 20  # those that are out of sight wait
    page.locator(".thumbnail").last.scroll_into_view_if_needed()
    page.wait_for_selector(f"#thumbnail-{KEY.format(19)} .scatterlayer path")
    page.click(f"text={KEY.format(19)[:8]}")
    page.wait_for_selector(".js-plotly-plot .scatterlayer path")
    assert page.url.endswith(f"{KEY.format(19)}.html")
    assert [url for url in asked if not re.match("file:|data:|blob:", url)] == []
    assert errors == []
    context.close()


def test_a_figure_of_its_own_is_drawn_offline(browser, tmp_path):
    rows = range(1, 13)
    columns = {"method": "gnts", "seed": 0, "microbatch": rows, "tokens": [512 * i for i in rows]}
    columns |= {"num_draws": [(i - 1) % 3 + 1 for i in rows], "stepped": [i % 3 == 0 for i in rows]}
    columns |= {"grad_norm": [1 / i for i in rows], "gradient_norm_threshold": 1.0}
    figure = norm_against_threshold(pd.DataFrame(columns))
    page_file = write_html(figure, tmp_path / "figure.html")
    context = browser.new_context(offline=True)
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    page.wait_for_selector(".js-plotly-plot .main-svg .legend")
    legend = page.locator(".legendtext").all_text_contents()
    context.close()
    assert asked == [page_file.as_uri()]
    assert legend[0] == "gnts: norm"
