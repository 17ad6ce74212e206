// Denoisers in closed form: E[x | z] of a mixture of round Gaussians, and students that learned all they were taught.
import { target } from "./diffusion.js";

/** E[x | z]: each heap's answer, weighted by how likely z is under it. */
export function mixture({ weights, means, variance }, schedule) {
  const dimensions = means[0].length;
  const denoiser = (z, t) => {
    const [alpha, sigma] = schedule(t);
    const total = alpha ** 2 * variance + sigma ** 2, gain = (alpha * variance) / total;
    const x = new Float64Array(z.length);
    for (let row = 0; row < z.length; row += dimensions) {
      const scores = means.map((mean, k) => {
        const squares = mean.reduce((sum, m, d) => sum + (z[row + d] - alpha * m) ** 2, 0);
        return Math.log(weights[k]) - squares / (2 * total);
      });
      const highest = Math.max(...scores), likely = scores.map((score) => Math.exp(score - highest));
      const sum = likely.reduce((a, b) => a + b);
      means.forEach((mean, k) => {
        for (let d = 0; d < dimensions; d++) {
          x[row + d] += (likely[k] / sum) * (mean[d] + gain * (z[row + d] - alpha * mean[d]));
        }
      });
    }
    return x;
  };
  return Object.assign(denoiser, { schedule });
}

/** A student that says x̃ to the last digit, as it asks its teacher twice. */
export function perfect(teacher, N) {
  return Object.assign((z, t) => target(teacher, z, t, N), { schedule: teacher.schedule });
}

/** One to whom weight 0 taught nothing at α = 0: there it says what the teacher did from which it was copied. */
export function deadAtTheTop(teacher, N) {
  const student = (z, t) => (teacher.schedule(t)[0] === 0 ? teacher(z, t) : target(teacher, z, t, N));
  return Object.assign(student, { schedule: teacher.schedule });
}
