"""Many runs side by side, and what their figures come to."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import joblib
import torch
from tqdm.auto import tqdm

from pdlib.runs.run import Run, finish, new_run
from pdlib.runs.settings import make_settings

__all__ = ["mean_by_steps", "sweep"]

DEATHS = 3
"""How many times in a row a worker may be killed with no run finished before a sweep gives up."""


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

    A worker that is killed is replaced, and its run goes on from its checkpoint.

    Args:
        jobs: name of a run -> the settings in which it differs.
        folder: each run lives in ``folder/name``.
        preset, **shared: the settings of them all.
        workers: how many at a time; by default as many as there are processors for this process.
        progress: show a progress bar over the runs.

    Returns:
        Name -> finished run, in the order of ``jobs``.

    Raises:
        Exception: as in :func:`pdlib.runs.run.execute`, from the first run that fails; what the others have finished
            is kept.
        MemoryError: where workers are killed again and again.
    """
    settings = {name: make_settings(preset, **{**shared, **job}) for name, job in jobs.items()}
    runs = {name: new_run(Path(folder) / name, chosen) for name, chosen in settings.items()}
    waiting = {name: run for name, run in runs.items() if not run.finished}
    others, deaths = set(multiprocessing.active_children()), 0
    with tqdm(total=len(waiting), desc=Path(folder).name, unit="run", disable=not progress) as bar:
        while waiting:
            count = min(workers or joblib.cpu_count(), len(waiting))
            # "spawn" starts clean processes: a forked one would inherit this one's threads in an unknown state.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(count, context, initializer=_start_worker)
            try:
                names = {pool.submit(finish, run, False): name for name, run in waiting.items()}
                for future in as_completed(names):
                    name = names[future]
                    future.result()
                    del waiting[name]
                    deaths = 0
                    bar.set_postfix(last=name)
                    bar.update()
            except BrokenProcessPool:
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
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End with the process that started the sweep, even where it was killed: it may be started again at once."""
    multiprocessing.parent_process().join()
    os._exit(1)


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
