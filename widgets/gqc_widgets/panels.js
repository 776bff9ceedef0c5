// plotly.js comes once a kernel, in a model of its own; wrapped, so that it is no module of require.js.
const load = model => globalThis.gqcPlotly ??= (async () => {
  const lib = await model.widget_manager.get_model(model.get("_lib").slice("IPY_MODEL_".length));
  const before = "const module = {exports: {}}; let exports = module.exports, define;";
  const parts = [before, lib.get("code"), ";export default module.exports;"];
  const url = URL.createObjectURL(new Blob(parts, {type: "text/javascript"}));
  try { return (await import(url)).default; } finally { URL.revokeObjectURL(url); }
})();

const numbers = view =>
  new Float64Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

const make = (parent, tag, name, text = "") => {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  parent.append(element);
  return element;
};

function pageColors(panel) {
  const element = panel.isConnected ? panel : document.body;  // not yet in the page, it has no style
  const text = getComputedStyle(element).color;
  let back = "white";
  for (let e = element; e; e = e.parentElement) {
    const color = getComputedStyle(e).backgroundColor;
    if (!/^transparent$|, 0\)$/.test(color)) { back = color; break; }
  }
  const is_dark = text.match(/\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) > 382;
  return {text, back, is_dark, grid: text.replace(/rgba?\(([^,]+,[^,]+,[^,)]+).*/, "rgba($1, .16)")};
}

// At most about seven labels, whatever the range: even, 1-2-5, or powers of ten.
function logTicks(low, high) {
  const decades = Math.log10(high / low), ticks = [];
  if (decades < 0.6) {
    const rough = (high - low) / 4, unit = 10 ** Math.floor(Math.log10(rough) || 0);
    const step = [1, 2, 5, 10].map(m => m * unit).find(v => v >= rough) ?? rough;
    for (let v = Math.ceil(low / step) * step; v <= high && step > 0; v += step) ticks.push(v);
  } else {
    const every = Math.max(1, Math.ceil(decades / 6)), first = Math.floor(Math.log10(low));
    for (let k = first; 10 ** k <= high; k += every)
      for (const m of decades < 2.2 ? [1, 2, 5] : [1]) ticks.push(m * 10 ** k);
  }
  return ticks.map(v => Number(v.toPrecision(6))).filter(v => v >= low * .999 && v <= high * 1.001);
}

class Cell {
  constructor(place, spec, model, cells) {
    Object.assign(this, {spec, model, cells, hidden: new Set(), log: spec.log});
    this.box = make(place, "div", "gqc-panel");
    const head = make(this.box, "div", "gqc-head");
    make(head, "b", "gqc-title", spec.title);
    this.legend = spec.traces.filter(t => t.name).map(t => this.entry(head, t));
    if (!spec.linear) {
      const log = make(head, "button", "gqc-log", "log");
      log.title = "logarithmic or linear axis";
      log.onclick = () => { this.log = !this.log; this.draw(); };
    }
    this.plot = make(this.box, "div", "gqc-plot");
    this.plot.style.height = `${spec.height}px`;  // plotly forgets one that stands in its layout
    this.note = make(this.box, "div", "gqc-note");
    if (spec.editable) this.edit();
  }
  entry(head, trace) {
    const entry = make(head, "button", "gqc-entry");
    const mark = make(entry, "span", "gqc-mark");
    const is_line = trace.mode.includes("lines");
    const dash = {dash: "dashed", dot: "dotted"}[trace.line?.dash] ?? "solid";
    mark.style.borderTop = is_line ? `${Math.round(1 + (trace.line.width ?? 2) * .8)}px ${dash}` : "0";
    mark.style.opacity = trace.opacity ?? 1;
    if (!is_line) mark.textContent = trace.marker?.symbol === "x" ? "✕" : "●";
    entry.append(trace.name);
    entry.onclick = () => {
      this.hidden.has(trace.meta) ? this.hidden.delete(trace.meta) : this.hidden.add(trace.meta);
      entry.style.opacity = this.hidden.has(trace.meta) ? .4 : 1;
      this.draw();
    };
    return [mark, trace];
  }
  data(colors) {
    const points = this.model.get("points");
    const paint = style => ({...style, color: style.color === "text" ? colors.text : style.color});
    return this.spec.traces.map(trace => {
      const held = points[trace.meta];
      const xy = held ? {x: numbers(held.x), y: numbers(held.y)} : {x: trace.x ?? [], y: trace.y ?? []};
      const style = Object.fromEntries(["line", "marker"].filter(k => trace[k]).map(k => [k, paint(trace[k])]));
      if (trace.opacity && colors.is_dark) style.opacity = Math.min(1, 1.7 * trace.opacity);
      return {type: "scatter", hovertemplate: `%{y:.4~g}${this.spec.unit}`, ...trace, ...xy, ...style,
        visible: this.hidden.has(trace.meta) ? false : true};
    });
  }
  draw() {
    const {spec, plot} = this, colors = pageColors(this.box), data = this.data(colors);
    const is_empty = data.every(trace => !trace.x.length);
    for (const [mark, trace] of this.legend) {
      const is_drawn = data.find(t => t.meta === trace.meta).x.length > 0;
      mark.parentElement.style.display = is_drawn || is_empty ? "" : "none";
      mark.style.color = (trace.line ?? trace.marker).color;
      if (mark.style.color === "" || (trace.line ?? trace.marker).color === "text") mark.style.color = colors.text;
    }
    const axis = {gridcolor: colors.grid, linecolor: colors.text, tickcolor: colors.text, ticks: "outside",
      ticklen: 4, showline: true, zeroline: false, automargin: true, fixedrange: spec.editable};
    const layout = {autosize: true, margin: {l: 8, r: 12, t: 6, b: 8},
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      font: {color: colors.text, size: 12, family: "Helvetica, Arial, sans-serif"},
      hovermode: "x unified", uirevision: "kept", dragmode: spec.editable ? false : "zoom",
      hoverlabel: {bgcolor: colors.back, font: {color: colors.text}},
      xaxis: {...axis, title: {text: spec.x, standoff: 4}, nticks: 7,
        unifiedhovertitle: {text: `%{x:,.10~r} ${spec.x}`}},
      yaxis: {...axis, type: this.log ? "log" : "linear", nticks: 6, exponentformat: "power",
        ...(this.log || !spec.range ? {} : {range: spec.range})}};
    if (this.log) {
      const shown = data.filter(t => t.visible).flatMap(t => [...t.y]);
      const values = shown.filter(v => v > 0 && Number.isFinite(v)).map(Math.log10);
      let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [-1, 1];
      const pad = .06 * (high - low) || .1;
      [low, high] = layout.yaxis.range = spec.logs.range ?? [low - pad, high + pad];
      if (this.is_zoomed) [low, high] = plot._fullLayout.yaxis.range;  // plotly keeps what a person chose
      layout.yaxis.tickvals = logTicks(10 ** low, 10 ** high);
      layout.yaxis.tickformat = "~g";
    }
    this.note.textContent = is_empty ? spec.note : "";
    globalThis.gqcPlotly.then(Plotly => Plotly.react(plot, data, layout,
      {displaylogo: false, responsive: true, displayModeBar: false, doubleClick: "autosize"})).then(() => {
        if (!this.is_wired) { this.is_wired = true; this.wire(); }
      });
  }
  wire() {  // the panels of a view share what is hovered and zoomed along x
    const others = () => this.cells.filter(c => c !== this && c.is_wired && c.spec.x === this.spec.x);
    globalThis.gqcPlotly.then(Plotly => {
      this.plot.on("plotly_hover", ({points: [{x}]}) => others().forEach(
        c => Plotly.Fx.hover(c.plot, {xval: x}, ["xy"], true)));
      this.plot.on("plotly_unhover", () => others().forEach(c => Plotly.Fx.unhover(c.plot)));
      this.plot.on("plotly_relayout", change => {
        if ("yaxis.autorange" in change) this.is_zoomed = false;
        if ("yaxis.range[0]" in change) this.is_zoomed = true;
        const along = Object.entries(change).filter(([name]) => name.startsWith("xaxis."));
        if (!along.length || Cell.is_relaying) return;
        Cell.is_relaying = true;
        Promise.all(others().map(c => Plotly.relayout(c.plot, Object.fromEntries(along))))
          .finally(() => { Cell.is_relaying = false; });
      });
      new ResizeObserver(() => this.plot.offsetParent && Plotly.Plots.resize(this.plot)).observe(this.box);
    });
  }
  edit() {  // a click puts a point or takes one away, a drag moves one
    let grabbed = null;
    const at = event => {
      const {xaxis, yaxis} = this.plot._fullLayout, box = this.plot.getBoundingClientRect();
      return [event.clientX - box.left - xaxis._offset, event.clientY - box.top - yaxis._offset];
    };
    const value = ([x, y]) =>
      [this.plot._fullLayout.xaxis.p2d(x), this.plot._fullLayout.yaxis.p2d(y)];
    const trace = () => this.plot.data.findIndex(t => t.meta === "points");
    this.plot.addEventListener("pointerdown", event => {
      const [x, y] = at(event), {xaxis, yaxis} = this.plot._fullLayout;
      if (x < 0 || y < 0 || x > xaxis._length || y > yaxis._length || event.button) return;
      event.stopPropagation();
      const {x: xs, y: ys} = this.plot.data[trace()];
      const near = Array.from(xs, (v, i) => Math.hypot(xaxis.d2p(v) - x, yaxis.d2p(ys[i]) - y));
      const i = near.indexOf(Math.min(...near, 9));
      grabbed = {i, from: i < 0 ? null : xs[i], start: [x, y], has_moved: false};
      this.plot.setPointerCapture(event.pointerId);
    }, true);
    this.plot.addEventListener("pointermove", async event => {
      if (!grabbed) return;
      const now = at(event);
      grabbed.has_moved ||= Math.hypot(now[0] - grabbed.start[0], now[1] - grabbed.start[1]) > 3;
      if (grabbed.i < 0 || !grabbed.has_moved) return;
      const data = this.plot.data[trace()], [x, y] = value(now), xs = [...data.x], ys = [...data.y];
      [xs[grabbed.i], ys[grabbed.i]] = [x, y];
      (await globalThis.gqcPlotly).restyle(this.plot, {x: [xs], y: [ys]}, [trace()]);
    });
    this.plot.addEventListener("pointerup", event => {
      if (!grabbed) return;
      const [x, y] = value(at(event)), {from, has_moved} = grabbed;
      grabbed = null;
      const is_gone = from !== null && !has_moved;
      this.model.send({old: from, new: is_gone ? null : [x, y]});
    });
  }
}

async function render({model, el}) {
  const Plotly = await load(model);
  el.classList.add("gqc-panels");
  let cells = [];
  const seen = new IntersectionObserver(changes => changes.forEach(({target, isIntersecting}) => {
    const cell = cells.find(c => c.box === target);
    if (cell) cell.is_seen = isIntersecting;
  }));
  const clear = () => {
    seen.disconnect();
    cells.forEach(c => Plotly.purge(c.plot));
    el.replaceChildren();
    cells = [];
  };
  const build = () => {
    clear();
    for (const spec of model.get("panels")) cells.push(new Cell(el, spec, model, cells));
    cells.forEach(cell => seen.observe(cell.box));
    draw();
  };
  // One panel a frame, those in sight first: the page stays quick, and a hidden one costs nothing.
  let is_waiting = false;
  const turn = () => {
    const cell = cells.find(c => c.is_due && c.is_seen) ?? cells.find(c => c.is_due);
    if (!cell || is_waiting) return;
    cell.is_due = false;
    cell.draw();
    is_waiting = true;
    requestAnimationFrame(() => { is_waiting = false; turn(); });
  };
  const draw = () => { cells.forEach(cell => { cell.is_due = true; }); turn(); };
  build();
  model.on("change:panels", build);
  model.on("change:points", draw);
  // A kernel that is gone leaves the page as it was: say so.
  model.on("comm_live_update", () => el.closest(".gqc-live, .gqc-editor")?.classList.add("gqc-gone"));
  const themes = new MutationObserver(draw);
  const watched = {attributes: true, attributeFilter: ["class", "theme", "data-jp-theme-name"]};
  for (const element of [document.body, document.documentElement]) themes.observe(element, watched);
  return () => { model.off("change:panels", build); model.off("change:points", draw);
    themes.disconnect(); clear(); };
}
export default { render };
