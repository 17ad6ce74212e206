"""The settings of a run: each with its default, what is allowed and what it means. Importing them imports no torch."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

import pdlib

__all__ = [
    "CURVES",
    "PRESETS",
    "Settings",
    "SettingsError",
    "allowed",
    "check_parameters",
    "make_settings",
    "notebook_parameters",
    "parse_setting",
    "settings_to_json",
    "upgraded",
]


class SettingsError(ValueError):
    """A setting is unknown, or its value is not allowed. In a notebook it shows as one line."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


Curve = Literal["distilled", "ddim", "stochastic"]
CURVES = get_args(Curve)
"""The student made for N steps; the undistilled teacher by DDIM; the teacher by ancestral steps."""
NAMES = ("prediction", "student_prediction", "method", "weighting", "schedule")
"""The settings that are names in a registry of pdlib's, which is read when they are checked: it may have grown. A
method may be followed by options."""
NETWORK = ("network", "width", "multipliers", "blocks", "attention", "heads", "dropout", "mlp_width")
"""The settings that describe the network; without meaning where a given teacher brings its own."""
READING = ("subset", "split", "test", "column", "size", "crop", "channels", "flip", "skip_broken")
"""The settings that describe how the data are read."""
OF_A_TEACHER = ("prediction", "schedule", "log_snr_min", "student_prediction", "stage_updates", "stage_learning_rate")
"""The settings that a given teacher of another library decides, where nothing else is said."""
TEACHER = "teacher"
"""The schedule of that name is the given teacher's own."""
EPS_ENDS = -6.0  # log-SNR down to which an ε network's x̂ is taken to be sound: notebook 08 scans it

Steps = Annotated[int, Field(ge=1, le=65536)]
SomeUpdates = Annotated[int, Field(ge=0, le=10**8)]
_STAGE, _UPDATES, _RATE = r"[1-9][0-9]{0,4}", r"[1-9][0-9]{0,7}", r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
StageUpdates = Annotated[str, Field(pattern=rf"^{_UPDATES}(,{_STAGE}:{_UPDATES})*$", examples=["450,2:600,1:600"])]
StageRates = Annotated[str, Field(pattern=rf"^{_RATE}(,{_STAGE}:{_RATE})*$", examples=["0.0005,2:0.001,1:0.002"])]
Rate = Annotated[float, Field(ge=1e-12, le=1e3)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Multipliers = Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=1, max_length=8)]
Levels = tuple[Annotated[int, Field(ge=0, le=7)], ...]


class Settings(BaseModel):
    """All that decides what a run computes; and ``device``, which decides where. SettingsError if it is not allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str = Field("digits", min_length=1, description="data set: its name, a file, or a folder of images")
    subset: str | None = Field(None, min_length=1, description="which of several sets under one name on the hub")
    split: str = Field("train", min_length=1, description="the part of it to train on, of a folder or from the hub")
    test: str = Field("auto", min_length=1, description="what is held back and measured to: none, a share, or a part")
    column: str | None = Field(None, min_length=1, description="its column of images, if not the first")
    size: int | None = Field(None, ge=4, le=1024, description="images are made squares of so many pixels")
    crop: bool = Field(True, description="cut that square out of the middle; otherwise squeeze images into it")
    channels: Literal["grey", "rgb"] | None = Field(None, description="of the images, if not as they are")
    flip: bool = Field(False, description="add each image a second time, in the mirror")
    skip_broken: bool = Field(False, description="leave out images that cannot be opened, instead of stopping")
    prediction: str = Field("v", description="what the teacher predicts, and its students by default")
    student_prediction: str | None = Field(None, description="what the students predict, if something else")
    convert_updates: SomeUpdates = Field(0, description="updates that turn the teacher to it, at its own N")
    teacher: str | None = Field(
        None, min_length=1, description="folder of a denoiser to distil, also of diffusers; none is trained then"
    )
    guidance: float | None = Field(
        None, ge=0, le=100, description="weight of guidance, where the given teacher is class-conditional"
    )
    method: str = Field(
        "progressive_distillation",
        description="how students learn; each with its usual rate; options follow: tract:phases=3",
    )
    weighting: str = Field("truncated_snr", description="loss weighting of teacher and students")
    clip_min: float | None = Field(None, ge=0, le=1e9, description="lower end of the weighting's clip")
    clip_max: float | None = Field(None, ge=1e-9, le=1e9, description="upper end of the weighting's clip")
    schedule: str = Field("cosine", description="noise schedule; teacher for the given teacher's own")
    log_snr_min: float | None = Field(
        None, ge=-60, le=0, description="λ_1 of a cosine schedule, if finite; of a teacher's, where it is cut"
    )
    log_snr_max: float | None = Field(None, ge=0, le=60, description="λ_0 of a cosine schedule, if finite")
    missing: int = Field(0, ge=0, le=1, description="1 for no t = 1 in the grid: the off-by-one mistake, for study")
    steps: Steps = Field(64, description="N of the teacher, where the chain starts")
    end_steps: Steps = Field(1, description="N of the last student; the teacher's for no students")
    discrete_teacher: bool = Field(False, description="train the teacher at t = i/N, not in continuous time")
    teacher_updates: int = Field(3000, ge=1, le=10**8, description="parameter updates of the teacher")
    stage_updates: StageUpdates = Field(
        "800,16:1200,8:2200,4:3200,2:4000,1:5200", description="of a student; N:updates where others"
    )
    batch_size: int = Field(128, ge=1, le=65536, description="examples per update")
    stage_batch_size: int = Field(32, ge=0, le=65536, description="of a student; 0 for the teacher's")
    learning_rate: Rate = Field(1e-3, description="the teacher's highest learning rate")
    stage_learning_rate: StageRates = Field(
        "0.0002,8:0.0003,4:0.0004,2:0.0005,1:0.0007", description="of a student, at its highest; N:rate where others"
    )
    warmup: SomeUpdates = Field(100, description="updates over which the teacher's learning rate rises")
    stage_warmup: SomeUpdates = Field(20, description="updates over which a student's learning rate rises")
    anneal: Literal["linear", "cosine", "constant"] = Field("linear", description="how learning rates fall")
    ema: Decay = Field(0.999, description="decay of the teacher's weight average; 0 for its last weights")
    stage_ema: Decay = Field(0.99, description="decay of the students' weight average; 0 for their last weights")
    max_gradient_norm: float = Field(1.0, ge=1e-12, le=1e12, description="longer gradients are scaled down to it")
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="of matrix products and convolutions, on a GPU"
    )
    accumulate: int = Field(1, ge=1, le=65536, description="parts of a batch, where memory does not hold all of it")
    compile: bool = Field(False, description="compile the networks for training, on a GPU")
    clip_x: float | None = Field(None, ge=1e-12, le=1e6, description="the teacher's x̂ is confined to ± this")
    network: Literal["unet", "unet2d"] = Field("unet", description="for images; unet2d is diffusers', to be exported")
    width: int = Field(32, ge=4, le=1024, description="feature channels of the UNet, for images")
    multipliers: Multipliers = Field((1, 2), description="width of each resolution of the UNet, times width")
    blocks: int = Field(1, ge=1, le=32, description="residual blocks at each resolution")
    attention: Levels = Field((), description="resolutions with self-attention, from 0, besides the lowest")
    heads: int = Field(4, ge=1, le=64, description="attention heads")
    dropout: Decay = Field(0.0, description="probability of dropout in the residual blocks")
    mlp_width: int = Field(128, ge=4, le=16384, description="features of the MLP, for points")
    sampler_variance: float = Field(0.0, ge=0, le=1, description="of the stochastic sampler: 0 small, 1 large")
    noise_seeds: int = Field(10, ge=2, le=10**4, description="evaluations, each with noise of its own")
    images_per_seed: int = Field(512, ge=65, le=10**6, description="images generated for each of them")
    curves: tuple[Curve, ...] = Field(CURVES[:2], min_length=1, description="what is evaluated; distilled comes first")
    seed: int = Field(0, ge=0, le=2**43, description="of weights, batches, times and noise")
    device: str = Field("cpu", min_length=1, description="where to compute; no part of what a run is")

    def __init__(self, /, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_in_one_line(error, values)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """What pydantic reads otherwise than it is meant: paths, lists and none in text, True for a number."""
        default = cls.model_fields[info.field_name].default
        if isinstance(value, os.PathLike | bool) or (isinstance(value, int | float) and isinstance(default, str)):
            value = str(value)
        if not isinstance(value, str):
            return value
        if default is None and value.lower() == "none":
            return None
        if isinstance(default, tuple):
            listed = value.strip("()[] ").removesuffix(",")
            return [part.strip() for part in listed.split(",")] if listed else []
        return os.path.expanduser(value) if info.field_name in ("data", "teacher") else value

    @field_validator(*NAMES)
    @classmethod
    def _known(cls, name: str | None, info: ValidationInfo) -> str | None:
        own = info.field_name == "schedule" and name == TEACHER
        if info.field_name == "method":
            pdlib.make_method(name)
        elif name is not None and not own and name not in (known := _registry(info.field_name)):
            from pdlib.files import unknown

            raise ValueError(unknown(info.field_name, name, known))
        return name

    @field_validator("stage_learning_rate")
    @classmethod
    def _one_way_to_write_it(cls, text: str) -> str:
        parts = [(stage, float(rate)) for stage, _, rate in (part.rpartition(":") for part in text.split(","))]
        if not all(1e-12 <= rate <= 1e3 for _, rate in parts):
            raise ValueError(f"stage_learning_rate={text}: must be from 1e-12 to 1,000")
        return ",".join(f"{stage}:{rate}" if stage else str(rate) for stage, rate in parts)

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        """What no setting can say alone."""
        self.student_method.grids(self.grid, self.end_steps)
        for name in self.student_method.cannot_heed:
            if getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)}: method={self.method} cannot heed it: leave it out")
        if self.curves[0] != CURVES[0] or len(set(self.curves)) < len(self.curves):
            others = ", ".join(CURVES[1:])
            raise ValueError(f"curves={','.join(self.curves)}: must be distilled, and then any of {others}")
        if self.convert_updates and self.student_prediction is None:
            raise ValueError(f"convert_updates={self.convert_updates}: say to what, with student_prediction")
        if self.missing and self.end_steps < 2:
            raise ValueError("missing=1 leaves no step to train at N = 1: use end_steps=2 or more")
        self.loss_weighting  # noqa: B018
        for name, value in (("schedule", self.schedule == TEACHER), ("guidance", self.guidance is not None)):
            if value and self.teacher is None:
                raise ValueError(f"{name}={getattr(self, name)}: give the teacher that has it, teacher=FOLDER")
        if self.schedule == TEACHER and self.log_snr_max is not None:
            raise ValueError(f"log_snr_max={self.log_snr_max}: a teacher's schedule begins where it does: leave it out")
        # What its own schedule comes to is seen when it is opened.
        no_division = self.schedule == TEACHER or self.missing or _last_alpha(self.noise_schedule) > 0
        for name in ("prediction", "student_prediction"):
            if not (no_division or pdlib.PREDICTIONS[getattr(self, name) or "x"].bounded):
                bounded = ", ".join(known for known, kind in pdlib.PREDICTIONS.items() if kind.bounded)
                finite = ", ".join(known for known, make in pdlib.SCHEDULES.items() if _last_alpha(make(1000)) > 0)
                why = f"α_1 = 0 with schedule={self.schedule!r}, and x̂ = (z − σ ε̂)/α divides by it"
                advice = f"use {name} {bounded}, or a schedule with α_1 > 0: {finite}"
                raise ValueError(f"{name}={getattr(self, name)!r}: {why}; {advice}")
        if self.attention and max(self.attention) >= len(self.multipliers):
            levels = f"must name resolutions from 0 to {len(self.multipliers) - 1}, one for each multiplier"
            raise ValueError(f"attention={self.attention}: {levels}")
        attending = (self.multipliers[level] for level in (*self.attention, -1))
        unit = math.lcm(*(self.heads // math.gcd(self.heads, multiplier) for multiplier in attending))
        if self.width % unit and self.teacher is None:
            near = max(round(self.width / unit), math.ceil(4 / unit)) * unit
            raise ValueError(
                f"width={self.width}: must be a multiple of {unit} for heads={self.heads}: use width={near}"
            )
        import torch

        from pdlib.processes import processes

        if self.device != "cpu":
            processes()  # which settles whose GPU is whose
        try:
            torch.ones(1, dtype=torch.float64, device=self.device).cpu()
        except Exception:  # each device's library raises its own
            known = "cuda or cpu" if torch.cuda.is_available() else "cpu, as there is no cuda here"
            raise ValueError(f"device={self.device!r} does not work here, or not in float64: use {known}") from None
        return self

    @property
    def reading(self) -> dict[str, Any]:
        """How the data are read, for :func:`pdlib.data.load_data`."""
        return {name: getattr(self, name) for name in READING}

    @property
    def grid(self) -> pdlib.Grid:
        """The teacher's grid, where the chain starts."""
        return pdlib.Grid(self.steps, self.missing)

    @property
    def evaluated_steps(self) -> list[int]:
        """N of the teacher and of every student, highest first; where one student serves for all, as by halving."""
        one = self.student_method.one_network
        grids = self.grid.down_to(self.end_steps) if one else self.student_grids
        return [self.steps, *(grid.N for grid in grids)]

    @property
    def student_method(self) -> pdlib.Method:
        """The method, with its options."""
        return pdlib.make_method(self.method)

    @property
    def student_grids(self) -> list[pdlib.Grid]:
        """The grids that the students are made for, in the order of their training."""
        return self.student_method.grids(self.grid, self.end_steps)

    @property
    def noise_schedule(self) -> pdlib.Schedule:
        """The schedule, with λ_0 and λ_1 as asked for; not of ``schedule="teacher"``, which only the teacher has."""
        return pdlib.make_schedule(self.schedule, self.log_snr_min, self.log_snr_max)

    @property
    def loss_weighting(self) -> str | pdlib.Clipped:
        """The weighting, clipped if asked for."""
        clip = (self.clip_min, self.clip_max)
        return self.weighting if clip == (None, None) else pdlib.Clipped(self.weighting, *clip)

    @property
    def teacher_training(self) -> pdlib.TrainingSettings:
        """How the teacher is trained."""
        more = (self.anneal, self.ema, self.max_gradient_norm, self.seed)
        how = {"precision": self.precision, "accumulate": self.accumulate, "compile": self.compile}
        return pdlib.TrainingSettings(
            self.teacher_updates, self.batch_size, self.learning_rate, self.warmup, *more, **how
        )

    def stage_training(self, grid: pdlib.Grid) -> pdlib.TrainingSettings:
        """How the student for a grid is trained.

        A method that takes fewer stages than progressive distillation has the updates of those that it leaves out too,
        and as many more as it takes fewer network evaluations for one: their total is the same.
        """
        method, all_grids = self.student_method, self.grid.down_to(self.end_steps)
        above = min((each.N for each in (self.grid, *self.student_grids) if each.N > grid.N), default=grid.N + 1)
        stages = [each.N for each in all_grids if grid.N <= each.N < above] or [grid.N]
        updates = sum(int(_at(self.stage_updates, N)) for N in stages) * pdlib.Method.evaluations / method.evaluations
        rate = float(_at(self.stage_learning_rate, grid.N))
        own = {"learning_rate": rate, "warmup": self.stage_warmup, "ema": self.stage_ema}
        own["batch_size"] = self.stage_batch_size or self.batch_size
        return replace(self.teacher_training, updates=max(1, round(updates)), **own)


def _registry(name: str) -> Collection[str]:
    return getattr(pdlib, f"{name.removeprefix('student_')}s".upper())


def _at(text: str, steps: int) -> str:
    """What a setting such as ``"450,2:600"`` says of the student for so many steps."""
    usual, *others = text.split(",")
    return dict(other.split(":") for other in others).get(str(steps), usual)


def _last_alpha(schedule: pdlib.Schedule) -> float:
    return schedule.alpha_sigma(pdlib.Grid(1).times)[0].item()


def make_settings(preset: str = "default", **overrides: Any) -> Settings:
    """A preset with some settings overridden, as values or text; SettingsError for what is unknown or not allowed."""
    if preset not in PRESETS:
        raise SettingsError(f"preset={preset!r} is unknown; it must be one of {', '.join(PRESETS)}")
    own = _of_a_foreign_teacher(overrides, PRESETS[preset])
    chosen, usual = {**PRESETS[preset], **own, **overrides}, {}
    with suppress(ValueError):  # which the settings will say
        usual = pdlib.make_method(str(chosen["method"])).defaults if "method" in chosen else {}
    settings = Settings(**{**usual, **chosen})
    for name in NETWORK if settings.teacher is not None else ():
        if name in overrides:
            raise SettingsError(f"{name}={overrides[name]}: the given teacher brings its own network: leave {name} out")
    return settings


def _of_a_foreign_teacher(overrides: dict[str, Any], preset: dict[str, str]) -> dict[str, Any]:
    """What a teacher of another library decides where nothing else was said: notebook 08's recipe.

    What it predicts; its own schedule, which for an ε network ends where x̂ is still sound, and students that say v: the
    first, which must unlearn ε besides, has three times the updates, at a higher rate.
    """
    if overrides.get("teacher") is None or not {*OF_A_TEACHER[:4]} - overrides.keys():
        return {}
    from pdlib.interop import is_foreign, prediction

    if not is_foreign(overrides["teacher"]):
        return {}
    usual = {"prediction": prediction(overrides["teacher"])}
    usual |= {"schedule": TEACHER} if "schedule" not in overrides else {}
    if usual["prediction"] == "eps" and overrides.get("schedule", TEACHER) == TEACHER:
        usual |= {"student_prediction": "v", "log_snr_min": EPS_ENDS}
        said = {name: field.default for name, field in Settings.model_fields.items()} | preset | overrides
        first = int(said["steps"]) // 2 if str(said["steps"]).isdigit() else 0
        if first and not overrides.keys() & {*OF_A_TEACHER[4:]} and str(said["steps"]) != str(said["end_steps"]):
            updates, rate = str(said["stage_updates"]), str(said["stage_learning_rate"])
            usual["stage_updates"] = f"{updates},{first}:{3 * int(_at(updates, first))}"
            usual["stage_learning_rate"] = f"{rate},{first}:0.002"
    return usual


def parse_setting(text: str) -> tuple[str, str]:
    """``"key=value"`` to a name and a text, both for :func:`make_settings` to check; SettingsError for other text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"--set {text}: write it as key=value, without spaces")
    return name, value


_SMOKE = "steps=8 teacher_updates=300 stage_updates=60 batch_size=64 learning_rate=3e-3 ema=0.98 stage_ema=0.9"
_STUDY = "steps=16 teacher_updates=1500 stage_updates=150 ema=0.995 stage_ema=0.97 noise_seeds=4 curves=distilled"
_ROUGH = f"noise_seeds=2 images_per_seed=128 curves={','.join(CURVES)}"
_SMALL = "width=16 mlp_width=64 stage_learning_rate=0.0005 stage_batch_size=0"
_MNIST = "data=mnist width=24 multipliers=1,2,2 teacher_updates=10000 batch_size=64 noise_seeds=5 images_per_seed=600"
_MNIST += " method=mean_flow stage_updates=900,16:1350,8:2450,4:3500,2:4500,1:5800"
_CIFAR = "data=cifar10 flip=true width=64 multipliers=1,2,2,2 blocks=2 attention=1 batch_size=128 stage_batch_size=128"
_CIFAR += " teacher_updates=20000 learning_rate=3e-4 stage_updates=3000,8:4000,4:5000,2:6000,1:8000"
_CIFAR += " stage_learning_rate=0.0001 noise_seeds=5 images_per_seed=1000 device=cuda precision=bf16"
PRESETS: dict[str, dict[str, str]] = {
    "default": {},
    "smoke": dict(map(parse_setting, f"{_SMOKE} {_SMALL} {_ROUGH}".split())),
    "study": dict(map(parse_setting, f"{_STUDY} {_SMALL}".split())),
    "mnist-cpu": dict(map(parse_setting, _MNIST.split())),
    "cifar10-gpu": dict(map(parse_setting, _CIFAR.split())),
}
"""Settings that differ from the defaults, by name. study: a short chain, where a question asks for many runs."""


def settings_to_json(settings: Settings) -> dict[str, Any]:
    """What a run is, JSON-ready: all settings but ``device``, and but the network's where a teacher brings its own."""
    return settings.model_dump(mode="json", exclude={"device", *(() if settings.teacher is None else NETWORK)})


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json's settings, checked, under today's names; the first edition's mean the same run as then."""
    config = {"stage_batch_size": 0} | {name: value for name, value in config.items() if name != "device"}
    data = str(config.get("data", "digits"))
    if "test" not in config and not (callable(pdlib.DATASETS.get(data)) or data.endswith((".npy", ".npz"))):
        config["test"] = "none"  # older runs were measured to what they had been trained on
    if "missing" not in config:
        config = {"stage_learning_rate": 0.0005, "curves": CURVES} | config
        updates, few = config.get("stage_updates", 450), config.pop("few_step_updates", 600)
        config["stage_updates"] = updates if few in (None, updates) else f"{updates},4:{few},2:{few},1:{few}"
        top, width = config.pop("skip_top", False), config.get("width", 32)
        config["missing"] = int(top) if isinstance(top, bool) else top
        config["mlp_width"] = 4 * width if isinstance(width, int) else width
        if config.pop("weights", "ema") == "raw":
            config["stage_ema"] = 0.0
    return settings_to_json(Settings(**config))


_schema = cache(Settings.model_json_schema)
_KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a name or a path"}


def allowed(name: str, look_up: bool = True) -> str:
    """What a setting may be, in words. ``look_up``: the names in a registry too, which imports torch."""
    schema = _schema()["properties"][name]
    kind = schema.get("anyOf", [schema])[0]
    item = kind.get("items", kind)
    if "enum" in item or (name in NAMES and look_up):
        words = f"one of {', '.join(item.get('enum') or [*_registry(name), *[TEACHER] * (name == 'schedule')])}"
    elif name in NAMES:
        words = f"a name, see pdlib settings {name}"
    elif "examples" in item:
        (example,) = item["examples"]
        words = f"{'a number' if '.' in example else 'a whole number'}, as {_at(example, 0)}, or as in {example}"
    else:
        words = _KINDS[item["type"]]
    if "minimum" in item:
        high, form = item.get("maximum", item.get("exclusiveMaximum")), "g" if item["type"] == "number" else ","
        words += f" from {item['minimum']:{form}} to {'below ' * ('maximum' not in item)}{high:{form}}"
    return words + ", or more after commas" * (item is not kind) + ", or none" * ("anyOf" in schema)


def _in_one_line(error: ValidationError, values: dict[str, Any]) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":  # one of ours
        return " ".join(str(first["ctx"]["error"]).split())
    name = first["loc"][0]
    if first["type"] == "extra_forbidden":
        return f"{name}={values[name]!r}: there is no setting {name!r}{_suggestion(name, Settings.model_fields)}"
    return f"{name}={repr(values[name])[:80]}: must be {allowed(name)}"


def _suggestion(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


_MEMORY = "_pdlib_parameters"


def notebook_parameters(namespace: dict[str, Any]) -> dict[str, Any]:
    """The parameters among a notebook's ``globals()``: its own plain values, as they are now.

    The first call, before all other cells, settles which: not what those define, nor what an IPython startup file does.
    """
    if _MEMORY not in namespace:
        plain = (str, int, float, bool, tuple, list, type(None))
        cells = "\n".join(map(str, namespace.get("In", ()))).strip()
        namespace[_MEMORY] = [
            name
            for name, value in namespace.items()
            if isinstance(value, plain) and not name.startswith("_") and name not in ("In", "Out", "exit", "quit")
            if not cells or re.search(rf"^{name}\s*(:.*)?=", cells, re.MULTILINE)
        ]
    return {name: namespace[name] for name in namespace[_MEMORY] if name in namespace}


def check_parameters(namespace: dict[str, Any], **allowed: Collection[Any]) -> None:
    """SettingsError, in one line, where a parameter in a notebook's ``globals()`` or its value is not among those."""
    for name, value in notebook_parameters(namespace).items():
        if name not in allowed:
            del namespace[name], namespace[_MEMORY]  # so that the notebook can be mended and run again
            raise SettingsError(f"{name}={value!r}: there is no parameter {name!r}{_suggestion(name, allowed)}")
        values = allowed[name]
        if isinstance(value, bool) or value not in values:
            whole = f"a whole number from {values[0]} to {values[-1]}" if isinstance(values, range) else None
            raise SettingsError(f"{name}={value!r}: must be {whole or 'one of ' + ', '.join(map(str, values))}")
