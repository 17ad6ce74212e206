"""A run: a teacher, its chain of students, and their figures, in a folder of its own.

What is in the folder was written when it was finished, and is not computed again, so that a run stopped at any
moment goes on when it is started again:

    config.json                     the settings, and what they were used on: the data and a given teacher, by digest
    teacher/, student-32/, …        config.json and model.safetensors, and training.safetensors
    student/                        the same, where one student serves for every number of steps
    converted/                      the same, of a teacher converted to another prediction
    *.checkpoint                    of the training that is under way
    metrics.json                    every figure; see :func:`pdlib.runs.evaluation.evaluate` for its fields
    report.ipynb, .html, .png       the executed notebook, the page, and its first two figures side by side

A run is what it computes from: settings, data, teacher. Where these lie, and on what device, is no part of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdlib.data import DATASETS, Data, DataError, load_data
from pdlib.denoiser import Confined, Denoiser, DenoiserLike, Guided, OfClasses
from pdlib.diagnosis import Finding, diagnose, labelled
from pdlib.files import DamagedFileError, digest, lock_folder, read_json, read_tensors, write_json
from pdlib.grids import Grid
from pdlib.interop import is_foreign
from pdlib.methods import Method
from pdlib.metrics import METRICS
from pdlib.processes import processes
from pdlib.runs.chain import given_teacher, network_digest, new_denoiser, train_chain
from pdlib.runs.cost import disk_bytes
from pdlib.runs.evaluation import evaluate
from pdlib.runs.settings import (
    OF_A_TEACHER,
    TEACHER,
    Settings,
    SettingsError,
    make_settings,
    settings_to_json,
    upgraded,
)
from pdlib.sampling import sample
from pdlib.training import Session

__all__ = [
    "Run",
    "default_folder",
    "diagnose_run",
    "execute",
    "finish",
    "load_run",
    "new_run",
    "runs_folder",
    "settings_of",
]

WHERE = ("device", "accumulate", "compile")  # no part of a run: where and how it computes
PLACES = ("data", "teacher", *WHERE)  # what is found there is part of a run, by its digest
MEASURED = ("noise_seeds", "images_per_seed", "curves", "sampler_variance")  # may change until it is finished


def runs_folder() -> Path:
    """``runs/`` here, or in a folder above where only that is there, as for a notebook in ``notebooks/side_roads/``."""
    places = [Path("runs"), Path("../runs"), Path("../../runs")]
    return next((place for place in places if place.is_dir()), places[0])


def default_folder(preset: str = "default", **overrides: Any) -> Path:
    """:func:`runs_folder`, and then the preset's name and the overridden settings."""
    parts = [preset, *(f"{key}={value}" for key, value in sorted(overrides.items()) if key not in WHERE)]
    return runs_folder() / "-".join(parts).replace(os.sep, "_")


@dataclass(frozen=True)
class Run:
    """A run's folder, opened: what is finished in it can be read."""

    folder: Path
    settings: Settings

    @property
    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds besides the settings; nothing where there is none, or of the first version."""
        path = self.folder / "config.json"
        content = read_json(path) if path.is_file() else {}
        return {key: content[key] for key in ("data", "teacher", "run") if key in content and "settings" in content}

    @property
    def missing(self) -> list[str]:
        """The names of the networks that are not there, or not whole. A given teacher may come without a history."""
        files = dict.fromkeys(self.parts, ("config.json", "model.safetensors", "training.safetensors"))
        if self.settings.teacher is not None:
            files["teacher"] = files["teacher"][:2]
        return [part for part in files if not all((self.folder / part / name).is_file() for name in files[part])]

    @property
    def finished(self) -> bool:
        """Whether every network is there and every figure has been computed."""
        return (self.folder / "metrics.json").is_file() and self.metrics.get("complete") is True and not self.missing

    @property
    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds; DamagedFileError where it was changed, or is another run's."""
        path = self.folder / "metrics.json"
        found = read_json(path)
        if found.get("run") != self.config.get("run") or not isinstance(found.get("curves"), dict):
            raise DamagedFileError(f"{path} is another run's, or holds no figures: delete it to compute them again")
        return found

    @cached_property
    def data(self) -> Data:
        """The data of the run, loaded, and checked to be those that it was made with."""
        data = load_data(self.settings.data, **self.settings.reading)
        there = self.config.get("data")
        if there is not None and there["digest"] != data.digest:
            raise DataError(
                f"data={self.settings.data!r} has changed: folder={self.folder} was made with {there['examples']} "
                f"others, and {len(data.x)} are here; restore them, or choose another folder; nothing was written"
            )
        return data

    def part(self, steps: int) -> Path:
        """The folder of the student for so many steps; for settings.steps of the teacher, converted if asked for."""
        if steps == self.settings.steps:
            return self.folder / ("converted" if self.settings.convert_updates else "teacher")
        return self.folder / ("student" if self.settings.student_method.one_network else f"student-{steps}")

    @property
    def parts(self) -> list[str]:
        """The names of the folders of all its networks, in the order of their training."""
        return list(dict.fromkeys(["teacher", *(self.part(steps).name for steps in self.settings.evaluated_steps)]))

    def open(self, part: str) -> Denoiser:
        """One of :attr:`parts`, loaded; FileNotFoundError or DamagedFileError where it is not there, or another is."""
        folder, settings = self.folder / part, self.settings
        denoiser = Denoiser.load(folder, settings.device)
        about = read_json(folder / "config.json")
        if about.get("run") != self.config.get("run") or about.get("part", part) != part:
            raise DamagedFileError(
                f"{folder} holds {about.get('part', 'a network')!r} of another place: restore the right one, or delete "
                "the folder to compute it again"
            )
        if denoiser.grid is None:  # saved by the first version, which kept neither
            named = {self.part(steps).name: steps for steps in settings.evaluated_steps}
            denoiser.grid = Grid(named.get(part, settings.steps), settings.missing)
            with suppress(DataError):
                denoiser.shape = self.data.shape
        return denoiser

    def denoiser(self, steps: int) -> Denoiser:
        """The network for so many steps, see :meth:`part`, loaded."""
        return self.open(self.part(steps).name)

    @property
    def teacher(self) -> Denoiser:
        """The teacher as it was trained, or given, loaded."""
        return self.open("teacher")

    def history(self, part: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Losses and gradient norms by update of one of :attr:`parts`; seconds and updates. Of a bare teacher none."""
        path, config = (self.folder / part / name for name in ("training.safetensors", "config.json"))
        checksum = read_json(config).get("history")
        if checksum is None and not path.is_file():
            return {"losses": torch.zeros(0), "gradient_norms": torch.zeros(0)}, {"seconds": 0.0, "updates": 0}
        return read_tensors(path, checksum)

    def diagnose(self, part: str) -> list[Finding]:
        """What :func:`pdlib.diagnosis.diagnose` says of one of :attr:`parts`; of another method's student, more."""
        s = self.settings
        continuous = part == "teacher" and s.teacher is None and not s.discrete_teacher
        found = diagnose(self.open(part), Grid(s.steps) if continuous else None, s.loss_weighting)
        on_purpose = s.schedule == TEACHER and s.log_snr_min is not None
        found = [finding for finding in found if not (on_purpose and finding.culprit == "terminal SNR")]
        if type(s.student_method) is Method or part in ("teacher", "converted"):
            return found
        from pdlib.methods.diagnosis import diagnose_learned

        student, above = self.open(part), self.parts[self.parts.index(part) - 1]
        teacher = Confined(self.guided(above, self.open(above)), s.clip_x)
        curve = self.metrics["curves"]["distilled"] if self.finished else {}
        own = (steps for steps in curve if self.part(int(steps)).name == part)  # at the top it is the teacher's
        distances = {int(steps): tuple(curve[steps]["frechet_distance"]) for steps in own}
        pair = (labelled(student, None), labelled(teacher, None))
        return found + diagnose_learned(s.student_method, *pair, s.stage_training(student.grid), distances)

    def sample(self, steps: int, noise: Tensor) -> Iterator[Tensor]:
        """The walk of the network for so many steps from given noise, see :func:`pdlib.sampling.sample`."""
        generator = torch.Generator(noise.device).manual_seed(self.settings.seed)  # of the steps that take new noise
        return sample(self.as_sampled(self.part(steps).name, self.denoiser(steps)), steps, z=noise, generator=generator)

    def guided(self, part: str, denoiser: Denoiser) -> DenoiserLike:
        """One of :attr:`parts` with the guidance that the settings ask for: the given teacher, and no other."""
        weight = self.settings.guidance if part == "teacher" else None  # the others have learned it
        return denoiser if weight is None else Guided(denoiser, weight, denoiser.classes - 1)

    def as_sampled(self, part: str, denoiser: Denoiser) -> DenoiserLike:
        """One of :attr:`parts` as it is sampled: guided, and bound to classes as often as they are in the data."""
        if denoiser.classes is None:
            return denoiser
        labels, count = self.data.labels.sort().values, 256
        evenly = labels[((torch.arange(count) + 0.5) * len(labels) / count).long()]
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        return OfClasses(self.guided(part, denoiser), evenly[order])

    def about(self, part: str) -> dict[str, Any]:
        """What a model card says of one of :attr:`parts`: see :func:`pdlib.interop.card.model_card`."""
        s, figures = self.settings, {}
        steps = next((n for n in s.evaluated_steps if self.part(n).name == part), None)
        if self.finished and steps is not None:
            entry, images = self.metrics["curves"]["distilled"][str(steps)], self.metrics["images"]
            measured = {metric.label: entry[name] for name, metric in METRICS.items() if name in entry}
            measured["Fréchet distance over the teacher's"] = (entry["ratio"], entry["ratio_standard_error"])
            known = {label: pair for label, pair in measured.items() if None not in pair}
            figures = {label: f"{value:.3g} ± {error:.2g}" for label, (value, error) in known.items()}
            figures["images measured"] = f"{images:,}"
        teacher, data = (
            place and (Path(place).name if os.path.isabs(place) else place) for place in (s.teacher, s.data)
        )
        about = {"data": data, "figures": figures}
        if part == "teacher":
            return about
        return about | {"teacher": teacher or "its teacher", "teacher_steps": s.steps, "guidance": s.guidance}

    def same_noise(self, count: int) -> tuple[dict[str, Tensor], Tensor]:
        """One set of noises through each network that is there: samples (count, …) by network, and the noises."""
        generator = torch.Generator(self.settings.device).manual_seed(self.settings.seed)
        noise = torch.randn(count, *self.data.shape, generator=generator, device=generator.device)
        rows, missing = {}, self.missing
        for n in self.settings.evaluated_steps:
            if self.part(n).name in missing:
                continue
            label = "one step" if n == 1 else f"{n} steps"
            label += f" ({self.part(n).name})" if n == self.settings.steps else ""
            *_, rows[label] = self.sample(n, noise)
        return rows, noise


def load_run(folder: str | Path, device: str = "cpu") -> Run:
    """Open a run's folder, also of the first version; FileNotFoundError or DamagedFileError where it holds no run."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no config.json in it")
    config = read_json(folder / "config.json", "Restore it from a copy, or delete the whole folder.")
    try:
        if not {"data", "settings"} & {*config}:
            raise SettingsError("it does not say of what data")
        settings = Settings(**upgraded(config.get("settings", config)) | {"device": device})
    except (SettingsError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{folder / 'config.json'} does not hold a run's settings: {error}") from error
    if settings.teacher is not None and "settings" not in config:  # the first version wrote it as seen from the folder
        settings = settings.model_copy(update={"teacher": os.path.normpath(folder / settings.teacher)})
    return Run(folder, settings)


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
        preset, **overrides: as in :func:`pdlib.runs.settings.make_settings`.
        folder: where the run lives; by default :func:`default_folder`.
        checkpoint_seconds: at most so much work is lost when the process is killed.

    Raises:
        SettingsError, DataError: for settings or data that cannot be used, or are not those of the folder's run.
        DamagedFileError: where a file of the run is damaged, or belongs elsewhere.
        BlockingIOError: where another run is at work in the folder.
        NotFiniteError: where a loss becomes NaN.
        OSError: where the disk is full.
    """
    where = Path(folder) if folder else default_folder(preset, **overrides)
    run = new_run(where, settings_of(where, preset, **overrides))
    return finish(run, progress, checkpoint_seconds)


def settings_of(folder: Path, preset: str = "default", **overrides: Any) -> Settings:
    """As :func:`pdlib.runs.settings.make_settings`, for a run in a folder, raising the same.

    What a foreign teacher decided when the run was begun stays as it was, wherever that teacher is now.
    """
    teacher = overrides.get("teacher")
    begun = teacher is not None and (folder / "config.json").is_file()
    if begun and (is_foreign(teacher) or not os.path.exists(teacher)):
        there = load_run(folder).settings
        overrides = {name: getattr(there, name) for name in OF_A_TEACHER} | overrides
    return make_settings(preset, **overrides)


def new_run(folder: Path, settings: Settings) -> Run:
    """A run to be made or gone on with, opened; SettingsError where its folder holds another, or something else."""
    places, teacher = {}, settings.teacher
    if teacher is not None and (os.path.exists(teacher) or not is_foreign(teacher)):  # and not a name on the hub
        places["teacher"] = os.path.abspath(teacher)
    if settings.data not in DATASETS and os.path.exists(settings.data):
        places["data"] = os.path.abspath(settings.data)
    run = Run(folder, Settings(**settings_to_json(settings) | places, device=settings.device))
    if not (folder / "config.json").is_file():
        ours = (".lock", "config.json.", "report.ipynb")  # what a run leaves that ended in its first moment
        if folder.exists() and not (folder.is_dir() and all(path.name.startswith(ours) for path in folder.iterdir())):
            raise SettingsError(
                f"folder={folder} is not empty and holds no run: choose another folder; nothing was written"
            )
        return run
    there, wanted = (settings_to_json(found.settings) for found in (load_run(folder), run))
    if there["test"] == "none" and wanted["test"] == "auto":  # as older runs have it
        wanted, run = wanted | {"test": "none"}, Run(folder, run.settings.model_copy(update={"test": "none"}))
    different = [key for key in there | wanted if key not in PLACES and there.get(key) != wanted.get(key)]
    if different and {*different} <= {*MEASURED} and not load_run(folder).finished:
        different = []
    if (there["teacher"] is None) != (wanted["teacher"] is None):
        different.insert(0, "teacher")
    if different:
        shown = ", ".join(f"{key}={there.get(key)!r} there and {wanted.get(key)!r} here" for key in different[:4])
        raise SettingsError(
            f"folder={folder} holds a run with other settings ({shown}): choose another folder, or give its "
            "settings; nothing was written"
        )
    return run


def finish(
    run: Run, progress: bool, checkpoint_seconds: float = 20.0, trained: Callable[[], None] = lambda: None
) -> Run:
    """What is left to do of a run; all that can fail is tried before anything is written.

    ``trained`` is called after each network that was missing.
    """
    here = processes()
    given = check(run)
    if here.agree(lambda: run.finished and load_run(run.folder, run.settings.device) == run):
        for part in run.parts:
            run.open(part)
            run.history(part)
        return run
    with lock_folder(run.folder) if here.first else nullcontext():
        if here.first:
            new_run(run.folder, run.settings)  # another may have begun there since
            for leftover in run.folder.rglob("*.part"):  # of a process that was killed while it wrote
                leftover.unlink()
            _write_config(run, given)
        models = train_chain(run, given, Session("", run.folder, checkpoint_seconds, progress), trained)
        if here.agree(lambda: not run.finished):
            evaluate(run, models, progress)
    return run


def check(run: Run) -> Denoiser | None:
    """Try what a run starts from, and whether the disk can hold it; returns the given teacher, if there is one."""
    s, here = run.settings, processes()
    if run.missing and s.precision == "bf16" and s.device == "cpu":
        raise SettingsError("precision='bf16': it is slower than float32 on a CPU: give device=cuda with it")
    for name in ("batch_size", "stage_batch_size"):
        if 0 < getattr(s, name) < here.count:
            raise SettingsError(f"{name}={getattr(s, name)}: {here.count} processes need an example each: start fewer")
    if s.device.startswith("cuda") and here.count > 1:
        started, found = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        if s.device != "cuda" or started > found:
            raise SettingsError(
                f"device={s.device!r}: {started} processes were started here, and {found} GPUs are there: each takes "
                f"one of its own with device=cuda, so start {found} at most"
            )
    given, there = given_teacher(run), "teacher" not in run.missing
    denoiser = given or (run.teacher if there else new_denoiser(run.settings, run.data))
    x = run.data.x[:2].to(run.settings.device)
    try:
        with torch.no_grad():
            run.as_sampled("teacher", denoiser)(x, torch.full((2,), 0.5, device=x.device))
    except (ValueError, RuntimeError) as error:
        raise SettingsError(
            f"data={run.settings.data!r} does not fit the network: {str(error).splitlines()[0]}; resize the images, or "
            "change multipliers, width or heads"
        ) from error
    if s.student_grids:
        try:
            s.student_method.check(denoiser.student(s.student_prediction) if s.student_prediction else denoiser)
            s.student_method.student(denoiser, s.student_grids[0], s.student_prediction)
        except ValueError as error:
            raise SettingsError(f"{error}") from error
    needed = disk_bytes(run, denoiser)
    parent = next(path for path in [run.folder, *run.folder.absolute().parents] if path.exists())
    if (free := shutil.disk_usage(parent).free) < needed:
        raise OSError(
            f"folder={run.folder}: the disk has {free / 1e6:.0f} MB free and the run needs {needed / 1e6:.0f} MB: "
            "free some space or choose another folder"
        )
    return given


def diagnose_run(run: Run) -> dict[str, list[Finding]]:
    """What :meth:`Run.diagnose` says of each network up to the last one there; an error where one is not whole."""
    begun = [k for k, part in enumerate(run.parts) if any((run.folder / part).glob("*"))]
    return {part: run.diagnose(part) for part in run.parts[: max(begun, default=-1) + 1]}


def _write_config(run: Run, given: Denoiser | None) -> None:
    """Write what the run computes from, and the digest of that; and where that lies now, if it was moved."""
    path, settings = run.folder / "config.json", settings_to_json(run.settings)
    if not path.is_file():
        data = {"digest": run.data.digest, "shape": list(run.data.shape), "examples": len(run.data.x)}
        teacher = None if given is None else network_digest(given)
        decides = {name: value for name, value in settings.items() if name not in PLACES}
        about = {"data": data, "teacher": teacher, "run": digest([decides, data["digest"], teacher])}
        write_json(path, {"settings": settings} | about)
    elif (there := load_run(run.folder, run.settings.device)) != run:
        if any(getattr(there.settings, name) != getattr(run.settings, name) for name in MEASURED):
            (run.folder / "metrics.json").unlink(missing_ok=True)
        write_json(path, {"settings": settings} | run.config)
