"""The networks of a run: given, or trained one after the other, each written when it is finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import TensorDataset

from pdlib.data import Data
from pdlib.denoiser import Confined, Denoiser, DenoiserLike
from pdlib.distillation import convert
from pdlib.files import digest, read_tensors, tensors_digest, write_tensors
from pdlib.grids import Grid
from pdlib.interop import is_foreign, open_denoiser
from pdlib.methods import Method, learn
from pdlib.networks import MLP, UNet
from pdlib.objectives import Clean, Objective
from pdlib.predictions import PREDICTIONS, output_channels
from pdlib.processes import processes
from pdlib.runs.settings import TEACHER, Settings, SettingsError
from pdlib.schedules import DiscreteSchedule, Schedule
from pdlib.training import Session, Trained, fit
from pdlib.weightings import Weighting

if TYPE_CHECKING:
    from pdlib.runs.run import Run

__all__ = ["examples", "given_teacher", "network_digest", "new_denoiser", "stage_objective", "train_chain"]


def new_denoiser(settings: Settings, data: Data) -> Denoiser:
    """The untrained network that the settings ask for, its weights drawn from the settings' seed."""
    s, channels = settings, data.shape[0]
    outputs = output_channels(s.prediction, channels)
    unet = (s.width, s.multipliers, s.blocks, s.attention, s.heads, s.dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        if not data.is_image:
            network = MLP(channels, outputs, s.mlp_width)
        elif s.network == "unet2d":
            from pdlib.interop.unet2d import new_unet2d

            own = {"size": data.shape[1:], "schedule": s.noise_schedule, "steps": s.steps}
            network = new_unet2d(channels, outputs, *unet, **own)
        else:
            network = UNet(channels, outputs, *unet)
    denoiser = Denoiser(network, s.prediction, s.noise_schedule, s.grid, data.shape)
    return denoiser.to(s.device, memory_format=torch.channels_last)


def given_teacher(run: Run) -> Denoiser | None:
    """The teacher that the settings name, on the run's schedule; none where it is trained, or gone since."""
    s, shape = run.settings, run.data.shape
    if s.teacher is None or not (Path(s.teacher).exists() or "teacher" in run.missing):
        return None
    given = open_denoiser(s.teacher, s.device)
    if given.prediction != s.prediction:
        raise SettingsError(
            f"prediction={s.prediction!r}, but the teacher in {s.teacher} predicts {given.prediction!r}: "
            f"use prediction={given.prediction}"
        )
    if (channels := given.network.config["channels"]) != shape[0]:
        raise SettingsError(
            f"teacher={s.teacher!r} takes examples of {channels} channels, and data={s.data!r} has {shape[0]}: "
            "give the data that it was trained on"
        )
    if is_foreign(s.teacher) and given.shape not in (None, shape):
        raise SettingsError(
            f"teacher={s.teacher!r} makes images of {given.shape}; data={s.data!r} has {shape}: give data of its size"
        )
    if given.classes is None and s.guidance is not None:
        raise SettingsError(f"guidance={s.guidance}: the teacher in {s.teacher} knows no classes: leave it out")
    if given.classes is not None:
        _check_classes(run, given.classes)
    if run.config.get("teacher") not in (None, network_digest(given)):
        raise SettingsError(
            f"teacher={s.teacher!r} has changed: folder={run.folder} was made with another; restore it, or choose "
            "another folder; nothing was written"
        )
    return Denoiser(given.network, given.prediction, _schedule(s, given), s.grid, shape)


def _check_classes(run: Run, classes: int) -> None:
    s, labels = run.settings, run.data.labels
    if labels is None:
        raise SettingsError(f"teacher={s.teacher!r} is class-conditional, and data={s.data!r} has no labels: give some")
    needed = int(labels.max()) + 1 + (s.guidance is not None)
    if needed > classes:
        why = " and guidance needs one more, for no class" if s.guidance is not None else ""
        raise SettingsError(
            f"teacher={s.teacher!r} knows {classes} classes; data={s.data!r} has {int(labels.max()) + 1}{why}"
        )


def _schedule(s: Settings, given: Denoiser) -> Schedule:
    """The run's schedule: by its name, or the given teacher's own, cut if asked for."""
    if s.schedule != TEACHER:
        return s.noise_schedule
    schedule = given.schedule
    if isinstance(schedule, DiscreteSchedule):
        schedule = schedule.for_steps(s.steps, s.log_snr_min)
    elif s.log_snr_min is not None:
        raise SettingsError(f"log_snr_min={s.log_snr_min}: the teacher's {schedule} is not cut: leave it out")
    last = schedule.alpha_sigma(torch.ones(1, dtype=torch.float64))[0].item()
    for name in ("prediction", "student_prediction"):
        if last == 0 and not s.missing and not PREDICTIONS[getattr(s, name) or "x"].bounded:
            raise SettingsError(
                f"{name}={getattr(s, name)!r}: α_1 = 0 on the teacher's schedule, and x̂ = (z − σ ε̂)/α divides by it: "
                "cut it, with log_snr_min=-6"
            )
    return schedule


def examples(run: Run, classes: int | None) -> torch.Tensor | TensorDataset:
    """The data on the run's device, with labels for a class-conditional network."""
    x = run.data.x.to(run.settings.device)
    return x if classes is None else TensorDataset(x, run.data.labels.to(x.device))


def network_digest(denoiser: Denoiser) -> str:
    """What tells one network from another: how it is built, and its weights."""
    return digest([denoiser.network.config, denoiser.network.state_dict()])


def train_chain(
    run: Run, given: Denoiser | None, session: Session, finished: Callable[[], None] = lambda: None
) -> dict[str, Denoiser]:
    """Every network by the name of its folder: opened where it is there; made, and told of, where it is missing."""
    models, here = {}, processes()
    missing = here.agree(lambda: run.missing)
    for part in run.parts:
        if part not in missing:
            models[part] = run.open(part)
            continue
        if part == "teacher" and given is not None:
            source = Path(run.settings.teacher) / "training.safetensors"
            models[part] = _keep(run, part, given, *(read_tensors(source) if source.is_file() else ()))
        else:
            which = f"{run.parts.index(part) + 1} of {len(run.parts)}"
            trained = _train(run, part, models, replace(session, label=part, which=which))
            tensors = {"losses": trained.losses, "gradient_norms": trained.gradient_norms}
            about = {"seconds": trained.seconds, "updates": len(trained.losses)}
            models[part] = _keep(run, part, trained.ema, tensors, about)
        if here.first:
            finished()
    return models


def _train(run: Run, part: str, models: dict[str, Denoiser], session: Session) -> Trained:
    """Train one network of the chain; ``models`` are those before it."""
    s = run.settings
    if part == "teacher":
        clean = Objective(Clean(), s.grid if s.discrete_teacher else None, s.loss_weighting)
        return fit(new_denoiser(s, run.data), clean, examples(run, None), s.teacher_training, session)
    *_, (name, teacher) = models.items()
    if s.student_method.from_first and part != "converted":
        name = run.part(s.steps).name
    if s.compile:
        models[name].network.compile()
    x, guide = examples(run, teacher.classes), run.guided(name, models[name])
    if part == "converted":
        parent = Confined(guide, s.clip_x or run.data.largest)
        training = replace(s.teacher_training, updates=s.convert_updates)
        return convert(parent, s.student_prediction, x, training, s.loss_weighting, session)
    (grid,) = (each for each in s.student_grids if run.part(each.N).name == part)
    options = {"prediction": s.student_prediction, "start": teacher, "session": session}
    stage = learn(s.student_method, guide, grid, x, s.stage_training, objective=stage_objective(s), **options)
    return replace(stage.trained, ema=stage.student)


def stage_objective(s: Settings) -> Callable[[DenoiserLike, Grid], Objective]:
    """(teacher, the student's grid) -> what that student learns. It holds what decides that, and nothing else."""
    return partial(_of_stage, method=s.student_method, clip_x=s.clip_x, weighting=s.loss_weighting)


def _of_stage(
    teacher: DenoiserLike, grid: Grid, method: Method, clip_x: float | None, weighting: str | Weighting
) -> Objective:
    teacher = teacher if clip_x is None else Confined(teacher, clip_x)
    return method.objective(teacher, grid, weighting)


def _keep(run: Run, part: str, denoiser: Denoiser, *history: dict[str, Any]) -> Denoiser:
    """Write a finished network, its history if it has one, its config.json last, and only then drop its checkpoint."""
    if not processes().first:
        return denoiser
    if history:
        write_tensors(run.folder / part / "training.safetensors", *history)
    checksum = tensors_digest(*history) if history else None
    denoiser.save(run.folder / part, run=run.config.get("run"), part=part, history=checksum)
    (run.folder / f"{part}.checkpoint").unlink(missing_ok=True)
    return denoiser
