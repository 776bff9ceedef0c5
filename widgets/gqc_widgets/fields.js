// Fields of controls: Enter or leaving a field applies it, Escape takes back, arrows step.
const make = (parent, tag, name) => {
  const element = document.createElement(tag);
  element.className = name;
  parent.append(element);
  return element;
};

function stepped(text, sign) {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) return null;
  const size = value ? 10 ** (Math.floor(Math.log10(Math.abs(value))) - 1) : 0.1;
  return String(Number((value + sign * size).toPrecision(12)));
}

function row(place, spec, model) {
  const box = make(place, "div", "gqc-field"), label = make(box, "label", "");
  const input = make(box, spec.choices ? "select" : spec.is_long ? "textarea" : "input", "");
  input.id = label.htmlFor = `gqc-${crypto.randomUUID()}`;
  label.textContent = spec.label;
  box.title = spec.title;
  for (const choice of spec.choices ?? []) input.append(new Option(choice, choice));
  const slide = spec.slider && make(box, "input", "gqc-slide");
  if (slide) {
    Object.assign(slide, {type: "range", min: 0, max: spec.slider, step: 1});
    slide.setAttribute("aria-label", `${spec.label} slider`);
    slide.onchange = () => model.send({slide: [spec.name, Number(slide.value)]});
    slide.onkeydown = event => {  // JupyterLab has its own use for arrows
      const step = {ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1}[event.key];
      event.stopPropagation();
      if (!step) return;
      event.preventDefault();
      slide.value = Number(slide.value) + step;
      slide.onchange();
    };
  }
  const state = {text: ""};
  const mark = () => input.classList.toggle("gqc-pending", input.value !== state.text);
  const apply = () => {
    if (input.value === state.text) return;
    state.is_sent = true;
    model.send({edit: [spec.name, input.value]});
  };
  input.onchange = apply;
  input.oninput = mark;
  input.onkeydown = event => {
    const step = {ArrowUp: 1, ArrowDown: -1}[event.key];
    const next = step && !spec.choices && !spec.is_long ? stepped(input.value, step) : null;
    if (event.key === "Enter" && !spec.is_long) apply();
    else if (event.key === "Escape") { input.value = state.text; mark(); }
    else if (next !== null) { input.value = next; event.preventDefault(); apply(); }
    event.stopPropagation();
  };
  let error = null;
  return {box, show(fresh) {
    const is_held = document.activeElement === input && input.value !== state.text;
    state.text = fresh.text;
    if (!is_held || state.is_sent) input.value = fresh.text;
    state.is_sent = false;
    mark();
    if (slide && document.activeElement !== slide) slide.value = fresh.at;
    error?.remove();
    error = null;
    if (fresh.error) { error = make(box, "div", "gqc-error"); error.textContent = fresh.error; }
  }};
}

function render({model, el}) {
  el.classList.add("gqc-fields");
  const rows = new Map();
  const draw = () => {
    for (const spec of model.get("specs")) {
      if (!rows.has(spec.name)) rows.set(spec.name, row(el, spec, model));
      rows.get(spec.name).box.style.display = model.get("shown").includes(spec.name) ? "" : "none";
      rows.get(spec.name).show(model.get("values")[spec.name]);
    }
  };
  draw();
  model.on("change", draw);
  return () => model.off("change", draw);
}
export default { render };
