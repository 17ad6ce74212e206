// Draw: the networks of a run, all from one noise, computed here.
import { sample } from "./diffusion.js";
import { openFolder } from "./onnx.js";
import { draggable, find, make, normals, saveNumbers } from "./page.js";

const state = { seed: 0, other: 1, morph: 0, turn: [0, 0], count: 1, label: 0 };
const cards = new Map(), denoisers = new Map(), images = new Map();
let shape, newest = 0;

/** z₁: two noises mixed as on a sphere, cos² + sin² = 1, so that it stays noise; then turned by what was dragged. */
function noise() {
  const size = shape.reduce((a, b) => a * b), count = size * state.count;
  const [one, other, right, up] = [state.seed, state.other, 1e6, 1e6 + 1].map((seed) => normals(16 * size, seed));
  const [a, b] = state.turn, part = (state.morph * Math.PI) / 2;
  return Float32Array.from({ length: count }, (_, k) => {
    const mixed = Math.cos(part) * one[k] + Math.sin(part) * other[k];
    return Math.cos(b) * (Math.cos(a) * mixed + Math.sin(a) * right[k]) + Math.sin(b) * up[k];
  });
}

/** Examples side by side, each number a pixel; white is the highest, which is 1 for images. */
function paint(canvas, z, highest = 1) {
  const [channels, height, width] = shape, columns = Math.round(Math.sqrt(state.count)), gap = columns > 1 ? 1 : 0;
  canvas.width = columns * (width + gap) - gap;
  canvas.height = columns * (height + gap) - gap;
  const context = canvas.getContext("2d"), page = context.createImageData(canvas.width, canvas.height);
  for (let n = 0; n < state.count; n++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const place = (Math.floor(n / columns) * (height + gap) + y) * canvas.width + (n % columns) * (width + gap) + x;
        for (let c = 0; c < 3; c++) {
          const value = z[((n * channels + Math.min(c, channels - 1)) * height + y) * width + x];
          page.data[4 * place + c] = 255 * (value / highest / 2 + 0.5);
        }
        page.data[4 * place + 3] = 255;
      }
    }
  }
  context.putImageData(page, 0, 0);
}

const stepsText = (N) => `${N} step${N === 1 ? "" : "s"}`;
const milliseconds = (time) => `${time < 10 ? time.toFixed(1) : Math.round(time)} ms`;
const rms = (a, b) => Math.sqrt(a.reduce((sum, value, k) => sum + (value - b[k]) ** 2, 0) / a.length);

/** One picture's place on the page. */
function addCard(key, N, who) {
  const canvas = make("canvas", { className: "pixels" }), time = make("span"), away = make("span");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `What the ${who} makes in ${stepsText(N)}`);
  const figure = make("figure", {}, canvas, make("figcaption", {}, make("strong", { textContent: stepsText(N) }), time, away));
  figure.classList.toggle("from-teacher", who === "teacher");
  figure.dataset.key = key;
  find(key.startsWith("hurried") ? "#in-a-hurry" : "#chain").append(figure);
  cards.set(key, { figure, canvas, time, away });
}

/** Draws everything anew, fewest steps first; what is overtaken by a newer noise stops. */
async function draw() {
  const turn = ++newest, z = noise(), all = [...denoisers.keys()].map(Number).sort((a, b) => a - b), most = all.at(-1);
  paint(find("#noise"), z, 2.5);
  find("#noise").setAttribute("aria-valuenow", Math.round((state.turn[0] * 180) / Math.PI));
  find("#noise").setAttribute("aria-valuetext", state.turn.map((a) => `${Math.round((a * 180) / Math.PI)}°`).join(" right, ") + " up");
  for (const { figure } of cards.values()) figure.classList.add("stale");
  const jobs = [...all.map((N) => [`${N}`, N, N]), ...all.slice(0, -1).map((N) => [`hurried-${N}`, most, N])];
  let pause = performance.now();
  for (const [key, name, N] of jobs) {
    const denoiser = denoisers.get(name), bound = (z, t) => denoiser(z, t, state.label);
    const walk = sample(Object.assign(bound, denoiser), { ...denoiser.grid, N }, z);
    let image, time = 0;
    for (;;) {
      const start = performance.now(), { value, done } = await walk.next();
      time += performance.now() - start;
      if (done) break;
      image = value;
      if (performance.now() - pause > 12) { // let the page breathe, and see whether there is newer noise
        await new Promise((resolve) => setTimeout(resolve));
        pause = performance.now();
      }
      if (turn !== newest) return;
    }
    const card = cards.get(key);
    images.set(key, image);
    paint(card.canvas, image);
    card.time.textContent = milliseconds(time);
    card.figure.dataset.ms = time;
    card.figure.classList.remove("stale");
  }
  for (const [key, { away }] of cards) {
    away.textContent = key === `${most}` ? "" : `${rms(images.get(key), images.get(`${most}`)).toFixed(2)} away`;
  }
  const [few, many] = [all[0], most].map((N) => Number(cards.get(`${N}`).figure.dataset.ms));
  find("#status").textContent =
    `${state.count === 1 ? "One image" : `${state.count} images`}: ${stepsText(all[0])} took ${milliseconds(few)}, `
    + `${stepsText(most)} took ${milliseconds(many)}, ${(many / few).toFixed(0)} times as long.`;
}

function listen() {
  const set = (change) => (event) => (change(event), draw());
  find("#new").addEventListener("click", set(() => Object.assign(state, { seed: state.seed + 2, turn: [0, 0] })));
  find("#other").addEventListener("click", set(() => (state.other += 2)));
  find("#morph").addEventListener("input", set((event) => (state.morph = event.target.valueAsNumber)));
  find("#count").addEventListener("change", set((event) => (state.count = Number(event.target.value))));
  find("#class").addEventListener("change", set((event) => (state.label = Number(event.target.value))));
  draggable(find("#noise"), (dx, dy) => {
    state.turn = [state.turn[0] + dx, state.turn[1] + dy];
    draw();
  });
  find("#save").addEventListener("click", () =>
    saveNumbers("noise.json", { shape: [state.count, ...shape], label: state.label, noise: noise(), ...Object.fromEntries(images) }));
}

async function start() {
  const { manifest, open } = await openFolder("models/digits");
  const steps = Object.keys(manifest.networks).map(Number).sort((a, b) => b - a), most = steps[0];
  const first = manifest.networks[most];
  shape = first.shape;
  find("#chain").style.setProperty("--columns", steps.length);
  find("#in-a-hurry").style.setProperty("--columns", steps.length);
  for (const N of steps) addCard(`${N}`, N, N === most ? "teacher" : "student");
  for (const N of steps.slice(1)) addCard(`hurried-${N}`, N, "teacher");
  if (first.classes) {
    find("#class-label").hidden = false;
    for (let k = 0; k < first.classes; k++) find("#class").append(make("option", { value: k, textContent: k }));
  }
  for (const N of steps) {
    denoisers.set(N, await open(`${N}`));
    await denoisers.get(N)(noise(), 1); // a network's first answer takes longer than all that follow
  }
  document.body.dataset.loadedMs = performance.now(); // since the page was asked for
  listen();
  await draw();
  document.body.dataset.ready = "";
}

start().catch((error) => {
  find("#error").textContent = `This page cannot draw: ${error.message}`;
  find("#status").textContent = "";
});
