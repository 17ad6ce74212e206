"""What the ``pdlib`` command does: run, sample, evaluate, diagnose, export, sweep, settings."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import pdlib.runs

__all__ = ["kept", "main"]

_EXAMPLES = """
examples:
  pdlib run --preset smoke                      a minute's try: train, distil, measure, report
  pdlib run --data my_images --set steps=32     own images; pdlib settings lists all that can be set
  pdlib sample runs/default --count 16          images of a run's last student, as samples.png
  pdlib run --set teacher=FOLDER                distil a model that diffusers wrote; pdlib diagnose FOLDER first
  torchrun --nproc-per-node 4 -m pdlib run      the same run on four processes, one for each GPU
"""
_FOLDER = "a run's folder, or a denoiser's (runs/default/student-1)"
_TEACHER = "with --data, measure what this student has left to learn of it; twice for the chain's first teacher too"
_at_work: list[Path] = []


class _Parser(argparse.ArgumentParser):
    """Ends with one line and exit code 2, instead of the whole usage; its help goes on where argparse's ends."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"pdlib: {message} (see {self.prog} --help)\n")

    def format_help(self) -> str:
        more = f"\nsettings:\n{_listed()}\n" if self.prog == "pdlib run" else _EXAMPLES * (self.prog == "pdlib")
        return super().format_help() + more


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 for a diagnosis, 2 for bad input. See also ``pdlib.__main__``."""
    parser = _Parser(prog="pdlib", description="Progressive distillation of diffusion models.")
    parser.add_argument("--version", action="version", version=f"pdlib {pdlib.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    run = commands.add_parser("run", help="train a teacher and its students, evaluate them, write the report")
    run.add_argument(
        "--preset",
        default="default",
        help="default, smoke (a minute's try), study (a small network), mnist-cpu, cifar10-gpu",
    )
    run.add_argument("--data", help="a data set's name, a .npy or .npz file, or a folder of images")
    run.add_argument("--folder", type=_path, help="where the run lives (default: runs/ and the settings)")
    run.add_argument("--set", action="append", default=[], metavar="key=value", help="override any setting")
    sample = commands.add_parser("sample", help="draw images from a run or a saved denoiser, as a PNG")
    sample.add_argument("folder", type=_path, help=f"{_FOLDER}, or a model of diffusers")
    sample.add_argument("--steps", type=int, help="sampling steps (default: those that the network is made for)")
    sample.add_argument("--label", type=int, help="of a class-conditional network (default: all in turn)")
    sample.add_argument("--count", type=int, default=64, help="how many images (default: 64)")
    sample.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    sample.add_argument("--output", type=_path, default="samples.png", help="the PNG to write (default: samples.png)")
    evaluate = commands.add_parser("evaluate", help="print a finished run's figures")
    evaluate.add_argument("folder", type=_path, help="a run's folder")
    diagnose = commands.add_parser("diagnose", help="name the known mistakes in a run's settings and networks")
    diagnose.add_argument("folder", type=_path, help=f"{_FOLDER}, or a model of diffusers")
    diagnose.add_argument("--data", help="images to measure on: a data set's name, a file or a folder")
    diagnose.add_argument("--teacher", type=_path, action="append", help=_TEACHER)
    diagnose.add_argument("--steps", type=int, help="in how many steps it samples, where it does not say")
    diagnose.add_argument("--picture", type=_path, help="a PNG to write of what is measured, with --data")
    export = commands.add_parser("export", help="write a network as a pipeline of diffusers, with a model card")
    export.add_argument("folder", type=_path, help=_FOLDER)
    export.add_argument("output", type=_path, help="the folder to write: a new one")
    export.add_argument("--label", type=int, help="bind a class-conditional network to this class")
    sweep = commands.add_parser("sweep", help="run a grid of settings side by side, with one page that compares them")
    sweep.add_argument("grid", type=_path, help="a YAML file: preset, settings of all, grid: {name: [value, …]}")
    sweep.add_argument("--folder", type=_path, help="where its runs live (default: runs/ and the file's name)")
    sweep.add_argument("--workers", type=int, help="runs at a time (default: one for each processor)")
    sweep.add_argument("--scheduler", help="a Dask scheduler, tcp://host:port (default: workers are started here)")
    settings = commands.add_parser("settings", help="list every setting: default, meaning, what is allowed")
    settings.add_argument("name", nargs="?", help="one setting alone")
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        parser.print_help()
        return 0
    try:
        return globals()[f"_{chosen.command}"](chosen) or 0
    except Exception as error:
        if os.environ.get("PDLIB_DEBUG") or isinstance(error, BrokenPipeError):
            raise
        rank = os.environ.get("RANK", "0")  # of several processes
        print(f"pdlib: {f'process {rank}: ' * (rank != '0')}{_one_line(error, chosen)}", file=sys.stderr)
        return 2


def kept() -> str:
    """From what a run goes on that was stopped, in words; nothing where none is at work."""
    for folder in _at_work:
        for pattern, what in (("*.checkpoint", "the last checkpoint"), ("model.safetensors", "the last network")):
            if any(folder.rglob(pattern)):
                return f"; the same command goes on from {what}"
        return "; nothing is kept yet"
    return ""


def _one_line(error: Exception, chosen: argparse.Namespace) -> str:
    text = " ".join(str(error).split())[:600]
    ours = type(error).__module__.startswith("pdlib")
    lack = re.search(r"out of memory|not enough memory|can't allocate|std::bad_alloc", text, re.IGNORECASE)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and lack and not ours):
        begun = "what has begun can go on in its --folder with accumulate=4 or fewer images_per_seed"
        runs = chosen.command in ("run", "sweep")
        advice = f"choose a smaller batch_size or width; {begun}" if runs else "ask for a smaller --count"
        return f"out of memory: {advice} ({text})"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or getattr(chosen, 'folder', None) or 'disk'}: {error.strerror}"
    if isinstance(error, ValueError | OSError | FloatingPointError) or ours:
        return text
    return f"{type(error).__name__}: {text}; pdlib did not expect this: PDLIB_DEBUG=1 shows where it comes from"


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _run(chosen: argparse.Namespace) -> None:
    parsed = map(pdlib.runs.settings.parse_setting, chosen.set)
    texts = dict(parsed) | ({} if chosen.data is None else {"data": chosen.data})
    settings = pdlib.runs.make_settings(chosen.preset, **texts)
    overrides = {name: getattr(settings, name) for name in texts}
    _at_work[:] = [chosen.folder or pdlib.runs.default_folder(chosen.preset, **overrides)]
    page = pdlib.runs.report.run(chosen.preset, _at_work[0], **overrides)
    from pdlib.processes import processes  # torch is here by now

    if processes().first:
        print(page)


def _sweep(chosen: argparse.Namespace) -> int:
    from pdlib.runs.report import write_comparison
    from pdlib.runs.sweep import read_grid, sweep_grid

    if chosen.workers is not None and chosen.workers < 1:
        raise ValueError(f"--workers {chosen.workers}: must be 1 or more")
    grid = read_grid(chosen.grid)
    folder = chosen.folder or pdlib.runs.runs_folder() / chosen.grid.stem
    _at_work[:] = [folder]
    found = sweep_grid(grid, folder, workers=chosen.workers, scheduler=chosen.scheduler)
    failed = {name: error for name, error in found.items() if error is not None}
    for name, error in failed.items():
        print(f"pdlib: {name} failed: {_one_line(error, chosen)}", file=sys.stderr)
    if len(failed) < len(found):
        print(write_comparison(folder))
    return 2 if failed else 0


def _opened(folder: Path) -> tuple[pdlib.runs.Run | None, str | None]:
    """The run that a folder is, or is one network of, and that network's name; no run for a denoiser on its own."""
    if pdlib.interop.is_foreign(folder):
        return None, folder.absolute().name
    if not (folder / "model.safetensors").is_file():
        return pdlib.runs.load_run(folder), None
    above = folder.absolute().parent
    return pdlib.runs.load_run(above) if (above / "config.json").is_file() else None, folder.absolute().name


def _sample(chosen: argparse.Namespace) -> None:
    output, folder, steps = chosen.output, chosen.folder, chosen.steps
    if output.suffix.lower() != ".png" or output.is_dir():
        raise ValueError(f"--output {output}: must be a file that ends in .png")
    try:
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise ValueError(f"--output {output}: cannot be written in {output.parent} ({error.strerror})") from None
    import torch

    from pdlib.plots import save_image_grid

    denoiser, run, part = _network(folder, steps)
    if denoiser.shape is None or (denoiser.grid is None and steps is None and not pdlib.interop.is_foreign(folder)):
        raise ValueError(f"{folder} does not say of what shape its samples are, or for how many steps: save it again")
    most = max(64, 2**20 // math.prod(denoiser.shape[1:]))  # a picture of 800 MB while it is drawn
    limits = {"steps": (steps, 1, 65536), "count": (chosen.count, 1, most), "seed": (chosen.seed, 0, 2**63 - 1)}
    for name, (value, low, high) in limits.items():
        if value is not None and not low <= value <= high:
            raise ValueError(f"--{name} {value}: must be a whole number from {low} to {high}")
    generator = torch.Generator(next(denoiser.parameters()).device).manual_seed(chosen.seed)
    if denoiser.grid is None and pdlib.interop.is_foreign(folder):
        from pdlib.interop.diffusers import as_its_scheduler_samples

        denoiser, steps = as_its_scheduler_samples(folder, denoiser, steps or 50)
    bound = _of_class(denoiser, run, part, chosen.label)
    save_image_grid(pdlib.sample_batches(bound, chosen.count, steps, generator=generator), output)
    print(output)


def _of_class(
    denoiser: pdlib.DenoiserLike, run: pdlib.runs.Run | None, part: str, label: int | None
) -> pdlib.DenoiserLike:
    """A class-conditional network bound to a class, or to all in turn; another as it is."""
    classes = getattr(denoiser, "classes", None)
    if run is not None and classes is not None:
        denoiser, classes = run.guided(part, denoiser), int(run.data.labels.max()) + 1
    if label is not None and not 0 <= label < (classes or 0):
        what = f"the classes are 0 … {classes - 1}" if classes else "this network knows no classes"
        raise ValueError(f"--label {label}: {what}")
    return denoiser if classes is None else pdlib.OfClasses(denoiser, range(classes) if label is None else label)


def _export(chosen: argparse.Namespace) -> None:
    from pdlib.interop.diffusers import save

    denoiser, run, part = _network(chosen.folder)
    student = denoiser if chosen.label is None else _of_class(denoiser, run, part, chosen.label)
    save(student, chosen.output, **({} if run is None else run.about(part)))
    print(chosen.output)


def _network(folder: Path, steps: int | None = None) -> tuple[pdlib.Denoiser, pdlib.runs.Run | None, str]:
    """The network that a folder is, or that its run has for so many steps or for the fewest; its run, and its name."""
    run, part = _opened(folder)
    if run is None:
        return pdlib.interop.open_denoiser(folder), None, part
    if part is None:
        if steps not in (None, *run.settings.evaluated_steps):
            raise ValueError(f"--steps {steps}: {folder} has networks for {run.settings.evaluated_steps} steps")
        part = run.part(steps or run.settings.end_steps).name
    return run.open(part), run, part


def _evaluate(chosen: argparse.Namespace) -> None:
    run = pdlib.runs.load_run(chosen.folder)
    if not run.finished:
        raise ValueError(f"{chosen.folder} is not finished: start the same run again to go on with it")
    curves = run.metrics["curves"]
    heads = "  ".join([f"{'steps':>6}", *(f"{name:>20}" for name in curves)])
    for name, metric in pdlib.METRICS.items():
        if name not in run.metrics["floor"]:  # a run of an earlier version
            continue
        print(heads, f"  {metric.label} ± standard error, {metric.better} is better")
        for steps in run.settings.evaluated_steps:
            row = [_with_error(*curve[str(steps)][name]) for curve in curves.values()]
            print("  ".join([f"{steps:>6}", *(f"{figure:>20}" for figure in row)]))


def _with_error(value: float | None, error: float | None) -> str:
    """A figure with two digits of its error."""
    digits = max(0, 1 - math.floor(math.log10(error))) if error else 6
    return "none" if value is None else f"{value:.{digits}f} ± {error or 0:.{digits}f}"


def _diagnose(chosen: argparse.Namespace) -> int:
    run, part = _opened(chosen.folder)
    if chosen.data is None and (chosen.teacher or chosen.picture):
        raise ValueError("--teacher and --picture need images to measure on: give --data")
    if len(chosen.teacher or ()) > 2 or (chosen.steps is not None and chosen.steps < 1):
        raise ValueError("--teacher can be given twice, the student's own and the first; --steps must be 1 or more")
    data = None if chosen.data is None else pdlib.load_data(chosen.data)
    if data is None and run is not None and part is None:
        if not (findings := pdlib.runs.diagnose_run(run)):
            raise ValueError(
                f"{chosen.folder} holds no finished network yet: start the same run again to go on with it"
            )
    else:
        denoiser, _, part = _network(chosen.folder, chosen.steps)
        if data is not None:
            data = _some(data, denoiser, chosen.data)
        found = _findings(chosen, denoiser, run, part, data)
        findings = {part: found if data is None else [*found, *_measured(chosen, denoiser, data)]}
    for part, found in findings.items():
        print("\n".join(f"{part}: {finding}" for finding in found or ["healthy"]))
    return 1 if any(findings.values()) else 0


def _findings(
    chosen: argparse.Namespace,
    denoiser: pdlib.Denoiser,
    run: pdlib.runs.Run | None,
    part: str,
    data: pdlib.Data | None,
) -> list[pdlib.diagnosis.Finding]:
    if run is not None:
        return run.diagnose(part)
    if not pdlib.interop.is_foreign(chosen.folder):
        return pdlib.diagnose(denoiser, chosen.steps and pdlib.Grid(chosen.steps))
    from pdlib.interop.diagnosis import diagnose_folder

    images = () if data is None else (data.x, data.labels)
    return diagnose_folder(chosen.folder, *images, steps=chosen.steps)


def _some(data: pdlib.Data, denoiser: pdlib.Denoiser, name: str) -> pdlib.Data:
    """A few hundred of the data, of large images fewer, checked to fit the network."""
    wanted = denoiser.shape or (denoiser.network.config["channels"], *data.shape[1:])
    if tuple(wanted) != data.shape:
        raise ValueError(f"--data {name}: its examples are {data.shape}, and the network's {tuple(wanted)}")
    if denoiser.classes is not None and data.labels is not None and int(data.labels.max()) >= denoiser.classes:
        raise ValueError(f"--data {name}: it has {int(data.labels.max()) + 1} classes, the network {denoiser.classes}")
    count = max(16, min(256, 2**19 // math.prod(data.shape)))
    return pdlib.Data(data.name, data.x[:count], None if data.labels is None else data.labels[:count])


def _measured(chosen: argparse.Namespace, denoiser: pdlib.Denoiser, data: pdlib.Data) -> list[pdlib.diagnosis.Finding]:
    """Prints x̂'s error beside trivial answers, and what a student has left to learn; returns what that tells."""
    from pdlib import plots
    from pdlib.diagnosis import diagnose_student, labelled, measured_times, residuals, x_errors
    from pdlib.files import write_bytes

    x, labels = data.x, data.labels
    times, left = measured_times(denoiser), []
    errors = x_errors(labelled(denoiser, labels), x, times)
    print("mean square error of x̂, and of answers that need no network")
    print("  ".join([f"{'t':>6}", *(f"{name:>9}" for name in errors)]))
    for k in reversed(range(len(times))):
        print("  ".join([f"{times[k]:>6.3f}", *(f"{error[k]:>9.3g}" for error in errors.values())]))
    if chosen.teacher is not None:
        if denoiser.grid is None and chosen.steps is None:
            raise ValueError(f"{chosen.folder} does not say for how many steps it was made: give --steps")
        denoiser.grid = denoiser.grid or pdlib.Grid(chosen.steps)
        for place in chosen.teacher:
            teacher, run, part = _network(place)
            teacher.schedule = denoiser.schedule  # a network is told the log-SNR, whatever the schedule
            if run is not None:  # as the student saw it
                teacher = pdlib.Confined(run.guided(part, teacher), run.settings.clip_x)
            left.append(residuals(labelled(denoiser, labels), labelled(teacher, labels), x))
            told = (f"{part:.2g} at t = {(i + 1) / len(left[-1]):.3g}" for i, part in enumerate(left[-1].tolist()))
            print(f"left to learn of two steps of {place}: {', '.join(told)}")
    if chosen.picture is not None:
        write_bytes(chosen.picture, plots.png(plots.plot_diagnosis(times, errors, *left[:1])))
        print(chosen.picture)
    return diagnose_student(*left) if left else []


def _settings(chosen: argparse.Namespace) -> None:
    print(_listed(chosen.name, look_up=True))


def _listed(name: str | None = None, look_up: bool = False) -> str:
    """Every setting, or one, in a line: its default, what it means, and what is allowed."""
    from pdlib.runs.settings import Settings, allowed

    if name not in (None, *Settings.model_fields):
        Settings(**{name: "?"})  # which says what there is
    lines = []
    for known in Settings.model_fields if name is None else [name]:
        field = Settings.model_fields[known]
        shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default).lower()
        lines.append(f"  {known + '=' + shown:<34} {field.description}; {allowed(known, look_up)}")
    return "\n".join(lines)
