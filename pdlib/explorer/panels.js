// The panels: what each draws, and the sentence below it. A new panel is one entry of PANELS.
function number(value) {
  if (value === Infinity) return "∞";
  return d3.format(value === 0 || (value >= 0.01 && value < 1e4) ? ",.2f" : ".3~g")(value);
}
const moment = ({ state, steps }, i) => steps.t[i].toFixed(state.N <= 64 ? 2 : 4);
const weightInk = ({ state: { weighting } }) =>
  weighting === "constant" ? "var(--pd-soft)" : COLORS[weighting.replace("_of_steps", "")];
const logarithmic = ({ state }) => state.scale === "log";

// A layer: its mark below, its values y, where the axis must reach for them (span, if not all of y), and its look; what
// is to be compared stays in grey.
const PANELS = {
  share: {
    title: () => "Each step's share of the weight, %",
    log: ({ state }) => state.N > 64, // where bars would be one wash
    layers(f) {
      const [mark, y] = [this.log(f) ? "stairs" : "bars", f.share.map((share) => 100 * share)];
      const dead = `dead: under ${general(100 * f.state.threshold, 3)} % of the fair share`;
      return [
        { mark: "bands", where: f.dead },
        { mark, y, ink: weightInk(f), label: "share", unit: " %", compare: true },
        { mark: "level", y: [100 / f.state.N], span: [], ink: "var(--pd-soft)", dash: "2 3", label: "fair share" },
        { mark: "crosses", where: f.dead, label: f.dead.includes(true) ? dead : "" },
      ];
    },
    say(f) {
      const { N } = f.state;
      if (!f.steps.w.some((w) => w > 0)) return `at N = ${N}, the loss is always 0: no step gets any weight`;
      const dead = f.dead.flatMap((is, i) => (is ? [i] : []));
      const least = f.share.indexOf(min(...f.share));
      const [percent, fair] = [number(100 * f.share[least]), number(N * f.share[least])];
      const size = `${percent} % of the weight, ${fair} times the fair share, at t = ${moment(f, least)}`;
      if (!dead.length) return `at N = ${N}, no step is dead: the smallest share is ${size}`;
      const times = dead.map((i) => moment(f, i));
      if (dead.length > 4) times.splice(2, dead.length - 3, "…");
      const part = (100 * dead.reduce((sum, i) => sum + f.share[i], 0)).toFixed(1);
      const get = dead.length === 1 ? `gets ${part} % of the weight` : `get ${part} % of the weight together`;
      return `at N = ${N}, ${dead.length} of ${N} steps ${get}: t = ${times.join(", ")}`;
    },
  },
  weight: {
    title: ({ state }) => (state.axis === "density" ? "The weight times density, w · p" : "The weight w(t)"),
    log: logarithmic,
    layers(f) {
      const { axis, N, clip_min, clip_max } = f.state;
      const dense = (values, along) => (axis === "density" ? values.map((w, i) => w * along.density[i]) : values);
      const [plain, w, steps] = [dense(f.fine.plain, f.fine), dense(f.fine.w, f.fine), dense(f.steps.w, f.steps)];
      const after = (values, t) => values.filter((_, i) => f.fine.t[i] >= t); // towards t = 0 the SNR has no bound
      const clip = (clip_min ?? clip_max) !== null;
      const bare = { mark: "curve", y: plain, span: after(plain, 1 / N), ink: weightInk(f), compare: true };
      const clipped = { mark: "curve", y: w, span: after(w, 0.5 / N), dash: "5 3", label: "clipped", compare: true };
      const stairs = { mark: "stairs", y: steps, width: 1, label: `the ${N} steps` };
      const curves = clip ? [{ ...bare, label: "w, not clipped", compare: false }, clipped] : [{ ...bare, label: "w" }];
      return [...curves, stairs, { mark: "dots", y: steps }];
    },
    say({ state: { N }, steps: { w } }) {
      if (N <= 4) return `at the ${N} steps, w = ${w.map(number).join(", ")}`;
      return `over the ${N} steps, w goes from ${number(min(...w))} to ${number(max(...w))}`;
    },
  },
  schedule: {
    title: () => "Data α and noise σ",
    log: () => false,
    layers: ({ fine, steps, state: { N } }) => [
      { mark: "curve", y: fine.alpha, span: [1 / 1.08], ink: COLORS.alpha, label: "α, data", compare: true },
      { mark: "curve", y: fine.sigma, span: [], ink: COLORS.sigma, label: "σ, noise", compare: true },
      { mark: "stairs", y: steps.alpha, span: [], ink: COLORS.alpha, width: 1, label: `α of the ${N} steps` },
      { mark: "stairs", y: steps.sigma, span: [], ink: COLORS.sigma, width: 1, label: "their σ" },
    ],
    say({ steps: { alpha } }) {
      if (alpha.at(-1) === 0) return "at t = 1, α = 0: training ends in pure noise, where sampling starts";
      const last = general(alpha.at(-1), 2);
      return `at t = 1, α = ${last}: sampling starts from pure noise, which training never shows`;
    },
  },
  amplification: {
    title: () => "An error of the network, in x̂",
    log: logarithmic,
    layers(f) {
      const [y, { prediction }] = [f.eps_amplification, f.state];
      const label = { x: "x error", v: "v error times σ", both: "both errors, times σ" }[prediction];
      const own = { mark: "stairs", y: f.own_amplification, ink: COLORS[prediction], dash: "5 3", label };
      const eps = { mark: "stairs", y, ink: COLORS.eps, label: "ε error times σ/α", compare: true };
      return [eps, ...(label ? [own] : []), { mark: "dots", y, span: [1] }];
    },
    say(f) {
      const [most, own] = [max(...f.eps_amplification), max(...f.own_amplification)];
      const at = `at t = ${moment(f, f.eps_amplification.indexOf(most))}`;
      const size = most === Infinity ? `without bound ${at}, where α = 0` : `most ${at}: ${number(most)} times`;
      const names = { x: "an error in x", v: "an error in v", both: "errors in x and ε of one size" };
      const what = names[f.state.prediction];
      return `an ε error is magnified ${size}${what ? `; ${what} at most ${number(own)} times` : ""}`;
    },
  },
  sensitivity: {
    title: () => "An error in z at t″, in the target x̃",
    log: logarithmic,
    layers: ({ sensitivity: y }) => [
      { mark: "stairs", y, ink: COLORS.x, label: "times 1/(α″ − (σ″/σ) α)", compare: true },
      { mark: "dots", y, span: [1] },
    ],
    say(f) {
      const most = max(...f.sensitivity);
      const at = `at t = ${moment(f, f.sensitivity.indexOf(most))}: ${number(most)} times`;
      return `an error where the teacher's two steps end, at t″ = t − 1/N, is magnified most ${at}`;
    },
  },
};

const across = (state, along) => (state.axis === "t" ? along.t : along.log_snr);
const edges = (f) => [f.state.axis === "t" ? 0 : f.lambdaAtZero, ...across(f.state, f.steps)];
const px = (value) => Math.round(value * 10) / 10;

// Marks: (axes, figures, layer) -> the path that it is.
const MARKS = {
  curve({ x, y }, f, layer) {
    const [places, points] = [across(f.state, f.fine), []];
    const [[left, right], [low, high]] = [x.domain(), y.domain()];
    const seen = (a, b) => a >= left && a <= right && b >= low && b <= high;
    const every = max(1, Math.floor(places.length / 500)); // finer than the screen
    for (let i = places.length - 1; i >= 0; i -= every) {
      if (seen(places[i], layer.y[i])) points.push([x(places[i]), y(layer.y[i])]);
    }
    return d3.line().digits(1)(points) ?? "";
  },
  stairs({ x, y }, f, layer) {
    const at = edges(f).map(x);
    let [drawn, end] = [`M${px(at[0])},${px(y(layer.y[0]))}`, at[0]];
    layer.y.forEach((value, i) => {
      if (Math.abs(at[i + 1] - end) < 0.7 && i + 1 < layer.y.length) return; // finer than the screen
      end = at[i + 1];
      drawn += `V${px(y(value))}H${px(end)}`;
    });
    return drawn;
  },
  bars({ x, y, bottom }, f, layer) {
    const at = edges(f).map(x);
    const bar = (value, i) => {
      const gap = clamp(0.15 * (at[i + 1] - at[i]), -1, 1);
      return `M${px(at[i] + gap)},${bottom}V${px(y(value))}H${px(at[i + 1] - gap)}V${bottom}Z`;
    };
    return layer.y.map(bar).join("");
  },
  bands({ x, bottom, top }, f, { where }) {
    const at = edges(f).map(x);
    const begin = (is, i) => (is && !where[i - 1] ? `M${px(at[i])},${bottom}V${top}` : "");
    const end = (is, i) => (is && !where[i + 1] ? `H${px(at[i + 1])}V${bottom}Z` : "");
    return where.map((is, i) => begin(is, i) + end(is, i)).join("");
  },
  level: ({ y, left, right }, f, layer) => `M${left},${px(y(layer.y[0]))}H${right}`,
  crosses({ x, bottom, left, right }, f, { where }) {
    const at = edges(f).map(x);
    const cross = (i) => px(clamp((at[i] + at[i + 1]) / 2, left + 4, right - 4) - 4);
    return where.map((is, i) => (is && f.state.N <= 64 ? `M${cross(i)},${bottom - 12}l8,8m0,-8l-8,8` : "")).join("");
  },
  // An arrow beyond the edge stands for what is infinite, or 0 on a log axis.
  dots({ x, y, log }, f, layer) {
    if (f.state.N > 64) return "";
    const places = across(f.state, f.steps);
    const dot = (value, i) => {
      const [a, b] = [px(x(places[i])), px(y(value))];
      if (value === Infinity) return `M${a - 6},${b + 3}l6,-11l6,11Z`;
      return log && value === 0 ? `M${a - 6},${b - 3}l6,11l6,-11Z` : `M${a - 3},${b}a3,3 0 1,0 6,0a3,3 0 1,0 -6,0`;
    };
    return layer.y.map(dot).join("");
  },
};
const FILLED = { bands: 0.16, bars: 1, dots: 1 }; // and how dense

// Every finite value of the layers in view, on a log axis at most eight decades.
function upwards(log, layers) {
  let [least, most] = [Infinity, 0];
  for (const { y = [], span = y } of layers) {
    for (const value of span) if (value > 0 && value < Infinity) [least, most] = [min(least, value), max(most, value)];
  }
  if (!log) return d3.scaleLinear([0, 1.08 * most || 1], [0, 1]);
  const high = Math.ceil(Math.log10(most || 1e-8) + 0.02);
  const low = max(high - 8, Math.floor(Math.log10(min(least, 10 ** (high - 1))) - 0.02));
  return d3.scaleLog([10 ** low, 10 ** high], [0, 1]);
}

function path({ mark, ink: color = "var(--pd-ink)", width = 2, dash = "none" }, d, more = "") {
  const line = `fill="none" stroke="${color}" stroke-width="${width}" stroke-dasharray="${dash}"`;
  const look = mark in FILLED ? `fill="${color}" opacity="${FILLED[mark]}"` : line;
  return `<path data-mark="${mark}" ${more} ${look} d="${d}"/>`;
}

function text(x, y, words, size, more = "", color = "var(--pd-ink)") {
  const escaped = words.replace(/[&<>]/g, (c) => `&#${c.charCodeAt()};`);
  return `<text x="${x}" y="${y}" font-size="${size}" fill="${color}" ${more}>${escaped}</text>`;
}

// The legend in rows, and where the axes may begin below it.
function legend(layers, width) {
  let [x, y] = [8, 34];
  const item = (layer) => {
    const room = 34 + 6.4 * layer.label.length;
    if (x > 8 && x + room > width) [x, y] = [8, y + 17];
    const samples = { bars: `M${x},${y - 5}h18v10h-18Z`, crosses: `M${x + 5},${y - 4}l8,8m0,-8l-8,8` };
    const words = text(x + 23, y + 4, layer.label, 12, "", "var(--pd-soft)");
    const drawn = path(layer, samples[layer.mark] ?? `M${x},${y}h18`) + words;
    x += room;
    return drawn;
  };
  return [layers.filter(({ label }) => label).map(item).join(""), y + 14];
}

const small = (digit) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(digit)];
const raised = (value) => `10${String(Math.round(Math.log10(value))).replace(/./g, small)}`;

// Only what is new is laid out anew.
function put(node, content, property = "innerHTML") {
  if (node.written !== content) node[property] = node.written = content;
}

function axis(svg, kind, place, made) {
  const group = svg.select(`.${kind}`).attr("transform", place);
  const key = [made.scale().domain(), made.scale().range(), made.tickValues(), made.tickSizeInner()].join();
  if (group.attr("data-key") === key) return;
  group.attr("data-key", key).call(made).attr("font-size", 12).attr("font-family", null);
  group.selectAll("line").attr("stroke", "var(--pd-grid)");
  group.selectAll("text").attr("fill", "var(--pd-soft)");
}

// Draws one panel into an <svg> of so many pixels. Returns what a pointer needs to read it.
function draw(node, name, f, frozen, width, height = 250) {
  const panel = PANELS[name];
  const layers = panel.layers(f);
  const behind = frozen ? panel.layers(frozen).filter((layer) => layer.compare) : [];
  const [samples, top] = legend(layers, width);
  const [left, right, bottom, log, inTime] = [48, width - 12, height - 38, panel.log(f), f.state.axis === "t"];
  const ticks = inTime ? [0, 0.25, 0.5, 0.75, 1] : [-15, -10, -5, 0, 5, 10, 15];
  const x = d3.scaleLinear([ticks[0], ticks.at(-1)], [left, right]).clamp(true);
  const y = upwards(log, [...layers, ...behind]).range([bottom, top]).clamp(true);
  const axes = { x, y, left, right, top, bottom, log };
  const marks = layers.map((layer) => path(layer, MARKS[layer.mark](axes, f, layer)));
  const greys = behind.map((layer) => {
    const mark = layer.mark === "bars" ? "stairs" : layer.mark;
    return path({ mark, ink: "var(--pd-frozen)", width: 3 }, MARKS[mark](axes, frozen, layer), "data-frozen");
  });
  const areas = layers.filter(({ mark }) => mark === "bands" || mark === "bars").length; // which the grey lies upon
  const title = `${Object.keys(PANELS).indexOf(name) + 1} · ${panel.title(f)}`;
  const xlabel = inTime ? "time t (data left, noise right)" : "log-SNR λ (noise left, data right)";
  const below = text((left + right) / 2, height - 5, xlabel, 12, 'text-anchor="middle"');
  const words = [text(8, 16, title, 13, 'font-weight="600"'), below];
  const svg = d3.select(node).attr("role", "img").attr("aria-label", `${title}: ${panel.say(f)}`);
  if (!node.firstChild) for (const part of ["y", "x", "marks", "words"]) svg.append("g").attr("class", part);
  if (svg.attr("width") !== String(width)) svg.attr("width", width).attr("height", height);
  const [low, high] = y.domain();
  const decades = log ? grid(Math.round(Math.log10(high / low)) + 1).map((_, k) => low * 10 ** k) : [];
  const yAxis = d3.axisLeft(y).tickSizeInner(left - right).tickSizeOuter(0).tickPadding(6).ticks(5);
  if (log) yAxis.tickValues(decades.filter((_, k) => decades.length <= 6 || k % 2 === 0)).tickFormat(raised);
  const xAxis = d3.axisBottom(x).tickValues(ticks).tickSizeInner(top - bottom).tickSizeOuter(0).tickPadding(8);
  axis(svg, "y", `translate(${left},0)`, yAxis);
  axis(svg, "x", `translate(0,${bottom})`, xAxis.tickFormat((tick) => String(tick).replace("-", "−")));
  put(svg.select(".marks").node(), [...marks.slice(0, areas), ...greys, ...marks.slice(areas)].join(""));
  put(svg.select(".words").node(), [samples, ...words].join(""));
  return { ...axes, layers };
}

// All panels as one SVG on white that needs nothing from outside.
function picture(names, f, frozen) {
  const paper = { ink: "#222222", soft: "#555555", grid: "#dddddd", frozen: "#8a8a8a" };
  const [width, row] = [440, 304];
  const place = (k) => [10 + (k % 2) * width, 10 + Math.floor(k / 2) * row];
  const parts = names.map((name, k) => {
    const [[x, y], node] = [place(k), document.createElementNS("http://www.w3.org/2000/svg", "svg")];
    draw(node, name, f, frozen, width - 20);
    d3.select(node).attr("x", x).attr("y", y);
    const lines = PANELS[name].say(f).match(/.{1,66}(?= |$)/g);
    return node.outerHTML + lines.map((line, n) => text(x + 8, y + 264 + 14 * n, line.trim(), 12)).join("");
  });
  const [x, y] = place(names.length);
  const set = ["Weighting explorer", ...(toQuery(f.state) || "all knobs at their defaults").split("&")];
  parts.push(...set.map((line, n) => text(x + 8, y + 20 + 16 * n, line, 12)));
  const [wide, high] = [2 * width, max(y + 30 + 16 * set.length, place(names.length + 1)[1])];
  const size = `width="${wide}" height="${high}" font-family="system-ui, sans-serif"`;
  const white = '<rect width="100%" height="100%" fill="#ffffff"/>';
  const drawn = `<svg xmlns="http://www.w3.org/2000/svg" ${size}>${white}${parts.join("")}</svg>`;
  return drawn.replace(/var\(--pd-(\w+)\)/g, (_, name) => paper[name]).replaceAll("currentColor", paper.soft);
}
