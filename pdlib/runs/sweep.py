"""Many runs side by side, and what their figures come to."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import joblib
import torch
from tqdm.auto import tqdm

from pdlib.runs.run import Run, finish, new_run
from pdlib.runs.settings import make_settings

__all__ = ["mean_by_steps", "sweep"]

DEATHS = 3  # so many times in a row may a worker be killed, with no run finished, before a sweep gives up


def sweep(
    jobs: Mapping[str, Mapping[str, Any]],
    folder: str | Path,
    preset: str = "default",
    *,
    workers: int | None = None,
    progress: bool = True,
    **shared: Any,
) -> dict[str, Run]:
    """Many runs side by side, one thread each, as name -> finished run; those that were finished are only opened.

    Args:
        jobs: name of a run, which lives in ``folder/name`` -> the settings in which it differs.
        preset, **shared: the settings of them all.
        workers: how many at a time; by default as many as there are processors for this process.

    Raises:
        Exception: as in :func:`pdlib.runs.run.execute`, of the first run that fails; what others have finished is kept.
        MemoryError: where workers are killed again and again; after once or twice the runs go on from checkpoints.
    """
    settings = {name: make_settings(preset, **{**shared, **job}) for name, job in jobs.items()}
    runs = {name: new_run(Path(folder) / name, chosen) for name, chosen in settings.items()}
    waiting = {name: run for name, run in runs.items() if not run.finished}
    others, deaths = set(multiprocessing.active_children()), 0
    # "spawn" starts clean processes: a forked one would inherit this one's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    with tqdm(total=len(waiting), desc=Path(folder).name, unit="run", disable=not (progress and waiting)) as bar:
        while waiting:
            count = min(workers or joblib.cpu_count(), len(waiting))
            pool = ProcessPoolExecutor(count, context, initializer=_start_worker)
            try:
                names = {pool.submit(finish, run, False): name for name, run in waiting.items()}
                for future in as_completed(names):
                    future.result()
                    del waiting[names[future]]
                    deaths = 0
                    bar.set_postfix(last=names[future])
                    bar.update()
            except BrokenExecutor:
                deaths += 1
                if deaths == DEATHS:
                    raise MemoryError(
                        f"a worker of the sweep in {folder} was killed {DEATHS} times, perhaps for lack of memory; "
                        f"what is finished is kept: start it again with fewer than workers={count}"
                    ) from None
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in set(multiprocessing.active_children()) - others:
                    worker.terminate()
                    worker.join()
    return runs


def _start_worker() -> None:
    """One thread; and an end with the process that started the sweep, even a killed one: it may be started again."""
    torch.set_num_threads(1)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


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
