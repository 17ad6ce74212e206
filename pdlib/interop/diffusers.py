"""Models of the library ``diffusers``: theirs in, as denoisers; ours out, as pipelines that need no pdlib.

Its timestep i − 1 is our t = i/T: what is asked for on its own grid of T times is answered exactly.
"""

from __future__ import annotations

import inspect
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdlib.denoiser import Confined, Denoiser, DenoiserLike, OfClasses
from pdlib.files import DamagedFileError, is_hub_name, read_json
from pdlib.grids import Grid
from pdlib.interop import InteropError, one_line
from pdlib.interop.card import model_card, sampling_steps
from pdlib.interop.library import diffusers, huggingface_hub
from pdlib.interop.unet2d import UNet2D, angles
from pdlib.schedules import DiscreteSchedule

__all__ = ["Hub", "SchedulerGrid", "betas", "load", "pipeline", "read_folder", "save", "scheduler_grid"]

PREDICTION_TYPES = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
"""What diffusers calls a prediction -> what we call it."""
_SUPPORTED = (
    "pdlib reads a UNet2DModel that works on pixels, class-conditional or not, with a scheduler of betas; not latent, "
    "text-conditional or transformer models"
)
_CONVERT = (
    "convert it once, where you trust it: UNet2DModel.from_pretrained(FOLDER, use_safetensors=False)"
    ".save_pretrained(FOLDER)"
)


@dataclass(frozen=True)
class Contents:
    """What a folder of diffusers holds, as its JSON says."""

    folder: Path
    unet_folder: Path
    unet: dict[str, Any]
    scheduler: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Of one image, if it says so."""
        size = self.unet.get("sample_size")
        sizes = [size, size] if isinstance(size, int) else size
        return None if not sizes else (self.unet["in_channels"], *sizes)

    @property
    def prediction_type(self) -> str:
        """As diffusers calls it; old folders do not say, and mean ε."""
        return self.scheduler.get("prediction_type") or "epsilon"


def read_folder(place: str | Path, **hub: Any) -> Contents:
    """The configs of a pipeline's folder, of a model's folder with its scheduler's beside it, or of a hub name.

    ``hub``: ``revision``, ``token`` and the like, as ``huggingface_hub.snapshot_download`` takes them.

    Raises:
        InteropError: for what is not there, another architecture, or a config that lacks what is needed.
    """
    folder = Path(place).expanduser()
    if not folder.exists():
        folder = _downloaded(str(place), ["*.json", "README.md"], **hub)
    index = _config(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    parts = [name for name, part in index.items() if isinstance(part, list) and part[0] is not None]
    others = [name for name in parts if name not in ("unet", "scheduler")]
    if index and ("unet" not in parts or others):
        kind = index.get("_class_name", "pipeline")
        raise InteropError(f"{place} holds a {kind} of {', '.join(parts) or 'nothing'}: {_SUPPORTED}")
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    unet = _config(unet_folder / "config.json")
    if unet.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise InteropError(f"{place} holds a {unet['_class_name']}: {_SUPPORTED}")
    needed = ("in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types")
    _require(unet_folder / "config.json", unet, needed)
    places = [folder / "scheduler", folder, folder.parent / "scheduler"]
    found = [path / "scheduler_config.json" for path in places if (path / "scheduler_config.json").is_file()]
    if not found:
        raise InteropError(
            f"{place} holds a UNet2DModel without a scheduler, so that its noise schedule is not known: give the "
            "pipeline's folder, or put a scheduler_config.json beside its config.json"
        )
    scheduler = _config(found[0])
    given = ("trained_betas",) if scheduler.get("trained_betas") is not None else ("beta_schedule",)
    if "beta_schedule" not in scheduler and "trained_betas" not in scheduler and "num_train_timesteps" in scheduler:
        raise InteropError(f"{found[0]} holds a {scheduler.get('_class_name')}, which has no betas: {_SUPPORTED}")
    _require(found[0], scheduler, ("num_train_timesteps", *given))
    contents = Contents(folder, unet_folder, unet, scheduler)
    if contents.prediction_type not in PREDICTION_TYPES:
        known = ", ".join(PREDICTION_TYPES)
        raise InteropError(f"{found[0]}: prediction_type={contents.prediction_type!r}: pdlib reads {known}")
    if unet.get("time_embedding_type", "positional") != "positional" or unet.get("class_embed_type"):
        kinds = (
            f"time_embedding_type={unet.get('time_embedding_type')}, class_embed_type={unet.get('class_embed_type')}"
        )
        raise InteropError(f"{place}: {kinds}: pdlib reads positional times and plain class numbers")
    if unet["in_channels"] != unet["out_channels"]:
        raise InteropError(
            f"{place}: {unet['out_channels']} channels out of {unet['in_channels']}: learned variances are not read"
        )
    return contents


def load(place: str | Path, device: torch.device | str = "cpu", **hub: Any) -> Denoiser:
    """A model that diffusers wrote, as a denoiser on its own schedule, ready for sampling.

    Args:
        place: a pipeline's folder; a model's, with its scheduler's beside it; or a name on the hub (owner/name), of
            which the configs and safetensors files are downloaded into the hub's own cache.
        device: where to.
        **hub: as in :func:`read_folder`.

    Returns:
        The denoiser, made for no grid unless its model card says for how many steps. A class-conditional one takes
        labels, see :class:`pdlib.denoiser.OfClasses`. Clipping is the sampler's: see :class:`pdlib.denoiser.Confined`.

    Raises:
        InteropError: as in :func:`read_folder`, and for weights that are pickled, damaged, or do not fit.
    """
    contents = read_folder(place, **hub)
    schedule = _schedule(contents)
    if not Path(place).expanduser().exists():  # only now that it can be read
        folder = _downloaded(str(place), ["*.safetensors"], **hub)
        if not any(folder.rglob("*.safetensors")):
            raise InteropError(f"{place} has no safetensors, and a pickle (.bin) can run code when opened: {_CONVERT}")
    unet = _unet(contents)
    takes = inspect.signature(diffusers.UNet2DModel.__init__).parameters  # more lies there, such as an average's decay
    config = {name: value for name, value in _jsonable(unet.config).items() if name in takes}
    channels, _ = config.pop("in_channels"), config.pop("out_channels")
    network = UNet2D(channels, None, config, angles(schedule, schedule.T))
    network.unet.load_state_dict(unet.state_dict())
    prediction = PREDICTION_TYPES[contents.prediction_type]
    steps = sampling_steps(contents.folder / "README.md")
    denoiser = Denoiser(network, prediction, schedule, None if steps is None else Grid(steps), contents.shape)
    return denoiser.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def alpha_bar(scheduler: Mapping[str, Any]) -> Tensor:
    """ᾱ of a scheduler's config at its timesteps 0 … T − 1, float64, shape (T,): as diffusers computes it, in float32.

    Raises:
        ValueError: for an unknown beta schedule, or betas that do not fit ``num_train_timesteps``.
    """
    try:
        found = diffusers.DDPMScheduler.from_config(dict(scheduler)).alphas_cumprod.double()
    except (NotImplementedError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise InteropError(f"its scheduler has no betas that diffusers knows: {one_line(error)}") from error
    if len(found) != scheduler["num_train_timesteps"]:
        raise InteropError(
            f"its scheduler has {len(found)} trained_betas and num_train_timesteps={scheduler['num_train_timesteps']}: "
            "they must be as many"
        )
    return found


def _schedule(contents: Contents) -> DiscreteSchedule:
    try:
        return DiscreteSchedule(alpha_bar(contents.scheduler))
    except ValueError as error:
        raise InteropError(f"{contents.folder}: {error}") from error


def _unet(contents: Contents) -> diffusers.UNet2DModel:
    folder = contents.unet_folder
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        if pickles:
            raise InteropError(f"{folder} holds {pickles[0]}, a pickle, which can run code when opened: {_CONVERT}")
        raise InteropError(f"{folder} holds no weights: there is no diffusion_pytorch_model.safetensors in it")
    logging = diffusers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what is amiss is said below
    options = {"use_safetensors": True, "low_cpu_mem_usage": False, "output_loading_info": True}
    try:
        unet, about = diffusers.UNet2DModel.from_pretrained(str(folder), local_files_only=True, **options)
    except Exception as error:  # the libraries raise many kinds
        raise InteropError(
            f"{folder}: its weights cannot be read, or do not fit its config: {one_line(error)}"
        ) from error
    finally:
        logging.set_verbosity(level)
    wrong = {name: about[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if about.get(name)}
    if wrong:
        kind, names = next(iter(wrong.items()))
        raise InteropError(
            f"{folder}: its weights do not fit its config: {kind.replace('_', ' ')} {sorted(names)[0]}, …"
        )
    return unet


@dataclass(frozen=True)
class SchedulerGrid(Grid):
    """The times through which a scheduler of diffusers samples, as it spaces them: for :func:`pdlib.sampling.sample`.

    With ``leading`` spacing the highest is not t = 1. Where N does not divide T, it steps down to other times than it
    asks the network at next.
    """

    pairs: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    """(t, s), from the top."""

    @property
    def times(self) -> Tensor:
        """Rising, float64, shape (N,)."""
        return torch.tensor(sorted(t for t, _ in self.pairs), dtype=torch.float64)

    def walk(self, count: int, device: torch.device | str | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The pairs (t, s), each of shape (count,), float64."""
        for pair in self.pairs:
            t, s = (torch.full((count,), time, dtype=torch.float64, device=device) for time in pair)
            yield t, s


def scheduler_grid(scheduler: Mapping[str, Any], steps: int) -> SchedulerGrid:
    """The grid of diffusers' DDIM sampler with a scheduler's config, in so many steps.

    Raises:
        InteropError: for more steps than it has timesteps, or an unknown spacing.
    """
    ddim = diffusers.DDIMScheduler.from_config({**scheduler, "beta_schedule": "linear", "trained_betas": None})
    T, last = ddim.config.num_train_timesteps, 0.0 if ddim.config.set_alpha_to_one else 1.0
    try:
        ddim.set_timesteps(steps)
    except ValueError as error:
        raise InteropError(f"steps={steps}: {one_line(error)}") from error
    pairs = [(i + 1, i + 1 - T // steps) for i in ddim.timesteps.tolist()]
    return SchedulerGrid(steps, pairs=tuple((t / T, (s if s > 0 else last) / T) for t, s in pairs))


def as_its_scheduler_samples(place: str | Path, denoiser: Denoiser, steps: int) -> tuple[DenoiserLike, SchedulerGrid]:
    """A loaded denoiser and the grid, as the folder's own scheduler has its DDIM sampler spaced and clipped.

    With clipping, ε̂ is taken from the clipped x̂: diffusers' ``use_clipped_model_output=True``. Dynamic thresholding
    is left out.
    """
    scheduler = read_folder(place).scheduler
    limit = scheduler.get("clip_sample_range", 1.0) if scheduler.get("clip_sample", True) else None
    return Confined(denoiser, limit), scheduler_grid(scheduler, steps)


def pipeline(student: Denoiser | OfClasses) -> diffusers.DDIMPipeline:
    """A ``DDIMPipeline`` that samples as the student does: same noise, same images, and no pdlib.

    Args:
        student: made for a grid; its network a :class:`UNet2D`, asked at its own timesteps alone: what descends from a
            model of diffusers on its own schedule, or what was trained with ``network=unet2d``. One bound to a single
            class becomes an unconditional model.

    Raises:
        InteropError: for one that has no such pipeline; the message says why.
    """
    label = None
    if isinstance(student, OfClasses):
        if len(student.labels) > 1:
            raise InteropError(f"bound to {len(student.labels)} classes: bind it to one, or save it unbound")
        student, label = student.denoiser, student.labels.item()
    network, schedule = getattr(student, "network", None), student.schedule
    if not isinstance(network, UNet2D):
        what = type(student if network is None else network).__name__
        raise InteropError(f"a {what} has no counterpart in diffusers: train with network=unet2d, or distil it first")
    names = {ours: theirs for theirs, ours in PREDICTION_TYPES.items()}
    if student.prediction not in names:
        raise InteropError(f"prediction={student.prediction!r} has no counterpart in diffusers: use {', '.join(names)}")
    if student.sampler != "ddim":
        raise InteropError(f"it samples by {student.sampler} steps, which a DDIMPipeline does not make: use to_onnx")
    if student.grid is None or student.grid.missing or student.shape is None:
        raise InteropError(
            f"its grid is {student.grid} and its shape {student.shape}: both must be known, t = 1 included"
        )
    T = schedule.T if isinstance(schedule, DiscreteSchedule) else len(network.config["times"])
    t = torch.arange(T + 1, dtype=torch.float64) / T
    steps, (alpha, sigma) = student.grid.N, schedule.alpha_sigma(t)
    if T % steps:
        raise InteropError(f"its {T} times are no multiple of its {steps} steps, as diffusers' sampler needs it")
    timesteps = network.timestep(schedule.angle(t[1:]) * (2 / math.pi)).cpu()
    shift = round(timesteps[0].item())
    if sigma[0] > 0 or (timesteps - shift - torch.arange(T)).abs().max() > 1e-3:
        raise InteropError(
            f"its network is asked between its own timesteps, on {schedule}, and diffusers asks at whole ones alone: "
            "distil with schedule=teacher"
        )
    unet = _exported(network, shift, label, student.shape[1:])
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=T,
        trained_betas=betas(alpha[1:] ** 2),
        prediction_type=names[student.prediction],
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
    )
    return diffusers.DDIMPipeline(unet, scheduler)


def betas(alpha_bar: Tensor) -> list[float]:
    """The float32 β whose product of 1 − β is nearest to given ᾱ, shape (T,).

    β_i = 1 − ᾱ_i/ᾱ_{i−1}, with the product so far in place of ᾱ_{i−1}: so no rounding accumulates.
    """
    found, product = [], 1.0
    for wanted in alpha_bar.tolist():
        beta = torch.tensor(1 - wanted / product if product > 0 else 1.0, dtype=torch.float32)
        product *= (1 - beta).item()
        found.append(beta.item())
    return found


def _exported(network: UNet2D, shift: int, label: int | None, size: tuple[int, ...]) -> diffusers.UNet2DModel:
    """A copy of the network whose timestep 0 is the network's ``shift``, bound to a class if there is one."""
    weights = {name: value.cpu().clone() for name, value in network.unet.state_dict().items()}
    config = {**network.config["unet"], "sample_size": size[0] if len({*size}) == 1 else list(size)}
    config |= {"in_channels": network.config["channels"], "out_channels": network.config["out_channels"]}
    if shift:
        # The embedding is of cos(f i) and sin(f i): that of i + shift is a rotation of it, which the layer after takes.
        first = "time_embedding.linear_1.weight"
        turned = network.unet.time_proj(torch.tensor([float(shift)])).double().cpu()[0]
        flipped = network.unet.config.flip_sin_to_cos
        (cos, sin), (of_cos, of_sin) = (
            part.chunk(2, -1)[:: 1 if flipped else -1] for part in (turned, weights[first].double())
        )
        both = (of_cos * cos + of_sin * sin, of_sin * cos - of_cos * sin)
        weights[first] = torch.cat(both[:: 1 if flipped else -1], 1).float()
    if label is not None:
        embedding = weights.pop("class_embedding.weight")  # added to what comes out of this layer
        weights["time_embedding.linear_2.bias"] += embedding[label]
        config["num_class_embeds"] = None
    unet = diffusers.UNet2DModel(**config).eval()
    unet.load_state_dict(weights)
    return unet


def save(student: Denoiser | OfClasses, folder: str | Path, **about: Any) -> None:
    """Write a folder that ``diffusers.DDIMPipeline.from_pretrained(folder)`` opens, with a model card, all or nothing.

    Args:
        student: as in :func:`pipeline`.
        folder: a new one, or an empty one.
        **about: for the card, see :func:`pdlib.interop.card.model_card`.

    Raises:
        InteropError: where it has no such pipeline, or the folder holds something.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InteropError(f"{folder} is there already: give a new folder; nothing was written")
    made = pipeline(student)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as home:
        made.save_pretrained(home, safe_serialization=True)
        bound = student.denoiser if isinstance(student, OfClasses) else student
        card = model_card(made, bound.grid.N, **{"name": folder.name, **about})
        (Path(home) / "README.md").write_text(card, encoding="utf-8")
        os.chmod(home, 0o755)
        with suppress(FileNotFoundError):
            folder.rmdir()
        os.replace(home, folder)
        Path(home).mkdir()  # for its end


class Hub(huggingface_hub.ModelHubMixin, library_name="diffusers"):
    """A denoiser on the hub: ``Hub(student).push_to_hub("you/name")``, ``Hub.from_pretrained("you/name").denoiser``.

    Args:
        denoiser: as in :func:`pipeline`, to be pushed.
        about: for the card, see :func:`save`.
    """

    def __init__(self, denoiser: Denoiser | OfClasses, about: dict[str, Any] | None = None):
        self.denoiser, self.about = denoiser, about or {}
        self._hub_mixin_config = None  # the mixin would write what is in the card already

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """As the mixin's, which see for ``options``; the card calls it by this name."""
        self.about = {"name": repo_id, **self.about}
        return super().push_to_hub(repo_id, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        save(self.denoiser, save_directory, **self.about)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Hub:
        known = ("revision", "cache_dir", "token", "local_files_only", "force_download")
        return cls(load(model_id, **{name: options[name] for name in known if options.get(name) is not None}))


def _downloaded(name: str, patterns: list[str], **hub: Any) -> Path:
    """Some files of a model on the hub, in the hub's cache."""
    if not is_hub_name(name):
        raise InteropError(f"{name} does not exist: give a folder, or a name on the hub (owner/name)")
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, **hub))
    except Exception as error:  # no network, no such name, no right to it: each of its own kind
        raise InteropError(
            f"{name} is no folder here, and as a name on the hub it could not be had: {one_line(error)}; check the "
            "name and the network, or download it where there is one"
        ) from error


def _config(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, "Write it again, or download it anew.")
    except (OSError, DamagedFileError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise InteropError(f"{path.parent} holds no {path.name}" if missing else str(error)) from error


def _require(path: Path, config: dict[str, Any], names: tuple[str, ...]) -> None:
    missing = [name for name in names if config.get(name) is None]
    if missing:
        raise InteropError(f"{path} does not say its {', '.join(missing)}: write it with diffusers' save_pretrained")


def _jsonable(config: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
