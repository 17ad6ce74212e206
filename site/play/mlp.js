// pdlib.networks.MLP: a residual perceptron over points, small enough for plain JavaScript.
import { timeOf, xHat } from "./diffusion.js";

/** How many numbers the weights of one network are. */
export function countWeights({ channels, out_channels: out, width, blocks }) {
  const linear = (from, to) => (from + 1) * to;
  return linear(32, width) + linear(width, width) + linear(channels, width)
    + blocks * (2 * width + 2 * linear(width, width)) + linear(width, out);
}

/** The denoiser (z, t) ↦ x̂ of a network's config, its weights one after another, and what its output means. */
export function mlp({ channels, out_channels: out, width, blocks }, weights, prediction, schedule) {
  let place = 0;
  const take = (count) => weights.subarray(place, (place += count));
  const linear = (from, to) => {
    const matrix = take(from * to), bias = take(to), y = new Float64Array(to);
    return (x) => {
      for (let i = 0; i < to; i++) {
        let sum = bias[i];
        for (let j = 0, row = i * from; j < from; j++) sum += matrix[row + j] * x[j];
        y[i] = sum;
      }
      return y;
    };
  };
  const layerNorm = (size) => {
    const gain = take(size), bias = take(size);
    return (x) => {
      const mean = x.reduce((a, b) => a + b) / size;
      const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / size;
      const scale = 1 / Math.sqrt(variance + 1e-5);
      return x.map((value, k) => (value - mean) * scale * gain[k] + bias[k]);
    };
  };
  const silu = (x) => x.map((value) => value / (1 + Math.exp(-value)));
  const frequencies = Array.from({ length: 16 }, (_, k) => Math.PI * 2 ** ((9 * k) / 15));
  const embed = [linear(32, width), linear(width, width)];
  const first = linear(channels, width);
  const parts = Array.from({ length: blocks }, () => [layerNorm(width), linear(width, width), linear(width, width)]);
  const last = linear(width, out);

  const denoiser = (z, t) => {
    const angles = frequencies.map((frequency) => frequency * timeOf(schedule(t)));
    const time = embed[1](silu(embed[0]([...angles.map(Math.sin), ...angles.map(Math.cos)])));
    const output = new Float64Array((z.length / channels) * out);
    for (let row = 0; row < z.length / channels; row++) {
      const h = Float64Array.from(first(z.subarray(row * channels, (row + 1) * channels)));
      for (const [norm, inner, outer] of parts) {
        const added = outer(silu(inner(norm(h.map((value, k) => value + time[k])))));
        for (let k = 0; k < width; k++) h[k] += added[k];
      }
      output.set(last(h), row * out);
    }
    return xHat(prediction, output, z, schedule(t), channels);
  };
  return Object.assign(denoiser, { schedule });
}
