"""What is set: the knobs, the values that they take, what goes wrong together, and the link that says it all."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlencode

from pdlib.files import unknown
from pdlib.grids import Grid
from pdlib.schedules import Schedule, make_schedule
from pdlib.weightings import Clipped, Density, Weighting

__all__ = ["CHOICES", "LABELS", "RANGES", "ExplorerState", "from_dict", "from_query", "problems", "to_query"]

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

KNOBS: dict[str, dict[str, Any]] = {
    "N": dict(label="steps N", kind="power", min=1, max=1024, step=1),
    "weighting": dict(label="weighting", kind="choice", options=[*CHOICES["weighting"].items()]),
    "clip_min": dict(label="clip minimum", kind="optional log", min=1e-4, max=1e4, step=0.05, start=1),
    "clip_max": dict(label="clip maximum", kind="optional log", min=1e-4, max=1e4, step=0.05, start=5),
    "schedule": dict(label="schedule", kind="choice", options=[*CHOICES["schedule"].items()]),
    "zero_terminal": dict(label="rescale to zero terminal SNR", kind="switch"),
    "log_snr_min": dict(label="λ_min (at t = 1)", kind="optional", min=-30, max=30, step=0.5, start=-20),
    "log_snr_max": dict(label="λ_max (at t = 0)", kind="optional", min=-30, max=30, step=0.5, start=20),
    "prediction": dict(label="network predicts", kind="choice", options=[*CHOICES["prediction"].items()]),
    "T": dict(label="T, steps of the curve and of the discrete schedules", kind="number", min=1, max=4096, step=1),
    "threshold": dict(label="dead below this part of the fair share", kind="log", min=1e-4, max=1, step=0.05),
    "axis": dict(label="axis", kind="choice", options=[*CHOICES["axis"].items()]),
    "scale": dict(label="heights of panels 2, 4 and 5", kind="choice", options=[*CHOICES["scale"].items()]),
}
"""The knobs in their order on the screen, and how they look there: a slider has its stops (of the exponent, if it has
one), and where it stands when it is switched on, if it can be off."""

LABELS = {name: knob["label"] for name, knob in KNOBS.items()}
"""What the knobs are called on the screen."""

RANGES = {name: (knob["min"], knob["max"]) for name, knob in KNOBS.items() if "min" in knob}
"""The ends of each knob that takes a number."""

_schedule = lru_cache(maxsize=64)(make_schedule)


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
        return _schedule(self.schedule, self.log_snr_min, self.log_snr_max, self.zero_terminal, self.T)

    @property
    def loss_weighting(self) -> str | Weighting:
        """The weighting, clipped if asked for."""
        densities = {"log_snr_density": Density(self.T), "log_snr_density_of_steps": Density(self.N)}
        weighting = densities.get(self.weighting, self.weighting)
        clip = (self.clip_min, self.clip_max)
        return weighting if clip == (None, None) else Clipped(weighting, *clip)


def problems(state: ExplorerState) -> dict[str, str]:
    """What is wrong with a state: each knob that could mend it -> one line that says why. Empty if all is well."""
    found: dict[str, str] = {}

    def wrong(line: str, *knobs: str) -> None:
        for knob in knobs:
            found.setdefault(knob, line)

    for name, options in CHOICES.items():
        if getattr(state, name) not in options:
            wrong(unknown(name, getattr(state, name), options), name)
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
    elif len(ends) == 2 and high - low < 0.1:
        line = f"λ_min = {low:g} is not below λ_max = {high:g} by 0.1 or more: lower the one or raise the other"
        wrong(line, *ends)
    if not found and state.prediction == "eps" and state.noise_schedule.alpha_sigma(Grid(1).times)[0].item() == 0:
        line = "x̂ = (z − σ ε̂)/α divides by α = 0 at t = 1: choose v, x or both, set λ_min, or take a schedule as it is"
        wrong(line, "prediction")
    return found


class KnobError(ValueError):
    """A knob was given something that is no value of its kind; ``knob`` is its name, "" for an unknown one."""

    def __init__(self, knob: str, line: str):
        super().__init__(line)
        self.knob = knob


def to_query(state: ExplorerState) -> str:
    """The knobs that differ from their defaults, as the query string of a link; empty if none does."""
    default = vars(ExplorerState())
    return urlencode({name: plain(value) for name, value in vars(state).items() if value != default[name]})


def from_query(query: str) -> tuple[ExplorerState, str]:
    """The state that a link describes, and "" or a sentence that says why it is the default one instead."""
    try:
        given = parse_qsl(query, keep_blank_values=True)
        state = from_dict({name: value for name, value in given if name != "theme"})  # which is the page's own
    except ValueError as error:
        return ExplorerState(), f"This link cannot be read, and the defaults are shown: {error}."
    if wrong := problems(state):
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
            raise KnobError("", unknown("knob", name[:40], kinds))
        kind, text = kinds[name], str(value)[:40]
        try:
            if kind == "str":
                chosen[name] = text
            elif kind == "bool":
                chosen[name] = {"true": True, "false": False}[text.lower()]
            elif kind == "float | None" and text.lower() in ("off", "none"):
                chosen[name] = None
            else:
                number = float(text)
                if not math.isfinite(number) or (kind == "int" and not number.is_integer()):
                    raise ValueError
                chosen[name] = int(number) if kind == "int" else number
        except (KeyError, ValueError):
            expected = {"bool": "true or false", "int": "a whole number"}.get(kind, "a number")
            given = f"{text!r} is not {expected}" if text else f"nothing is given; it needs {expected}"
            raise KnobError(name, f"{LABELS[name]}: {given}") from None
    return ExplorerState(**chosen)


def plain(value: object) -> str:
    """A knob's value as it stands in a link or a command."""
    text = f"{value:.12g}" if isinstance(value, float) else str(value)
    return {"None": "off", "True": "true", "False": "false"}.get(text, text)
