"""What the tests of live notebooks share: waiting, looking into the kernel, what overlaps."""

import time

PLOTS = ".js-plotly-plot .main-svg"


def until(condition):
    """The first true value of ``condition``; pytest's time limit ends what waits in vain."""
    while not (value := condition()):
        time.sleep(0.02)
    return value


def settle(look):
    """Wait until ``look`` has given the same for half a second, as after plotly drew again."""
    seen, since = look(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.1)
        if (now := look()) != seen:
            seen, since = now, time.monotonic()


def microbatch(lab):
    return lab.ask("experiment.microbatch")


def threads(lab):
    return lab.ask("sum(t.name.startswith('gqc ') for t in __import__('threading').enumerate())")


def nothing_is_wrong(lab):
    """No broken widget, no request to another host, no error in the page, nothing on stderr."""
    assert lab.elsewhere == [], lab.elsewhere
    assert lab.errors == [], lab.errors
    assert lab.page.get_by_text("Error displaying widget").count() == 0
    assert lab.page.locator(".jp-RenderedText[data-mime-type*='stderr']").count() == 0


def look(lab, views, theme, folder):
    """Pictures of ``views`` at two widths; asserts that figures fit and no texts overlap."""
    folder.mkdir(exist_ok=True)
    for width in (1280, 1920):
        lab.page.set_viewport_size({"width": width, "height": 1000})
        for view in views:
            place = lab.page.locator(f".{view}").first
            place.scroll_into_view_if_needed()
            settle(place.locator(".js-plotly-plot").first.bounding_box)
            place.screenshot(path=folder / f"{view}-{theme}-{width}.png")
            plot = place.locator(".js-plotly-plot").first.bounding_box()
            whole = place.bounding_box()
            assert plot["x"] + plot["width"] <= whole["x"] + whole["width"] + 1
            assert plot["width"] > 0.5 * whole["width"]
            pairs = lab.page.evaluate(OVERLAPS, view)
            assert pairs == [], pairs


#: pairs of texts of one figure that cover each other
OVERLAPS = """view => {
 const plots = [...document.querySelector('.' + view).querySelectorAll('.js-plotly-plot')];
 return plots.flatMap(plot => {
  const axes = [1, 2, 3, 4, 5, 6].flatMap(i => ['x', 'y'].map(a => `.${a}${i > 1 ? i : ''}title`));
  const texts = [...plot.querySelectorAll(
    ['.xtick text', '.ytick text', '.legendtext', '.annotation-text', ...axes].join(', ')
  )].filter(t => t.textContent.trim());
  const boxes = texts.map(t => t.getBoundingClientRect());
  const pairs = [];
  for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [boxes[i], boxes[j]];
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1
        && b.top < a.bottom - 1) pairs.push([texts[i].textContent, texts[j].textContent]);
  }
  return pairs;
 });
}"""
