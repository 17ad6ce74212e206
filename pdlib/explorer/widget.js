// The knobs, and what is around the panels. render is for notebooks, mount for any page.
function made(html) {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  return document.importNode(template.content.firstChild, true);
}

// One knob: its element, read() for the value that it is set to, write(value) to set it, tell(problem, why it is idle).
function makeKnob(name, id, turned) {
  const { label, about, options, min: low, max: high, base, step, off } = KNOBS[name];
  const from = (value) => (base ? Math.log(value) / Math.log(base) : value);
  const to = (stop) => (base === 10 ? Number((10 ** stop).toPrecision(2)) : base ? base ** stop : stop);
  const kind = options ? "select" : low === undefined ? "checkbox" : step ? "range" : "number";
  const items = Object.entries(options ?? {}).map(([value, words]) => `<option value="${value}">${words}</option>`);
  const range = low === undefined ? "" : `min="${from(low)}" max="${from(high)}" step="${step ?? 1}"`;
  const slider = `<input id="${id}" type="${kind}" ${range}>`;
  const control = options ? `<select id="${id}">${items.join("")}</select>` : slider;
  const root = made(`<div class="knob" data-knob="${name}" title="${about}">
    <span class="name"><input class="use" type="checkbox" aria-label="use ${label}" checked>
    <label for="${id}">${label}</label></span>${control}<output for="${id}"></output>
    <p class="note" id="${id}-note" role="alert"></p></div>`);
  const [use, input, output, note] = [".use", `#${id}`, "output", ".note"].map((one) => root.querySelector(one));
  if (!off) use.remove();
  input.setAttribute("aria-describedby", note.id);
  let [value, why] = [off, ""]; // a slider's stops are coarser than what a link may set
  const show = () => {
    use.disabled = why !== "";
    input.disabled = use.disabled || !use.checked;
    if (kind !== "range") return;
    output.textContent = use.checked ? shown(name, value) : "off";
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => {
    value = { select: input.value, checkbox: input.checked }[kind] ?? to(input.valueAsNumber);
    turned(show());
  });
  use.addEventListener("change", () => turned(show()));
  return {
    root,
    read: () => (use.checked ? value : null),
    write(given) {
      use.checked = given !== null;
      value = given ?? value;
      input[kind === "checkbox" ? "checked" : "value"] = options ? value : from(value);
      show();
    },
    tell(problem = "", reason = "") {
      put(note, problem || reason, "textContent");
      note.classList.toggle("problem", problem !== "");
      input.setAttribute("aria-invalid", problem !== "");
      why = reason;
      show();
    },
  };
}

function copy(text, button, otherwise) {
  const label = (button.dataset.label ??= button.textContent);
  const say = (words) => (button.textContent = words);
  const written = navigator.clipboard?.writeText(text) ?? Promise.reject();
  written.then(() => say("Copied"), () => otherwise(say("Not allowed here: copy it below")));
  setTimeout(() => say(label), 1500);
}

async function save(kind, svg) {
  const download = (href) => Object.assign(made("<a></a>"), { href, download: `weighting.${kind}` }).click();
  const image = Object.assign(new Image(), { src: "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svg) });
  if (kind === "svg") return download(image.src);
  await image.decode();
  const canvas = made(`<canvas width="${2 * image.width}" height="${2 * image.height}"></canvas>`);
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  download(canvas.toDataURL("image/png"));
}

// A panel in the page, as wide as there is room; under a pointer it shows the values of a step.
function makePanel(name) {
  const below = `<figcaption ${name === "share" ? 'aria-live="polite"' : ""}></figcaption>`;
  const root = made(`<figure data-panel="${name}"><svg></svg><i></i><div class="tip"></div>${below}</figure>`);
  const [svg, rule, tip, caption] = ["svg", "i", ".tip", "figcaption"].map((one) => root.querySelector(one));
  let [drawn, f, width] = [null, null, 0];
  const hide = () => (tip.hidden = rule.hidden = true);
  const point = (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    const places = edges(f).map(drawn.x);
    const i = f.steps.t.findIndex((_, k) => (at - places[k]) * (at - places[k + 1]) <= 0);
    if (i < 0) return hide();
    const values = drawn.layers.filter(({ mark, label }) => label && (mark === "stairs" || mark === "bars"));
    const said = values.map(({ label, y, unit = "" }) => `${label}: ${number(y[i])}${unit}`);
    const step = `step ${i + 1} of ${f.state.N}, t = ${moment(f, i)}, λ = ${number(f.steps.log_snr[i])}`;
    tip.textContent = [step, ...said].join("\n");
    tip.hidden = rule.hidden = false;
    rule.style.left = `${at}px`;
    tip.style.left = `${min(at + 12, max(0, width - tip.offsetWidth - 4))}px`;
  };
  for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, point);
  svg.addEventListener("pointerleave", hide);
  const show = (figures, frozen) => {
    f = figures;
    hide();
    drawn = draw(svg, name, f, frozen, max(width, 240));
    put(caption, PANELS[name].say(f), "textContent");
  };
  return { root, show, fit: () => (width = Math.floor(root.clientWidth)) };
}

// The first group of presets, and the others folded. mark(state) marks those that the state is.
function makePresets(chosen) {
  const buttons = [];
  const group = ([name, links]) => {
    const row = made(`<div class="group" role="group" aria-label="${name}"><span>${name}</span></div>`);
    for (const [label, link] of Object.entries(links)) {
      const [button, { state }] = [made(`<button type="button">${label}</button>`), fromQuery(link)];
      button.addEventListener("click", () => chosen(state));
      buttons.push([button, state]);
      row.append(button);
    }
    return row;
  };
  const [first, ...others] = Object.entries(PRESETS).map(group);
  const more = made("<details class=more><summary></summary><div></div></details>");
  more.lastChild.append(...others);
  const mark = (state) => {
    for (const [button, preset] of buttons) button.setAttribute("aria-pressed", difference(state, preset) === "");
    const pressed = more.querySelector("[aria-pressed=true]");
    more.firstChild.textContent = pressed ? `More presets: ${pressed.textContent}` : "More presets";
  };
  return { roots: [first, more], mark };
}

// Below a strip of panels, on a narrow screen: which there are, and which is in view.
function makeDots(nav, box) {
  [...box.children].forEach((panel, k) => {
    nav.append(made(`<button type="button" aria-label="show panel ${k + 1}">${k + 1}</button>`));
    nav.lastChild.addEventListener("click", () => box.scrollTo({ left: panel.offsetLeft, behavior: "smooth" }));
  });
  const mark = () => {
    const inView = Math.round(box.scrollLeft / max(1, box.clientWidth));
    [...nav.children].forEach((dot, k) => dot.setAttribute("aria-current", k === inView));
  };
  box.addEventListener("scroll", mark);
  mark();
}

// The explorer in an element. changed(state, frozen) is told what is set; link(query) says how to come back to it.
function build(el, { state: opened, notice = "", frozen = null, knobs: some, panels: names, changed, link }) {
  const root = made(LAYOUT);
  const part = (selector) => root.querySelector(selector);
  const [status, panelBox, lines, compare] = [".notice", ".panels", ".lines", ".compare"].map(part);
  const click = (selector, act) => part(selector).addEventListener("click", (event) => act(event.target));
  let { state, notice: complaint } = usable(opened); // the last good one, which is drawn
  let [fresh, waiting] = [true, false];
  const settings = () => `${pythonLines(state)}\n\n# or, in a shell\n${runLine(state)}`;
  // Drawn at once, and at most once in a frame.
  const redraw = () => {
    if (!fresh) return (waiting = true);
    [fresh, waiting] = [false, false];
    requestAnimationFrame(() => ((fresh = true), waiting && redraw()));
    const [figures, behind] = [compute(state), frozen && compute(frozen)];
    for (const panel of panels) panel.show(figures, behind);
    part(".grey").textContent = frozen ? `in grey: ${difference(frozen, state) || "the same"}` : "";
    lines.lastChild.textContent = `${settings()}\n\n# link\n${link(toQuery(state))}`;
    presets.mark(state);
  };
  const turned = () => {
    const wanted = { ...state };
    for (const name in knobs) wanted[name] = knobs[name].read();
    const [wrong, why] = [problems(wanted), idle(wanted)];
    for (const name in knobs) knobs[name].tell(wrong[name], why[name]);
    const stale = Object.keys(wrong).length > 0;
    status.textContent = stale ? `No picture for this. The panels still show ${difference(state, wanted)}.` : "";
    panelBox.classList.toggle("stale", stale);
    if (stale) return;
    state = wanted;
    redraw();
    changed(state, frozen);
  };
  const write = (given, said = "") => {
    state = { ...given };
    for (const name in knobs) knobs[name].write(state[name]);
    turned();
    if (said) status.textContent = said;
  };
  const freeze = (given) => {
    frozen = given;
    compare.checked = frozen !== null;
    redraw();
  };

  const prefix = `pdlib-${Math.random().toString(36).slice(2)}`;
  const knobs = Object.fromEntries(some.map((name) => [name, makeKnob(name, `${prefix}-${name}`, turned)]));
  const [presets, panels] = [makePresets(write), names.map(makePanel)];
  part(".knobs").append(...Object.values(knobs).map((knob) => knob.root));
  panelBox.append(...panels.map((panel) => panel.root));
  makeDots(part(".dots"), panelBox);
  const whole = some.length === Object.keys(KNOBS).length;
  if (whole) part(".head").prepend(...presets.roots);
  const openLines = () => ((lines.open = true), lines.lastChild.focus());
  const drawing = () => picture(names, compute(state), frozen && compute(frozen));
  compare.addEventListener("change", () => {
    freeze(compare.checked ? state : null);
    changed(state, frozen);
  });
  click(".reset", () => (freeze(null), write(whole ? DEFAULTS : opened)));
  click(".svg", () => save("svg", drawing()));
  click(".png", () => save("png", drawing()));
  click(".code", (button) => copy(settings(), button, openLines));
  click(".link", (button) => copy(link(toQuery(state)), button, openLines));
  // In JupyterLab keys turn our knobs, and do not walk through the notebook.
  root.addEventListener("keydown", (event) => event.key !== "Escape" && event.stopPropagation());
  el.replaceChildren(root);

  const fit = () => panels.forEach((panel) => panel.fit());
  new ResizeObserver(() => redraw(fit())).observe(panelBox);
  fit();
  freeze(frozen);
  write(state, notice || complaint);
  return { write, freeze };
}

// The explorer in an element of any page, in a state; without one in that of the address, which then follows it.
function mount(el, state) {
  const query = () => location.hash.slice(1);
  const link = (to) => location.href.split("#")[0] + (to && `#${to}`);
  const everything = { knobs: Object.keys(KNOBS), panels: Object.keys(PANELS), link };
  if (state) return build(el, { ...everything, state: { ...DEFAULTS, ...state }, changed() {} });
  let timer = 0;
  const changed = (now) => {
    clearTimeout(timer);
    timer = setTimeout(() => history.replaceState(null, "", link(toQuery(now))), 150);
  };
  const explorer = build(el, { ...everything, ...fromQuery(query()), changed });
  const follow = ({ state: asked, notice }) => explorer.write(asked, notice);
  addEventListener("hashchange", () => follow(fromQuery(query())));
  return explorer;
}

// The explorer in a notebook, where the model may have no kernel behind it.
function render({ model, el }) {
  const [frozen, knobs, panels] = ["frozen", "knobs", "panels"].map((name) => model.get(name));
  const settings = () => ({ ...DEFAULTS, ...model.get("settings") });
  const link = (query) => `WeightingExplorer.from_link("${query}")`;
  const changed = (state, behind) => {
    model.set({ settings: state, frozen: behind });
    model.save_changes();
  };
  const explorer = build(el, { state: settings(), frozen, knobs, panels, link, changed });
  // Another view of the explorer, or Python, may have turned the knobs; what is turned here is right already.
  model.on("change:settings", () => el.contains(document.activeElement) || explorer.write(settings()));
  model.on("change:frozen", () => explorer.freeze(model.get("frozen")));
}

export { compute, problems, toQuery, fromQuery, pythonLines, runLine, PANELS, mount };
export default { render };
