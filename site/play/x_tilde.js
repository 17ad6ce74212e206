// x̃: two steps of a teacher, one of its student, and what the student must say.
import { ddimStep, schedule as scheduleOf, target, walk } from "./diffusion.js";
import { mixture } from "./exact.js";
import { color, draggable, find, make, redrawn, saveNumbers } from "./page.js";

const schedule = scheduleOf({ name: "cosine" });
const teacher = mixture({ weights: [0.5, 0.5], means: [[-1], [1]], variance: 0 }, schedule);
const state = { z: 1.4, N: 2, i: 2, says: "target" };
const HEIGHT = 400, TOP = 2.4, LEFT = 46, RIGHT = 58, BOTTOM = 52;
const step = (z, x, t, s) => ddimStep([z], [x], t, s, schedule)[0];
const guess = (z, t) => teacher([z], t)[0];
const short = (value) => (Math.abs(value) < 5e-4 ? "0" : value.toFixed(3).replace("-", "−"));

/** All that is drawn and said. */
function compute({ z, N, i, says }) {
  const [t, mid, end] = [i / N, (i - 0.5) / N, (i - 1) / N];
  const first = guess(z, t), zMid = step(z, first, t, mid);
  const second = guess(zMid, mid), zEnd = step(zMid, second, mid, end);
  const xTilde = target(teacher, [z], t, N)[0];
  const said = { target: xTilde, first, second }[says];
  // In r = α/σ each answer's share is its part of the way; multiplied through by every σ, as σ″ may be 0.
  const [[a, s], [aMid, sMid], [aEnd, sEnd]] = [t, mid, end].map(schedule);
  const share = ((aEnd * sMid - aMid * sEnd) * s) / ((aEnd * s - a * sEnd) * sMid);
  return { t, mid, end, z, first, zMid, second, zEnd, xTilde, said, landed: step(z, said, t, end), share, a, s, aEnd, sEnd };
}

/** Ways of the teacher in many small steps, from noises side by side. */
const ways = Array.from({ length: 15 }, (_, k) => {
  let z = (k - 7) * 0.32;
  return [[1, z], ...Array.from(walk({ N: 120 }), ([t, s]) => [s, (z = step(z, guess(z, t), t, s))])];
});

function svg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
}

const picture = svg("svg", { id: "picture", role: "group", "aria-label": "z against time, with the two steps of the teacher and the one of the student" });
const back = svg("g", {}), front = svg("g", {});
const handle = svg("circle", {
  r: 10, id: "handle", tabindex: 0, role: "slider", "data-draggable": "", "aria-label": "z at time t: drag it, or use the arrow keys",
  "aria-valuemin": -2.2, "aria-valuemax": 2.2,
});
picture.append(back, front, handle);

function draw() {
  const c = compute(state), width = Math.max(find("#figure").clientWidth, 200);
  picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const X = (t) => LEFT + (1 - t) * (width - LEFT - RIGHT), Y = (z) => (HEIGHT - BOTTOM) / 2 + 8 - (z / TOP) * ((HEIGHT - BOTTOM) / 2 - 8);
  const line = (points) => points.map(([t, z], k) => `${k ? "L" : "M"}${X(t).toFixed(2)} ${Y(z).toFixed(2)}`).join("");
  /** A DDIM step from t to s with x as the guess, and every z on its way. */
  const arc = (z, x, t, s) => line(Array.from({ length: 41 }, (_, k) => t + ((s - t) * k) / 40).map((time) => [time, step(z, x, t, time)]));
  const path = (d, stroke, more) => svg("path", { d, fill: "none", stroke, ...more });
  const [blue, orange, ink, pale] = ["distilled", "ddim", "ink", "pale"].map(color);
  const square = (t, z, fill) => svg("rect", { x: X(t) - 6, y: Y(z) - 6, width: 12, height: 12, fill, stroke: orange, "stroke-width": 2 });
  const label = (t, y, text, anchor = "middle", dx = 0) => svg("text", { x: X(t) + dx, y, "text-anchor": anchor }, text);
  const dashed = { "stroke-dasharray": "2 5", "stroke-width": 1.5 }, axis = HEIGHT - BOTTOM + 8;

  back.replaceChildren(
    ...ways.map((way) => path(line(way), pale, { "stroke-width": 1 })),
    ...[-2, -1, 0, 1, 2].map((z) => svg("text", { x: LEFT - 12, y: Y(z) + 4, "text-anchor": "end" }, short(z).replace(".000", ""))),
    svg("text", { x: 12, y: 16 }, "z"),
    path(`M${X(1)} ${axis}H${X(0)}`, ink),
    ...[[c.t, "t"], [c.mid, "t′"], [c.end, "t″"]].flatMap(([time, name]) => [
      path(`M${X(time)} ${Y(TOP)}V${axis + 5}`, pale, { "stroke-dasharray": "4 4" }),
      label(time, axis + 20, name),
    ]),
    label(c.t, Y(c.z) - 16, "drag", c.t > 0.9 ? "start" : "middle", c.t > 0.9 ? -8 : 0),
    label(1, axis + 38, "noise, time 1", "start", -20),
    label(0, axis + 38, "data, time 0", "end", 40),
  );
  // Names beside the guesses, kept apart from each other.
  const names = [[c.first, "x̂₁", color("ddim-text")], [c.second, "x̂₂", color("ddim-text")], [c.xTilde, "x̃", blue]].sort((a, b) => b[0] - a[0]);
  const heights = names.map(([x]) => Y(x) + 4);
  for (let k = 1; k < 3; k++) heights[k] = Math.max(heights[k], heights[k - 1] + 16);
  front.replaceChildren(
    path(arc(c.zMid, c.second, c.mid, 0), orange, dashed),
    path(arc(c.z, c.first, c.t, 0), orange, dashed),
    path(arc(c.z, c.said, c.t, 0), blue, dashed),
    path(arc(c.z, c.first, c.t, c.mid), orange, { "stroke-width": 2.5 }),
    path(arc(c.zMid, c.second, c.mid, c.end), orange, { "stroke-width": 2.5 }),
    path(arc(c.z, c.said, c.t, c.end), blue, { "stroke-width": 4, id: "student" }),
    square(c.mid, c.zMid, orange),
    square(c.end, c.zEnd, orange),
    square(0, c.first, "none"),
    square(0, c.second, "none"),
    svg("circle", { cx: X(0), cy: Y(c.xTilde), r: 6, fill: blue, id: "x-tilde" }),
    svg("circle", { cx: X(c.end), cy: Y(c.landed), r: 5, fill: blue, stroke: color("paper") }),
    ...names.map(([, name, fill], k) => {
      const text = svg("text", { x: X(0) + 14, y: heights[k], "font-weight": 700 }, name);
      text.style.fill = fill;
      return text;
    }),
  );
  handle.setAttribute("cx", X(c.t));
  handle.setAttribute("cy", Y(c.z));
  handle.setAttribute("fill", ink);
  handle.setAttribute("aria-valuenow", c.z.toFixed(2));
  tell(c);
}

function tell(c) {
  const ratio = c.sEnd / c.s, short2 = (value) => (value < 0 ? `(${short(value)})` : short(value));
  find("#z").value = state.z;
  find("#numbers").textContent =
    `= (${short(c.zEnd)} − ${short(ratio)} · ${short2(c.z)}) / (${short(c.aEnd)} − ${short(ratio)} · ${short(c.a)}) = ${short(c.xTilde)}`;
  const rows = [
    ["t, t′, t″", [c.t, c.mid, c.end].map((time) => `${time}`).join(", ")], ["z at t", short(c.z)],
    ["x̂₁, said at t", short(c.first)], ["x̂₂, said at t′", short(c.second)],
    ["z at t″, after two steps", short(c.zEnd)], ["x̃, the target", short(c.xTilde)],
  ];
  find("#values").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]));
  const second = Math.round(100 * c.share), first = 100 - second;
  find("#first").style.width = `${first}%`;
  find("#first").textContent = first < 18 ? "" : `${first} % x̂₁`;
  find("#second").textContent = second < 18 ? "" : `${second} % x̂₂`;
  const gap = Math.abs(c.landed - c.zEnd);
  find("#status").textContent = gap < 1e-9
    ? `The student’s one step lands where the teacher’s two do: z = ${short(c.zEnd)} at t″.`
    : `The student’s one step lands ${short(gap)} from where the teacher’s two do.`;
}

function choose(change) {
  Object.assign(state, change);
  state.z = Math.min(2.2, Math.max(-2.2, state.z));
  state.i = Math.min(state.i, state.N);
  find("#i").replaceChildren(...Array.from({ length: state.N }, (_, k) => make("option", { textContent: k + 1, selected: k + 1 === state.i })));
  draw();
}

find("#figure").append(picture);
find("#z").addEventListener("input", (event) => choose({ z: event.target.valueAsNumber }));
find("#N").addEventListener("change", (event) => choose({ N: Number(event.target.value), i: Number(event.target.value) }));
find("#i").addEventListener("change", (event) => choose({ i: Number(event.target.value) }));
find("#says").addEventListener("change", (event) => choose({ says: event.target.value }));
find("#save").addEventListener("click", () => saveNumbers("x_tilde.json", { ...state, ...compute(state) }));
const scale = (2 * TOP) / (HEIGHT - BOTTOM - 16); // of z in a pixel
draggable(handle, (_, dy) => choose({ z: state.z + dy * handle.getBoundingClientRect().height * scale }), 0.1);
redrawn(find("#figure"), draw);
choose({});
document.body.dataset.ready = "";
