"""The ``pdlib`` command: run, sample, evaluate, diagnose. Also ``python -m pdlib``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from pdlib.settings import PRESETS, parse_setting

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Ends with one line and exit code 2, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"pdlib: {message} (see {self.prog} --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 for a diagnosis, 2 for bad input, 130 when interrupted."""
    parser = _Parser(prog="pdlib", description="Progressive distillation of diffusion models.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    run = commands.add_parser("run", help="train a teacher and its students, evaluate them, write the report")
    run.add_argument("--preset", default="default", help=f"one of {', '.join(PRESETS)} (default: default)")
    run.add_argument("--data", help="a data set's name, a .npy or .npz file, or a folder of images")
    run.add_argument("--folder", help="where the run lives (default: runs/ and the settings)")
    run.add_argument(
        "--set", action="append", default=[], metavar="key=value", dest="assignments", help="override any setting"
    )

    sample = commands.add_parser("sample", help="draw images from a run or a saved denoiser, as a PNG")
    sample.add_argument("folder", help="a run's folder, or a denoiser's (runs/default/student-1)")
    sample.add_argument("--steps", type=int, help="sampling steps (default: the fewest that the folder is made for)")
    sample.add_argument("--count", type=int, default=64, help="how many images (default: 64)")
    sample.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    sample.add_argument("--output", default="samples.png", help="the PNG to write (default: samples.png)")

    evaluate = commands.add_parser("evaluate", help="print a finished run's figures")
    evaluate.add_argument("folder", help="a run's folder")

    diagnose = commands.add_parser("diagnose", help="name the known mistakes in a run's settings and networks")
    diagnose.add_argument("folder", help="a run's folder, or that of one network in it (runs/default/student-1)")

    chosen = parser.parse_args(arguments)
    handlers = {"run": _run, "sample": _sample, "evaluate": _evaluate, "diagnose": _diagnose}
    try:
        return handlers[chosen.command](chosen) or 0
    except KeyboardInterrupt:
        print("pdlib: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"pdlib: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return place + error.strerror
    return " ".join(str(error).split())


def _run(chosen: argparse.Namespace) -> None:
    overrides = dict(parse_setting(assignment) for assignment in chosen.assignments)
    if chosen.data is not None:
        overrides["data"] = chosen.data
    from pdlib import reports

    print(reports.run(chosen.preset, chosen.folder, **overrides))


def _sample(chosen: argparse.Namespace) -> None:
    import torch

    from pdlib.denoiser import Denoiser
    from pdlib.plots import save_image_grid
    from pdlib.reports import load_run
    from pdlib.sampling import sample_batches

    folder = Path(chosen.folder)
    if (folder / "teacher").is_dir():
        run = load_run(folder)
        steps = chosen.steps or run.settings.end_steps
        if steps not in run.settings.evaluated_steps:
            raise ValueError(f"--steps {steps}: {folder} has networks for {run.settings.evaluated_steps} steps")
        denoiser = run.denoiser(steps)
    else:
        run = load_run(folder.parent)
        denoiser = Denoiser.load(folder)
        name = folder.name.removeprefix("student-")
        if chosen.steps is None and not name.isdigit():
            raise ValueError(f"--steps: say with how many steps to sample from {folder}")
        steps = chosen.steps or int(name)
    if chosen.count < 1:
        raise ValueError(f"--count {chosen.count}: must be at least 1")
    generator = torch.Generator().manual_seed(chosen.seed)
    skip_top = run.settings.skip_top
    samples = sample_batches(denoiser, steps, chosen.count, run.data.shape, generator=generator, skip_top=skip_top)
    save_image_grid(samples, chosen.output)
    print(chosen.output)


def _evaluate(chosen: argparse.Namespace) -> None:
    from pdlib.reports import load_run

    run = load_run(chosen.folder)
    if not run.finished:
        raise ValueError(f"{chosen.folder} is not finished: start the same run again to go on with it")
    curves = run.metrics["curves"]
    print("  ".join([f"{'steps':>6}", *(f"{name:>16}" for name in curves)]), "  Fréchet distance ± standard error")
    for steps in run.settings.evaluated_steps:
        row = [curve[str(steps)]["frechet_distance"] for curve in curves.values()]
        print(f"{steps:>6}  " + "  ".join(f"{value:>8.2f} ± {error:<5.2f}" for value, error in row))


def _diagnose(chosen: argparse.Namespace) -> int:
    from pdlib.reports import diagnose_run, load_run

    folder = Path(chosen.folder)
    if (folder / "model.safetensors").is_file():
        findings = {folder.name: diagnose_run(load_run(folder.parent))[folder.name]}
    else:
        findings = diagnose_run(load_run(folder))
    if not findings:
        raise ValueError(f"{folder} holds no finished network yet: start the same run again to go on with it")
    for part, found in findings.items():
        for finding in found:
            print(f"{part}: {finding}")
        if not found:
            print(f"{part}: healthy")
    return 1 if any(findings.values()) else 0
