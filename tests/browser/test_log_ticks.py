"""Labels of a log axis: at least two and at most nine, whatever the range."""

from pathlib import Path

import pytest

import gqc_widgets

SOURCE = Path(gqc_widgets.__file__).with_name("panels.js").read_text(encoding="utf-8")
TICKS = """async ({source, low, high}) => {
  const parts = [source, "export {logTicks};"];
  const url = URL.createObjectURL(new Blob(parts, {type: "text/javascript"}));
  return (await import(url)).logTicks(low, high);
}"""


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (11, 20, [15, 20]),
        (0.9, 110, [1, 2, 5, 10, 20, 50, 100]),
        (1e-4, 1e4, [1e-4, 1e-2, 1, 1e2, 1e4]),
    ],
)
def test_they_are_few_and_round(browser, low, high, expected):
    page = browser.new_page()
    page.goto("about:blank")
    found = page.evaluate(TICKS, {"source": SOURCE, "low": low, "high": high})
    page.close()
    assert found == pytest.approx(expected)
