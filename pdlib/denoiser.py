"""The denoiser: a callable (z, t) -> x̂, the one interface that everything else turns on.

A trained network, a closed-form denoiser (:mod:`pdlib.exact`), a distilled student or a model of
another library are all it. The sampler and the distillation target also read its ``schedule``.
What changes a denoiser is a denoiser that wraps one: :class:`Confined`, :class:`Guided`, :class:`OfClasses`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pdlib.files import DamagedFileError, named, read_json, read_tensors, tensors_digest, write_json, write_tensors
from pdlib.grids import Grid
from pdlib.networks import NETWORKS, network_from_config
from pdlib.predictions import PREDICTIONS, output_channels, x_from_output
from pdlib.schedules import Schedule, schedule_from_config

__all__ = ["Confined", "Denoiser", "DenoiserLike", "Guided", "OfClasses", "Wrapper", "jump"]


class DenoiserLike(Protocol):
    """What the sampler, the target and the metrics ask of a denoiser.

    One that was made for a grid says so: ``grid``, a :class:`pdlib.grids.Grid`.
    """

    schedule: Schedule

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """x̂, of z's shape, for z of shape (batch, …) at times t of shape (batch,) in [0, 1]."""
        ...


def jump(denoiser: DenoiserLike, z: Tensor, t: Tensor, s: Tensor | None) -> Tensor:
    """The x̂ with which a DDIM step goes from t to s: of a flow map, which takes both times, for that very s."""
    return denoiser(z, t, s=s) if getattr(denoiser, "two_times", False) else denoiser(z, t)


class Denoiser(nn.Module):
    """A network together with what its output means and what it was made for.

    Args:
        network: any module that maps (z, time) to an output, time being (2/π) arctan(exp(−λ/2)) in [0, 1], and a third
            argument, the labels, where it is class-conditional; one that is to be saved, or to change its prediction,
            is a :class:`pdlib.networks.Network`.
        prediction: one of :data:`pdlib.predictions.PREDICTIONS`.
        schedule: gives α_t and σ_t.
        grid: the sampling steps that it was made for, if any.
        shape: that of one example, such as (1, 8, 8), where it is known.
        sampler: the kind of steps that it was made for, of :data:`pdlib.sampling.SAMPLERS`.

    Raises:
        ValueError: for an unknown prediction.
        PredictionError: when called at α_t = 0 with an ``"eps"`` network.
    """

    def __init__(
        self,
        network: nn.Module,
        prediction: str,
        schedule: Schedule,
        grid: Grid | None = None,
        shape: tuple[int, ...] | None = None,
        sampler: str = "ddim",
    ):
        super().__init__()
        named("prediction", prediction, PREDICTIONS)
        self.network, self.prediction, self.schedule = network, prediction, schedule
        self.grid, self.shape, self.sampler = grid, None if shape is None else tuple(shape), sampler

    @property
    def classes(self) -> int | None:
        """How many classes its network tells apart, one for "of no class" counted; ``None`` where it knows of none."""
        return getattr(self.network, "classes", None)

    @property
    def two_times(self) -> bool:
        """Whether it is a flow map: its x̂ is for a DDIM step to a second time, s, that it is told."""
        return getattr(self.network, "two_times", False)

    def output(self, z: Tensor, t: Tensor, *labels: Tensor, s: Tensor | None = None) -> Tensor:
        """The network's own output, before it is turned into x̂."""
        ends = (t if s is None else s,) if self.two_times else ()
        times = (self.schedule.angle(time) * (2 / math.pi) for time in (t, *ends))
        return self.network(z, *times, *labels)

    def forward(self, z: Tensor, t: Tensor, *labels: Tensor, s: Tensor | None = None) -> Tensor:
        """x̂, of z's shape.

        z: (batch, …); t: (batch,) in [0, 1]; labels of a class-conditional one: (batch,), int64; s of a flow map, see
        :func:`jump`: (batch,), s ≤ t, by default t itself, where x̂ is a denoiser's.
        """
        return x_from_output(self.prediction, self.output(z, t, *labels, s=s), z, *self.schedule.alpha_sigma(t))

    def student(
        self,
        prediction: str | None = None,
        grid: Grid | None = None,
        seed: int = 0,
        sampler: str = "ddim",
        **network: Any,
    ) -> Denoiser:
        """A copy to be trained, θ ← η: by default of the same prediction, made for the same grid.

        Where another prediction needs another number of output channels, the layers that change their size are new.

        Args:
            prediction: what its output means.
            grid: the steps that it is made for.
            seed: of the weights that are new.
            sampler: the kind of those steps.
            **network: what its network's config has otherwise: ``two_times=True`` makes a flow map, in which what is
                new starts at 0, so that it is its teacher for every s (but for ``octaves`` that are stilled).

        Raises:
            ValueError: where the network would have to change its size, and cannot be built again.
        """
        prediction = prediction or self.prediction
        own = getattr(self.network, "config", {})
        change = {name: value for name, value in network.items() if value != own.get(name)}
        network = copy.deepcopy(self.network)
        if change or output_channels(prediction, 1) != output_channels(self.prediction, 1):
            purpose = f"have {change}" if change else f"predict {prediction!r} instead of {self.prediction!r}"
            config = self._network_config(purpose)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                change["out_channels"] = output_channels(prediction, config["channels"])
                fresh = network_from_config({**config, **change})
            old, new = network.state_dict(), fresh.state_dict()
            kept = {name: value for name, value in old.items() if name in new and new[name].shape == value.shape}
            fresh.load_state_dict({**new, **kept})
            device = next(network.parameters()).device
            network = fresh.to(device, memory_format=torch.channels_last)
        return Denoiser(network, prediction, self.schedule, grid or self.grid, self.shape, sampler)

    def save(self, folder: str | Path, **about: Any) -> None:
        """Write ``model.safetensors``, then ``config.json``, each atomically.

        Args:
            folder: where to.
            **about: JSON-ready entries to keep in ``config.json``, such as whose it is.

        Raises:
            ValueError: where the network cannot be built again from JSON.
        """
        folder, weights = Path(folder), self.network.state_dict()
        config = {
            **about,
            "network": self._network_config("be saved"),
            "prediction": self.prediction,
            "schedule": self.schedule.config(),
            "grid": None if self.grid is None else self.grid.config(),
            "shape": self.shape,
            "sampler": self.sampler,
            "weights": tensors_digest(weights),
        }
        write_tensors(folder / "model.safetensors", weights)
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
            grid = None if config.get("grid") is None else Grid(**config["grid"])
            schedule = schedule_from_config(config["schedule"])
            more = (config.get("shape"), config.get("sampler", "ddim"))
            denoiser = cls(network, config["prediction"], schedule, grid, *more)
            network.load_state_dict(read_tensors(folder / "model.safetensors", config.get("weights"))[0])
        except DamagedFileError:
            raise
        except FileNotFoundError as error:
            raise DamagedFileError(f"{folder} holds only half a denoiser: {error}. Delete the folder") from error
        except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError) as error:
            why = f"no entry {error}" if isinstance(error, KeyError) else shorten(str(error), 300, placeholder=" …")
            raise DamagedFileError(f"{folder} does not hold a denoiser that this version can read: {why}") from error
        return denoiser.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def _network_config(self, purpose: str) -> dict[str, Any]:
        config = getattr(self.network, "config", None)
        if not isinstance(config, dict) or config.get("name") not in NETWORKS:
            raise ValueError(
                f"a {type(self.network).__name__} cannot {purpose}: it has no config, with a name in "
                "pdlib.networks.NETWORKS, to be built again from; see pdlib.networks.Network"
            )
        return config


class Wrapper(nn.Module):
    """What a denoiser that wraps one takes over from it."""

    def __init__(self, denoiser: DenoiserLike):
        super().__init__()
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.grid, self.shape = getattr(denoiser, "grid", None), getattr(denoiser, "shape", None)
        self.classes, self.sampler = getattr(denoiser, "classes", None), getattr(denoiser, "sampler", "ddim")
        self.two_times = getattr(denoiser, "two_times", False)

    def student(self, *arguments: Any, **options: Any) -> Denoiser:
        """A student of the denoiser itself, see :meth:`Denoiser.student`: it learns from what wraps it."""
        return self.denoiser.student(*arguments, **options)


class Confined(Wrapper):
    """A denoiser whose every x̂ is confined to [−limit, limit]; images lie in [−1, 1].

    Args:
        denoiser: the denoiser.
        limit: above 0; ``None`` confines nothing.
    """

    def __init__(self, denoiser: DenoiserLike, limit: float | None):
        super().__init__(denoiser)
        self.limit = limit

    def forward(self, z: Tensor, t: Tensor, *labels: Tensor, **to: Tensor) -> Tensor:
        """x̂, of z's shape."""
        x_hat = self.denoiser(z, t, *labels, **to)
        return x_hat if self.limit is None else x_hat.clamp(-self.limit, self.limit)


class Guided(Wrapper):
    """Classifier-free guidance: x̂ = x̂_uncond + w (x̂_cond − x̂_uncond), away from what every class has in common.

    Ho & Salimans 2022, equation 6, where w here is 1 + w there. On x̂, ε̂ or v̂ it comes to the same: each is an affine
    function of the others at one z_t.

    Args:
        denoiser: a class-conditional one, (z, t, labels) -> x̂, which also knows a label for "of no class".
        weight: w; 1 for no guidance, 0 for no class.
        no_class: that label, as a rule the last.
    """

    def __init__(self, denoiser: DenoiserLike, weight: float, no_class: int):
        super().__init__(denoiser)
        self.weight, self.no_class = weight, no_class

    def forward(self, z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x̂, of z's shape. labels: (batch,), int64."""
        both = torch.cat([labels, torch.full_like(labels, self.no_class)])
        conditional, unconditional = self.denoiser(z.repeat(2, *[1] * (z.ndim - 1)), t.repeat(2), both).chunk(2)
        return unconditional + self.weight * (conditional - unconditional)


class OfClasses(Wrapper):
    """A class-conditional denoiser bound to labels: a denoiser of (z, t) like any other.

    Args:
        denoiser: (z, t, labels) -> x̂.
        classes: one label for all rows of z; or several, the k-th row's being the k-th, over and over: the labels of a
            batch, or ``range(10)`` for ten classes in turn.
    """

    def __init__(self, denoiser: DenoiserLike, classes: int | Sequence[int] | Tensor):
        super().__init__(denoiser)
        self.labels, self.classes = torch.as_tensor(classes).flatten(), None

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """x̂, of z's shape."""
        rows = torch.arange(len(z), device=z.device) % len(self.labels)
        return self.denoiser(z, t, self.labels.to(z.device)[rows])
