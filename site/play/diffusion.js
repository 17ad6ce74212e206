// The samplers of pdlib, line by line: schedule, predictions, DDIM step, sample, x̃.
// z is a flat array, one example after another; all of them are at the same time t.

/** t ↦ [α, σ], from what Schedule.config() says of a cosine schedule; α is exactly 0 at t = 1. */
export function schedule({ name, offset = 0, log_snr_min: low = null, log_snr_max: high = null }) {
  if (name !== "cosine") throw new Error(`schedule ${name}: this page knows the cosine schedule alone`);
  const rate = Math.PI / 2 / (1 + offset), start = rate * offset;
  const first = high === null ? 0 : Math.atan(Math.exp(-high / 2));
  const last = low === null ? 0 : Math.atan(Math.exp(low / 2));
  const squeeze = 1 - (first + last) / (Math.PI / 2);
  return (t) => {
    const alpha = Math.sin(rate * (1 - t)) / Math.cos(start);
    const sigma = Math.sqrt(Math.sin(rate * t) * Math.sin(rate * t + 2 * start)) / Math.cos(start);
    if (squeeze === 1) return [alpha, sigma];
    return [
      Math.sin(last + squeeze * Math.atan2(alpha, sigma)),
      Math.sin(first + squeeze * Math.atan2(sigma, alpha)),
    ];
  };
}

/** What a network is told of the time: (2/π) arctan(σ/α), in [0, 1]. */
export const timeOf = ([alpha, sigma]) => (Math.atan2(sigma, alpha) * 2) / Math.PI;

/** x̂ of a network's output, each example of so many numbers; "both" gives x̃ and then ε̃ for an example. */
export function xHat(prediction, output, z, [alpha, sigma], size) {
  if (prediction === "eps" && alpha === 0) throw new Error("x̂ = (z − σ ε̂)/α has no value at α = 0");
  return Float64Array.from(z, (z_k, k) => {
    if (prediction === "x") return output[k];
    if (prediction === "eps") return (z_k - sigma * output[k]) / alpha;
    if (prediction === "v") return alpha * z_k - sigma * output[k];
    const x = k + size * Math.floor(k / size); // "both"
    return sigma ** 2 * output[x] + alpha * (z_k - sigma * output[x + size]);
  });
}

/** The steps (t, s) of a grid, from the top down to s = 0. */
export function* walk({ N, missing = 0 }) {
  for (let i = N - missing; i > 0; i--) yield [i / N, (i - 1) / N];
}

/** One DDIM step from t to s: z_s = α_s x̂ + (σ_s/σ_t)(z_t − α_t x̂). */
export function ddimStep(z, x, t, s, schedule) {
  const [alpha_t, sigma_t] = schedule(t), [alpha_s, sigma_s] = schedule(s);
  return Float64Array.from(z, (z_t, k) => alpha_s * x[k] + (sigma_s / sigma_t) * (z_t - alpha_t * x[k]));
}

/** Every z on the way from the top of a grid to t = 0. A denoiser is (z, t) ↦ x̂, or a promise of it. */
export async function* sample(denoiser, grid, z) {
  yield z;
  for (const [t, s] of walk(grid)) {
    z = ddimStep(z, await denoiser(z, t), t, s, denoiser.schedule);
    yield z;
  }
}

/** x̃: what must be said at z_t for one step of 1/N to land where two steps of the teacher do. */
export function target(teacher, z, t, N) {
  const { schedule } = teacher, mid = t - 0.5 / N, end = t - 1 / N; // t′ and t″
  const zMid = ddimStep(z, teacher(z, t), t, mid, schedule);
  const zEnd = ddimStep(zMid, teacher(zMid, mid), mid, end, schedule);
  const [alpha, sigma] = schedule(t), [alphaEnd, sigmaEnd] = schedule(end), ratio = sigmaEnd / sigma;
  return zEnd.map((value, k) => (value - ratio * z[k]) / (alphaEnd - ratio * alpha));
}
