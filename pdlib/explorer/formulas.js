// What the knobs come to, in float64: pdlib's schedules and weightings, and the figures of pdlib.explorer.compute.
// As there, all is in α and σ, never in their ratio, so that α = 0 at t = 1 is an ordinary input.
const { atan, atan2, cos, exp, expm1, log, max, min, sin, sqrt, PI } = Math;
const clamp = (value, low, high) => max(low, min(high, value));
const grid = (N) => Array.from({ length: N }, (_, i) => (i + 1) / N);

// A schedule has at(t) = [α, σ] and slope(t) = dλ/dt.
function cosine(offset, { log_snr_min = null, log_snr_max = null } = {}) {
  const first = atan(exp(-(log_snr_max ?? Infinity) / 2)); // φ at t = 0
  const last = atan(exp((log_snr_min ?? -Infinity) / 2)); // π/2 − φ at t = 1
  const squeeze = 1 - (first + last) / (PI / 2);
  const rate = PI / 2 / (1 + offset);
  const start = rate * offset;
  const wholeAlpha = (t) => sin(rate * (1 - t)) / cos(start);
  const wholeSigma = (t) => sqrt(max(0, sin(rate * t) * sin(rate * t + 2 * start))) / cos(start);
  const at = (t) => {
    const [alpha, sigma] = [wholeAlpha(t), wholeSigma(t)];
    if (squeeze === 1) return [alpha, sigma];
    return [sin(last + squeeze * atan2(alpha, sigma)), sin(first + squeeze * atan2(sigma, alpha))];
  };
  const turn = (t) => (offset > 0 ? sin(rate * t + start) / cos(start) / wholeSigma(t) : 1);
  const slope = (t) => (-2 * squeeze * rate * turn(t)) / (at(t)[0] * at(t)[1]);
  return { at, slope };
}

function linear(betaMin = 0.1, betaMax = 20) {
  const logAlpha = (t) => -0.25 * t * t * (betaMax - betaMin) - 0.5 * t * betaMin;
  const at = (t) => [exp(logAlpha(t)), sqrt(-expm1(2 * logAlpha(t)))];
  return { at, slope: (t) => -(betaMin + t * (betaMax - betaMin)) / at(t)[1] ** 2 };
}

// Given by ᾱ at t = 1/T, 2/T, …; between them the angle φ = arctan(σ/α) grows evenly.
function discrete(alphaBar, atZero = 1) {
  const T = alphaBar.length;
  const parts = [atZero, ...alphaBar].map((value) => [sqrt(value), sqrt(1 - value)]);
  const angle = parts.map(([alpha, sigma]) => atan2(sigma, alpha));
  const complement = parts.map(([alpha, sigma]) => atan2(alpha, sigma));
  const segment = (t) => {
    const nearest = Math.round(t * T);
    const position = Math.abs(t * T - nearest) < 1e-9 * T ? nearest : t * T;
    const i = clamp(Math.ceil(position) - 1, 0, T - 1);
    return [i, position - i];
  };
  const between = (values, [i, part]) => {
    const rise = values[i + 1] - values[i];
    return part < 0.5 ? values[i] + part * rise : values[i + 1] - rise * (1 - part);
  };
  const at = (t) => [sin(between(complement, segment(t))), sin(between(angle, segment(t)))];
  const slope = (t) => {
    const [[alpha, sigma], [i]] = [at(t), segment(t)];
    return (-2 * (angle[i + 1] - angle[i]) * T) / (alpha * sigma);
  };
  return { at, slope, alphaBar, atZero };
}

function discreteCosine(T, offset) {
  const [curve, first] = [cosine(offset), cos(((PI / 2) * offset) / (1 + offset)) ** 2];
  return discrete(grid(T).map((t) => first * curve.at(t)[0] ** 2), first);
}

// ᾱ = Π (1 − β), with the power-th roots of β equally spaced.
function discreteBetas(T, start, end, power) {
  const [low, high] = [start ** (1 / power), end ** (1 / power)];
  let alphaBar = 1;
  return discrete(grid(T).map((_, i) => (alphaBar *= 1 - (low + (i * (high - low)) / (T - 1)) ** power)));
}

// α_t becomes (α_t − α_1) α_0 / (α_0 − α_1).
function zeroTerminal(schedule) {
  const [[first, firstSigma], [last, lastSigma]] = [schedule.at(0), schedule.at(1)];
  if (last === 0) return schedule;
  if (schedule.alphaBar) {
    const root = schedule.alphaBar.map(sqrt);
    const end = root.at(-1);
    return discrete(root.map((alpha) => (((alpha - end) * root[0]) / (root[0] - end)) ** 2), schedule.atZero);
  }
  const aboveLast = (alpha, sigma) =>
    last < lastSigma ? alpha - last : ((lastSigma - sigma) * (lastSigma + sigma)) / (alpha + last);
  const range = aboveLast(first, firstSigma);
  const at = (t) => {
    const [original, sigma] = schedule.at(t);
    const alpha = (aboveLast(original, sigma) * first) / range; // in this order: exact at t = 0
    const square = clamp(sigma ** 2 + (original - alpha) * (original + alpha), 0, 1);
    return alpha > 0 ? [alpha, sqrt(square)] : [0, 1];
  };
  const slope = (t) => {
    const [[original, originalSigma], [alpha, sigma]] = [schedule.at(t), at(t)];
    if (sigma === 0) return -Infinity;
    return ((first / range) * schedule.slope(t) * original * originalSigma ** 2) / (alpha * sigma ** 2);
  };
  return { at, slope };
}

const SCHEDULES = {
  cosine: (state) => cosine(0, state),
  cosine_offset: (state) => cosine(0.008, state),
  notes_cosine: ({ T }) => discreteCosine(T, 0.008),
  linear: () => linear(),
  discrete_linear: ({ T }) => discreteBetas(T, 0.1 / T, 20 / T, 1),
  discrete_scaled_linear: ({ T }) => discreteBetas(T, 0.85 / T, 12 / T, 2),
};

function makeSchedule(state) {
  const schedule = SCHEDULES[state.schedule](state);
  return state.zero_terminal ? zeroTerminal(schedule) : schedule;
}

// SNR_t / (SNR_s − SNR_t), s = t − 1/steps, multiplied through by σ_s² σ_t².
function density(schedule, t, steps) {
  const [[alpha, sigma], [alphaS, sigmaS]] = [schedule.at(t), schedule.at(max(0, t - 1 / steps))];
  return (alpha * sigmaS) ** 2 / ((alphaS * sigma - alpha * sigmaS) * (alphaS * sigma + alpha * sigmaS));
}

const WEIGHTINGS = {
  constant: () => 1,
  snr: ([alpha, sigma]) => alpha ** 2 / sigma ** 2,
  truncated_snr: ([alpha, sigma]) => max(alpha ** 2 / sigma ** 2, 1),
  snr_plus_one: ([, sigma]) => 1 / sigma ** 2,
  log_snr_density: (_, t, schedule, { T }) => density(schedule, t, T),
  log_snr_density_of_steps: (_, t, schedule, { N }) => density(schedule, t, N),
};

function along(state, schedule, t) {
  const both = t.map(schedule.at);
  const [alpha, sigma] = [0, 1].map((k) => both.map((pair) => pair[k]));
  const log_snr = both.map((pair) => 2 * (log(pair[0]) - log(pair[1])));
  const plain = t.map((time, i) => WEIGHTINGS[state.weighting](both[i], time, schedule, state));
  const w = plain.map((value) => clamp(value, state.clip_min ?? 0, state.clip_max ?? Infinity));
  return { t, alpha, sigma, log_snr, w, plain, get density() { return t.map((time) => -1 / schedule.slope(time)); } };
}

function compute(state) {
  const schedule = makeSchedule(state);
  const [fine, steps] = [state.T, state.N].map((count) => along(state, schedule, grid(count)));
  const total = steps.w.reduce((sum, w) => sum + w, 0) || 1;
  const share = steps.w.map((w) => w / total);
  const dead = share.map((part) => part < state.threshold / state.N);
  const ratio = steps.sigma.map((sigma, i) => sigma / steps.alpha[i]);
  const own = { x: steps.t.map(() => 1), eps: ratio, v: steps.sigma, both: steps.sigma }[state.prediction];
  // x̃ = (z″ − (σ″/σ) z) / (α″ − (σ″/σ) α) is linear in z″, which is where t″ = t − 1/N.
  const sensitivity = steps.t.map((t, i) => {
    const [alpha, sigma] = schedule.at(t - 1 / state.N);
    return 1 / (alpha - (sigma / steps.sigma[i]) * steps.alpha[i]);
  });
  const [alpha, sigma] = schedule.at(0);
  const lambdaAtZero = 2 * (log(alpha) - log(sigma));
  const amplification = { eps_amplification: ratio, own_amplification: own };
  return { state, fine, steps, lambdaAtZero, share, dead, ...amplification, sensitivity };
}
