"""Training: the denoising loss, and the one update loop of teacher, conversion and every stage.

The loop owns what every training needs and no method does: optimiser, learning rate, EMA, gradient
clipping, progress bar, and a checkpoint from which it goes on to the same bits.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from pdlib.denoiser import Denoiser
from pdlib.files import DamagedFileError, read_tensors, write_tensors
from pdlib.schedules import expand, grid
from pdlib.weightings import Clipped, weight

__all__ = ["NotFiniteError", "Trained", "TrainingSettings", "denoising_loss", "fit", "weighted_loss"]

Loss = Callable[[Denoiser, Tensor, torch.Generator], Tensor]


class NotFiniteError(FloatingPointError):
    """The loss or its gradient became NaN or infinite; training stopped before using it."""


def weighted_loss(
    x_hat: Tensor, x: Tensor, denoiser: Denoiser, t: Tensor, weighting: str | Clipped, steps: int | None = None
) -> Tensor:
    """Mean over the batch of w(t) ‖x̂ − x‖², ‖·‖² being the mean over an example's entries.

    Args:
        x_hat, x: the estimate and its target, shape (batch, …).
        denoiser: whose schedule gives w.
        t: shape (batch,).
        weighting, steps: as in :func:`pdlib.weightings.weight`.
    """
    w = weight(weighting, denoiser.schedule, t, steps)
    return (w.to(x_hat) * (x_hat - x).square().flatten(1).mean(1)).mean()


def denoising_loss(
    denoiser: Denoiser,
    x: Tensor,
    generator: torch.Generator,
    weighting: str | Clipped = "truncated_snr",
    steps: int | None = None,
    skip_top: bool = False,
) -> Tensor:
    """w(t) ‖x̂(z_t) − x‖² at random times: how a teacher learns. Salimans & Ho 2022, algorithm 1.

    Args:
        denoiser: the network in training.
        x: clean data, shape (batch, …).
        generator: source of t and of the noise, on x's device.
        weighting: as in :func:`pdlib.weightings.weight`.
        steps: draw t from the grid i/N, i = 1 … N; ``None`` for continuous t in (0, 1].
        skip_top: leave t = 1 out of that grid, see :func:`random_grid_times`.
    """
    if steps is None:
        t = 1 - torch.rand(len(x), generator=generator, device=x.device, dtype=torch.float64)
    else:
        t = random_grid_times(len(x), steps, generator, skip_top)
    z, _ = diffuse(x, t, denoiser, generator)
    return weighted_loss(denoiser(z, t), x, denoiser, t, weighting, steps)


def random_grid_times(count: int, steps: int, generator: torch.Generator, skip_top: bool = False) -> Tensor:
    """t = i/N with i uniform on {1 … N}: the top time, t = 1, where sampling starts, is among them.

    ``skip_top`` draws from {1 … N − 1} instead. That is what is left of the off-by-one grid {0 … N − 1}, as
    there is nothing to learn at t = 0: a mistake that halving makes fatal, here so that it can be seen and studied.
    """
    i = torch.randint(steps - skip_top, (count,), generator=generator, device=generator.device)
    return grid(steps, generator.device)[i]


def diffuse(x: Tensor, t: Tensor, denoiser: Denoiser, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """z_t = α_t x + σ_t ε, and the ε drawn for it; both of x's shape."""
    eps = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    alpha, sigma = denoiser.schedule.alpha_sigma(t)
    return expand(alpha, x) * x + expand(sigma, x) * eps, eps


@dataclass(frozen=True)
class TrainingSettings:
    """How a training runs.

    Args:
        updates: parameter updates.
        batch_size: examples per update, drawn with replacement.
        learning_rate: Adam's, at its highest.
        warmup: updates over which the learning rate rises to that.
        anneal: how it falls afterwards: ``"linear"`` or ``"cosine"`` to 0, or ``"constant"``.
        ema: decay per update of the exponential moving average of the weights; 0 for none.
        max_gradient_norm: gradients longer than this are scaled down to it.
    """

    updates: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: int = 100
    anneal: str = "linear"
    ema: float = 0.999
    max_gradient_norm: float = 1.0

    def rate(self, update: int) -> float:
        """The learning rate at an update, counted from 0."""
        rise = min(1.0, (update + 1) / max(self.warmup, 1))
        done = update / self.updates
        fall = {
            "linear": 1 - done,
            "cosine": 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done)).item()),
            "constant": 1.0,
        }
        return self.learning_rate * rise * fall[self.anneal]


@dataclass(frozen=True)
class Trained:
    """What :func:`fit` returns."""

    ema: Denoiser
    """The denoiser with averaged weights, ready for sampling."""
    raw: Denoiser
    """The denoiser with the weights of the last update."""
    losses: Tensor
    """The loss before each update, shape (updates,)."""
    gradient_norms: Tensor
    """The gradient's length before clipping, shape (updates,)."""
    seconds: float
    """Time spent, over all sessions of a resumed training."""


def fit(
    denoiser: Denoiser,
    loss: Loss,
    data: Tensor,
    settings: TrainingSettings,
    *,
    seed: int,
    label: str = "training",
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 20.0,
    progress: bool = True,
) -> Trained:
    """Minimise ``loss`` over batches of ``data``, in place, and return the result.

    The same seed gives the same weights, also when the process is killed and started again with
    the same ``checkpoint``: all that an update depends on is in that file.

    Args:
        denoiser: the network to train; its device decides where.
        loss: (denoiser, batch of x, generator) -> scalar.
        data: clean data on that device, shape (n, …).
        settings: see :class:`TrainingSettings`.
        seed: of the generator that draws batches, times and noise.
        label: what the progress bar and the errors call this training.
        checkpoint: file to save to and to go on from; ``None`` to keep nothing.
        checkpoint_seconds: at most so long is lost to a kill.
        progress: show a progress bar.

    Raises:
        NotFiniteError: where the loss or its gradient is NaN or infinite; weights and checkpoint
            stay as they were before it.
        DamagedFileError: for a checkpoint that is damaged or belongs to other settings.
        OSError: where the checkpoint cannot be written.
    """
    network = denoiser.network.train().requires_grad_(True)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    generator = torch.Generator(data.device).manual_seed(seed)
    losses, norms = torch.zeros(settings.updates), torch.zeros(settings.updates)
    state = _State(network, average, optimizer, generator, losses, norms)
    fingerprint = {"label": label, "seed": seed, **asdict(settings)}
    first, seconds = 0, 0.0
    if checkpoint is not None and checkpoint.is_file():
        first, seconds = state.load(checkpoint, fingerprint)
    started = saved = time.monotonic()
    with (
        torch.random.fork_rng(devices=[data.device] if data.is_cuda else []),
        tqdm(
            total=settings.updates, initial=first, desc=label, unit="update", disable=not progress, mininterval=0.5
        ) as bar,
    ):
        for update in range(first, settings.updates):
            torch.manual_seed((seed * 1_000_003 + update) % 2**63)  # of dropout, which takes no generator
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(update)
            batch = torch.randint(len(data), (settings.batch_size,), generator=generator, device=data.device)
            optimizer.zero_grad(set_to_none=True)
            value = loss(denoiser, data[batch], generator)
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_gradient_norm)
            losses[update], norms[update] = value.detach(), norm
            if not (losses[update].isfinite() and norms[update].isfinite()):
                raise NotFiniteError(_not_finite_message(label, update, losses[update], norms[update], checkpoint))
            optimizer.step()
            average.update_parameters(network)
            bar.update()
            now = time.monotonic()
            if checkpoint is not None and now - saved > checkpoint_seconds:
                bar.set_postfix(loss=f"{losses[max(0, update - 99) : update + 1].mean():.4f}")
                state.save(checkpoint, fingerprint, update + 1, seconds + now - started)
                saved = time.monotonic()
    seconds += time.monotonic() - started
    averaged = average.module if settings.ema > 0 else network
    return Trained(_frozen(denoiser, averaged), _frozen(denoiser, network), losses, norms, seconds)


@dataclass
class _State:
    """Everything that the next update depends on, to and from one file."""

    network: torch.nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    losses: Tensor
    norms: Tensor

    def save(self, path: Path, fingerprint: dict, update: int, seconds: float) -> None:
        tensors = {"generator": self.generator.get_state(), "losses": self.losses, "norms": self.norms}
        tensors |= {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        write_tensors(path, tensors, {"fingerprint": fingerprint, "update": update, "seconds": seconds})

    def load(self, path: Path, fingerprint: dict) -> tuple[int, float]:
        """Restore from a file; returns the update to go on with, and the seconds spent before."""
        tensors, metadata = read_tensors(path)
        if metadata.get("fingerprint") != fingerprint:
            raise DamagedFileError(
                f"{path} belongs to a training with other settings: delete it to train anew, or choose another folder"
            )
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            if rest:
                parts[part][rest] = value
        self.network.load_state_dict(parts["network"])
        self.average.load_state_dict(parts["average"])
        parameters = list(self.network.parameters())
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, _, moment = name.partition(".")
            like = parameters[int(index)]
            if value.shape == like.shape:  # laid out in memory as its parameter is, which fused Adam relies on
                value = torch.empty_like(like, requires_grad=False).copy_(value)
            moments.setdefault(int(index), {})[moment] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.generator.set_state(tensors["generator"])
        self.losses.copy_(tensors["losses"])
        self.norms.copy_(tensors["norms"])
        return metadata["update"], metadata["seconds"]


def _frozen(denoiser: Denoiser, network: torch.nn.Module) -> Denoiser:
    network = copy.deepcopy(network).eval().requires_grad_(False)
    return Denoiser(network, denoiser.prediction, denoiser.schedule)


def _not_finite_message(label: str, update: int, loss: Tensor, norm: Tensor, checkpoint: Path | None) -> str:
    kept = f" The last good checkpoint is kept in {checkpoint}." if checkpoint and checkpoint.is_file() else ""
    return (
        f"{label}: at update {update} the loss is {loss:.4g} and its gradient's norm {norm:.4g}; training stopped "
        f"before using them.{kept} Look for NaN or very large values in the data, or lower the learning rate."
    )
