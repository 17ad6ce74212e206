"""The networks of a run: given, or trained one after the other, each written when it is finished."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pdlib.data import Data
from pdlib.denoiser import Confined, Denoiser, DenoiserLike
from pdlib.distillation import METHODS, convert, progressive_distillation
from pdlib.files import digest, read_tensors, tensors_digest, write_tensors
from pdlib.grids import Grid
from pdlib.networks import MLP, UNet
from pdlib.objectives import Clean, Objective
from pdlib.predictions import output_channels
from pdlib.runs.settings import Settings, SettingsError
from pdlib.training import Session, Trained, TrainingSettings, fit

if TYPE_CHECKING:
    from pdlib.runs.run import Run

__all__ = ["expected_seconds", "given_teacher", "network_digest", "new_denoiser", "train_chain"]


def new_denoiser(settings: Settings, data: Data) -> Denoiser:
    """The untrained network that the settings ask for, its weights drawn from the settings' seed."""
    s, channels = settings, data.shape[0]
    outputs = output_channels(s.prediction, channels)
    unet = (s.width, s.multipliers, s.blocks, s.attention, s.heads, s.dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        network = UNet(channels, outputs, *unet) if data.is_image else MLP(channels, outputs, s.mlp_width)
    denoiser = Denoiser(network, s.prediction, s.noise_schedule, s.grid, data.shape)
    return denoiser.to(s.device, memory_format=torch.channels_last)


def given_teacher(run: Run) -> Denoiser | None:
    """The teacher that the settings name, with the run's own schedule; none where it is trained, or gone since."""
    s, shape = run.settings, run.data.shape
    if s.teacher is None or not (Path(s.teacher).exists() or "teacher" in run.missing):
        return None
    given = Denoiser.load(s.teacher, s.device)
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
    if run.config.get("teacher") not in (None, network_digest(given)):
        raise SettingsError(
            f"teacher={s.teacher!r} has changed: folder={run.folder} was made with another; restore it, or choose "
            "another folder; nothing was written"
        )
    return Denoiser(given.network, given.prediction, s.noise_schedule, s.grid, shape)


def network_digest(denoiser: Denoiser) -> str:
    """What tells one network from another: how it is built, and its weights."""
    return digest([denoiser.network.config, denoiser.network.state_dict()])


def expected_seconds(run: Run, given: Denoiser | None) -> dict[str, float]:
    """How long the parts of a run will take here, from a second of trying: an update of each kind, a step."""
    s, x = run.settings, run.data.x.to(run.settings.device)
    denoiser = given or new_denoiser(s, run.data)

    def update(objective: Objective, training: TrainingSettings) -> float:
        few = replace(training, updates=3)
        tried = [fit(copy.deepcopy(denoiser), objective, x, few, Session(progress=False)) for _ in range(2)]
        return tried[-1].seconds / few.updates  # the first is slower than all that follow

    clean, stage = update(Objective(Clean(), None, s.loss_weighting), s.teacher_training), 0.0
    if grids := s.grid.down_to(s.end_steps):
        target, training = METHODS[s.method](denoiser, grids[0]), s.stage_training(grids[0])
        stage = update(Objective(target, grids[0], s.loss_weighting), training)
    z, t = torch.ones(256, *run.data.shape, device=s.device), torch.ones(256, device=s.device)
    with torch.no_grad():
        for _ in range(2):
            started = time.monotonic()
            denoiser(z, t).cpu()
            step = (time.monotonic() - started) / len(z)
    walks = sum(s.evaluated_steps) * len(s.curves) - s.steps * ("ddim" in s.curves and not s.convert_updates)
    return {
        "teacher": clean * (s.convert_updates + (s.teacher_updates if given is None else 0)),
        "students": stage * sum(s.stage_training(grid).updates for grid in grids),
        "evaluation": step * walks * s.noise_seeds * s.images_per_seed,
    }


def train_chain(
    run: Run, given: Denoiser | None, session: Session, finished: Callable[[], None] = lambda: None
) -> dict[str, Denoiser]:
    """Every network by the name of its folder: opened where it is there; made, and told of, where it is missing."""
    x, models = run.data.x.to(run.settings.device), {}
    for part in run.parts:
        if part not in run.missing:
            models[part] = run.open(part)
            continue
        if part == "teacher" and given is not None:
            source = Path(run.settings.teacher) / "training.safetensors"
            models[part] = _keep(run, part, given, *(read_tensors(source) if source.is_file() else ()))
        else:
            trained = _train(run, part, models, x, replace(session, label=part))
            tensors = {"losses": trained.losses, "gradient_norms": trained.gradient_norms}
            about = {"seconds": trained.seconds, "updates": len(trained.losses)}
            models[part] = _keep(run, part, trained.ema, tensors, about)
        finished()
    return models


def _train(run: Run, part: str, models: dict[str, Denoiser], x: torch.Tensor, session: Session) -> Trained:
    """Train one network of the chain; ``models`` are those before it."""
    s = run.settings
    if part == "teacher":
        clean = Objective(Clean(), s.grid if s.discrete_teacher else None, s.loss_weighting)
        return fit(new_denoiser(s, run.data), clean, x, s.teacher_training, session)
    if part == "converted":
        parent = Confined(models["teacher"], s.clip_x or run.data.x.abs().max().item())
        training = replace(s.teacher_training, updates=s.convert_updates)
        return convert(parent, s.student_prediction, x, training, s.loss_weighting, session)

    def objective(teacher: DenoiserLike, grid: Grid) -> Objective:
        teacher = teacher if s.clip_x is None else Confined(teacher, s.clip_x)
        return Objective(METHODS[s.method](teacher, grid), grid, s.loss_weighting)

    *_, teacher = models.values()
    options = {"objective": objective, "prediction": s.student_prediction, "session": session}
    (stage,) = progressive_distillation(teacher, x, teacher.grid.halved().N, s.stage_training, **options)
    return stage.trained


def _keep(run: Run, part: str, denoiser: Denoiser, *history: dict[str, Any]) -> Denoiser:
    """Write a finished network, its history if it has one, its config.json last, and only then drop its checkpoint."""
    if history:
        write_tensors(run.folder / part / "training.safetensors", *history)
    checksum = tensors_digest(*history) if history else None
    denoiser.save(run.folder / part, run=run.config.get("run"), part=part, history=checksum)
    (run.folder / f"{part}.checkpoint").unlink(missing_ok=True)
    return denoiser
