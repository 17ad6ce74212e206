"""The report of a run: the notebook that papermill executes on it, and the sentences and tables in that."""

from __future__ import annotations

import base64
import copy
import html
import math
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from pdlib import plots
from pdlib.files import write_bytes
from pdlib.metrics import METRICS
from pdlib.processes import alone, processes
from pdlib.runs.cost import expected_cost, release_memory
from pdlib.runs.run import Run, check, default_folder, execute, finish, load_run, new_run, settings_of
from pdlib.runs.settings import Settings, notebook_parameters, settings_to_json
from pdlib.runs.verdict import headline, three_numbers, verdict

__all__ = [
    "ReportError",
    "beside_halving",
    "chains_table",
    "claim",
    "describe_quality",
    "describe_run",
    "describe_same_noise",
    "describe_speed",
    "figures_table",
    "from_notebook",
    "how_to_read",
    "run",
    "show",
    "top",
    "with_error",
    "write_comparison",
    "write_failed",
    "write_report",
]


HALVING = Settings.model_fields["method"].default


class ReportError(RuntimeError):
    """The report could not be written; the run itself is kept."""


def run(preset: str = "default", folder: str | Path | None = None, *, progress: bool = True, **overrides: Any) -> Path:
    """:func:`pdlib.runs.run.execute`, then :func:`write_report`, with what they raise and the path that it returns.

    A run that begins says how long it will take, and is rehearsed, report included, so that what can fail fails before
    the training. While it trains its page shows the networks that there are.
    """
    where = Path(folder) if folder else default_folder(preset, **overrides)
    chosen = new_run(where, settings_of(where, preset, **overrides))
    here = processes()
    if here.agree(lambda: not (where / "config.json").is_file()):
        here.agree(lambda: _begin(chosen, progress))

    def trained() -> None:
        with suppress(Exception):  # it was rehearsed; what fails now is no reason to stop a training
            _write_preview(chosen)

    finished = finish(chosen, progress, trained=trained)
    return here.agree(lambda: write_report(finished, progress))


def _begin(chosen: Run, progress: bool) -> None:
    """Say how long a run will take, and rehearse it."""
    where = chosen.folder
    count = processes().count
    with alone():
        cost = expected_cost(chosen, check(chosen), count)
        if progress:
            clock = tqdm.format_interval
            named = ", ".join(f"{name} {clock(seconds)}" for name, seconds in cost.seconds.items())
            memory = "" if cost.memory_mb is None else f", about {cost.memory_mb:,.0f} MB of memory"
            print(
                f"this run takes about {clock(sum(cost.seconds.values()))} here: {named}",
                f"{_scaled(sum(cost.flops.values()))}FLOP{memory}, {cost.disk_bytes / 1e6:,.0f} MB of disk",
                f"trying it once, report included, on two updates; then see {where / 'report.html'} grow",
                sep="\n",
                file=sys.stderr,
                flush=True,
            )
        _rehearse(chosen, cost.disk_bytes)
        release_memory()


def _rehearse(run: Run, needed: int) -> None:
    """The whole run in a few seconds, two updates to a training and a chain of one stage, in a folder of its own.

    It lies where temporary ones do, or beside the run's where those have no room for so many bytes.
    """
    s = run.settings
    short = {"teacher_updates": 2, "stage_updates": "2", "convert_updates": min(2, s.convert_updates)}
    short |= {"steps": min(s.steps, 2 * s.end_steps), "images_per_seed": 65, "noise_seeds": 2}
    roomy = shutil.disk_usage(tempfile.gettempdir()).free > needed
    there = next(path for path in run.folder.absolute().parents if path.exists())
    with tempfile.TemporaryDirectory(prefix="pdlib-", dir=None if roomy else there) as folder:
        tried = Run(Path(folder), s.model_copy(update=short))
        vars(tried)["data"] = run.data
        finish(tried, progress=False, trained=lambda: _write_preview(tried))
        try:
            write_report(tried, progress=False)
        except ReportError as error:
            reason = _last(error.__cause__)
            raise ReportError(f"its report could not be written, so the run was not begun: {reason}") from error


def from_notebook(namespace: dict[str, Any]) -> Run:
    """The run that a notebook's parameters ask for: opened where it is finished, made where it is not.

    They are the plain values in its ``globals()``: ``preset``, ``folder``, or a setting; ``None`` means "as the preset
    has it", or as the run in the folder has it. SettingsError, as one line, for a parameter that is no setting.
    """
    given = {name: value for name, value in notebook_parameters(namespace).items() if value is not None}
    folder = given.pop("folder", None)
    if folder is not None and given.keys() <= {"device"} and (Path(folder) / "config.json").is_file():
        return finish(load_run(folder, **given), progress=True)
    return execute(given.pop("preset", "default"), folder, **given)


def template(name: str = "report") -> Path:
    """A notebook that papermill executes: in the installed package, or in the repository's ``notebooks/``."""
    installed = Path(__file__).with_name(f"{name}.ipynb")
    return installed if installed.is_file() else installed.parents[2] / "notebooks" / f"{name}.ipynb"


def write_report(run: Run, progress: bool = True) -> Path:
    """Execute the report's notebook on a finished run, and write it as one page that needs nothing else.

    Returns the path of ``report.html``, beside ``report.ipynb`` and ``report.png``; ReportError where it cannot.
    """
    folder = run.folder
    try:
        page = _written(template(), folder, "report", progress, run.settings.device)
        noises = run.same_noise(12 if run.data.is_image else 1000)
        write_bytes(folder / "report.png", plots.png(plots.plot_result(run.metrics, *noises)))
    except Exception as error:
        raise ReportError(
            f"the run in {folder} is finished and kept (pdlib evaluate {folder} prints its figures), but its report "
            f"could not be written: {_last(error)}; when that is mended, the same command writes it"
        ) from error
    return page


def _written(notebook: Path, folder: Path, name: str, progress: bool, device: str = "cpu") -> Path:
    """A notebook, executed on a folder and written there; the path of its page."""
    import nbformat
    import papermill

    with tempfile.TemporaryDirectory(prefix="pdlib-") as home, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"progress_bar": progress, "kernel_manager_class": _kernel(home)}
        parameters = {"folder": str(folder)} | ({} if device == "cpu" else {"device": device})
        executed = papermill.execute_notebook(notebook, None, parameters, **options)
    page = to_html(executed)
    write_bytes(folder / f"{name}.ipynb", nbformat.writes(executed).encode())
    write_bytes(folder / f"{name}.html", page.encode())
    return folder / f"{name}.html"


def write_comparison(folder: str | Path) -> Path:
    """Execute ``compare.ipynb`` on a sweep's folder, and write it as ``compare.html`` there; ReportError otherwise."""
    try:
        return _written(template("compare"), Path(folder), "compare", progress=False)
    except Exception as error:
        raise ReportError(f"the runs in {folder} are kept, but they could not be compared: {_last(error)}") from error


def write_failed(run: Run, error: Exception) -> None:
    """The report's notebook with the error of a run that failed, in the cell that makes the run."""
    import traceback

    import nbformat
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    parameters = {"folder": str(run.folder), **settings_to_json(run.settings)}
    notebook = parameterize_notebook(load_notebook_node(str(template())), parameters)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    cell = next(cell for cell in notebook.cells if "from_notebook(" in cell.source)
    trace = "".join(traceback.format_exception(error)).splitlines()
    cell.outputs = [nbformat.v4.new_output("error", ename=type(error).__name__, evalue=str(error), traceback=trace)]
    write_bytes(run.folder / "report.ipynb", nbformat.writes(notebook).encode())


def _write_preview(run: Run) -> None:
    """The page while the run is under way: the same noise through the networks that are there. It reloads itself."""
    rows, noise = run.same_noise(12 if run.data.is_image else 1000)
    picture = base64.b64encode(plots.png(plots.plot_same_noise(rows, noise))).decode()
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="10">
<title>under way</title><body style="font-family: sans-serif; max-width: 50em; margin: 2em auto">
<h1>Under way</h1><p>Each column starts from one noise, the first row; below it, what each network that is trained by
now makes of it. Still to come: {", ".join([*run.missing, "the figures"])}. This page reloads itself.</p>
<img alt="the same noise through each network" src="data:image/png;base64,{picture}">"""
    write_bytes(run.folder / "report.html", page.encode())


def _last(error: BaseException) -> str:
    """The last line of an error that tells the whole story of a kernel."""
    told = getattr(error, "strerror", None) or error
    return str(told).strip().rpartition("\n")[2].strip() or type(error).__name__


def _kernel(home: str) -> type:
    """A kernel of this very Python, whatever kernels, startup files and modules lie about; ``home`` is IPython's."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    argv = [sys.executable, "-P", "-m", "ipykernel_launcher", "--IPKernelApp.ignore_cwd=True", "--f={connection_file}"]

    environment = {"IPYTHONDIR": home, "WORLD_SIZE": "1"}  # and is none of several processes that train

    class Kernel(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=argv, language="python", env=environment)

        async def start_kernel(self, **options: Any) -> None:  # what it says while it is torn down helps nobody
            await super().start_kernel(**options, stderr=None if os.environ.get("PDLIB_DEBUG") else subprocess.DEVNULL)

    return Kernel


_STYLE = """
body { max-width: 60rem; margin: 0 auto; padding: 0.5rem !important; }
img { max-width: 100% !important; height: auto !important; border-radius: 4px; }
.jp-RenderedImage img { width: 100%; }
.jp-OutputArea-output, .jp-RenderedHTMLCommon { overflow-x: auto; }
.jp-RenderedHTMLCommon pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.tips { position: relative; }
.tips img { display: block; width: 100%; }
.tips i { position: absolute; width: 24px; height: 24px; margin: -12px; border-radius: 50%; }
.tips i:hover::after, .tips i:focus::after { content: attr(data-tip); position: absolute; left: 50%; bottom: 100%;
  transform: translateX(-50%); background: #222; color: #fff; padding: 2px 8px; border-radius: 4px; z-index: 1;
  font: 13px sans-serif; white-space: nowrap; }
.numbers { display: flex; flex-wrap: wrap; gap: 1.5rem; margin: 1rem 0; }
.numbers div { flex: 1 1 11rem; border-top: 3px solid #0072B2; padding-top: 0.4rem; }
.numbers b { display: block; font-size: 2.6rem; line-height: 1.2; font-weight: 600; }
@media (prefers-color-scheme: dark) {
  :root { --jp-layout-color0: #16181c; --jp-layout-color1: #16181c; --jp-layout-color2: #262a30;
          --jp-content-font-color1: #e6e6e6; --jp-content-font-color0: #fff; --jp-ui-font-color1: #e6e6e6;
          --jp-rendermime-table-row-background: #1e2126; --jp-border-color1: #555; --jp-content-link-color: #7cc4ff; }
  body, main { background: #16181c; color: #e6e6e6; }
  img { background: #fff; padding: 4px; box-sizing: border-box; }
}
"""


def show(figure: Figure) -> None:
    """Display a figure in a notebook; on the page that :func:`to_html` makes of it, its points say what they are."""
    from IPython.display import display

    display(figure, metadata={"tips": plots.tips(figure)})


def to_html(notebook: Any) -> str:
    """A notebook's text and outputs, without its code, as one page that makes no request to any host."""
    from nbconvert import HTMLExporter

    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if points := output.get("metadata", {}).pop("tips", None):
                image = '<img alt="a figure: its values stand in the last table" src="data:image/png;base64,{}">'
                spots = "".join(
                    f'<i style="left:{left}%;top:{top}%" tabindex="0" data-tip="{html.escape(told)}"></i>'
                    for left, top, told in points
                )
                picture = "".join(output.data.pop("image/png").split())
                output.data["text/html"] = f'<div class="tips">{image.format(picture)}{spots}</div>'

    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    for name in exporter.trait_names():
        if name.endswith("_url"):  # scripts from a host, for formulas, widgets and diagrams
            setattr(exporter, name, "")
    return exporter.from_notebook_node(notebook)[0].replace("</head>", f"<style>{_STYLE}</style></head>", 1)


def claim(sentence: str, holds: bool, required: bool = True) -> None:
    """A small mark where a notebook's claim holds in this run; AssertionError where it does not and is required to."""
    print("✓" if holds else f"does not hold in this run: {sentence}")
    if required and not holds:
        raise AssertionError(f"this run does not show that {sentence}")


def describe_run(run: Run) -> str:
    """What was run, with what, on what, and how long it took, as Markdown."""
    metrics, settings, usual = run.metrics, settings_to_json(run.settings), settings_to_json(Settings())
    changed = [f"{name} = {value}" for name, value in settings.items() if value != usual[name]]
    shown = ("data", "prediction", "weighting", "schedule", "steps", "end_steps", "teacher_updates", "stage_updates")
    machine, memory = metrics["machine"], metrics["peak_memory_mb"]
    what = "images" if run.data.is_image else "points"
    seen = "those held back" if metrics.get("held_back") else "those trained on"
    rows = {
        "settings": ", ".join(f"{name} = {settings[name]}" for name in (*shown, "seed")),
        "settings that differ from the defaults": ", ".join(changed) or "none",
        what: f"{metrics['images']:,} generated for each figure, {metrics['real_images']:,} real: " + seen,
        "time": ", ".join(f"{name} {value:.0f} s" for name, value in metrics["seconds"].items()),
        "cost": _cost(metrics),
        "peak memory": "unknown" if memory is None else f"{memory:.0f} MB",
        "versions": ", ".join(f"{name} {value}" for name, value in metrics["versions"].items()),
        "machine": f"{machine['processor']}, {machine['threads']} threads, {machine['system']}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())])


def _cost(metrics: dict[str, Any]) -> str:
    """What was computed, and how long a plain matrix product would have taken over it."""
    if "flops" not in metrics:
        return "not counted by this run's version"
    rate, told = metrics["matrix_flops_per_second"], []
    for part, count in metrics["flops"].items():
        if count and metrics["seconds"][part]:
            share = count / rate / metrics["seconds"][part]
            told.append(f"{part} {_scaled(count)}FLOP at {share:.0%}")
    return f"{', '.join(told)} of the pace of plain float32 matrix products here, {_scaled(rate)}FLOP a second"


def _scaled(count: float) -> str:
    """1.2e13 as "12 T"."""
    power = min(max(int(math.log10(max(count, 1))) // 3, 0), 6)
    return f"{count / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E'][power]}"


def beside_halving(run: Run) -> dict[str, Any]:
    """A run's figures; of another method, with the curve of progressive distillation as ``halving``.

    That is of a finished run beside this one's folder, or the default run, which differs in the method and in its
    students' training alone.
    """
    metrics, own = run.metrics, settings_to_json(run.settings)
    if own["method"] == HALVING:
        return metrics
    for folder in (*sorted(run.folder.absolute().parent.iterdir()), default_folder()):
        with suppress(OSError, ValueError, LookupError, TypeError):  # whatever lies there
            other = load_run(folder)
            there = settings_to_json(other.settings)
            differs = {
                name for name, value in own.items() if there.get(name) != value and name not in ("data", "curves")
            }
            same = other.config["data"]["digest"] == run.config["data"]["digest"] and there["method"] == HALVING
            if same and differs <= {"method", "stage_updates", "stage_learning_rate", "stage_ema"}:
                return metrics | {"curves": metrics["curves"] | {"halving": other.metrics["curves"]["distilled"]}}
    return metrics


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


def top(run: Run) -> str:
    """The top of the report, as HTML in Markdown: title, three numbers, verdict; see :mod:`pdlib.runs.verdict`."""
    numbers = "".join(f"<div><b>{figure}</b><span>{what}</span></div>" for figure, what in three_numbers(run))
    verdicts = "\n".join(f"- {sentence}" for sentence in verdict(run))
    return f'{headline(run)}\n\n<div class="numbers">{numbers}</div>\n\n### Verdict\n\n{verdicts}'


def how_to_read(run: Run) -> str:
    """What the samples from the same noise show, in words."""
    if run.data.is_image:
        where = "Each column starts from one noise, the first row; the last row is of real images."
    else:
        where = "Every panel starts from the same noise, the first; the last is of real points."
    return f"{where} A good student ends where its teacher ends: what changes is what distillation lost."


def describe_same_noise(rows: dict[str, Tensor]) -> str:
    """How far each network's samples are from the first's, in words."""
    (first, reference), *others = rows.items()
    parts = [f"{label}: {(samples - reference).square().mean().sqrt():.3f}" for label, samples in others]
    return f"Root mean square difference from the samples of {first}, on a scale of −1 to 1: {', '.join(parts)}."


def describe_speed(metrics: dict[str, Any], what: str = "images") -> str:
    """How many times more images, or points, per second the last student makes, in words."""
    rates = {int(steps): 1 / entry["seconds_per_image"] for steps, entry in metrics["curves"]["distilled"].items()}
    few, most = min(rates), max(rates)
    return (
        f"{_steps(few).capitalize()}: {rates[few]:,.0f} {what} per second; {most} steps: {rates[most]:,.0f}. "
        f"That is **{rates[few] / rates[most]:.0f} times** as many."
    )


def figures_table(metrics: dict[str, Any], what: str = "images") -> str:
    """Every figure of ``metrics.json`` by curve and steps, as Markdown."""
    labels = {name: metric.label for name, metric in METRICS.items() if name in metrics["floor"]}
    lines = [f"| network | steps | {' | '.join(labels.values())} | ratio | ms per {what.removesuffix('s')} |"]
    lines.append("|---" + "|---:" * (len(labels) + 3) + "|")
    for curve, entries in metrics["curves"].items():
        for steps, entry in entries.items():
            figures = [*(entry[name] for name in labels), (entry["ratio"], entry["ratio_standard_error"])]
            cells = [curve, steps, *(with_error(*figure) for figure in figures)]
            lines.append(f"| {' | '.join(cells)} | {entry['seconds_per_image'] * 1e3:.3f} |")
    floor = " | ".join(with_error(*metrics["floor"][name]) for name in labels)
    return "\n".join([*lines, f"| real against real | | {floor} | | |"])


def chains_table(chains: dict[str, dict[int, tuple[float, float]]], heading: str = "chain") -> str:
    """Means and standard errors by number of steps, as Markdown: label -> what ``mean_by_steps`` returns."""
    columns = sorted({steps for chain in chains.values() for steps in chain}, reverse=True)
    lines = [f"| {heading} | {' | '.join(map(_steps, columns))} |", "|---|" + "---:|" * len(columns)]
    for label, chain in chains.items():
        cells = [with_error(*chain[n]) if n in chain else "" for n in columns]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _steps(count: int) -> str:
    return "one step" if count == 1 else f"{count} steps"


def with_error(value: float, error: float) -> str:
    """A figure and its standard error, as far as the error lets it be known."""
    if math.isnan(error):  # one run has none
        return f"{value:.3g}"
    return f"{value:.3g} ± {float(f'{error:.1g}'):g}" if abs(value) >= 1e-2 else f"{value:.5f} ± {error:.5f}"
