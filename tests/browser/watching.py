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
    """Pictures of ``views`` at three widths; all has to fit, be legible, and overlap nothing."""
    folder.mkdir(exist_ok=True)
    for width in (1000, 1280, 1920):
        lab.page.set_viewport_size({"width": width, "height": 1000})
        for view in views:
            place = lab.page.locator(f".{view}").first
            place.scroll_into_view_if_needed()
            settle(place.locator(".js-plotly-plot").last.bounding_box)
            place.screenshot(path=folder / f"{view}-{theme}-{width}.png")
            found = lab.page.evaluate(LOOK, view)
            assert found == {"outside": [], "pairs": [], "pale": []}, (view, theme, width, found)


#: texts of a view that stick out of it or cover each other, or whose contrast is below 4.5
LOOK = """view => {
  const root = document.querySelector('.' + view), whole = root.getBoundingClientRect();
  const chosen = '.xtick text, .ytick text, .xtitle, .ytitle, .gqc-title, .gqc-entry, .gqc-log, '
    + '.gqc-note, .gqc-field label, .gqc-field input, .gqc-field select, button, '
    + '.widget-label, .widget-html-content';
  const is_seen = e => e.checkVisibility() && (e.value || e.textContent).trim();
  const texts = [...root.querySelectorAll(chosen)].filter(is_seen).filter(
    e => !e.querySelector('button') && e.getBoundingClientRect().width);
  const boxes = texts.map(t => t.getBoundingClientRect());
  const names = texts.map(t => (t.value || t.textContent).trim().slice(0, 40));
  const outside = names.filter((_, i) => boxes[i].right > whole.right + 2 && boxes[i].width);
  const pairs = [];
  for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [boxes[i], boxes[j]];
    if (texts[i].contains(texts[j]) || texts[j].contains(texts[i])) continue;
    const inBar = [i, j].map(k => texts[k].closest('.gqc-bar') !== null);
    if (inBar[0] !== inBar[1]) continue;  // the bar stays in sight over what is scrolled
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1
        && b.top < a.bottom - 1) pairs.push([names[i], names[j]]);
  }
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], back) => [r, g, b].map((v, i) => v * a + back[i] * (1 - a));
  const backOf = e => {
    if (!e) return [255, 255, 255];
    const own = numbers(getComputedStyle(e).backgroundColor);
    return (own[3] ?? 1) === 1 ? own : over(own, backOf(e.parentElement));
  };
  const light = color => {
    const [r, g, b] = color.map(v => v / 255).map(
      v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const pale = names.filter((_, i) => {
    const style = getComputedStyle(texts[i]), back = backOf(texts[i]);
    if (texts[i].disabled) return false;
    const color = over(numbers(texts[i].closest('svg') ? style.fill : style.color), back);
    const [a, b] = [light(color), light(back)];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5;
  });
  return {outside, pairs, pale};
}"""
