"""Training: the one update loop of teacher, conversion, every stage and every method.

The loop owns what every training needs and no objective does: optimiser, learning rate, average of the weights,
gradient clipping, progress bar, and a checkpoint from which it goes on to the same bits.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm

from pdlib.files import DamagedFileError, digest, named, read_tensors, tensors_digest, write_tensors
from pdlib.objectives import Objective, PerClass
from pdlib.processes import ProcessError, processes

__all__ = ["NotFiniteError", "Session", "Trained", "TrainingSettings", "fit"]


class NotFiniteError(FloatingPointError):
    """The loss or its gradient became NaN or infinite; training stopped before using it."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a training runs; all that decides its result besides the denoiser, the objective and the data.

    Args:
        updates: parameter updates.
        batch_size: examples per update, drawn with replacement.
        learning_rate: Adam's, at its highest.
        warmup: updates over which the learning rate rises to that.
        anneal: how it falls afterwards: ``"linear"`` or ``"cosine"`` to 0, or ``"constant"``.
        ema: decay per update of the exponential moving average of the weights; 0 for none.
        max_gradient_norm: gradients longer than this are scaled down to it.
        seed: of the generator that draws batches, times and noise.
        precision: ``"bf16"`` for matrix products and convolutions in bfloat16; weights, targets and losses are float32.
        accumulate: the parts in which a batch is worked through, where memory does not hold all of it. What is
            drawn stays the same, but for dropout.
        compile: whether the network is compiled by ``torch.compile``, which takes a minute or so first.
    """

    updates: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: int = 100
    anneal: str = "linear"
    ema: float = 0.999
    max_gradient_norm: float = 1.0
    seed: int = 0
    precision: str = "float32"
    accumulate: int = 1
    compile: bool = False

    def rate(self, update: int) -> float:
        """The learning rate at an update, counted from 0."""
        rise = min(1.0, (update + 1) / max(self.warmup, 1))
        done = update / self.updates
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done)).item())
        fall = {"linear": 1 - done, "cosine": cosine, "constant": 1.0}
        return self.learning_rate * rise * named("anneal", self.anneal, fall)


@dataclass(frozen=True)
class Session:
    """What the process that trains does beside training; nothing in it decides the result."""

    label: str = "training"
    """What the progress bar, the errors and the checkpoint call the training."""
    folder: Path | None = None
    """Where to keep a checkpoint, ``label.checkpoint``, and to go on from it; ``None`` to keep nothing."""
    checkpoint_seconds: float = 20.0
    """At most so long is lost to a kill."""
    progress: bool = True
    """Whether to show a progress bar."""
    which: str = ""
    """Which of several trainings it is, for the bar: ``"2 of 3"``."""

    @property
    def checkpoint(self) -> Path | None:
        """The file to save to and to go on from."""
        return None if self.folder is None else Path(self.folder) / f"{self.label}.checkpoint"


@dataclass(frozen=True)
class Trained:
    """What :func:`fit` returns."""

    ema: nn.Module
    """The denoiser with averaged weights, ready for sampling."""
    raw: nn.Module
    """The denoiser with the weights of the last update."""
    losses: Tensor
    """The loss before each update, shape (updates,)."""
    gradient_norms: Tensor
    """The gradient's length before clipping, shape (updates,)."""
    seconds: float
    """Time spent, over all sessions of a resumed training."""


def fit(
    denoiser: nn.Module,
    objective: Objective | PerClass,
    data: Tensor | TensorDataset,
    settings: TrainingSettings,
    session: Session = Session(),
) -> Trained:
    """Minimise an objective over batches of data, in place, and return the result.

    The same seed gives the same weights, also where a killed process is started again and goes on from its checkpoint.
    Several processes, see :mod:`pdlib.processes`, share each batch out, and give the same to float tolerance, but for
    dropout, which is each process's own.

    Args:
        denoiser: a module (z, t) -> x̂ with a schedule; its device decides where.
        objective: (denoiser, its average, batch of x, generator) -> scalar loss, see :mod:`pdlib.objectives`.
        data: clean data on that device, shape (n, …); or pairs of them and labels, see
            :class:`pdlib.objectives.PerClass`.
        settings: how to train.
        session: what to show and to keep.

    Raises:
        NotFiniteError: where the loss or its gradient is NaN or infinite; weights and checkpoint stay as before.
        DamagedFileError: for a checkpoint that is damaged, or belongs to another training.
        OSError: where the checkpoint cannot be written.
    """
    here, checkpoint = processes(), session.checkpoint
    fingerprint = {} if checkpoint is None else _fingerprint(denoiser, objective, data, settings)
    if settings.batch_size < here.count:
        raise ValueError(f"batch_size={settings.batch_size}: {here.count} processes need an example each, or fewer")
    denoiser.train().requires_grad_(True)
    if settings.compile:
        getattr(denoiser, "network", denoiser).compile()
    average, blend = copy.deepcopy(denoiser).eval(), get_ema_multi_avg_fn(settings.ema)
    parameters, averaged = list(denoiser.parameters()), list(average.parameters())
    device = parameters[0].device
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)
    generator = torch.Generator(device).manual_seed(settings.seed)
    losses, norms = torch.zeros(settings.updates), torch.zeros(settings.updates)
    state = _State(denoiser, average, optimizer, generator, losses, norms)
    # Dropout takes no generator. torch.manual_seed would queue a seed for every device that was never used.
    dropout = torch.default_generator if device.type == "cpu" else torch
    first, seconds = 0, 0.0
    if checkpoint is not None and here.agree(checkpoint.is_file):
        first, seconds = state.load(checkpoint, fingerprint)
        starts = here.gather({here.rank: (first, tensors_digest(denoiser.state_dict()) if here.count > 1 else "")})
        if len({*starts.values()}) > 1:
            raise ProcessError(f"{checkpoint} is not the same for all processes: give a folder on a disk that all see")
    started = saved = time.monotonic()
    shown = session.progress and here.first
    named = f"{session.label} ({session.which})" if session.which else session.label
    look = {"desc": named, "unit": "update", "mininterval": 0.5, "disable": not shown}
    bar = tqdm(total=settings.updates, initial=first, **look)
    with bar, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for update in range(first, settings.updates):
            dropout.manual_seed((settings.seed * 1_000_003 + update + (here.rank << 48)) % 2**63)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(update)
            batch = torch.randint(len(data), (settings.batch_size,), generator=generator, device=device)
            optimizer.zero_grad(set_to_none=True)
            now = objective.at_update(update, settings.updates) if hasattr(objective, "at_update") else objective
            value = _gradient(denoiser, average, now, data[batch], generator, settings)
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_gradient_norm)
            losses[update], norms[update] = value, norm
            if not (losses[update].isfinite() and norms[update].isfinite()):
                raise NotFiniteError(_not_finite_message(session, update, losses[update], norms[update]))
            optimizer.step()
            if update == 0:
                average.load_state_dict(denoiser.state_dict())
            else:
                blend(averaged, parameters, update)
            bar.update()
            moment = time.monotonic()
            if checkpoint is not None and here.first and moment - saved > session.checkpoint_seconds:
                bar.set_postfix(loss=f"{losses[max(0, update - 99) : update + 1].mean():.4f}")
                state.save(checkpoint, fingerprint, update + 1, seconds + moment - started)
                saved = time.monotonic()
    seconds += time.monotonic() - started
    return Trained(_frozen(average if settings.ema > 0 else denoiser), _frozen(denoiser), losses, norms, seconds)


def _gradient(
    denoiser: nn.Module,
    average: nn.Module,
    objective: Objective | PerClass,
    batch: Tensor | tuple[Tensor, Tensor],
    generator: torch.Generator,
    settings: TrainingSettings,
) -> Tensor:
    """The loss of a batch, and its gradient in the parameters: of this process's share, in parts, then added up."""
    here, bf16 = processes(), settings.precision == "bf16"
    # No cache: one filled where a target is made, without gradients, would be taken where they are needed.
    precision = partial(torch.autocast, generator.device.type, torch.bfloat16, bf16, cache_enabled=False)
    count, share = settings.batch_size, here.share(settings.batch_size)
    ends = [share.start + (share.stop - share.start) * k // settings.accumulate for k in range(settings.accumulate + 1)]
    parts = [slice(*pair) for pair in pairwise(ends) if pair[0] < pair[1]]
    if parts == [slice(0, count)]:
        with precision():
            value = objective(denoiser, average, batch, generator)
        value.backward()
        return value.detach()
    drawn, total = generator.get_state(), torch.zeros((), device=generator.device)
    for part in parts:
        generator.set_state(drawn)
        with precision():
            value = objective(denoiser, average, batch, generator, part) * ((part.stop - part.start) / count)
        value.backward()
        total += value.detach()
    here.add_up([total, *(p.grad for p in denoiser.parameters() if p.grad is not None)])
    return total


def _fingerprint(denoiser: nn.Module, objective: Objective, data: Tensor, settings: TrainingSettings) -> dict[str, str]:
    """All that decides every update, by what a person would call it."""
    usual = {"precision": "float32", "accumulate": settings.accumulate, "compile": settings.compile}
    decides = {name: value for name, value in asdict(settings).items() if usual.get(name) != value}
    return {"denoiser": digest(denoiser), "objective": digest(objective), "data": digest(data)} | {
        name: str(value) for name, value in decides.items()
    }


@dataclass
class _State:
    """Everything that the next update depends on, to and from one file."""

    denoiser: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    losses: Tensor
    norms: Tensor

    def save(self, path: Path, fingerprint: dict, update: int, seconds: float) -> None:
        tensors = {"generator": self.generator.get_state(), "losses": self.losses, "norms": self.norms}
        tensors |= {f"denoiser.{name}": value for name, value in self.denoiser.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        write_tensors(path, tensors, {"fingerprint": fingerprint, "update": update, "seconds": seconds})

    def load(self, path: Path, fingerprint: dict) -> tuple[int, float]:
        """Restore from a file; returns the update to go on with, and the seconds spent before."""
        tensors, metadata = read_tensors(path)
        there = metadata.get("fingerprint") or {}
        different = [name for name in fingerprint if there.get(name) != fingerprint[name]]
        if different:
            raise DamagedFileError(
                f"{path} belongs to a training with another {', '.join(different)}: delete it to train anew, or choose "
                "another folder"
            )

        def part(name: str) -> dict[str, Tensor]:
            return {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{name}.")}

        try:
            self.generator.set_state(tensors["generator"])
        except RuntimeError as error:
            raise DamagedFileError(
                f"{path} was made on another kind of device, whose random numbers cannot go on here ({error}): go on "
                "there, or delete it to train anew"
            ) from error
        self.denoiser.load_state_dict(part("denoiser"))
        self.average.load_state_dict(part("average"))
        parameters = list(self.denoiser.parameters())
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer").items():
            index, _, moment = name.partition(".")
            like = parameters[int(index)]
            if value.shape == like.shape:  # laid out in memory as its parameter is, which fused Adam relies on
                value = torch.empty_like(like, requires_grad=False).copy_(value)
            moments.setdefault(int(index), {})[moment] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.losses.copy_(tensors["losses"])
        self.norms.copy_(tensors["norms"])
        return metadata["update"], metadata["seconds"]


def _frozen(denoiser: nn.Module) -> nn.Module:
    return copy.deepcopy(denoiser).eval().requires_grad_(False)


def _not_finite_message(session: Session, update: int, loss: Tensor, norm: Tensor) -> str:
    checkpoint = session.checkpoint
    kept = f" The last good checkpoint is kept in {checkpoint}." if checkpoint and checkpoint.is_file() else ""
    return (
        f"{session.label}: at update {update} the loss is {loss:.4g} and its gradient's norm {norm:.4g}; training "
        f"stopped before using them.{kept} Look for NaN or very large values in the data, or lower the learning rate."
    )
