"""The networks of a run: given, or trained one after the other, each written when it is finished."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pdlib.data import Data
from pdlib.denoiser import Confined, Denoiser, DenoiserLike
from pdlib.distillation import METHODS, convert, progressive_distillation
from pdlib.files import digest, read_tensors, tensors_digest, write_bytes, write_tensors
from pdlib.grids import Grid
from pdlib.networks import MLP, UNet
from pdlib.objectives import Clean, Objective
from pdlib.predictions import output_channels
from pdlib.runs.settings import Settings, SettingsError
from pdlib.training import Session, Trained, fit

if TYPE_CHECKING:
    from pdlib.runs.run import Run

__all__ = ["given_teacher", "network_digest", "new_denoiser", "train_chain", "try_network"]


def new_denoiser(settings: Settings, data: Data) -> Denoiser:
    """The untrained network that the settings ask for, its weights drawn from the settings' seed."""
    s, channels = settings, data.shape[0]
    out_channels = output_channels(s.prediction, channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        if data.is_image:
            network: torch.nn.Module = UNet(
                channels, out_channels, s.width, s.multipliers, s.blocks, s.attention, s.heads, s.dropout
            )
        else:
            network = MLP(channels, out_channels, s.mlp_width)
    denoiser = Denoiser(network, s.prediction, s.noise_schedule, Grid(s.steps, s.missing), data.shape)
    return denoiser.to(s.device, memory_format=torch.channels_last)


def given_teacher(run: Run) -> Denoiser | None:
    """The teacher that the settings name, with the run's own schedule; none where it is trained, or gone since."""
    settings = run.settings
    if settings.teacher is None or not (Path(settings.teacher).exists() or "teacher" in run.missing):
        return None
    given = Denoiser.load(settings.teacher, settings.device)
    if given.prediction != settings.prediction:
        raise SettingsError(
            f"prediction={settings.prediction!r}, but the teacher in {settings.teacher} predicts {given.prediction!r}: "
            f"use prediction={given.prediction}"
        )
    if given.network.config["channels"] != run.data.shape[0]:
        raise SettingsError(
            f"teacher={settings.teacher!r} takes examples of {given.network.config['channels']} channels, and "
            f"data={settings.data!r} has {run.data.shape[0]}: give the data that it was trained on"
        )
    if run.config.get("teacher") not in (None, network_digest(given)):
        raise SettingsError(
            f"teacher={settings.teacher!r} has changed: folder={run.folder} was made with another; restore it, or "
            "choose another folder; nothing was written"
        )
    grid = Grid(settings.steps, settings.missing)
    return Denoiser(given.network, given.prediction, settings.noise_schedule, grid, run.data.shape)


def network_digest(denoiser: Denoiser) -> str:
    """What tells one network from another: how it is built, and its weights."""
    return digest([denoiser.network.config, denoiser.network.state_dict()])


def try_network(run: Run, denoiser: Denoiser) -> None:
    """Refuse data that the network does not take."""
    x = run.data.x[:2].to(run.settings.device)
    try:
        with torch.no_grad():
            denoiser(x, torch.full((2,), 0.5, device=x.device))
    except (ValueError, RuntimeError) as error:
        raise SettingsError(
            f"data={run.settings.data!r} does not fit the network: {str(error).splitlines()[0]}; resize the images, or "
            "change multipliers, width or heads"
        ) from error


def train_chain(run: Run, given: Denoiser | None, session: Session) -> dict[str, Denoiser]:
    """Every network by the name of its folder: opened where it is there, trained where it is missing."""
    s = run.settings
    x = run.data.x.to(s.device)
    models = {}

    def objective(teacher: DenoiserLike, grid: Grid) -> Objective:
        target = METHODS[s.method](teacher if s.clip_x is None else Confined(teacher, s.clip_x), grid)
        return Objective(target, grid, s.loss_weighting)

    for part in run.parts:
        label = replace(session, label=part)
        if part not in run.missing:
            models[part] = run.open(part)
        elif part == "teacher" and given is not None:
            models[part] = _keep_given(run, given)
        elif part == "teacher":
            times = Grid(s.steps, s.missing) if s.discrete_teacher else None
            clean = Objective(Clean(), times, s.loss_weighting)
            models[part] = _keep(run, part, fit(new_denoiser(s, run.data), clean, x, s.teacher_training, label))
        elif part == "converted":
            parent = Confined(models["teacher"], s.clip_x or run.data.x.abs().max().item())
            training = replace(s.teacher_training, updates=s.convert_updates)
            trained = convert(parent, s.student_prediction, x, training, s.loss_weighting, label)
            models[part] = _keep(run, part, trained)
        else:
            before = list(models.values())[-1]
            (stage,) = progressive_distillation(
                before,
                x,
                before.grid.halved().N,
                s.stage_training,
                objective=objective,
                prediction=s.student_prediction,
                session=session,
            )
            models[part] = _keep(run, part, stage.trained)
    return models


def _keep(run: Run, part: str, trained: Trained) -> Denoiser:
    """Write a finished network, its config.json last, and only then drop its checkpoint."""
    tensors = {"losses": trained.losses, "gradient_norms": trained.gradient_norms}
    about = {"seconds": trained.seconds, "updates": len(trained.losses)}
    write_tensors(run.folder / part / "training.safetensors", tensors, about)
    history = tensors_digest(tensors, about)
    trained.ema.save(run.folder / part, run=run.config.get("run"), part=part, history=history)
    (run.folder / f"{part}.checkpoint").unlink(missing_ok=True)
    return trained.ema


def _keep_given(run: Run, given: Denoiser) -> Denoiser:
    """Copy a given teacher into the run, with its history where it has one."""
    source, checksum = Path(run.settings.teacher) / "training.safetensors", None
    if source.is_file():
        checksum = tensors_digest(*read_tensors(source))
        write_bytes(run.folder / "teacher" / source.name, source.read_bytes())
    given.save(run.folder / "teacher", run=run.config.get("run"), part="teacher", history=checksum)
    return given
