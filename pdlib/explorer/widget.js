// The browser's half of pdlib.explorer.WeightingExplorer: it builds the controls that Python lists, sends what they
// are set to, and puts the drawings that come back in their places. It computes nothing.

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function shown(value) {
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(3))).replace("-", "−");
}

// One knob: its element, read() for the value it is set to, and write(value) to set it.
function makeKnob(knob, id, changed) {
  const problem = element("p", { className: "problem", id: `${id}-problem` });
  problem.setAttribute("role", "alert");
  const root = element("div", { className: "knob" });
  root.dataset.knob = knob.name;
  const label = element("label", { htmlFor: id, textContent: knob.label });
  const made = { root, problem };

  if (knob.kind === "choice") {
    const select = element("select", { id, onchange: changed });
    for (const [value, text] of knob.options) select.append(element("option", { value, textContent: text }));
    root.append(label, select);
    made.input = select;
    made.read = () => select.value;
    made.write = (value) => (select.value = value);
  } else if (knob.kind === "switch") {
    const box = element("input", { id, type: "checkbox", onchange: changed });
    root.append(element("span", { className: "line" }, box, label));
    made.input = box;
    made.read = () => box.checked;
    made.write = (value) => (box.checked = value);
  } else if (knob.kind === "number") {
    const field = element("input", { id, type: "number", min: knob.min, max: knob.max, step: knob.step, oninput: changed });
    root.append(label, field);
    made.input = field;
    made.read = () => (field.value === "" ? "" : Number(field.value));
    made.write = (value) => (field.value = value);
  } else {
    const logarithmic = knob.kind.endsWith("log");
    const to = knob.kind === "power" ? (p) => 2 ** p : logarithmic ? (p) => Number((10 ** p).toPrecision(2)) : (p) => p;
    const from = knob.kind === "power" ? Math.log2 : logarithmic ? Math.log10 : (value) => value;
    let value = knob.start; // the slider's stops are coarser than what a link may set
    const output = element("output", { htmlFor: id });
    const show = () => {
      slider.value = from(value);
      const text = slider.disabled ? "off" : shown(value);
      output.textContent = text;
      slider.setAttribute("aria-valuetext", text);
    };
    const slider = element("input", { id, type: "range", min: from(knob.min), max: from(knob.max), step: knob.step });
    slider.oninput = () => ((value = to(Number(slider.value))), show(), changed());
    const head = element("span", { className: "line" }, label, output);
    if (knob.kind.startsWith("optional")) {
      const box = element("input", { type: "checkbox" });
      box.setAttribute("aria-label", `use ${knob.label}`);
      box.onchange = () => ((slider.disabled = !box.checked), show(), changed());
      head.prepend(box);
      made.read = () => (box.checked ? value : null);
      made.write = (given) => {
        box.checked = given !== null;
        slider.disabled = given === null;
        value = given ?? value;
        show();
      };
    } else {
      made.read = () => value;
      made.write = (given) => ((value = given), show());
    }
    root.append(head, slider);
    made.input = slider;
  }
  made.input.setAttribute("aria-describedby", problem.id);
  root.append(problem);
  return made;
}

async function copy(text, button, otherwise) {
  const label = (button.dataset.label ??= button.textContent);
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed here: copy it below";
    otherwise();
  }
  setTimeout(() => (button.textContent = label), 1500);
}

function download(href, name) {
  element("a", { href, download: name }).click();
}

function downloadPNG(svg, name) {
  const image = new Image();
  image.onload = () => {
    const canvas = element("canvas", { width: 2 * image.width, height: 2 * image.height });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    download(canvas.toDataURL("image/png"), name);
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svg);
}

function render({ model, el }) {
  const prefix = `pdlib-${Math.random().toString(36).slice(2)}`;
  const root = element("div", { className: "pdlib-explorer" });
  // In JupyterLab keys turn our knobs, and do not walk through the notebook.
  root.dataset.lmSuppressShortcuts = "true";
  root.addEventListener("keydown", (event) => event.key !== "Escape" && event.stopPropagation());
  el.append(root);

  // What a control is set to goes to Python at once; while Python is busy, only the latest setting waits.
  const knobs = new Map();
  const send = (values) => {
    model.set("controls", values);
    model.save_changes();
  };
  const readAll = () => ({
    ...model.get("controls"),
    ...Object.fromEntries([...knobs].map(([name, knob]) => [name, knob.read()])),
  });
  const writeAll = (values) => knobs.forEach((knob, name) => knob.write(values[name]));
  const knobColumn = element("div", { className: "knobs" });
  for (const knob of model.get("knobs")) {
    const made = makeKnob(knob, `${prefix}-${knob.name}`, () => send(readAll()));
    knobs.set(knob.name, made);
    knobColumn.append(made.root);
  }
  writeAll(model.get("controls"));

  const presets = element("details", { className: "presets" }, element("summary", { textContent: "Presets" }));
  for (const [group, states] of model.get("presets")) {
    const buttons = element("div", { className: "buttons" });
    buttons.setAttribute("role", "group");
    buttons.setAttribute("aria-label", group);
    for (const [label, state] of states) {
      const button = element("button", { type: "button", textContent: label });
      button.onclick = () => (writeAll(state), send({ ...state }));
      buttons.append(button);
    }
    presets.append(element("div", { className: "group" }, element("span", { textContent: group }), buttons));
  }
  presets.hidden = model.get("presets").length === 0;
  const wide = matchMedia("(min-width: 600px)").matches;
  presets.open = wide;

  const panels = element("div", { className: "panels" });
  const figures = new Map();
  for (const name of Object.keys(model.get("panels"))) {
    const drawing = element("div", { className: "drawing" });
    const caption = element("figcaption");
    const figure = element("figure", {}, drawing, caption);
    figure.dataset.panel = name;
    if (name === "share") caption.setAttribute("aria-live", "polite");
    figures.set(name, { drawing, caption, svg: "" });
    panels.append(figure);
  }
  if (!wide) {
    panels.tabIndex = 0; // a strip that scrolls sideways
    panels.setAttribute("role", "group");
    panels.setAttribute("aria-label", `${figures.size} panels, side by side`);
  }

  const notice = element("p", { className: "notice" });
  notice.setAttribute("role", "status");
  const compare = element("input", { type: "checkbox", id: `${prefix}-compare`, checked: model.get("compare") });
  compare.onchange = () => (model.set("compare", compare.checked), model.save_changes());
  const lines = element("pre", { className: "lines", tabIndex: 0 });
  const settings = () => `${model.get("lines").python}\n\n# or, in a shell\n${model.get("lines").command}`;
  const link = () => {
    const query = model.get("lines").query;
    if (!model.get("on_page")) return `WeightingExplorer.from_link("${query}")`;
    const theme = new URLSearchParams(location.search).get("theme"); // Voilà's own
    const parts = [query, theme && `theme=${encodeURIComponent(theme)}`].filter(Boolean);
    return `${location.origin}${location.pathname}${parts.length ? "?" + parts.join("&") : ""}`;
  };
  let wanted = null; // the kind of file that was asked for
  const save = (kind) => ((wanted = kind), model.send("picture"));
  model.on("msg:custom", (message) => {
    if (!message.picture || !wanted) return;
    if (wanted === "png") downloadPNG(message.picture, "weighting.png");
    else download("data:image/svg+xml;charset=utf-8," + encodeURIComponent(message.picture), "weighting.svg");
    wanted = null;
  });
  const button = (textContent, act) => {
    const made = element("button", { type: "button", textContent });
    made.onclick = () => act(made);
    return made;
  };
  const actions = element(
    "div",
    { className: "actions" },
    element(
      "span",
      { className: "line" },
      compare,
      element("label", { htmlFor: compare.id, textContent: "compare: keep this in grey" }),
    ),
    button("Save picture (SVG)", () => save("svg")),
    button("Save picture (PNG)", () => save("png")),
    button("Copy settings", (made) => copy(settings(), made, openLines)),
    button("Copy link", (made) => copy(link(), made, openLines)),
  );
  const code = element("details", {}, element("summary", { textContent: "Settings of the picture as code" }), lines);
  const openLines = () => ((code.open = true), lines.focus());

  root.append(notice, presets, element("div", { className: "body" }, knobColumn, panels), actions, code);

  const draw = () => {
    const svgs = model.get("panels");
    const said = model.get("said");
    for (const [name, figure] of figures) {
      if (figure.svg !== svgs[name]) figure.drawing.innerHTML = figure.svg = svgs[name];
      if (figure.caption.textContent !== said[name]) figure.caption.textContent = said[name];
    }
    lines.textContent = `${settings()}\n\n# link\n# ${link()}`;
  };
  const complain = () => {
    const problems = model.get("problems");
    knobs.forEach((knob, name) => {
      knob.problem.textContent = problems[name] ?? "";
      knob.input.setAttribute("aria-invalid", String(name in problems));
    });
    const elsewhere = Object.keys(problems).filter((name) => !knobs.has(name));
    notice.textContent = elsewhere.map((name) => problems[name]).join("; ") || model.get("notice");
  };
  // Another view of the explorer, or Python, may have turned the knobs; what is turned here is right already.
  model.on("change:controls", () => {
    if (!knobColumn.contains(document.activeElement)) writeAll(model.get("controls"));
  });
  model.on("change:compare", () => (compare.checked = model.get("compare")));
  model.on("change:panels change:said change:lines", draw);
  model.on("change:problems change:notice", complain);
  draw();
  complain();
}

export default { render };
