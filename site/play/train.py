"""Makes what the pages of this folder draw with, and stores it in models/: run again, it gives the same files.

    python site/play/train.py                  the chains of points: trained here, a few minutes
    python site/play/train.py runs/default     the networks of a finished run of digits, as ONNX

Weights are stored in sixteen bits each. ``models/NAME/manifest.json`` says what they are.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from pdlib.data import load_data
from pdlib.denoiser import Denoiser
from pdlib.distillation import progressive_distillation
from pdlib.files import write_bytes, write_json
from pdlib.grids import Grid
from pdlib.interop.packed import pack, unpack
from pdlib.networks import MLP
from pdlib.objectives import Clean, Objective, TwoSteps
from pdlib.schedules import CosineSchedule
from pdlib.training import Session, TrainingSettings, fit

MODELS = Path(__file__).parent / "models"
QUIET = Session(progress=False)
TEACHER = TrainingSettings(8000, batch_size=256, learning_rate=2e-3, warmup=100, ema=0.999)
LESSON = TrainingSettings(1500, batch_size=256, learning_rate=1e-3, warmup=20, ema=0.99)
STEPS = 32


def moons_teacher() -> Denoiser:
    """A small network that makes two moons in 32 steps; trained in continuous time."""
    torch.manual_seed(0)
    denoiser = Denoiser(MLP(width=64, blocks=2), "v", CosineSchedule(), Grid(STEPS), (2,))
    return fit(denoiser, Objective(Clean()), load_data("moons").x, TEACHER, QUIET).ema


def chains(teacher: Denoiser) -> Iterator[tuple[str, list[Denoiser]]]:
    """The loop as it should be, and each way to break it: a name, and the students from most steps to fewest."""
    gap = teacher.student(grid=Grid(STEPS, missing=1))
    ways = {
        "as-it-should-be": (teacher, lambda parent, grid: Objective(TwoSteps(parent, grid.N), grid)),
        "off-by-one": (gap, lambda parent, grid: Objective(TwoSteps(parent, grid.N), grid)),
        "snr": (teacher, lambda parent, grid: Objective(TwoSteps(parent, grid.N), grid, "snr")),
        "never-promoted": (teacher, lambda parent, grid: Objective(TwoSteps(teacher, grid.N), grid)),
    }
    for name, (first, objective) in ways.items():
        end = 1 + first.grid.missing  # of one time, one less is none
        stages = progressive_distillation(first, load_data("moons").x, end, LESSON, objective=objective, session=QUIET)
        yield name, [stage.student for stage in stages]


def save_points(folder: Path) -> None:
    """Train the chains and store them: ``teacher.q16``, and a file for each chain's students, one after another."""
    teacher = moons_teacher()
    about = {"network": teacher.network.config, "prediction": teacher.prediction, "chains": {}}
    about |= {"schedule": teacher.schedule.config(), "teacher": teacher.grid.config()}
    write_bytes(folder / "teacher.q16", _packed([teacher]))
    write_bytes(folder / "data.q16", pack([load_data("moons").x[:400]]))
    for name, students in chains(teacher):
        write_bytes(folder / f"{name}.q16", _packed(students))
        about["chains"][name] = [student.grid.config() for student in students]
    write_json(folder / "manifest.json", about)


def save_digits(run: Path, folder: Path) -> None:
    """The networks of a finished run: one graph, and a file of weights for each."""
    from pdlib.interop.onnx import save_for_page
    from pdlib.runs import load_run

    run = load_run(run)
    steps = [run.settings.steps, *(grid.N for grid in Grid(run.settings.steps).down_to(run.settings.end_steps))]
    told = ("data", "method", "weighting", "teacher_updates", "stage_updates", "seed")
    about = {name: getattr(run.settings, name) for name in told}
    save_for_page({str(N): run.denoiser(N) for N in steps}, folder, run=about)


def stored(file: Path, like: Denoiser, grids: list[Grid]) -> list[Denoiser]:
    """The denoisers of a .q16 file, with their weights as they are stored."""
    flat = iter(unpack(file.read_bytes()))
    denoisers = [like.student(grid=grid).eval().requires_grad_(False) for grid in grids]
    for denoiser in denoisers:
        state = denoiser.network.state_dict()
        denoiser.network.load_state_dict({name: next(flat).view(part.shape) for name, part in state.items()})
    return denoisers


def _packed(denoisers: list[Denoiser]) -> bytes:
    return pack(part for denoiser in denoisers for part in denoiser.network.state_dict().values())


if __name__ == "__main__":
    torch.set_num_threads(1)  # the same bits on any number of cores
    if len(sys.argv) > 1:
        save_digits(Path(sys.argv[1]), MODELS / "digits")
    else:
        save_points(MODELS / "moons")
