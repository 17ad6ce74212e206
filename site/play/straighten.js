// Straighten: points on their way from noise to data, by the teacher's steps and by a student's.
import { sample, schedule as scheduleOf } from "./diffusion.js";
import { deadAtTheTop, mixture, perfect } from "./exact.js";
import { countWeights, mlp } from "./mlp.js";
import { color, find, make, normals, redrawn, saveNumbers, sharp, still } from "./page.js";
import { unpack, load } from "./weights.js";

const POINTS = 256, TRACED = 6, HALF_WIDTH = 2, SECONDS = 3;
const WHAT = {
  "as-it-should-be": "As it should be: each student is a copy of its teacher, learns from two of its steps, and is the next teacher.",
  "off-by-one": "The grid counts from 0: t = 1 is never trained. Sampling starts at t = 1 − 1/N from pure noise all the same, "
    + "which is not what the student knows from there; each halving widens the gap, until no time is left to train at.",
  snr: "Every loss is weighted by α²/σ², which is 0 at t = 1: what the student says there is never put right. "
    + "Of many steps that is one; of one step it is all.",
  "never-promoted": "The first teacher teaches every student, in two steps that grow longer and longer: "
    + "at best, N steps are as good as its own 2N.",
};
const HEAPS = { weights: [0.5, 0.3, 0.2], means: [[-1, -0.6], [1, -0.6], [0, 1]], variance: 0.03 };
const STEPS = 32;
const state = { data: "moons", way: "as-it-should-be", N: STEPS, seed: 0, t: 0 };
let moons, walks, playing = null, newest = 0;

/** The trained chains: N ↦ denoiser, the first teacher among them. */
async function openMoons(way) {
  moons ??= { manifest: await load("models/moons/manifest.json") };
  const { network, prediction, schedule, teacher, chains } = moons.manifest;
  moons.data ??= unpack(await load("models/moons/data.q16", "arrayBuffer"));
  const read = async (name, grids) => {
    const weights = unpack(await load(`models/moons/${name}.q16`, "arrayBuffer")), size = countWeights(network);
    return grids.map((grid, k) => Object.assign(
      mlp(network, weights.subarray(k * size, (k + 1) * size), prediction, scheduleOf(schedule)), { grid }));
  };
  moons.first ??= (await read("teacher", [teacher]))[0];
  moons[way] ??= await read(way, chains[way]);
  return { data: moons.data, teacher: moons.first, students: moons[way] };
}

/** The same with an exact teacher, and students that learn without error whatever they are taught. */
function openHeaps(way) {
  const teacher = Object.assign(mixture(HEAPS, scheduleOf({ name: "cosine" })), { grid: { N: STEPS } });
  const missing = way === "off-by-one" ? 1 : 0, students = [];
  for (let N = STEPS / 2, parent = teacher; N >= 1 + missing; N /= 2) {
    const learned = way === "snr" ? deadAtTheTop(parent, N) : perfect(way === "never-promoted" ? teacher : parent, N);
    students.push((parent = Object.assign(learned, { grid: { N, missing } })));
  }
  const spread = Math.sqrt(HEAPS.variance), heaps = HEAPS.weights.flatMap((weight, k) => Array(400 * weight).fill(k));
  const data = normals(2 * heaps.length, 99).map((eps, k) => HEAPS.means[heaps[k >> 1]][k % 2] + spread * eps);
  return { data, teacher, students };
}

/** Noise for every point, those first that leave a line: one from each direction, from well outside the data. */
function noises(seed) {
  const eps = normals(2 * POINTS, seed), points = Array.from({ length: POINTS }, (_, k) => eps.subarray(2 * k, 2 * k + 2));
  const far = ([x, y]) => Math.abs(Math.hypot(x, y) - 1.7), around = ([x, y]) => Math.floor((Math.atan2(y, x) / Math.PI + 1) * TRACED / 2);
  const traced = Array.from({ length: TRACED }, (_, part) =>
    points.filter((point) => around(point) % TRACED === part).sort((one, other) => far(one) - far(other))[0]);
  return Float64Array.from([...traced, ...points.filter((point) => !traced.includes(point))].flatMap((point) => [...point]));
}

/** Every stop of a walk: the grid it was made for, and z at each. */
async function stops(denoiser, z) {
  const found = [];
  for await (const stop of sample(denoiser, denoiser.grid, z)) found.push(stop);
  return { grid: denoiser.grid, stops: found };
}

/** z at time t, on the straight way from stop to stop; before the grid's top, where it starts. */
function at({ grid: { N, missing = 0 }, stops }, t) {
  const passed = Math.max(0, N - missing - t * N), k = Math.min(Math.floor(passed), stops.length - 1);
  const next = stops[Math.min(k + 1, stops.length - 1)];
  return stops[k].map((z, d) => z + (passed - k) * (next[d] - z));
}

/** Reads what is asked for and walks through it; then shows the way anew. */
async function choose(change = {}) {
  const turn = ++newest, wanted = Object.assign(state, change);
  const { data, teacher, students } = await (state.data === "moons" ? openMoons(state.way) : openHeaps(state.way));
  const there = [teacher, ...students].map(({ grid }) => grid.N);
  state.N = Math.max(wanted.N, there.at(-1));
  const z = noises(state.seed);
  const kept = walks && walks.teacher.of === teacher && walks.seed === state.seed ? walks.teacher : null;
  const first = kept ?? Object.assign(await stops(teacher, z), { of: teacher });
  const student = state.N === STEPS ? first : await stops(students.find(({ grid }) => grid.N === state.N), z);
  if (turn !== newest) return;
  walks = { data, teacher: first, student, seed: state.seed };
  find("#steps").replaceChildren(...there.map((N) => make("option", { value: N, textContent: N, selected: N === state.N })));
  find("#halve").disabled = state.N === there.at(-1);
  find("#what").textContent = WHAT[state.way];
  find("#left-title").textContent = `Teacher, ${count(first)}`;
  find("#right-title").textContent = state.N === STEPS ? "No student yet: press Halve" : `Student, ${count(student)}`;
  say(there.at(-1));
  play();
}

const count = ({ stops: { length } }) => `${length - 1} step${length === 2 ? "" : "s"}`;

function say(last) {
  const [one, other] = [walks.student, walks.teacher].map(({ stops }) => stops.at(-1));
  const away = Math.sqrt(one.reduce((sum, value, k) => sum + (value - other[k]) ** 2, 0) / one.length);
  const end = state.N > last ? "" : last === 1 ? " There is no half of one step." : " No time is left to train at with N = 1.";
  find("#status").textContent = state.N === STEPS
    ? `The teacher calls its network ${STEPS} times for each point.`
    : `Network calls for each point: ${walks.student.stops.length - 1} in place of ${STEPS}. The points end `
      + `${away.toFixed(3)} from where the teacher’s do (root mean square).${end}`;
}

function drawSide(canvas, walk, name, beneath) {
  const [context, width, height] = sharp(canvas), scale = Math.min(width, height) / (2 * HALF_WIDTH);
  const place = (x, y) => [width / 2 + scale * x, height / 2 - scale * y];
  const dots = (z, radius, end = z.length) => {
    context.beginPath();
    for (let k = 0; k < end; k += 2) {
      const [x, y] = place(z[k], z[k + 1]);
      context.moveTo(x + radius, y);
      context.arc(x, y, radius, 0, 2 * Math.PI);
    }
    context.fill();
  };
  const trace = (stops) => {
    context.beginPath();
    for (let k = 0; k < 2 * TRACED; k += 2) stops.forEach((z, step) => context[step ? "lineTo" : "moveTo"](...place(z[k], z[k + 1])));
    context.stroke();
  };
  context.fillStyle = color("pale");
  dots(walks.data, 1.4);
  if (beneath) {
    [context.strokeStyle, context.lineWidth] = [color("ddim"), 1.2];
    trace(beneath.stops);
  }
  const { N, missing = 0 } = walk.grid, now = at(walk, state.t);
  const passed = walk.stops.filter((_, k) => (N - missing - k) / N >= state.t - 1e-9);
  context.fillStyle = context.strokeStyle = color(name);
  context.globalAlpha = 0.55;
  dots(now, 2.2);
  context.globalAlpha = 1;
  context.lineWidth = N > 8 ? 1 : 2;
  trace([...passed, now]);
  for (const z of passed) dots(z, N > 8 ? 2 : 4, 2 * TRACED);
  dots(now, 5, 2 * TRACED);
}

function drawBoth() {
  if (!walks) return;
  find("#time").value = 1 - state.t;
  find("#time").setAttribute("aria-valuetext", `t = ${state.t.toFixed(2)}`);
  drawSide(find("#left"), walks.teacher, "ddim");
  const halved = state.N < STEPS;
  drawSide(find("#right"), walks.student, halved ? "distilled" : "ddim", halved && walks.teacher);
}

/** Time from 1 to 0; at once where the system asks for less motion. */
function play() {
  cancelAnimationFrame(playing);
  if (still.matches) {
    state.t = 0;
    return drawBoth();
  }
  let began;
  const frame = (now) => {
    began ??= now;
    state.t = Math.max(0, 1 - (now - began) / (1000 * SECONDS));
    drawBoth();
    playing = state.t > 0 ? requestAnimationFrame(frame) : null;
  };
  playing = requestAnimationFrame(frame);
}

function listen() {
  const set = (id, change, kind = "change") => find(id).addEventListener(kind, (event) => choose(change(event.target)).catch(fail));
  set("#halve", () => ({ N: state.N / 2 }), "click");
  set("#steps", ({ value }) => ({ N: Number(value) }));
  set("#data", ({ value }) => ({ data: value }));
  set("#break", ({ value }) => ({ way: value }));
  set("#new", () => ({ seed: state.seed + 1 }), "click");
  find("#play").addEventListener("click", play);
  find("#time").addEventListener("input", (event) => {
    cancelAnimationFrame(playing);
    state.t = 1 - event.target.valueAsNumber;
    drawBoth();
  });
  find("#save").addEventListener("click", () => saveNumbers("paths.json", {
    ...state, noise: walks.teacher.stops[0], shown: { teacher: at(walks.teacher, state.t), student: at(walks.student, state.t) },
  }));
  redrawn(find(".pair"), drawBoth);
}

function fail(error) {
  find("#error").textContent = `This page cannot show that: ${error.message}`;
  find("#status").textContent = "";
}

choose().then(() => {
  listen();
  document.body.dataset.ready = "";
}).catch(fail);
