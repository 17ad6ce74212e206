"""The denoiser: a callable (z, t) -> x̂, the one interface that everything else turns on.

A trained network, a closed-form denoiser (:mod:`pdlib.exact`), a distilled student or a model of
another library are all it. The sampler and the distillation target also read its ``schedule``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from pdlib.files import DamagedFileError, read_json, read_tensors, write_json, write_tensors
from pdlib.predictions import PREDICTIONS, x_from_output
from pdlib.schedules import Schedule, schedule_from_config
from pdlib.unet import network_from_config

__all__ = ["Denoiser", "DenoiserLike"]


class DenoiserLike(Protocol):
    """What the sampler, the target and the metrics ask of a denoiser."""

    schedule: Schedule

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """x̂, of z's shape, for z of shape (batch, …) at times t of shape (batch,) in [0, 1]."""
        ...


class Denoiser(nn.Module):
    """A network together with what its output means and the schedule it is used with.

    Args:
        network: maps (z, time) to an output, time being (2/π) arctan(exp(−λ/2)) in [0, 1].
        prediction: ``"x"``, ``"eps"``, ``"v"`` or ``"both"``.
        schedule: gives α_t and σ_t.

    Raises:
        ValueError: for an unknown prediction.
        PredictionError: when called at α_t = 0 with an ``"eps"`` network.
    """

    def __init__(self, network: nn.Module, prediction: str, schedule: Schedule):
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction={prediction!r} is unknown; it must be one of {', '.join(PREDICTIONS)}")
        self.network, self.prediction, self.schedule = network, prediction, schedule

    def output(self, z: Tensor, t: Tensor) -> Tensor:
        """The network's own output, before it is turned into x̂."""
        return self.network(z, self.schedule.angle(t) * (2 / math.pi))

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """x̂, of z's shape. z: (batch, …); t: (batch,) in [0, 1]."""
        return x_from_output(self.prediction, self.output(z, t), z, *self.schedule.alpha_sigma(t))

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors``, then ``config.json``, each atomically."""
        folder = Path(folder)
        write_tensors(folder / "model.safetensors", self.network.state_dict())
        config = {
            "network": self.network.config,
            "prediction": self.prediction,
            "schedule": self.schedule.config(),
        }
        write_json(folder / "config.json", config)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> Denoiser:
        """Read what :meth:`save` wrote, ready for sampling.

        Raises:
            FileNotFoundError: where the folder holds no saved denoiser.
            DamagedFileError: where a file is truncated, was changed, or does not fit the other.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no saved denoiser: there is no config.json in it")
        config = read_json(folder / "config.json")
        try:
            network = network_from_config(config["network"])
            schedule = schedule_from_config(config["schedule"])
            denoiser = cls(network, config["prediction"], schedule)
            network.load_state_dict(read_tensors(folder / "model.safetensors")[0])
        except DamagedFileError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise DamagedFileError(f"{folder} does not hold a denoiser that this version can read: {error}") from error
        return denoiser.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
