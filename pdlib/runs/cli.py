"""What the ``pdlib`` command does: run, sample, evaluate, diagnose, settings."""

from __future__ import annotations

import argparse
import math
import os
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
"""
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
    run.add_argument("--preset", default="default", help="default, smoke (a minute's try) or study (a small network)")
    run.add_argument("--data", help="a data set's name, a .npy or .npz file, or a folder of images")
    run.add_argument("--folder", type=_path, help="where the run lives (default: runs/ and the settings)")
    run.add_argument("--set", action="append", default=[], metavar="key=value", help="override any setting")
    sample = commands.add_parser("sample", help="draw images from a run or a saved denoiser, as a PNG")
    sample.add_argument("folder", type=_path, help="a run's folder, or a denoiser's (runs/default/student-1)")
    sample.add_argument("--steps", type=int, help="sampling steps (default: those that the network is made for)")
    sample.add_argument("--count", type=int, default=64, help="how many images (default: 64)")
    sample.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    sample.add_argument("--output", type=_path, default="samples.png", help="the PNG to write (default: samples.png)")
    evaluate = commands.add_parser("evaluate", help="print a finished run's figures")
    evaluate.add_argument("folder", type=_path, help="a run's folder")
    diagnose = commands.add_parser("diagnose", help="name the known mistakes in a run's settings and networks")
    diagnose.add_argument("folder", type=_path, help="a run's folder, or a denoiser's (runs/default/student-1)")
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
        print(f"pdlib: {_one_line(error, chosen)}", file=sys.stderr)
        return 2


def kept() -> str:
    """From what a run goes on that was stopped, in words; nothing where none is at work."""
    for folder in _at_work:
        for pattern, what in (("*.checkpoint", "the last checkpoint"), ("*/model.safetensors", "the last network")):
            if any(folder.glob(pattern)):
                return f"; the same command goes on from {what}"
        return "; nothing is kept yet"
    return ""


def _one_line(error: Exception, chosen: argparse.Namespace) -> str:
    text = " ".join(str(error).split())[:600]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in text.lower()):
        return f"out of memory: choose a smaller batch_size, width, images_per_seed or --count ({text})"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or getattr(chosen, 'folder', None) or 'disk'}: {error.strerror}"
    if isinstance(error, ValueError | OSError | FloatingPointError) or type(error).__module__.startswith("pdlib"):
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
    print(pdlib.runs.report.run(chosen.preset, _at_work[0], **overrides))


def _opened(folder: Path) -> tuple[pdlib.runs.Run | None, str | None]:
    """The run that a folder is, or is one network of, and that network's name; no run for a denoiser on its own."""
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

    run, part = _opened(folder)
    if run is None or part is not None:
        denoiser = run.open(part) if run else pdlib.Denoiser.load(folder)
    elif steps in (None, *run.settings.evaluated_steps):
        denoiser = run.denoiser(steps or run.settings.end_steps)
    else:
        raise ValueError(f"--steps {steps}: {folder} has networks for {run.settings.evaluated_steps} steps")
    if denoiser.shape is None or (denoiser.grid is None and steps is None):
        raise ValueError(f"{folder} does not say of what shape its samples are, or for how many steps: save it again")
    most = max(64, 2**20 // math.prod(denoiser.shape[1:]))  # a picture of 800 MB while it is drawn
    limits = {"steps": (steps, 1, 65536), "count": (chosen.count, 1, most), "seed": (chosen.seed, 0, 2**63 - 1)}
    for name, (value, low, high) in limits.items():
        if value is not None and not low <= value <= high:
            raise ValueError(f"--{name} {value}: must be a whole number from {low} to {high}")
    generator = torch.Generator(next(denoiser.parameters()).device).manual_seed(chosen.seed)
    save_image_grid(pdlib.sample_batches(denoiser, chosen.count, steps, generator=generator), output)
    print(output)


def _evaluate(chosen: argparse.Namespace) -> None:
    run = pdlib.runs.load_run(chosen.folder)
    if not run.finished:
        raise ValueError(f"{chosen.folder} is not finished: start the same run again to go on with it")
    curves = run.metrics["curves"]
    print("  ".join([f"{'steps':>6}", *(f"{name:>20}" for name in curves)]), "  Fréchet distance ± standard error")
    for steps in run.settings.evaluated_steps:
        row = [_with_error(*curve[str(steps)]["frechet_distance"]) for curve in curves.values()]
        print("  ".join([f"{steps:>6}", *(f"{figure:>20}" for figure in row)]))


def _with_error(value: float | None, error: float | None) -> str:
    """A figure with two digits of its error."""
    digits = max(0, 1 - math.floor(math.log10(error))) if error else 6
    return "none" if value is None else f"{value:.{digits}f} ± {error or 0:.{digits}f}"


def _diagnose(chosen: argparse.Namespace) -> int:
    run, part = _opened(chosen.folder)
    if run is None:
        findings = {part: pdlib.diagnose(pdlib.Denoiser.load(chosen.folder))}
    elif part is not None:
        findings = {part: run.diagnose(part)}
    elif not (findings := pdlib.runs.diagnose_run(run)):
        raise ValueError(f"{chosen.folder} holds no finished network yet: start the same run again to go on with it")
    for part, found in findings.items():
        print("\n".join(f"{part}: {finding}" for finding in found or ["healthy"]))
    return 1 if any(findings.values()) else 0


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
