"""A run and its report: teacher, chain of students, evaluation, and a page that shows them.

A run is a folder. Everything in it is written when it is finished, and what is there is not
computed again, so that a run stopped at any moment goes on when it is started again:

    config.json                     the settings
    teacher/, student-32/, …        config.json and model.safetensors, and training.safetensors
    converted/                      the same, of a teacher converted to another prediction
    *.checkpoint                    of the training that is under way
    metrics.json                    every figure; see :func:`evaluate` for its fields
    report.ipynb, report.html       the executed notebook, and the page
    report.png                      its first two figures side by side
"""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pdlib import plots
from pdlib.data import Data, DataError, load_data
from pdlib.denoiser import Denoiser
from pdlib.distillation import Finding, convert, diagnose, progressive_distillation
from pdlib.files import DamagedFileError, lock_folder, read_json, read_tensors, write_bytes, write_json, write_tensors
from pdlib.metrics import feature_network, jackknife_error, measure, sampling_floor
from pdlib.predictions import output_channels
from pdlib.sampling import sample, sample_batches
from pdlib.schedules import grid
from pdlib.settings import Settings, SettingsError, make_settings, notebook_parameters, settings_to_json
from pdlib.training import Trained, denoising_loss, fit
from pdlib.unet import MLP, UNet

__all__ = [
    "Run",
    "claim",
    "default_folder",
    "diagnose_run",
    "evaluate",
    "execute",
    "from_notebook",
    "load_run",
    "mean_by_steps",
    "new_denoiser",
    "run",
    "runs_folder",
    "sweep",
    "write_report",
]


def runs_folder() -> Path:
    """``runs/`` here, or in the folder above where only that is there, as for a notebook in ``notebooks/``."""
    here, above = Path("runs"), Path("..") / "runs"
    return above if above.is_dir() and not here.is_dir() else here


def default_folder(preset: str = "default", **overrides: Any) -> Path:
    """:func:`runs_folder`, and then the preset's name and the overridden settings."""
    parts = [preset, *(f"{key}={value}" for key, value in sorted(overrides.items()))]
    return runs_folder() / "-".join(parts).replace(os.sep, "_")


@dataclass(frozen=True)
class Run:
    """A run's folder, opened: what is finished in it can be read."""

    folder: Path
    settings: Settings

    @property
    def finished(self) -> bool:
        """Whether every figure has been computed."""
        path = self.folder / "metrics.json"
        return path.is_file() and self.metrics.get("complete", False)

    @property
    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds."""
        return read_json(self.folder / "metrics.json")

    @cached_property
    def data(self) -> Data:
        """The data of the run, loaded, and checked against the network."""
        data = load_data(self.settings.data)
        multiple = 2 ** (len(self.settings.multipliers) - 1)
        if data.is_image and (data.shape[1] % multiple or data.shape[2] % multiple):
            raise DataError(
                f"data={self.settings.data!r} has images of {data.shape[1]}×{data.shape[2]}; with multipliers="
                f"{self.settings.multipliers} height and width must divide by {multiple}: resize the images, or use "
                "fewer multipliers"
            )
        return data

    def part(self, steps: int) -> Path:
        """The folder of the student with so many steps; at N = settings.steps of where the chain starts.

        That is the teacher, converted if the settings ask for it.
        """
        start = "converted" if self.settings.convert_updates else "teacher"
        return self.folder / (start if steps == self.settings.steps else f"student-{steps}")

    def denoiser(self, steps: int) -> Denoiser:
        """The network for so many steps, see :meth:`part`, loaded."""
        return Denoiser.load(self.part(steps), self.settings.device)

    @property
    def teacher(self) -> Denoiser:
        """The teacher as it was trained, or given, loaded."""
        return Denoiser.load(self.folder / "teacher", self.settings.device)

    @property
    def parts(self) -> list[str]:
        """The names of the folders of all its networks, in the order of their training."""
        students = [self.part(steps).name for steps in self.settings.evaluated_steps]
        return list(dict.fromkeys(["teacher", *students]))

    def history(self, part: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Losses and gradient norms by update of one of :attr:`parts`; and its seconds and updates.

        Empty for a teacher that came without them.
        """
        path = self.folder / part / "training.safetensors"
        if not path.is_file() and part == "teacher" and self.settings.teacher is not None:
            return {"losses": torch.zeros(0), "gradient_norms": torch.zeros(0)}, {"seconds": 0.0, "updates": 0}
        return read_tensors(path)

    def sample(self, steps: int, noise: Tensor) -> Iterator[Tensor]:
        """The walk of the network for so many steps from given noise, see :func:`pdlib.sampling.sample`."""
        return sample(self.denoiser(steps), steps, noise, skip_top=self.settings.skip_top)

    def same_noise(self, count: int) -> tuple[dict[str, Tensor], Tensor]:
        """One set of noises through the teacher and every student: samples by network, and the noises."""
        generator = torch.Generator(self.settings.device).manual_seed(self.settings.seed)
        noise = torch.randn(count, *self.data.shape, generator=generator, device=generator.device)
        rows = {}
        for n in self.settings.evaluated_steps:
            label = f"{n} steps ({self.part(n).name})" if n == self.settings.steps else _steps(n)
            *_, rows[label] = self.sample(n, noise)
        return rows, noise


def new_denoiser(settings: Settings, data: Data) -> Denoiser:
    """The untrained network that the settings ask for, its weights drawn from the settings' seed."""
    channels = data.shape[0]
    out_channels = output_channels(settings.prediction, channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if data.is_image:
            network: nn.Module = UNet(
                channels, out_channels, settings.width, settings.multipliers, settings.blocks, settings.attention
            )
        else:
            network = MLP(channels, out_channels, 4 * settings.width)
    denoiser = Denoiser(network, settings.prediction, settings.noise_schedule)
    return denoiser.to(settings.device, memory_format=torch.channels_last)


def execute(
    preset: str = "default",
    folder: str | Path | None = None,
    *,
    progress: bool = True,
    checkpoint_seconds: float = 20.0,
    **overrides: Any,
) -> Run:
    """Train the teacher and every student and evaluate them, or go on where an earlier call stopped.

    Args:
        preset: one of :data:`pdlib.settings.PRESETS`.
        folder: where the run lives; by default :func:`default_folder`.
        progress: show progress bars.
        checkpoint_seconds: at most so much work is lost when the process is killed.
        **overrides: any of :class:`pdlib.settings.Settings` by name.

    Returns:
        The finished run. If it was finished already, nothing is computed.

    Raises:
        SettingsError: for settings that are unknown or not allowed, or that differ from those of
            the run that the folder holds. Nothing is written then.
        DataError: where the data cannot be used.
        DamagedFileError: where a file of the run is damaged.
        BlockingIOError: where another run is at work in the folder.
        NotFiniteError: where a loss becomes NaN.
        OSError: where the disk is full.
    """
    chosen = Path(folder) if folder else default_folder(preset, **overrides)
    return _finish(_new_run(chosen, make_settings(preset, **overrides)), progress, checkpoint_seconds)


def _new_run(folder: Path, settings: Settings) -> Run:
    """A run with the path of a given teacher taken from its own folder, so that it is the same from everywhere."""
    if settings.teacher is not None:
        settings = replace(settings, teacher=Path(os.path.relpath(settings.teacher, folder)).as_posix())
    return Run(folder, settings)


def _finish(run: Run, progress: bool, checkpoint_seconds: float = 20.0) -> Run:
    """What is left to do of a run."""
    _check_folder(run)
    if run.finished:
        return run
    data = run.data
    given = _given_teacher(run)
    _check_disk(run)
    with lock_folder(run.folder):
        write_json(run.folder / "config.json", settings_to_json(run.settings))
        models = _train(run, data, given, progress, checkpoint_seconds)
        evaluate(run, models, progress)
    return run


def run(preset: str = "default", folder: str | Path | None = None, *, progress: bool = True, **overrides: Any) -> Path:
    """:func:`execute`, then :func:`write_report`. Returns the path of ``report.html``."""
    finished = execute(preset, folder, progress=progress, **overrides)
    return write_report(finished, preset, overrides, progress=progress)


def sweep(
    jobs: Mapping[str, Mapping[str, Any]],
    folder: str | Path,
    preset: str = "default",
    *,
    workers: int | None = None,
    progress: bool = True,
    **shared: Any,
) -> dict[str, Run]:
    """Many runs side by side, one thread each; those that are finished are only opened.

    Args:
        jobs: name of a run -> the settings in which it differs.
        folder: each run lives in ``folder/name``.
        preset, **shared: the settings of them all.
        workers: how many at a time; by default as many as there are processors.
        progress: show a progress bar over the runs.

    Returns:
        Name -> finished run, in the order of ``jobs``.

    Raises:
        Exception: as in :func:`execute`, from the first run that fails; what the others have finished is kept.
    """
    settings = {name: make_settings(preset, **{**shared, **job}) for name, job in jobs.items()}
    runs = {name: _new_run(Path(folder) / name, chosen) for name, chosen in settings.items()}
    for run in runs.values():
        _check_folder(run)
    waiting = [run for run in runs.values() if not run.finished]
    if not waiting:
        return runs
    count = min(workers or os.cpu_count() or 1, len(waiting))
    # "spawn" starts clean processes: a forked one would inherit this one's threads in an unknown state.
    with (
        multiprocessing.get_context("spawn").Pool(count, _start_worker) as pool,
        tqdm(total=len(waiting), desc=Path(folder).name, unit="run", disable=not progress) as bar,
    ):
        for name in pool.imap_unordered(_execute_alone, waiting):
            bar.set_postfix(last=name)
            bar.update()
    return runs


def _start_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End with the process that started the sweep, even where it was killed: it may be started again at once."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _execute_alone(run: Run) -> str:
    return _finish(run, progress=False).folder.name


def diagnose_run(run: Run) -> dict[str, list[Finding]]:
    """What :func:`pdlib.distillation.diagnose` says of the teacher and of every student that is finished.

    Returns:
        Name of a network's folder -> what was found.
    """
    settings = run.settings
    found = {}
    for steps in settings.evaluated_steps:
        part = run.part(steps)
        if (part / "config.json").is_file():
            times = grid(steps)[: steps - settings.skip_top]
            found[part.name] = diagnose(run.denoiser(steps), steps, settings.loss_weighting, times)
    return found


def mean_by_steps(
    runs: Iterable[Run], metric: str = "frechet_distance", curve: str = "distilled"
) -> dict[int, tuple[float, float]]:
    """A metric's mean over runs that differ in their seed, and its standard error, by number of steps."""
    tables = [run.metrics["curves"][curve] for run in runs]
    found = {}
    for steps in map(int, tables[0]):
        entries = torch.tensor([[table[str(steps)][metric]] for table in tables], dtype=torch.float64).flatten(1)
        values = entries[:, 0]  # [value, standard error over noise seeds], or the value alone
        error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan
        found[steps] = (values.mean().item(), error)
    return found


def claim(sentence: str, holds: bool, required: bool = True) -> None:
    """Print whether a notebook's claim holds in this run.

    Raises:
        AssertionError: where it does not and is required to: the run no longer shows what the text says.
    """
    print(f"{'holds' if holds else 'does not hold in this run'}: {sentence}")
    if required and not holds:
        raise AssertionError(f"this run does not show that {sentence}")


def _check_folder(run: Run) -> None:
    """Refuse a folder that belongs to another run, or to something else."""
    config = run.folder / "config.json"
    if not config.is_file():
        if run.folder.is_dir() and any(path.name != ".lock" for path in run.folder.iterdir()):
            raise SettingsError(
                f"folder={run.folder} is not empty and holds no run: choose another folder; nothing was written"
            )
        return
    # A setting that the folder does not name had its default: the folder is older than the setting.
    there, wanted = settings_to_json(Settings()) | read_json(config), settings_to_json(run.settings)
    different = [key for key in there | wanted if there[key] != wanted.get(key)]
    if different:
        shown = ", ".join(f"{key}={there[key]!r} there and {wanted.get(key)!r} here" for key in different[:4])
        raise SettingsError(
            f"folder={run.folder} holds a run with other settings ({shown}): choose another folder, or give its "
            "settings; nothing was written"
        )


def _check_disk(run: Run) -> None:
    """Refuse to start where the disk cannot hold the run."""
    parent = next(path for path in [run.folder, *run.folder.absolute().parents] if path.exists())
    parameters = sum(value.numel() for value in new_denoiser(run.settings, run.data).parameters())
    # Per parameter 4 bytes for each finished network, and 4 × 4 for each of two checkpoints.
    needed = parameters * 4 * (len(run.settings.evaluated_steps) + 8) + 20_000_000
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(
            f"folder={run.folder}: the disk has {free / 1e6:.0f} MB free and the run needs {needed / 1e6:.0f} MB: "
            "free some space or choose another folder"
        )


def _train(
    run: Run, data: Data, given: Denoiser | None, progress: bool, checkpoint_seconds: float
) -> dict[str, Denoiser]:
    """Every network by the name of its folder, trained, or loaded where it is finished."""
    settings = run.settings
    x = data.x.to(settings.device)
    options = {"checkpoint_seconds": checkpoint_seconds, "progress": progress}
    models = {
        part: Denoiser.load(run.folder / part, settings.device)
        for part in run.parts
        if (run.folder / part / "config.json").is_file()
    }

    if "teacher" not in models and given is not None:
        history = run.folder / settings.teacher / "training.safetensors"
        if history.is_file():
            write_bytes(run.folder / "teacher" / history.name, history.read_bytes())
        given.save(run.folder / "teacher")
        models["teacher"] = given
    if "teacher" not in models:
        grid_steps = settings.steps if settings.discrete_teacher else None

        def loss(denoiser: Denoiser, x: Tensor, generator: torch.Generator) -> Tensor:
            return denoising_loss(denoiser, x, generator, settings.loss_weighting, grid_steps, settings.skip_top)

        path = run.folder / "teacher.checkpoint"
        denoiser = new_denoiser(settings, data)
        training = settings.teacher_training
        trained = fit(denoiser, loss, x, training, seed=settings.seed, label="teacher", checkpoint=path, **options)
        models["teacher"] = _keep(run, "teacher", trained.ema, trained)
    method = {"weighting": settings.loss_weighting, "skip_top": settings.skip_top}
    if settings.convert_updates and "converted" not in models:
        trained = convert(
            models["teacher"],
            settings.student_prediction,
            x,
            settings.steps,
            replace(settings.teacher_training, updates=settings.convert_updates),
            seed=settings.seed,
            clip=settings.clip_x or data.x.abs().max().item(),
            checkpoint=run.folder / "converted.checkpoint",
            **method,
            **options,
        )
        models["converted"] = _keep(run, "converted", trained.ema, trained)
    start = min(steps for steps in settings.evaluated_steps if run.part(steps).name in models)
    if start == settings.end_steps:
        return models
    stages = progressive_distillation(
        models[run.part(start).name],
        x,
        start,
        settings.end_steps,
        settings.stage_training,
        seed=settings.seed,
        updates=settings.updates_by_stage,
        clip=settings.clip_x,
        prediction=settings.student_prediction,
        weights=settings.weights,
        folder=run.folder,
        **method,
        **options,
    )
    for stage in stages:
        part = run.part(stage.steps).name
        models[part] = _keep(run, part, stage.student, stage.trained)
    return models


def _given_teacher(run: Run) -> Denoiser | None:
    """The teacher that the settings name, with the run's own schedule; none where it is trained, or copied already."""
    settings = run.settings
    if settings.teacher is None or (run.folder / "teacher" / "config.json").is_file():
        return None
    source = Path(os.path.normpath(run.folder / settings.teacher))
    given = Denoiser.load(source, settings.device)
    if given.prediction != settings.prediction:
        raise SettingsError(
            f"prediction={settings.prediction!r}, but the teacher in {source} predicts {given.prediction!r}: "
            f"use prediction={given.prediction}"
        )
    if given.network.config["channels"] != run.data.shape[0]:
        raise SettingsError(
            f"teacher={settings.teacher!r} takes examples of {given.network.config['channels']} channels, and "
            f"data={settings.data!r} has {run.data.shape[0]}: give the data that it was trained on"
        )
    return Denoiser(given.network, given.prediction, settings.noise_schedule)


def _keep(run: Run, part: str, denoiser: Denoiser, trained: Trained) -> Denoiser:
    """Write a finished network, its config.json last, and only then drop its checkpoint."""
    write_tensors(
        run.folder / part / "training.safetensors",
        {"losses": trained.losses, "gradient_norms": trained.gradient_norms},
        {"seconds": trained.seconds, "updates": len(trained.losses)},
    )
    denoiser.save(run.folder / part)
    (run.folder / f"{part}.checkpoint").unlink(missing_ok=True)
    return denoiser


def evaluate(run: Run, models: dict[str, Denoiser], progress: bool = True) -> dict[str, Any]:
    """Measure every curve at every number of steps, and write ``metrics.json`` as it goes.

    Its fields:

    ``complete``
        whether every figure below is there.
    ``curves``
        by name and N, as far as the settings ask for them: ``distilled`` (the student made for N
        steps; at the teacher's N the teacher, or what it was converted to), ``ddim`` (the undistilled
        teacher) and ``stochastic`` (the teacher with ancestral steps). Each metric stands as ``[value,
        standard error over noise seeds]``; ``frechet_distance_left_out`` is that distance with one
        noise seed left out at a time; ``ratio`` the same distance over the teacher's by DDIM at its
        own N (over the first of ``distilled`` where ``ddim`` is not asked for), with
        ``ratio_standard_error``; and then ``seconds_per_image``, the median over noise seeds.
    ``floor``
        each metric of real against real, see :func:`pdlib.metrics.sampling_floor`, in the same form.
    ``images``, ``real_images``
        how many generated and how many real images each is computed from.
    ``training``
        for each network: ``seconds``, ``updates``, and the mean loss of the last tenth of them.
    ``seconds``
        of each part of the run.
    ``peak_memory_mb``
        the most memory the process held.
    ``settings``, ``versions``, ``machine``
        what was run, with what, and on what.
    """
    settings = run.settings
    data = run.data
    network = feature_network(data, progress=progress)
    path = run.folder / "metrics.json"
    metrics = read_json(path) if path.is_file() else {"complete": False, "curves": {}}
    curves = {name: metrics["curves"].get(name, {}) for name in settings.curves}
    metrics["curves"] = curves
    highest_first = settings.evaluated_steps
    jobs = [(name, steps) for name in settings.curves for steps in highest_first]
    total = sum(steps for name, steps in jobs if str(steps) not in curves[name])
    with tqdm(total=total, desc="evaluate", unit="step", disable=not progress) as bar:
        for name, steps in jobs:
            if str(steps) in curves[name]:
                continue
            part = run.part(steps).name if name == "distilled" else "teacher"
            if name == "ddim" and run.part(steps).name == "teacher":  # the same sampler on the same network
                curves[name][str(steps)] = curves["distilled"][str(steps)] | {"seconds": 0.0}
            else:
                bar.set_postfix(curve=name, steps=steps)
                sampler = "ancestral" if name == "stochastic" else "ddim"
                curves[name][str(steps)] = _evaluate_one(run, network, models[part], steps, sampler)
            bar.update(steps)
            write_json(path, metrics)
    base = curves.get("ddim", curves["distilled"])[str(settings.steps)]
    for name, steps in jobs:
        _add_ratio(curves[name][str(steps)], base)
    floor = sampling_floor(network, data.x, settings.noise_seeds, settings.images_per_seed)
    metrics["floor"] = {name: list(found[:2]) for name, found in floor.items()}
    metrics["images"] = settings.noise_seeds * settings.images_per_seed
    metrics["real_images"] = len(data.x)
    metrics["training"] = {part: _training_summary(run, part) for part in run.parts}
    seconds = {name: sum(entry.pop("seconds") for entry in curve.values()) for name, curve in curves.items()}
    metrics["seconds"] = {
        "teacher": metrics["training"]["teacher"]["seconds"],
        "students": sum(metrics["training"][part]["seconds"] for part in run.parts[1:]),
        "evaluation": sum(seconds.values()),
    }
    metrics["peak_memory_mb"] = peak_memory_mb()
    metrics["settings"] = settings_to_json(settings)
    metrics["versions"], metrics["machine"] = _versions(), machine()
    metrics["complete"] = True
    write_json(path, metrics)
    return metrics


def _evaluate_one(run: Run, network: nn.Module, model: Denoiser, steps: int, sampler: str) -> dict[str, Any]:
    """Every metric at one number of steps, and how long an image takes."""
    settings, data = run.settings, run.data
    started = time.monotonic()
    groups, times = [], []
    for k in range(settings.noise_seeds):
        began = time.monotonic()
        generator = torch.Generator(settings.device).manual_seed(1_000_003 * (settings.seed + 1) + k)
        groups.append(
            sample_batches(
                model,
                steps,
                settings.images_per_seed,
                data.shape,
                generator=generator,
                sampler=sampler,
                variance=settings.sampler_variance,
                skip_top=settings.skip_top,
            )
        )
        times.append(time.monotonic() - began)
    estimates = measure(network, data.x, groups)
    found: dict[str, Any] = {name: list(estimate[:2]) for name, estimate in estimates.items()}
    found["frechet_distance_left_out"] = estimates["frechet_distance"].left_out
    found["seconds_per_image"] = statistics.median(times) / settings.images_per_seed
    found["seconds"] = time.monotonic() - started
    return found


def _add_ratio(entry: dict[str, Any], base: dict[str, Any]) -> None:
    """The Fréchet distance over another's; its standard error takes both from the same noise seeds."""
    pairs = zip(entry["frechet_distance_left_out"], base["frechet_distance_left_out"], strict=True)
    entry["ratio"] = entry["frechet_distance"][0] / base["frechet_distance"][0]
    entry["ratio_standard_error"] = jackknife_error([one / other for one, other in pairs])


def _training_summary(run: Run, part: str) -> dict[str, Any]:
    tensors, metadata = run.history(part)
    last = tensors["losses"][-max(1, len(tensors["losses"]) // 10) :]
    return {"seconds": metadata["seconds"], "updates": metadata["updates"], "final_loss": last.mean().item()}


def peak_memory_mb() -> float | None:
    """The most memory this process has held so far, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("pdlib", "torch", "torchmetrics", "scikit-learn", "papermill"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """The processor, its threads in use, and the system."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"system": platform.system(), "processor": name, "threads": torch.get_num_threads()}


def from_notebook(namespace: dict[str, Any]) -> Run:
    """:func:`execute` with the parameters that stand in a notebook, for the report's template.

    Args:
        namespace: the notebook's ``globals()``. Every plain value in it is taken for a parameter:
            ``preset``, ``folder``, or a setting, where ``None`` means "as the preset has it".

    Raises:
        SettingsError: for a parameter that is no setting, as one line.
    """
    parameters = notebook_parameters(namespace)
    preset = parameters.pop("preset", None) or "default"
    folder = parameters.pop("folder", None)
    given = {name: value for name, value in parameters.items() if value is not None}
    return execute(preset, folder, **given)


def template() -> Path:
    """The report's notebook: in the installed package, or in the repository's ``notebooks/``."""
    here = Path(__file__).parent
    places = [here / "report.ipynb", here.parent / "notebooks" / "report.ipynb"]
    return next(path for path in places if path.is_file())


def write_report(run: Run, preset: str, overrides: dict[str, Any], progress: bool = True) -> Path:
    """Execute the report's notebook on a finished run, and write it as one page that needs nothing else.

    Returns:
        The path of ``report.html``, beside ``report.ipynb`` and ``report.png`` in the run's folder.
    """
    import nbformat
    import papermill

    part = (run.folder / "report.part.ipynb").absolute()
    parameters = {"preset": preset, "folder": str(run.folder)} | {
        key: list(value) if isinstance(value, tuple) else value for key, value in overrides.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        papermill.execute_notebook(
            str(template()),
            str(part),
            parameters=parameters,
            cwd=os.getcwd(),
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=40"],
            progress_bar=progress,
            log_output=False,
        )
    notebook = nbformat.read(part, as_version=4)
    page = to_html(notebook)
    write_bytes(run.folder / "report.ipynb", nbformat.writes(notebook).encode())
    write_bytes(run.folder / "report.html", page.encode())
    part.unlink()
    plots.plot_result(run.metrics, *run.same_noise(12 if run.data.is_image else 1000)).savefig(
        run.folder / "report.png"
    )
    return run.folder / "report.html"


def to_html(notebook: Any) -> str:
    """A notebook's text and outputs, without its code, as one page that makes no request to any host."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    for name in exporter.trait_names():
        if name.endswith("_url"):  # scripts from a host, for formulas, widgets and diagrams
            setattr(exporter, name, "")
    return exporter.from_notebook_node(notebook)[0]


def load_run(folder: str | Path) -> Run:
    """Open a run's folder that :func:`execute` made.

    Raises:
        FileNotFoundError: where the folder holds no run.
        DamagedFileError: where its config.json cannot be read as settings.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no config.json in it")
    try:
        return Run(folder, make_settings(**read_json(folder / "config.json")))
    except (SettingsError, TypeError) as error:
        raise DamagedFileError(f"{folder / 'config.json'} does not hold a run's settings: {error}") from error


def describe_run(metrics: dict[str, Any]) -> str:
    """What was run, with what, on what, and how long it took, as Markdown."""
    settings, seconds, machine = metrics["settings"], metrics["seconds"], metrics["machine"]
    reference = settings_to_json(Settings())
    changed = [f"{name} = {value}" for name, value in settings.items() if value != reference[name]]
    shown = (
        "data",
        "prediction",
        "weighting",
        "schedule",
        "steps",
        "end_steps",
        "teacher_updates",
        "stage_updates",
        "seed",
    )
    memory = metrics["peak_memory_mb"]
    rows = [
        ("settings", ", ".join(f"{name} = {settings[name]}" for name in shown)),
        ("settings that differ from the defaults", ", ".join(changed) or "none"),
        ("images", f"{metrics['images']:,} generated for each figure, {metrics['real_images']:,} real"),
        ("time", ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())),
        ("peak memory", "unknown" if memory is None else f"{memory:.0f} MB"),
        ("versions", ", ".join(f"{name} {value}" for name, value in metrics["versions"].items())),
        ("machine", f"{machine['processor']}, {machine['threads']} threads, {machine['system']}"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)])


def describe_quality(metrics: dict[str, Any]) -> str:
    """The figure's message in words, from its numbers."""
    curves = metrics["curves"]
    few, *_, most = sorted(map(int, curves["distilled"]))
    student = curves["distilled"][str(few)]
    sentence = (
        f"With {_steps(few)}, the distilled student is at **{student['ratio']:.2f} ± "
        f"{student['ratio_standard_error']:.2f} times** the teacher's distance at {most} steps"
    )
    if "ddim" not in curves:
        return sentence + "."
    teacher = curves["ddim"][str(few)]
    return f"{sentence}; the teacher itself, asked to sample with {_steps(few)}, is at {teacher['ratio']:.1f} times."


def describe_same_noise(rows: dict[str, Tensor]) -> str:
    """How far each network's samples are from the first's, in words."""
    (first, reference), *others = rows.items()
    parts = [f"{label}: {(samples - reference).square().mean().sqrt():.3f}" for label, samples in others]
    return f"Root mean square difference from the samples of {first}, on a scale of −1 to 1: {', '.join(parts)}."


def describe_speed(metrics: dict[str, Any]) -> str:
    """How many times more images per second the last student makes, in words."""
    curve = metrics["curves"]["distilled"]
    few, *_, most = sorted(map(int, curve))
    rates = {steps: 1 / curve[str(steps)]["seconds_per_image"] for steps in (few, most)}
    return (
        f"{_steps(few).capitalize()}: {rates[few]:,.0f} images per second; {most} steps: {rates[most]:,.0f}. "
        f"That is **{rates[few] / rates[most]:.0f} times** as many."
    )


def figures_table(metrics: dict[str, Any]) -> str:
    """Every figure of ``metrics.json`` by curve and steps, as Markdown."""
    names = list(plots.METRIC_LABELS)
    lines = [
        f"| network | steps | {' | '.join(plots.METRIC_LABELS.values())} | ratio | ms per image |",
        "|---|---:|" + "---:|" * (len(names) + 2),
    ]
    for curve, entries in metrics["curves"].items():
        for steps in sorted(map(int, entries), reverse=True):
            entry = entries[str(steps)]
            cells = [curve, str(steps), *(_with_error(*entry[name]) for name in names)]
            cells.append(_with_error(entry["ratio"], entry["ratio_standard_error"]))
            cells.append(f"{entry['seconds_per_image'] * 1e3:.3f}")
            lines.append(f"| {' | '.join(cells)} |")
    floor = " | ".join(_with_error(*metrics["floor"][name]) for name in names)
    lines.append(f"| real against real | | {floor} | | |")
    return "\n".join(lines)


def chains_table(chains: dict[str, dict[int, tuple[float, float]]], heading: str = "chain") -> str:
    """Means and standard errors by number of steps, one row for each chain, as Markdown.

    Args:
        chains: label -> what :func:`mean_by_steps` returns.
        heading: of the labels.
    """
    columns = sorted({steps for chain in chains.values() for steps in chain}, reverse=True)
    lines = [f"| {heading} | {' | '.join(_steps(n) for n in columns)} |", "|---|" + "---:|" * len(columns)]
    for label, chain in chains.items():
        cells = [_with_error(*chain[n]) if n in chain else "" for n in columns]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _steps(count: int) -> str:
    return "one step" if count == 1 else f"{count} steps"


def _with_error(value: float, error: float) -> str:
    if math.isnan(error):  # one run has none
        return f"{value:.3g}"
    return f"{value:.3g} ± {float(f'{error:.1g}'):g}" if abs(value) >= 1e-2 else f"{value:.5f} ± {error:.5f}"
