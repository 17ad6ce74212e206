"""The report of a run: the notebook that papermill executes on it, and the sentences and tables in that."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from pdlib import plots
from pdlib.files import write_bytes
from pdlib.runs.run import Run, check, default_folder, execute, finish, load_run, new_run
from pdlib.runs.settings import Settings, make_settings, notebook_parameters, settings_to_json

__all__ = [
    "ReportError",
    "chains_table",
    "claim",
    "describe_quality",
    "describe_run",
    "describe_same_noise",
    "describe_speed",
    "figures_table",
    "from_notebook",
    "run",
    "write_report",
]


class ReportError(RuntimeError):
    """The report could not be written; the run itself is kept."""


def run(preset: str = "default", folder: str | Path | None = None, *, progress: bool = True, **overrides: Any) -> Path:
    """:func:`pdlib.runs.run.execute`, then :func:`write_report`. Returns the path of ``report.html``.

    A run that begins is rehearsed first, report included, so that what can fail fails before the training.

    Raises:
        ReportError: where all is computed and kept, and the report alone failed.
        Exception: as in :func:`pdlib.runs.run.execute`.
    """
    where = Path(folder) if folder else default_folder(preset, **overrides)
    chosen = new_run(where, make_settings(preset, **overrides))
    if not (where / "config.json").is_file():
        check(chosen)
        if progress:
            print("trying the whole run and its report once, on two updates", file=sys.stderr, flush=True)
        _rehearse(chosen)
    return write_report(finish(chosen, progress), progress)


def _rehearse(run: Run) -> None:
    """The whole run in a few seconds, two updates to a training and a chain of one stage, in a folder of its own.

    What can fail after hours of training fails here, before it.
    """
    s = run.settings
    short = {
        "steps": min(s.steps, 2 * s.end_steps),
        "teacher_updates": 2,
        "stage_updates": "2",
        "convert_updates": min(2, s.convert_updates),
        "images_per_seed": 65,
        "noise_seeds": 2,
    }
    with tempfile.TemporaryDirectory(prefix="pdlib-") as folder:
        tried = Run(Path(folder), s.model_copy(update=short))
        vars(tried)["data"] = run.data
        finish(tried, progress=False)
        try:
            _write_report(tried, progress=False)
        except Exception as error:
            raise ReportError(f"its report could not be written, so the run was not begun: {_last(error)}") from error


def from_notebook(namespace: dict[str, Any]) -> Run:
    """The run that a notebook's parameters ask for: opened where it is finished, made where it is not.

    Args:
        namespace: the notebook's ``globals()``. Its plain values are the parameters: ``preset``, ``folder``, or a
            setting, where ``None`` means "as the preset has it", or as the run in the folder has it.

    Raises:
        SettingsError: for a parameter that is no setting, as one line.
    """
    given = {name: value for name, value in notebook_parameters(namespace).items() if value is not None}
    folder = given.pop("folder", None)
    if folder is not None and not given and (Path(folder) / "config.json").is_file():
        return finish(load_run(folder), progress=True)
    return execute(given.pop("preset", "default"), folder, **given)


def template() -> Path:
    """The report's notebook: in the installed package, or in the repository's ``notebooks/``."""
    here = Path(__file__).parent
    places = [here / "report.ipynb", here.parents[1] / "notebooks" / "report.ipynb"]
    return next(path for path in places if path.is_file())


def write_report(run: Run, progress: bool = True) -> Path:
    """Execute the report's notebook on a finished run, and write it as one page that needs nothing else.

    Returns:
        The path of ``report.html``, beside ``report.ipynb`` and ``report.png`` in the run's folder.

    Raises:
        ReportError: where it could not be; the run is kept as it is.
    """
    try:
        return _write_report(run, progress)
    except Exception as error:
        raise ReportError(
            f"the run in {run.folder} is finished and kept (pdlib evaluate {run.folder} prints its figures), but its "
            f"report could not be written: {_last(error)}; when that is mended, the same command writes it"
        ) from error


def _last(error: Exception) -> str:
    """The last line of an error that tells the whole story of a kernel."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _write_report(run: Run, progress: bool) -> Path:
    import nbformat
    import papermill

    with tempfile.TemporaryDirectory(prefix="pdlib-") as place, _kernel(Path(place)) as kernel:
        part = Path(place) / "report.ipynb"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            papermill.execute_notebook(
                str(template()),
                str(part),
                parameters={"folder": str(run.folder)},
                cwd=os.getcwd(),
                kernel_name=kernel,
                extra_arguments=["--IPKernelApp.log_level=40"],
                progress_bar=progress,
                log_output=False,
            )
        notebook = nbformat.read(part, as_version=4)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    page = to_html(notebook)
    write_bytes(run.folder / "report.ipynb", nbformat.writes(notebook).encode())
    write_bytes(run.folder / "report.html", page.encode())
    figure = plots.plot_result(run.metrics, *run.same_noise(12 if run.data.is_image else 1000))
    write_bytes(run.folder / "report.png", plots.png(figure))
    return run.folder / "report.html"


@contextmanager
def _kernel(place: Path) -> Iterator[str]:
    """The name of a kernel of this very Python, whatever kernels, startup files and modules lie about."""
    options = ["--IPKernelApp.ignore_cwd=True", "-f", "{connection_file}"]
    spec = {
        "argv": [sys.executable, "-P", "-m", "ipykernel_launcher", *options],
        "display_name": "pdlib",
        "language": "python",
        "env": {"IPYTHONDIR": str(place / "ipython")},
    }
    folder = place / "kernels" / "pdlib-report"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    before = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = os.pathsep.join([str(place), *([before] if before else [])])
    try:
        yield folder.name
    finally:
        if before is None:
            del os.environ["JUPYTER_PATH"]
        else:
            os.environ["JUPYTER_PATH"] = before


def to_html(notebook: Any) -> str:
    """A notebook's text and outputs, without its code, as one page that makes no request to any host."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    for name in exporter.trait_names():
        if name.endswith("_url"):  # scripts from a host, for formulas, widgets and diagrams
            setattr(exporter, name, "")
    return exporter.from_notebook_node(notebook)[0]


def claim(sentence: str, holds: bool, required: bool = True) -> None:
    """Print whether a notebook's claim holds in this run.

    Raises:
        AssertionError: where it does not and is required to: the run no longer shows what the text says.
    """
    print(f"{'holds' if holds else 'does not hold in this run'}: {sentence}")
    if required and not holds:
        raise AssertionError(f"this run does not show that {sentence}")


def describe_run(run: Run) -> str:
    """What was run, with what, on what, and how long it took, as Markdown."""
    metrics = run.metrics
    settings, reference = settings_to_json(run.settings), settings_to_json(Settings())
    seconds, machine = metrics["seconds"], metrics["machine"]
    changed = [f"{name} = {value}" for name, value in settings.items() if value != reference.get(name)]
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
    few, most = (pick(map(int, curves["distilled"])) for pick in (min, max))
    if few == most:
        return f"No student was made: {_steps(most)} are the teacher's own."
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
    few, most = (pick(map(int, curve)) for pick in (min, max))
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
