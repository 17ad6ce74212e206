// What the three pages share: seeded noise, sharp canvases, colours of the theme, numbers to save.

/** Standard normal numbers, the same for the same seed. */
export function normals(count, seed) {
  let state = (seed * 0x9e3779b9) | 0;
  const uniform = () => { // mulberry32
    state = (state + 0x6d2b79f5) | 0;
    let bits = Math.imul(state ^ (state >>> 15), 1 | state);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), 61 | bits);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
  return Float32Array.from({ length: count }, () =>
    Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
}

export const find = (selector) => document.querySelector(selector);

/** A new element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** The colour that the style sheet calls --name: it follows the system's theme. */
export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Calls draw at once, and again when the theme or the size of an element changes. */
export function redrawn(element, draw) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new ResizeObserver(draw).observe(element);
}

/** A canvas as sharp as the screen, in CSS pixels: [context, width, height]. */
export function sharp(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas, ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return [context, width, height];
}

export const still = matchMedia("(prefers-reduced-motion: reduce)");

/** The numbers behind a picture, as a file: for torch.tensor(json.load(file)[…]). */
export function saveNumbers(name, numbers) {
  const text = JSON.stringify(numbers, (_, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value));
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Drags and arrow keys on an element: move(dx, dy) in shares of its size, to the right and up. */
export function draggable(element, move, step = 0.05) {
  let from = null;
  element.addEventListener("pointerdown", (event) => {
    from = [event.clientX, event.clientY];
    element.setPointerCapture(event.pointerId);
  });
  element.addEventListener("pointermove", (event) => {
    if (!from) return;
    const { width, height } = element.getBoundingClientRect();
    move((event.clientX - from[0]) / width, (from[1] - event.clientY) / height);
    from = [event.clientX, event.clientY];
  });
  for (const end of ["pointerup", "pointercancel"]) element.addEventListener(end, () => (from = null));
  element.addEventListener("keydown", (event) => {
    const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!way) return;
    event.preventDefault();
    move(step * way[0], step * way[1]);
  });
}
