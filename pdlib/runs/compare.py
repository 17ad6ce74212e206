"""All runs of a sweep beside each other: what ``notebooks/compare.ipynb`` shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from pdlib.files import read_json
from pdlib.runs.report import chains_table, with_error
from pdlib.runs.run import Run, load_run, runs_folder
from pdlib.runs.sweep import cells, mean_by_steps, sweep_grid

__all__ = ["Compared", "compare", "example"]

EXAMPLE = {
    "preset": "smoke",
    "settings": {"data": "moons", "curves": ["distilled"], "teacher_updates": 600},
    "grid": {"prediction": ["v", "x"], "weighting": ["truncated_snr", "snr_plus_one"], "seed": [0, 1]},
}


@dataclass(frozen=True)
class Compared:
    """A sweep's grid and those of its runs that are finished."""

    grid: dict[str, list[Any]]
    """The settings that differ, and their values."""
    runs: dict[str, Run]
    """The finished runs, by the name of their cell."""
    missing: dict[str, str]
    """The other cells, and what their report says of it."""

    @property
    def varied(self) -> list[str]:
        """The settings that differ, but for the seed."""
        return [name for name, values in self.grid.items() if name != "seed" and len(values) > 1]

    @property
    def rows(self) -> dict[str, list[Run]]:
        """The runs that differ in nothing but the seed, by what they have in common: best at the fewest steps first."""
        found: dict[str, list[Run]] = {}
        for name, cell in cells(self.grid).items():
            if name in self.runs:
                label = ", ".join(f"{setting} = {cell[setting]}" for setting in self.varied) or "all"
                found.setdefault(label, []).append(self.runs[name])
        fewest = min(self._steps, default=None)
        return dict(sorted(found.items(), key=lambda row: mean_by_steps(row[1])[fewest] if fewest else row[0]))

    def describe(self) -> str:
        """What was compared, as Markdown."""
        varied = "; ".join(f"**{name}**: {', '.join(map(str, values))}" for name, values in self.grid.items())
        lines = [f"{len(self.runs)} of {len(self.runs) + len(self.missing)} runs are finished. {varied}."]
        lines += [f"- {_link(name, 'report.ipynb')} is missing: {why}" for name, why in self.missing.items()]
        return "\n".join(lines)

    def ranked(self) -> str:
        """Means over seeds and their standard errors by number of steps, the best first, as Markdown."""
        return chains_table({label: mean_by_steps(runs) for label, runs in self.rows.items()}, "the best first")

    def paired(self) -> str:
        """For each setting that differs, what its other values change beside the first, all else equal, as Markdown."""
        steps = sorted({min(self._steps, default=0), 4} & {*self._steps}, reverse=True)
        heads = "".join(f" {'one step' if n == 1 else f'{n} steps'} |" for n in steps)
        lines = [f"| all else equal | pairs |{heads}", "|---|---:|" + "---:|" * len(steps)]
        for name in self.varied:
            first, *others = self.grid[name]
            for other in others:
                pairs = list(self._pairs(name, first, other))
                told = [self._change(pairs, n) for n in steps]
                lines.append(f"| {name}: {other} instead of {first} | {len(pairs)} | {' | '.join(told)} |")
        return "\n".join(lines)

    @property
    def _steps(self) -> list[int]:
        """The numbers of steps that all have students for."""
        common = [{*map(int, run.metrics["curves"]["distilled"])} for run in self.runs.values()]
        return sorted(set.intersection(*common), reverse=True)

    def _pairs(self, setting: str, first: Any, other: Any) -> Any:
        for name, cell in cells(self.grid).items():
            (partner,) = cells({key: [other if key == setting else value] for key, value in cell.items()})
            if cell[setting] == first and name in self.runs and partner in self.runs:
                yield self.runs[name], self.runs[partner]

    def _change(self, pairs: list[tuple[Run, Run]], steps: int) -> str:
        """The other's distance over the first's: the geometric mean over pairs, with its standard error."""
        if not pairs:
            return ""
        both = torch.tensor([[mean_by_steps([run])[steps][0] for run in pair] for pair in pairs], dtype=torch.float64)
        logs = both.log().diff(dim=1).flatten()
        error = logs.std().item() / len(logs) ** 0.5 if len(logs) > 1 else math.nan
        ratio = logs.mean().exp().item()
        return f"× {with_error(ratio, ratio * error)}"

    def links(self) -> str:
        """Each run's report, as Markdown."""
        return "\n".join(f"- {_link(name)}" for name in self.runs)


def compare(folder: str | Path) -> Compared:
    """What is there of a sweep; FileNotFoundError where the folder holds none."""
    folder = Path(folder)
    if not (folder / "grid.json").is_file():
        raise FileNotFoundError(f"{folder} holds no sweep: there is no grid.json in it; make one with pdlib sweep")
    grid, runs, missing = read_json(folder / "grid.json")["grid"], {}, {}
    for name in cells(grid):
        try:
            run = load_run(folder / name)
            if run.finished:
                runs[name] = run
                continue
        except (FileNotFoundError, ValueError):
            pass
        missing[name] = _said(folder / name / "report.ipynb")
    if not runs:
        raise FileNotFoundError(f"{folder} holds no finished run of its sweep yet: start the same sweep again")
    return Compared(grid, runs, missing)


def example() -> Path:
    """The folder of a small sweep to look at, made where it is not there: a minute."""
    folder = runs_folder() / "compare"
    sweep_grid(EXAMPLE, folder)
    return folder


def _said(notebook: Path) -> str:
    """The error that a report's notebook ends with."""
    import nbformat

    if notebook.is_file():
        for cell in nbformat.read(notebook, 4).cells:
            for output in cell.get("outputs", ()):
                if output.output_type == "error":
                    return f"{output.ename}: {' '.join(output.evalue.split())}"
    return "it is not finished"


def _link(name: str, page: str = "report.html") -> str:
    return f"[{name.replace(',', ', ')}]({quote(name)}/{page})"
