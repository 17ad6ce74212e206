"""The weighting explorer without its face: what is set, what that comes to, and how it is said in words.

An :class:`ExplorerState` is every knob; :func:`compute` turns one into the figures of the five panels;
:func:`sentences` says what to see in them. Nothing here draws: :mod:`pdlib.widgets` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from urllib.parse import parse_qsl, urlencode

import torch
from torch import Tensor

from pdlib.predictions import output_channels
from pdlib.schedules import CosineSchedule, DiscreteSchedule, LinearSchedule, Schedule, grid, zero_terminal_snr
from pdlib.weightings import WEIGHTINGS, Clipped, clipped, weight

__all__ = [
    "CHOICES",
    "LABELS",
    "PRESETS",
    "RANGES",
    "ExplorerState",
    "Figures",
    "KnobError",
    "compute",
    "from_dict",
    "from_query",
    "problems",
    "python_lines",
    "run_line",
    "sentences",
    "to_query",
]

CHOICES: dict[str, dict[str, str]] = {
    "schedule": {
        "cosine": "cosine, α = cos(πt/2)",
        "cosine_offset": "cosine with offset 0.008",
        "notes_cosine": "cosine with offset, ᾱ = f(i)",
        "linear": "linear (VP process)",
        "discrete_linear": "DDPM, T betas",
        "discrete_scaled_linear": "Stable Diffusion, T betas",
    },
    "prediction": {"x": "x", "eps": "ε", "v": "v", "both": "both (x and ε)"},
    "weighting": {
        "constant": "constant",
        "snr": "SNR (the ε loss)",
        "truncated_snr": "truncated SNR",
        "snr_plus_one": "SNR + 1 (the v loss)",
        "log_snr_density": "log-SNR density, as on T steps",
        "log_snr_density_of_steps": "log-SNR density, as on N steps",
    },
    "axis": {"t": "time t", "log_snr": "log-SNR λ", "density": "log-SNR λ, as a density w · p"},
    "scale": {"log": "logarithmic", "linear": "linear"},
}
"""The values of each knob that offers a choice, and what they are called on the screen."""

LABELS = {
    "N": "steps N",
    "weighting": "weighting",
    "clip_min": "clip minimum",
    "clip_max": "clip maximum",
    "schedule": "schedule",
    "zero_terminal": "rescale to zero terminal SNR",
    "log_snr_min": "λ_min (at t = 1)",
    "log_snr_max": "λ_max (at t = 0)",
    "prediction": "network predicts",
    "T": "T, steps of the curve and of the discrete schedules",
    "threshold": "dead below this part of the fair share",
    "axis": "axis",
    "scale": "heights of panels 2, 4 and 5",
}
"""What the knobs are called on the screen, in their order there."""

RANGES: dict[str, tuple[float, float]] = {
    "log_snr_min": (-30, 30),
    "log_snr_max": (-30, 30),
    "clip_min": (1e-4, 1e4),
    "clip_max": (1e-4, 1e4),
    "T": (1, 4096),
    "N": (1, 1024),
    "threshold": (1e-4, 1),
}
"""The ends of each knob that takes a number."""


@dataclass(frozen=True)
class ExplorerState:
    """Every knob of the explorer. :func:`problems` says which settings have no meaning."""

    schedule: str = "cosine"
    zero_terminal: bool = False
    """Rescale the schedule so that α_1 = 0."""
    log_snr_min: float | None = None
    """λ_1 of a cosine schedule; None leaves it as it is."""
    log_snr_max: float | None = None
    """λ_0 of a cosine schedule."""
    prediction: str = "v"
    """What the network predicts: x, eps, v or both."""
    weighting: str = "truncated_snr"
    clip_min: float | None = None
    clip_max: float | None = None
    T: int = 1000
    """Steps of the fine grid: of the discrete schedules, of the drawn curve, of the notes' weight."""
    N: int = 16
    """Steps of the sampler, a power of 2."""
    threshold: float = 0.01
    """A step is dead if its share of the weight is below so many fair shares, 1/N each."""
    axis: str = "t"
    scale: str = "log"

    @property
    def noise_schedule(self) -> Schedule:
        """The schedule that is set."""
        return _schedule(self.schedule, self.zero_terminal, self.log_snr_min, self.log_snr_max, self.T)

    @property
    def loss_weighting(self) -> str | Clipped:
        """The weighting, clipped if asked for."""
        name = self.weighting.removesuffix("_of_steps")
        if self.clip_min is None and self.clip_max is None:
            return name
        return clipped(name, self.clip_min, self.clip_max)

    @property
    def weighting_steps(self) -> int:
        """The number of steps over which the log-SNR density is discretised."""
        return self.N if self.weighting.endswith("_of_steps") else self.T


@lru_cache(maxsize=64)
def _schedule(name: str, zero_terminal: bool, low: float | None, high: float | None, T: int) -> Schedule:
    if name in ("cosine", "cosine_offset"):
        schedule: Schedule = CosineSchedule(0.008 if name == "cosine_offset" else 0.0, low, high)
    elif name == "linear":
        schedule = LinearSchedule()
    elif name == "notes_cosine":
        schedule = DiscreteSchedule.cosine(T, start_clean=False)
    elif name == "discrete_linear":  # T betas that add as much noise as the published 1000
        schedule = DiscreteSchedule.linear_beta(T, 0.1 / T, 20 / T)
    else:
        schedule = DiscreteSchedule.scaled_linear_beta(T, 0.85 / T, 12 / T)
    return zero_terminal_snr(schedule) if zero_terminal else schedule


def problems(state: ExplorerState) -> dict[str, str]:
    """What is wrong with a state: each knob that could mend it -> one line that says why. Empty if all is well."""
    found: dict[str, str] = {}

    def wrong(line: str, *knobs: str) -> None:
        for knob in knobs:
            found.setdefault(knob, line)

    for name, options in CHOICES.items():
        if getattr(state, name) not in options:
            wrong(f"{LABELS[name]}: {getattr(state, name)!r} is unknown; choose one of {', '.join(options)}", name)
    for name, (low, high) in RANGES.items():
        value = getattr(state, name)
        if value is not None and not low <= value <= high:
            wrong(f"{LABELS[name]}: {value:g} is out of range; choose from {low:g} to {high:g}", name)
    if found:
        return found
    if state.N & (state.N - 1):
        wrong(f"N = {state.N} is no power of 2: choose 1, 2, 4, …, 1024", "N")
    if state.T < state.N:
        wrong(f"T = {state.T} is below N = {state.N}: raise T or lower N", "N", "T")
    if state.schedule.startswith("discrete") and state.T <= 20:
        wrong(f"with T = {state.T} the last β of this schedule is 1 or more: raise T above 20", "T", "schedule")
    if state.clip_min is not None and state.clip_max is not None and state.clip_min > state.clip_max:
        clips = f"clip minimum {state.clip_min:g} is above clip maximum {state.clip_max:g}"
        wrong(f"{clips}: lower the one or raise the other", "clip_min", "clip_max")
    low, high = state.log_snr_min, state.log_snr_max
    ends = [name for name in ("log_snr_min", "log_snr_max") if getattr(state, name) is not None]
    if ends and state.schedule not in ("cosine", "cosine_offset"):
        wrong("only the cosine schedules take ends of λ: switch them off, or choose cosine", *ends, "schedule")
    elif low is not None and high is not None and high - low < 0.1:
        line = f"λ_min = {low:g} is not below λ_max = {high:g} by 0.1 or more: lower the one or raise the other"
        wrong(line, "log_snr_min", "log_snr_max")
    if not found and state.prediction == "eps" and _last_alpha(state) == 0:
        line = "x̂ = (z − σ ε̂)/α divides by α = 0 at t = 1: choose v, x or both, set λ_min, or take a schedule as it is"
        wrong(line, "prediction")
    return found


def _last_alpha(state: ExplorerState) -> float:
    return state.noise_schedule.alpha_sigma(torch.ones(1, dtype=torch.float64))[0].item()


@dataclass(frozen=True)
class Figures:
    """What the panels draw. All tensors are float64."""

    state: ExplorerState
    t: Tensor
    """The fine grid i/T, shape (T,)."""
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    density: Tensor
    """p = −1/λ′, how densely evenly drawn times fall on the λ axis."""
    plain: Tensor
    """w(t) without its clip."""
    w: Tensor
    """w(t) as it is used."""
    step_t: Tensor
    """The sampler's grid i/N, shape (N,); so are all that follow."""
    step_alpha: Tensor
    step_sigma: Tensor
    step_log_snr: Tensor
    step_density: Tensor
    step_w: Tensor
    share: Tensor
    """Of the N steps in the weight; all 0 where the loss is always 0."""
    dead: Tensor
    """Whether the share is below the threshold."""
    eps_amplification: Tensor
    """σ/α: by how much an ε error is magnified in x̂; infinite at α = 0."""
    own_amplification: Tensor
    """The same for what the network predicts: 1 for x, σ/α for ε, σ for v, and σ for both if its errors are alike."""
    sensitivity: Tensor
    """∂x̃/∂z_{t''}: by how much an error of the teacher's result is magnified in the student's target."""


def compute(state: ExplorerState) -> Figures:
    """The figures of all panels.

    Raises:
        ValueError: where :func:`problems` finds something, with its lines.
    """
    wrong = problems(state)
    if wrong:
        raise ValueError("; ".join(dict.fromkeys(wrong.values())))
    schedule, steps = state.noise_schedule, state.weighting_steps
    t, step_t = grid(state.T), grid(state.N)
    alpha, sigma = schedule.alpha_sigma(t)
    step_alpha, step_sigma = schedule.alpha_sigma(step_t)
    step_w = weight(state.loss_weighting, schedule, step_t, steps)
    total = step_w.sum()
    share = step_w / total if total > 0 else torch.zeros_like(step_w)
    eps_amplification = step_sigma / step_alpha
    own = {"x": torch.ones_like(step_t), "eps": eps_amplification, "v": step_sigma, "both": step_sigma}
    # x̃ = (z'' − (σ''/σ) z) / (α'' − (σ''/σ) α), notebook 03's last line, is linear in z''.
    alpha_end, sigma_end = schedule.alpha_sigma(step_t - 1 / state.N)
    sensitivity = 1 / (alpha_end - sigma_end / step_sigma * step_alpha)
    return Figures(
        state=state,
        t=t,
        alpha=alpha,
        sigma=sigma,
        log_snr=schedule.log_snr(t),
        density=weight("log_snr_density", schedule, t),
        plain=weight(state.weighting.removesuffix("_of_steps"), schedule, t, steps),
        w=weight(state.loss_weighting, schedule, t, steps),
        step_t=step_t,
        step_alpha=step_alpha,
        step_sigma=step_sigma,
        step_log_snr=schedule.log_snr(step_t),
        step_density=weight("log_snr_density", schedule, step_t),
        step_w=step_w,
        share=share,
        dead=share < state.threshold / state.N,
        eps_amplification=eps_amplification,
        own_amplification=own[state.prediction],
        sensitivity=sensitivity,
    )


def sentences(figures: Figures) -> dict[str, str]:
    """One sentence for each panel: schedule, weight, share, amplification, sensitivity."""
    return {
        "schedule": _schedule_sentence(figures),
        "weight": _weight_sentence(figures),
        "share": _share_sentence(figures),
        "amplification": _amplification_sentence(figures),
        "sensitivity": _sensitivity_sentence(figures),
    }


def _schedule_sentence(f: Figures) -> str:
    last = f.step_alpha[-1].item()
    if last == 0:
        return "at t = 1, α = 0: training ends in pure noise, where sampling starts"
    return f"at t = 1, α = {last:.2g}: sampling starts from pure noise, which training never shows"


def _weight_sentence(f: Figures) -> str:
    if f.state.N <= 4:
        return f"at the {f.state.N} steps, w = {', '.join(map(_number, f.step_w.tolist()))}"
    low, high = f.step_w.min().item(), f.step_w.max().item()
    return f"over the {f.state.N} steps, w goes from {_number(low)} to {_number(high)}"


def _share_sentence(f: Figures) -> str:
    N, dead = f.state.N, int(f.dead.sum())
    if f.step_w.sum() == 0:
        return f"at N = {N}, the loss is always 0: no step gets any weight"
    if dead == 0:
        lowest = int(f.share.argmin())
        part = f.share[lowest].item()
        size = f"{part:.2%} of the weight, {_number(part * N)} times the fair share".replace("%", " %")
        return f"at N = {N}, no step is dead: the smallest share is {size}, at {_time(f, lowest)}"
    times = [f"{f.step_t[i]:.{_decimals(N)}f}" for i in f.dead.nonzero().flatten().tolist()]
    shown = ", ".join(times if len(times) <= 4 else [*times[:2], "…", times[-1]])
    part = f"{f.share[f.dead].sum() * 100:.1f} %"
    if dead == 1:
        return f"at N = {N}, 1 of {N} steps gets {part} of the weight: t = {shown}"
    return f"at N = {N}, {dead} of {N} steps get {part} of the weight together: t = {shown}"


def _amplification_sentence(f: Figures) -> str:
    worst = int(f.eps_amplification.argmax())
    size = f.eps_amplification[worst].item()
    if math.isinf(size):
        said = f"an ε error is magnified without bound at {_time(f, worst)}, where α = 0"
    else:
        said = f"an ε error is magnified most at {_time(f, worst)}: {_number(size)} times"
    if f.state.prediction == "eps":
        return said
    name = {"x": "an error in x", "v": "an error in v", "both": "errors in x and ε of one size"}[f.state.prediction]
    return f"{said}; {name} at most {_number(f.own_amplification.max().item())} times"


def _sensitivity_sentence(f: Figures) -> str:
    worst = int(f.sensitivity.argmax())
    size = _number(f.sensitivity[worst].item())
    most = f"is magnified most at {_time(f, worst)}: {size} times"
    return f"an error where the teacher's two steps end, at t″ = t − 1/N, {most}"


def _decimals(N: int) -> int:
    """Digits after the point that tell the times i/N apart."""
    return 2 if N <= 64 else 4


def _time(f: Figures, index: int) -> str:
    return f"t = {f.step_t[index]:.{_decimals(f.state.N)}f}"


def _number(value: float) -> str:
    """A figure as it is read: two decimals, or three digits where it is very large or small."""
    if value == 0 or 0.01 <= abs(value) < 1e4:
        return f"{value:,.2f}"
    return f"{value:.3g}"


# Links.


class KnobError(ValueError):
    """A knob was given something that is no value of its kind; ``knob`` is its name, "" for an unknown one."""

    def __init__(self, knob: str, line: str):
        super().__init__(line)
        self.knob = knob


def to_query(state: ExplorerState) -> str:
    """The knobs that differ from their defaults, as the query string of a link; empty if none does."""
    default = ExplorerState()
    changed = {
        f.name: getattr(state, f.name) for f in fields(state) if getattr(state, f.name) != getattr(default, f.name)
    }
    return urlencode({name: "off" if value is None else _plain(value) for name, value in changed.items()})


def from_query(query: str) -> tuple[ExplorerState, str]:
    """The state that a link describes, and "" or a sentence that says why it is the default one instead."""
    try:
        state = from_dict(dict(parse_qsl(query, keep_blank_values=True)))
    except ValueError as error:
        return ExplorerState(), f"This link cannot be read, and the defaults are shown: {error}."
    wrong = problems(state)
    if wrong:
        return ExplorerState(), f"This link has no picture, and the defaults are shown: {next(iter(wrong.values()))}."
    return state, ""


def from_dict(values: dict[str, object]) -> ExplorerState:
    """A state from plain values, or their text, by knob; those left out have their defaults.

    Raises:
        KnobError: for an unknown knob, or a value of the wrong kind.
    """
    kinds = {f.name: f.type for f in fields(ExplorerState)}
    chosen = {}
    for name, value in values.items():
        if name not in kinds:
            raise KnobError("", f"there is no knob {name[:40]!r}")
        text = str(value)[:40]
        try:
            if kinds[name] == "str":
                chosen[name] = text
            elif kinds[name] == "bool":
                chosen[name] = {"true": True, "false": False}[text.lower()]
            elif kinds[name] == "float | None" and text.lower() in ("off", "none"):
                chosen[name] = None
            else:
                number = float(text)
                if not math.isfinite(number) or (kinds[name] == "int" and not number.is_integer()):
                    raise ValueError
                chosen[name] = int(number) if kinds[name] == "int" else number
        except (KeyError, ValueError):
            expected = {"bool": "true or false", "int": "a whole number"}.get(kinds[name], "a number")
            given = f"{text!r} is not {expected}" if text else f"nothing is given; it needs {expected}"
            raise KnobError(name, f"{LABELS[name]}: {given}") from None
    return ExplorerState(**chosen)


def _plain(value: object) -> str:
    if value is None:
        return "off"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


# Lines to train with what is on the screen.


def python_lines(state: ExplorerState) -> str:
    """Python that trains a network with this schedule, prediction and weighting at the N times of the grid."""
    schedule, schedule_names = _schedule_code(state)
    weighting, weighting_import = _weighting_code(state)
    if state.weighting == "log_snr_density":  # denoising_loss would take the density of the N steps
        training_names = ["TrainingSettings", "diffuse", "fit", "random_grid_times", "weighted_loss"]
        loss = [
            "def loss(denoiser, x, generator):",
            f"    t = random_grid_times(len(x), {state.N}, generator)",
            "    z, _ = diffuse(x, t, denoiser, generator)",
            f"    return weighted_loss(denoiser(z, t), x, denoiser, t, {weighting}, {state.T})",
            "",
        ]
    else:
        training_names = ["TrainingSettings", "denoising_loss", "fit"]
        loss = [f"loss = partial(denoising_loss, weighting={weighting}, steps={state.N})"]
    network = f"UNet(1, {output_channels(state.prediction, 1)})"
    lines = [
        *(["from functools import partial"] if len(loss) == 1 else []),
        "from pdlib.data import load_data",
        "from pdlib.denoiser import Denoiser",
        f"from pdlib.schedules import {', '.join(sorted(schedule_names, key=str.swapcase))}",
        f"from pdlib.training import {', '.join(training_names)}",
        "from pdlib.unet import UNet",
        *weighting_import,
        "",
        *loss,
        f'denoiser = Denoiser({network}, "{state.prediction}", {schedule})',
        'trained = fit(denoiser, loss, load_data("digits").x, TrainingSettings(updates=3000), seed=0)',
    ]
    return "\n".join(lines)


def run_line(state: ExplorerState) -> str:
    """The command that runs a chain down to N steps with these settings, or a comment on why no run has them."""
    if state.weighting == "log_snr_density":
        return "# no run: a run weights its N steps with the density as on N steps, not on T; use the Python lines"
    if state.schedule == "notes_cosine":
        return "# no run: ᾱ = f(i) is only the notes' drawing; choose cosine with offset"
    if state.schedule.startswith("discrete") and state.T != 1000:
        return f"# no run: the discrete schedules of a run have T = 1000, not {state.T}; use the Python lines"
    name, ends = state.schedule, (state.log_snr_min, state.log_snr_max)
    if state.zero_terminal and state.schedule.startswith("cosine"):
        if state.log_snr_min is not None:
            return "# no run: zero terminal SNR takes λ_min back; switch one of them off"
    elif state.zero_terminal:
        name += "_zero_terminal"
    settings = {
        "schedule": name,
        "log_snr_min": ends[0],
        "log_snr_max": ends[1],
        "prediction": state.prediction,
        "weighting": state.weighting.removesuffix("_of_steps"),
        "clip_min": state.clip_min,
        "clip_max": state.clip_max,
        "steps": max(64, 2 * state.N),
        "end_steps": state.N,
    }
    chosen = [f"--set {key}={_plain(value)}" for key, value in settings.items() if value is not None]
    return " ".join(["pdlib run", *chosen])


def _schedule_code(state: ExplorerState) -> tuple[str, set[str]]:
    """An expression for the schedule, and the names it needs from pdlib.schedules."""
    T = state.T
    arguments = {
        "offset": 0.008 if state.schedule == "cosine_offset" else None,
        "log_snr_min": state.log_snr_min,
        "log_snr_max": state.log_snr_max,
    }
    cosine = f"CosineSchedule({', '.join(f'{k}={v!r}' for k, v in arguments.items() if v is not None)})"
    code = {
        "cosine": cosine,
        "cosine_offset": cosine,
        "notes_cosine": f"DiscreteSchedule.cosine({T}, start_clean=False)",
        "linear": "LinearSchedule()",
        "discrete_linear": f"DiscreteSchedule.linear_beta({T}, {0.1 / T!r}, {20 / T!r})",
        "discrete_scaled_linear": f"DiscreteSchedule.scaled_linear_beta({T}, {0.85 / T!r}, {12 / T!r})",
    }[state.schedule]
    names = {code.partition("(")[0].partition(".")[0]}
    if state.zero_terminal:
        return f"zero_terminal_snr({code})", names | {"zero_terminal_snr"}
    return code, names


def _weighting_code(state: ExplorerState) -> tuple[str, list[str]]:
    """An expression for the weighting, and the import it needs."""
    name = f'"{state.weighting.removesuffix("_of_steps")}"'
    clips = {"min": state.clip_min, "max": state.clip_max}
    given = [f"{key}={value!r}" for key, value in clips.items() if value is not None]
    if not given:
        return name, []
    return f"clipped({', '.join([name, *given])})", ["from pdlib.weightings import clipped"]


# Settings worth a click.

_NOTES = ExplorerState(schedule="notes_cosine", weighting="log_snr_density", N=4, scale="linear")
_BOOK = ExplorerState(N=4, clip_min=1.0, clip_max=5.0)
_PAPER = ExplorerState(weighting="truncated_snr", N=4)
_SHORT = {
    "constant": "constant",
    "snr": "SNR",
    "truncated_snr": "truncated SNR",
    "snr_plus_one": "SNR + 1",
    "log_snr_density": "density × T",
}

PRESETS: dict[str, dict[str, ExplorerState]] = {
    "The notes": {
        "4 steps": _NOTES,
        "4 steps, clipped at 1": replace(_NOTES, clip_min=1.0, scale="log"),
    },
    "Notebook 04": {
        "SNR": ExplorerState(weighting="snr", N=4),
        "truncated SNR": ExplorerState(weighting="truncated_snr", N=4),
        "density over t": ExplorerState(weighting="log_snr_density", scale="linear"),
        "density over λ": ExplorerState(weighting="log_snr_density", scale="linear", axis="log_snr"),
        "SNR clipped at 1": ExplorerState(weighting="snr", N=4, clip_min=1.0),
        "density clipped at 1": ExplorerState(weighting="log_snr_density", N=4, clip_min=1.0),
        "min-SNR-5": ExplorerState(weighting="snr", N=4, clip_max=5.0),
    },
    "Notebook 04, clipped to [1, 5]": {_SHORT[name]: replace(_BOOK, weighting=name) for name in WEIGHTINGS},
    "the same over λ, as densities": {
        f"{_SHORT[name]}, λ": replace(_BOOK, weighting=name, axis="density") for name in WEIGHTINGS
    },
    "The paper": {
        **{
            f"{CHOICES['prediction'][p]}, {_SHORT[w]}": replace(_PAPER, prediction=p, weighting=w)
            for p in ("x", "v", "both")
            for w in ("snr", "truncated_snr", "snr_plus_one")
        },
        "ε, SNR, λ = ±20": replace(_PAPER, prediction="eps", weighting="snr", log_snr_min=-20.0, log_snr_max=20.0),
    },
}
"""Group -> label -> state: each picture of a weighting in notebook 04 (a curve at a time, and not its gradient
noise), and each setting of the paper's section 4."""
