// What is set: what goes wrong together, what has no say, the link, and the lines to copy.
const { knobs: KNOBS, presets: PRESETS } = SETUP;
const takesEnds = (state) => state.schedule.startsWith("cosine");
const isDiscrete = (state) => state.schedule.startsWith("discrete") || state.schedule === "notes_cosine";

// A number as Python writes it, f"{value:.{digits}g}"; without digits as its repr.
function general(value, digits) {
  const [mantissa, power] = value.toExponential(digits && digits - 1).split("e").map(Number);
  const exponent = `e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  if (power < -4 || power >= (digits ?? 16)) return mantissa + exponent;
  return `${digits ? Number(value.toPrecision(digits)) : value}${!digits && value % 1 === 0 ? ".0" : ""}`;
}

// A knob's value as it is read on the screen.
function shown(name, value) {
  if (KNOBS[name].options) return KNOBS[name].options[value];
  if (typeof value !== "number") return value ? "on" : "off";
  return (Number.isInteger(value) ? String(value) : general(value, 3)).replace("-", "−");
}

// Where one state is another than a second one, in words.
function difference(state, other) {
  const names = Object.keys(KNOBS).filter((name) => state[name] !== other[name]);
  return names.map((name) => `${KNOBS[name].label} ${shown(name, state[name])}`).join(", ");
}

// What is wrong with a state: each knob that could mend it -> one line that says why.
function problems(state) {
  const found = {};
  const check = (fine, line, ...knobs) => fine || knobs.forEach((name) => (found[name] ??= line));
  for (const [name, { label, options, min: low, max: high, off }] of Object.entries(KNOBS)) {
    const value = state[name];
    if (options) check(Object.hasOwn(options, value), `${label}: ${value} is unknown`, name);
    else if (low === undefined) check(typeof value === "boolean", `${label}: ${value} is not true or false`, name);
    else if (value !== null || !off) {
      const inRange = typeof value === "number" && value >= low && value <= high;
      check(inRange, `${label}: give a number from ${low} to ${high}`, name);
    }
  }
  const fine = () => Object.keys(found).length === 0;
  if (!fine()) return found;
  const { N, T, clip_min: least, clip_max: most, log_snr_min: lowest, log_snr_max: highest } = state;
  const clips = `clip minimum ${shown("clip_min", least)} is above clip maximum ${shown("clip_max", most)}`;
  const ends = `λ_min = ${shown("log_snr_min", lowest)} is not below λ_max = ${shown("log_snr_max", highest)} by 0.1`;
  const apart = !takesEnds(state) || lowest === null || highest === null || highest - lowest >= 0.1;
  const many = T > 20 || !state.schedule.startsWith("discrete");
  check(T % 1 === 0, `T = ${T} is not a whole number`, "T");
  check(Math.log2(N) % 1 === 0, `N = ${N} is no power of 2: choose 1, 2, 4, …, 1024`, "N");
  check(N <= T, `T = ${T} is below N = ${N}: raise T or lower N`, "N", "T");
  check(many, `with T = ${T} the last β of this schedule is 1 or more: raise T above 20`, "T", "schedule");
  check(least <= (most ?? Infinity), `${clips}: lower the one or raise the other`, "clip_min", "clip_max");
  check(apart, `${ends} or more: lower the one or raise the other`, "log_snr_min", "log_snr_max");
  const divides = state.prediction === "eps" && fine() && makeSchedule(state).at(1)[0] === 0;
  const mend = "choose v, x or both, set λ_min, or take a schedule as it is";
  check(!divides, `x̂ = (z − σ ε̂)/α divides by α = 0 at t = 1: ${mend}`, "prediction");
  return found;
}

// The knobs that have no say in a state -> why.
function idle(state) {
  const why = {};
  if (!takesEnds(state)) why.log_snr_min = why.log_snr_max = "only the cosine schedules take it";
  const ended = takesEnds(state) ? state.log_snr_min === null : state.schedule === "notes_cosine";
  if (ended) why.zero_terminal = "this schedule has α = 0 at t = 1 already";
  return why;
}

const plain = (value) => (typeof value === "number" ? general(value, 12) : String(value ?? "off"));

function toQuery(state) {
  const set = Object.keys(DEFAULTS).filter((name) => state[name] !== DEFAULTS[name]);
  return new URLSearchParams(set.map((name) => [name, plain(state[name])])).toString();
}

// The state that a link describes, and "" or a sentence that says why it is the default one instead.
function fromQuery(query) {
  const words = { true: true, false: false, off: null };
  const number = (text) => (text.trim() === "" || isNaN(text) ? text.slice(0, 40) : Number(text));
  const read = ([name, text]) => [name.slice(0, 40), Object.hasOwn(words, text) ? words[text] : number(text)];
  const asked = Object.fromEntries([...new URLSearchParams(query)].map(read));
  const stray = Object.keys(asked).find((name) => !Object.hasOwn(KNOBS, name));
  return usable({ ...DEFAULTS, ...asked }, stray && `there is no knob ${stray}`);
}

function usable(state, why = Object.values(problems(state))[0]) {
  if (!why) return { state, notice: "" };
  return { state: DEFAULTS, notice: `This has no picture, and the defaults are shown: ${why}.` };
}

const repr = (value) => (value === null ? null : general(value));
const given = (options) => Object.entries(options).filter(([, value]) => value !== null);
const call = (name, first, options) => `${name}(${[first, ...given(options).map((two) => two.join("="))].join(", ")})`;
const endsOf = (state) => (takesEnds(state) ? [state.log_snr_min, state.log_snr_max] : [null, null]);

// As pdlib.explorer.python_lines and run_line have them.
function pythonLines(state) {
  const { N, T, prediction, weighting, clip_min, clip_max } = state;
  const steps = { log_snr_density: `Density(${T})`, log_snr_density_of_steps: `Density(${N})` };
  const bare = steps[weighting] ?? `"${weighting}"`;
  const clips = { min: repr(clip_min), max: repr(clip_max) };
  const weigh = (clip_min ?? clip_max) === null ? bare : call("Clipped", bare, clips);
  const names = ["Clean", "Denoiser", "Grid", "Objective", "TrainingSettings", "UNet", "fit", "load_data"];
  names.push("make_schedule", ...["Clipped", "Density"].filter((name) => weigh.includes(`${name}(`)));
  const [low, high] = endsOf(state).map(repr);
  const ends = { log_snr_min: low, log_snr_max: high, zero_terminal: state.zero_terminal ? "True" : null };
  return `from pdlib import ${names.sort().join(", ")}

schedule = ${call("make_schedule", `"${state.schedule}"`, { ...ends, T: isDiscrete(state) ? T : null })}
objective = Objective(Clean(), Grid(${N}), ${weigh})
network = UNet(1, ${prediction === "both" ? 2 : 1})
denoiser = Denoiser(network, "${prediction}", schedule, grid=Grid(${N}))
trained = fit(denoiser, objective, load_data("digits").x, TrainingSettings(updates=3000))`;
}

function runLine(state) {
  const { prediction, clip_min, clip_max, N } = state;
  const [low, high] = endsOf(state);
  if (state.weighting === "log_snr_density")
    return "# no run: a run weights its N steps with the density as on N steps, not on T; use the Python lines";
  if (isDiscrete(state) && state.T !== 1000)
    return `# no run: the discrete schedules of a run have T = 1000, not ${state.T}; use the Python lines`;
  if (low > 0 || high < 0)
    return "# no run: a run has its λ_min at 0 or below, and its λ_max at 0 or above; use the Python lines";
  if (state.zero_terminal && low !== null)
    return "# no run: zero terminal SNR takes λ_min back; switch one of them off";
  const rescaled = state.zero_terminal && !state.schedule.includes("cosine") ? "_zero_terminal" : "";
  const chosen = { schedule: state.schedule + rescaled, log_snr_min: low, log_snr_max: high, prediction };
  const weighting = state.weighting.replace("_of_steps", "");
  const set = { ...chosen, weighting, clip_min, clip_max, steps: max(64, 2 * N), end_steps: N };
  return `pdlib run ${given(set).map(([key, value]) => `--set ${key}=${plain(value)}`).join(" ")}`;
}
