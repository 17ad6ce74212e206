"""Every method from one teacher, at as many network evaluations as progressive distillation takes: one table.

    python benchmarks/methods.py RUNS [--methods tract,mean_flow,…] [--seeds 0,1,2] [--share 1]

RUNS is a folder to keep the runs in, or to go on from. Writes ``results/methods.json``, or ``--output``, and prints it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from pdlib.methods import METHODS
from pdlib.runs import execute
from pdlib.runs.run import Run
from pdlib.runs.settings import Settings, make_settings
from pdlib.runs.sweep import sweep

RESULTS = Path(__file__).parent / "results" / "methods.json"
FIGURES = ("ratio", "frechet_distance", "precision", "recall")


def of_the_budget(share: float) -> str:
    """stage_updates of which each is so large a share of what the default run has."""
    usual = make_settings()
    kept = [(grid.N, max(1, round(share * usual.stage_training(grid).updates))) for grid in usual.student_grids]
    return f"{kept[0][1]}," + ",".join(f"{N}:{updates}" for N, updates in kept)


def runs_of(
    folder: Path, methods: list[str], seeds: list[int], share: float = 1.0, workers: int | None = None
) -> dict[str, dict[int, Run]]:
    """Method -> seed -> its finished run; all from the teacher of the first seed's progressive distillation."""
    first = execute("default", folder / "teacher", end_steps=make_settings().steps)
    shared = {"curves": "distilled", "teacher": str(first.folder / "teacher")}
    if share < 1:
        shared["stage_updates"] = of_the_budget(share)
    jobs = {f"{name}-{seed}": {"method": name, "seed": seed} for seed in seeds for name in methods}
    found = sweep(jobs, folder, "default", workers=workers, **shared)
    return {name: {seed: found[f"{name}-{seed}"] for seed in seeds} for name in methods}


def row(runs: dict[int, Run]) -> dict[str, Any]:
    """One method's figures: at each number of steps that of each seed."""
    curves = [run.metrics["curves"]["distilled"] for run in runs.values()]
    first: Settings = next(iter(runs.values())).settings
    updates = sum(first.stage_training(grid).updates for grid in first.student_grids)
    found = {figure: {} for figure in FIGURES}
    for steps in curves[0]:
        for figure in FIGURES:
            values = [curve[steps][figure] for curve in curves]
            found[figure][steps] = [value[0] if isinstance(value, list) else value for value in values]
    return found | {
        "updates": updates,
        "evaluations": updates * first.student_method.evaluations,
        "seeds": sorted(runs),
    }


def with_error(values: list[float]) -> str:
    """Their mean, and its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.3f} ± {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--share", type=float, default=1.0, help="of the default budget")
    parser.add_argument("--workers", type=int, help="runs at a time; as many as there are processors")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    methods, seeds = arguments.methods.split(","), [int(seed) for seed in arguments.seeds.split(",")]
    runs = runs_of(arguments.runs, methods, seeds, arguments.share, arguments.workers)
    found = {name: row(of_seed) for name, of_seed in runs.items()}
    any_run = next(iter(next(iter(runs.values())).values()))
    about = {"machine": any_run.metrics["machine"], "date": any_run.metrics["date"], "share": arguments.share}
    arguments.output.write_text(json.dumps({"about": about, "methods": found}, indent=1) + "\n")
    for name, figures in found.items():
        cells = [f"{n}: {with_error(values)}" for n, values in figures["ratio"].items()]
        print(f"{name:<28} {'  '.join(cells[-4:])}")


if __name__ == "__main__":
    main()
