"""Many runs side by side, on this machine or on a cluster, and what their figures come to."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

import joblib
import torch
from tqdm.auto import tqdm

from pdlib.files import write_json
from pdlib.runs.report import write_failed, write_report
from pdlib.runs.run import Run, finish, new_run
from pdlib.runs.settings import PRESETS, Settings, SettingsError, make_settings, settings_to_json

__all__ = ["cells", "mean_by_steps", "read_grid", "sweep", "sweep_grid"]

_one_at_a_time = Lock()  # of a worker's threads: torch's seeds are the process's
DEATHS = 3  # so many workers may be killed at one run before a sweep gives it up
FOR_TRAINING = {
    "distributed.scheduler.allowed-failures": DEATHS - 1,
    # A worker looks at what it computes a hundred times a second, and has freed memory given back at once: a training,
    # of many small steps that need the same memory again, waits for both.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
}


def sweep(
    jobs: Mapping[str, Mapping[str, Any]],
    folder: str | Path,
    preset: str = "default",
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool = True,
    **shared: Any,
) -> dict[str, Run]:
    """Many runs side by side, one thread each, as name -> finished run; those that were finished are only opened.

    Args:
        jobs: name of a run, which lives in ``folder/name`` -> the settings in which it differs.
        preset, **shared: the settings of them all.
        workers: how many at a time; by default as many as there are processors for this process, or GPUs where the
            runs are on them: each worker takes one of its own.
        scheduler: address of a Dask scheduler, such as ``"tcp://10.0.0.1:8786"``, whose workers see the same folders
            and have the settings' ``device``; by default workers are started here.

    Raises:
        Exception: as in :func:`pdlib.runs.run.execute`, of the first run that fails; what others have finished is kept.
        MemoryError: where workers are killed again and again; after once or twice the runs go on from checkpoints.
        ConnectionError: where the scheduler is not there, or no more.
    """
    folder = Path(folder).absolute()  # for workers elsewhere
    runs = _opened(jobs, folder, preset, shared, scheduler is not None)
    waiting = {name: run for name, run in runs.items() if not run.finished}
    for _, error in _finished(waiting, folder.name, _finish, workers, scheduler, progress):
        if error is not None:
            raise error
    return runs


def _opened(
    jobs: Mapping[str, Mapping[str, Any]], folder: Path, preset: str, shared: Mapping[str, Any], elsewhere: bool
) -> dict[str, Run]:
    """Every run, opened, so that a bad one starts none. ``elsewhere``: its device is the workers', and not here."""
    runs = {}
    for name, job in jobs.items():
        given = {**shared, **job}
        device = {**PRESETS.get(preset, {}), **given}.get("device", "cpu")
        run = new_run(folder / name, make_settings(preset, **given | ({"device": "cpu"} if elsewhere else {})))
        runs[name] = Run(run.folder, run.settings.model_copy(update={"device": device}))
    return runs


def _finished(
    runs: Mapping[str, Run], label: str, work: Any, workers: int | None, scheduler: str | None, progress: bool
) -> Iterator[tuple[str, Exception | None]]:
    """Does the work on each run, and yields its name, and its error if it has one, as they come in."""
    if not runs:
        return
    import dask
    from distributed import Client, KilledWorker, LocalCluster, as_completed
    from distributed.scheduler import NoValidWorkerError

    on_gpus = any(run.settings.device.startswith("cuda") for run in runs.values())
    count = min(workers or (on_gpus and torch.cuda.device_count()) or joblib.cpu_count(), len(runs))
    with ExitStack() as stack:
        client_log = logging.getLogger("distributed.client")  # it writes down all of what is said in a line below
        stack.callback(client_log.setLevel, client_log.level)
        client_log.setLevel(logging.CRITICAL)
        stack.enter_context(dask.config.set(FOR_TRAINING))
        try:
            if scheduler is None:
                options = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None}
                cluster = LocalCluster(n_workers=count, **options, silence_logs=logging.CRITICAL)
                scheduler = stack.enter_context(cluster)
            client = stack.enter_context(Client(scheduler, timeout=5, set_as_default=False))
        except OSError as error:
            raise ConnectionError(f"scheduler={scheduler}: there is none that answers ({error})") from error
        gone = ConnectionError(f"scheduler={scheduler} went away; what is finished is kept: start it again to go on")
        names, waiting, done = {}, list(runs), as_completed([], loop=client.loop)
        places = working = 0

        def start() -> None:
            """Give each free worker a run, and no more: what waits with one that is killed counts as killed, too."""
            nonlocal places, working
            try:
                places = max(1, places, len(client.scheduler_info()["workers"]))
            except OSError:
                raise gone from None
            while waiting and working < places:
                name, working = waiting.pop(0), working + 1
                names[future := client.submit(work, runs[name], pure=False)] = name
                done.add(future)

        with tqdm(total=len(runs), desc=label, unit="run", disable=not progress) as bar:
            start()
            for future in done:
                name, error = names[future], future.exception()
                if future.cancelled() or isinstance(error, NoValidWorkerError):
                    raise gone
                if isinstance(error, KilledWorker):
                    error = MemoryError(
                        f"{name}: workers of the sweep were killed at it again and again, perhaps for lack of memory; "
                        f"what is finished is kept: start it again with fewer than workers={count}"
                    )
                bar.set_postfix(last=name)
                bar.update()
                yield name, error
                working -= 1
                start()


@contextmanager
def _on_worker(run: Run) -> Iterator[None]:
    """One run at a time, on a thread, and on a GPU of the worker's own where it is to be on one."""
    with _one_at_a_time:
        torch.set_num_threads(1)
        if run.settings.device == "cuda" and (gpus := torch.cuda.device_count()) > 1:
            from distributed import get_worker

            number = re.search(r"(?:^|-)(\d+)$", str(get_worker().name))  # among those that were started together
            torch.cuda.set_device(int(number[1]) % gpus if number else 0)
        Settings(**settings_to_json(run.settings), device=run.settings.device)  # which tries the device
        yield


def _finish(run: Run) -> None:
    with _on_worker(run):
        finish(run, progress=False)


def _finish_with_report(run: Run) -> None:
    """A cell of a grid: the run, and its report; where it fails, a notebook with the error."""
    try:
        with _on_worker(run):
            write_report(finish(run, progress=False), progress=False)
    except Exception as error:
        with suppress(Exception):  # of a full disk, say, which is perhaps what failed
            write_failed(run, error)
        raise


def read_grid(path: str | Path) -> dict[str, Any]:
    """A grid of settings from a YAML file: ``preset``, ``settings`` of all, and ``grid``, the values of each other.

    Raises:
        SettingsError: where it is no such file, or a setting is unknown or not allowed.
    """
    import yaml

    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise SettingsError(f"{path} cannot be read as YAML: {reason}") from None
    form = "write it as preset: smoke, settings: {steps: 8}, grid: {prediction: [v, x], seed: [0, 1]}"
    if not isinstance(found, dict) or not isinstance(found.get("grid"), dict) or not found["grid"]:
        raise SettingsError(f"{path} holds no grid: {form}")
    if unknown := found.keys() - {"preset", "settings", "grid"}:
        raise SettingsError(f"{path} has an entry {min(unknown)!r}, which means nothing: {form}")
    grid = {name: values if isinstance(values, list) else [values] for name, values in found["grid"].items()}
    preset, shared = found.get("preset", "default"), found.get("settings") or {}
    names = [*grid, *shared] if isinstance(shared, dict) else [None]
    if not (isinstance(preset, str) and all(isinstance(name, str) for name in names)):
        raise SettingsError(f"{path} is no grid: {form}")
    if twice := [name for name in names if names.count(name) > 1 or name == "preset"]:
        raise SettingsError(f"{path} says {twice[0]!r} where it cannot, or twice: {form}")
    if empty := [name for name, values in grid.items() if not values]:
        raise SettingsError(f"{path}: {empty[0]} has no values: give some, or leave it out")
    if len(cells(grid)) < math.prod(map(len, grid.values())):
        raise SettingsError(f"{path} has two cells of one name: a value is there twice, or two differ in / and _ alone")
    for cell in cells(grid).values():
        make_settings(preset, **{**shared, **cell, "device": "cpu"})  # where it will be is seen to there
    return {"preset": preset, "settings": shared, "grid": grid}


def cells(grid: Mapping[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """Every combination of a grid's values, by a name for its folder."""
    combined = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return {",".join(f"{name}={_text(value)}" for name, value in cell.items()): cell for cell in combined}


def _text(value: Any) -> str:
    return "+".join(map(str, value if isinstance(value, list) else [value])).replace("/", "_")


def sweep_grid(
    grid: Mapping[str, Any],
    folder: str | Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> dict[str, Exception | None]:
    """Every cell of a grid, from :func:`read_grid`, as a run with its report; its name -> its error, if it failed.

    The others go on where one fails, whose notebook holds the error. Started again, it does what is missing.
    """
    folder, found = Path(folder).absolute(), dict.fromkeys(cells(grid["grid"]))
    runs = _opened(cells(grid["grid"]), folder, grid["preset"], grid["settings"], scheduler is not None)
    write_json(folder / "grid.json", dict(grid))
    waiting = {name: run for name, run in runs.items() if not (run.finished and (run.folder / "report.png").is_file())}
    found |= dict(_finished(waiting, folder.name, _finish_with_report, workers, scheduler, progress))
    return found


def mean_by_steps(runs: Iterable[Run], metric: str = "frechet_distance") -> dict[int, tuple[float, float]]:
    """A metric's mean over the students of runs that differ in their seed, and its standard error, by steps."""
    tables = [run.metrics["curves"]["distilled"] for run in runs]
    found = {}
    for steps in map(int, tables[0]):
        entries = torch.tensor([table[str(steps)][metric] for table in tables], dtype=torch.float64)
        values = entries.view(len(tables), -1)[:, 0]  # of [value, standard error over noise seeds], or of value
        error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan
        found[steps] = (values.mean().item(), error)
    return found
