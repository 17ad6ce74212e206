"""The settings of a run: their names, their defaults, the presets, and what is checked of them."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

import torch

from pdlib.distillation import stage_steps
from pdlib.predictions import PREDICTIONS
from pdlib.schedules import SCHEDULES, CosineSchedule, Schedule
from pdlib.training import TrainingSettings
from pdlib.weightings import WEIGHTINGS, Clipped, clipped

__all__ = [
    "CURVES",
    "PRESETS",
    "Settings",
    "SettingsError",
    "check_parameters",
    "make_settings",
    "notebook_parameters",
    "parse_setting",
    "settings_to_json",
]


class SettingsError(ValueError):
    """A setting is unknown, or its value is not allowed. In a notebook it shows as one line."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


CURVES = ("distilled", "ddim", "stochastic")
"""The student made for N steps; the undistilled teacher by DDIM; the teacher by ancestral steps."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes."""

    data: str = "digits"
    """Name or path, see :func:`pdlib.data.load_data`."""
    prediction: str = "v"
    """What the teacher predicts, and its students unless told otherwise: x, eps, v or both."""
    student_prediction: str | None = None
    """What the students predict, where it is to differ from the teacher."""
    convert_updates: int = 0
    """Parameter updates that turn the teacher into one of student_prediction, at its own N; 0 for none."""
    teacher: str | None = None
    """Folder of a saved denoiser to distil instead of training a teacher; used with this run's schedule."""
    weighting: str = "truncated_snr"
    """The loss weighting of teacher and students."""
    clip_min: float | None = None
    """Lower end of the clip of the weighting."""
    clip_max: float | None = None
    """Upper end of the clip of the weighting."""
    schedule: str = "cosine"
    """One of :data:`pdlib.schedules.SCHEDULES`."""
    log_snr_min: float | None = None
    """λ_1 of a cosine schedule, where it is to be finite."""
    log_snr_max: float | None = None
    """λ_0 of a cosine schedule, where it is to be finite."""
    skip_top: bool = False
    """Leave out t = 1 in training and start sampling below it: the off-by-one grid, a mistake kept for study."""
    steps: int = 64
    """N of the teacher, where the chain starts."""
    end_steps: int = 1
    """N of the last student."""
    discrete_teacher: bool = False
    """Train the teacher on the grid i/steps instead of in continuous time."""
    teacher_updates: int = 3000
    """Parameter updates of the teacher."""
    stage_updates: int = 450
    """Parameter updates of a stage."""
    few_step_updates: int | None = 600
    """Parameter updates of the stages of 4 steps and fewer; as many as the others if none."""
    batch_size: int = 128
    """Examples per update."""
    learning_rate: float = 1e-3
    """The teacher's highest learning rate."""
    stage_learning_rate: float = 5e-4
    """The students' highest learning rate."""
    anneal: str = "linear"
    """How learning rates fall: linear, cosine or constant."""
    ema: float = 0.999
    """Decay of the teacher's weight average."""
    stage_ema: float = 0.99
    """Decay of the students' weight average."""
    max_gradient_norm: float = 1.0
    """Gradients longer than this are scaled down to it."""
    weights: str = "ema"
    """What a student hands on: ema or raw weights."""
    clip_x: float | None = None
    """Confine the teacher's x̂ in the target to [−clip_x, clip_x]."""
    width: int = 32
    """Feature channels of the network."""
    multipliers: tuple[int, ...] = (1, 2)
    """Width of each resolution of the UNet."""
    blocks: int = 1
    """Residual blocks at each resolution."""
    attention: tuple[int, ...] = ()
    """Resolutions of the UNet with self-attention, besides the middle."""
    sampler_variance: float = 0.0
    """Of the stochastic sampler: 0 small, 1 large."""
    noise_seeds: int = 10
    """Evaluations with noise of their own, for the standard errors."""
    images_per_seed: int = 512
    """Images generated from each."""
    curves: tuple[str, ...] = CURVES
    """What is evaluated: the students, the teacher by DDIM, the teacher by ancestral steps."""
    seed: int = 0
    """Of weights, batches, times and noise."""
    device: str = "cpu"
    """Where to train: cpu, cuda, …"""

    @property
    def evaluated_steps(self) -> list[int]:
        """N of the teacher and of every student, highest first."""
        return [self.steps, *stage_steps(self.steps, self.end_steps)]

    @property
    def noise_schedule(self) -> Schedule:
        """The schedule, with λ_0 and λ_1 as asked for."""
        schedule = SCHEDULES[self.schedule]()
        if self.log_snr_min is None and self.log_snr_max is None:
            return schedule
        if not isinstance(schedule, CosineSchedule) or self.schedule == "cosine_clipped":
            raise ValueError(
                f"log_snr_min={self.log_snr_min}, log_snr_max={self.log_snr_max} with schedule={self.schedule!r}: "
                "only cosine and cosine_offset take them; leave them out or change the schedule"
            )
        return CosineSchedule(schedule.offset, self.log_snr_min, self.log_snr_max)

    @property
    def loss_weighting(self) -> str | Clipped:
        """The weighting, clipped if asked for."""
        if self.clip_min is None and self.clip_max is None:
            return self.weighting
        return clipped(self.weighting, self.clip_min, self.clip_max)

    @property
    def teacher_training(self) -> TrainingSettings:
        """How the teacher is trained."""
        return TrainingSettings(
            self.teacher_updates,
            self.batch_size,
            self.learning_rate,
            100,
            self.anneal,
            self.ema,
            self.max_gradient_norm,
        )

    @property
    def stage_training(self) -> TrainingSettings:
        """How a student is trained."""
        return TrainingSettings(
            self.stage_updates,
            self.batch_size,
            self.stage_learning_rate,
            20,
            self.anneal,
            self.stage_ema,
            self.max_gradient_norm,
        )

    @property
    def updates_by_stage(self) -> dict[int, int]:
        """Where a stage's number of updates is not ``stage_updates``, by N."""
        return {} if self.few_step_updates is None else dict.fromkeys((1, 2, 4), self.few_step_updates)


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "smoke": {
        "steps": 8,
        "teacher_updates": 300,
        "stage_updates": 60,
        "few_step_updates": 60,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "ema": 0.98,
        "stage_ema": 0.9,
        "width": 16,
        "noise_seeds": 2,
        "images_per_seed": 128,
    },
    "study": {  # a smaller network and a shorter chain, where a question asks for many runs
        "steps": 16,
        "teacher_updates": 1500,
        "stage_updates": 150,
        "few_step_updates": None,
        "ema": 0.995,
        "stage_ema": 0.97,
        "width": 16,
        "noise_seeds": 4,
        "curves": ("distilled",),
    },
}
"""Settings that differ from the defaults, by name."""


def make_settings(preset: str = "default", **overrides: Any) -> Settings:
    """The settings of a preset with some of them overridden, checked.

    Raises:
        SettingsError: for an unknown preset or setting, or a value that is not allowed.
    """
    if preset not in PRESETS:
        raise SettingsError(f"preset={preset!r} is unknown; it must be one of {', '.join(PRESETS)}")
    types_of = _types()
    chosen = dict(PRESETS[preset])
    for name, value in overrides.items():
        if name not in types_of:
            raise SettingsError(f"{name}={value!r}: there is no setting {name!r}{_suggestion(name, types_of)}")
        chosen[name] = _coerced(name, value, types_of[name])
    settings = replace(Settings(), **chosen)
    _check(settings)
    return settings


def parse_setting(text: str) -> tuple[str, Any]:
    """``"key=value"`` from a command line to the setting's name and its value.

    Raises:
        SettingsError: for text that is not key=value, an unknown key, or a value of the wrong type.
    """
    name, equals, value = text.partition("=")
    types_of = _types()
    if not equals:
        raise SettingsError(f"--set {text}: write it as key=value, without spaces")
    if name not in types_of:
        raise SettingsError(f"--set {text}: there is no setting {name!r}{_suggestion(name, types_of)}")
    return name, _coerced(name, value, types_of[name])


def notebook_parameters(namespace: dict[str, Any]) -> dict[str, Any]:
    """The parameters among a notebook's ``globals()``: every plain value whose name is the notebook's own."""
    plain = (str, int, float, bool, tuple, list, type(None))
    ours = {"In", "Out", "exit", "quit"}
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, plain) and not name.startswith("_") and name not in ours
    }


def check_parameters(namespace: dict[str, Any], **allowed: Collection[Any]) -> None:
    """Stop a notebook with one line where a parameter is unknown or its value is not allowed.

    Args:
        namespace: the notebook's ``globals()``, before anything but the parameters is in it.
        **allowed: for each parameter the values it may have, such as a range or a list of names.

    Raises:
        SettingsError: names the parameter, its value, and what is allowed.
    """
    for name, value in notebook_parameters(namespace).items():
        if name not in allowed:
            raise SettingsError(f"{name}={value!r}: there is no parameter {name!r}{_suggestion(name, allowed)}")
        values = allowed[name]
        if isinstance(value, bool) or value not in values:
            whole = f"a whole number from {values[0]} to {values[-1]}" if isinstance(values, range) else None
            raise SettingsError(f"{name}={value!r}: must be {whole or 'one of ' + ', '.join(map(str, values))}")


def settings_to_json(settings: Settings) -> dict[str, Any]:
    """As a dictionary that JSON holds unchanged."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}


def _types() -> dict[str, Any]:
    hints = typing.get_type_hints(Settings)
    return {field.name: hints[field.name] for field in fields(Settings)}


def _suggestion(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; the settings are {', '.join(known)}"


def _coerced(name: str, value: Any, kind: Any) -> Any:
    """The value as the setting's type, from text or from Python."""
    if isinstance(kind, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
    try:
        if kind is bool:
            if str(value).lower() not in ("true", "false"):
                raise ValueError
            return str(value).lower() == "true"
        if typing.get_origin(kind) is tuple:
            parts = value.strip("()[] ").split(",") if isinstance(value, str) else value
            return tuple(typing.get_args(kind)[0](part) for part in parts if part != "")
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        if kind is not str and isinstance(value, bool):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError):
        expected = {int: "a whole number", float: "a number", bool: "true or false"}.get(
            kind, "whole numbers, as in 1,2"
        )
        raise SettingsError(f"{name}={value!r}: must be {expected}") from None


def _check(s: Settings) -> None:
    allowed = {
        "prediction": PREDICTIONS,
        "weighting": WEIGHTINGS,
        "schedule": tuple(SCHEDULES),
        "anneal": ("linear", "cosine", "constant"),
        "weights": ("ema", "raw"),
    }
    for name, names in allowed.items():
        value = getattr(s, name)
        if value not in names:
            raise SettingsError(f"{name}={value!r} is unknown; it must be one of {', '.join(names)}")
    if s.student_prediction not in (None, *PREDICTIONS):
        raise SettingsError(
            f"student_prediction={s.student_prediction!r} is unknown; it must be one of {', '.join(PREDICTIONS)}"
        )
    if s.curves[:1] != CURVES[:1] or not set(s.curves) <= set(CURVES):
        raise SettingsError(f"curves={','.join(s.curves)}: must be distilled, and then any of {', '.join(CURVES[1:])}")
    ranges = {
        "steps": (1, math.inf),
        "end_steps": (1, math.inf),
        "teacher_updates": (1, math.inf),
        "stage_updates": (1, math.inf),
        "convert_updates": (0, math.inf),
        "few_step_updates": (1, math.inf),
        "batch_size": (1, math.inf),
        "learning_rate": (1e-12, 1e3),
        "stage_learning_rate": (1e-12, 1e3),
        "ema": (0, 1 - 1e-9),
        "stage_ema": (0, 1 - 1e-9),
        "max_gradient_norm": (1e-12, math.inf),
        "clip_x": (1e-12, math.inf),
        "width": (4, math.inf),
        "blocks": (1, math.inf),
        "sampler_variance": (0, 1),
        "noise_seeds": (2, math.inf),
        "images_per_seed": (65, math.inf),
        "seed": (0, 2**62),
    }
    for name, (low, high) in ranges.items():
        value = getattr(s, name)
        if value is not None and not low <= value <= high:
            bound = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise SettingsError(f"{name}={value}: must be {bound}")
    try:
        stage_steps(s.steps, s.end_steps)
        last_alpha = s.noise_schedule.alpha_sigma(torch.ones(1))[0].item()
        s.loss_weighting  # noqa: B018
        torch.device(s.device)
        if torch.device(s.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={s.device!r}: there is no CUDA device here; use device=cpu")
    except (ValueError, RuntimeError) as error:
        raise SettingsError(str(error).splitlines()[0]) from None
    if s.convert_updates and s.student_prediction is None:
        raise SettingsError(f"convert_updates={s.convert_updates}: say to what, with student_prediction")
    if s.skip_top and s.end_steps < 2:
        raise SettingsError("skip_top=True leaves no step to train at N = 1: use end_steps=2 or more")
    if "eps" in (s.prediction, s.student_prediction) and last_alpha == 0 and not s.skip_top:
        finite = [name for name, make in SCHEDULES.items() if make().alpha_sigma(torch.ones(1))[0].item() > 0]
        name = "prediction" if s.prediction == "eps" else "student_prediction"
        raise SettingsError(
            f"{name}='eps' with schedule={s.schedule!r}: α_1 = 0, where x̂ = (z − σ ε̂)/α divides by 0; "
            f"use {name} v, x or both, or a schedule with α_1 > 0: {', '.join(finite)}"
        )
    if not s.multipliers or min(s.multipliers) < 1:
        raise SettingsError(f"multipliers={s.multipliers}: must be whole numbers of 1 or more, as in 1,2")
    if s.attention and not set(s.attention) <= set(range(len(s.multipliers))):
        raise SettingsError(
            f"attention={s.attention}: must name resolutions from 0 to {len(s.multipliers) - 1}, "
            "one for each multiplier"
        )
