import copy
import dataclasses
import itertools
import math

import pytest
import torch
from tiny import COSINE, FINITE, Interrupted, Watched, generator, interrupt, noise, same_weights, tiny
from torch import nn

from pdlib.denoiser import Confined, Denoiser
from pdlib.distillation import convert, distillation, progressive_distillation
from pdlib.exact import GaussianDenoiser
from pdlib.files import DamagedFileError
from pdlib.grids import Grid
from pdlib.objectives import Clean, Objective, TwoSteps
from pdlib.sampling import ddim_step, sample
from pdlib.schedules import LinearSchedule
from pdlib.training import Session, TrainingSettings
from pdlib.weightings import Clipped

MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
QUIET = Session(progress=False)

# The optimum: distilling a closed-form Gaussian teacher.


class AffineTable(nn.Module):
    """One affine map z ↦ A z + b per time i/N: with a Gaussian teacher the target is affine in z, so this can be it."""

    def __init__(self, steps, dimensions):
        super().__init__()
        self.steps = steps
        self.matrices = nn.Parameter(torch.zeros(steps, dimensions, dimensions, dtype=torch.float64))
        self.shifts = nn.Parameter(torch.zeros(steps, dimensions, dtype=torch.float64))

    def forward(self, z, time):
        index = (time * self.steps).round().long() - 1  # on the cosine schedule the network's time is t
        return (self.matrices[index] @ z[:, :, None])[:, :, 0] + self.shifts[index]


def gaussian_map(t):
    """E[x | z_t = z] = K z + h of the Gaussian data, from scratch."""
    alpha, sigma = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64))
    return gain, MEAN - alpha * gain @ MEAN


def ddim_map(t, s):
    """The teacher's DDIM step z_t ↦ P z_t + q: α_s x̂ + (σ_s/σ_t)(z − α_t x̂) with x̂ = K z + h."""
    gain, shift = gaussian_map(t)
    ratio = math.sin(math.pi * s / 2) / math.sin(math.pi * t / 2)
    of_x = math.cos(math.pi * s / 2) - ratio * math.cos(math.pi * t / 2)
    return ratio * torch.eye(2, dtype=torch.float64) + of_x * gain, of_x * shift


def optimal_maps(steps):
    """What a student of N steps must learn: x̃ = A z + b at each t = i/N."""
    matrices, shifts = [], []
    for i in range(1, steps + 1):
        t, mid, end = i / steps, (i - 0.5) / steps, (i - 1) / steps
        (first, first_shift), (second, second_shift) = ddim_map(t, mid), ddim_map(mid, end)
        both, both_shift = second @ first, second @ first_shift + second_shift
        ratio = math.sin(math.pi * end / 2) / math.sin(math.pi * t / 2)
        scale = math.cos(math.pi * end / 2) - ratio * math.cos(math.pi * t / 2)
        matrices.append((both - ratio * torch.eye(2, dtype=torch.float64)) / scale)
        shifts.append(both_shift / scale)
    return torch.stack(matrices), torch.stack(shifts)


def minimise(student, loss, iterations=150):
    optimizer = torch.optim.LBFGS(
        student.parameters(),
        max_iter=iterations,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("weighting", ["truncated_snr", "snr_plus_one", "constant"])
def test_a_student_of_a_gaussian_teacher_reaches_its_analytic_optimum(weighting, steps):
    teacher = GaussianDenoiser(MEAN, COVARIANCE, COSINE)
    student = Denoiser(AffineTable(steps, 2), "x", COSINE)
    objective, x = Objective(TwoSteps(teacher, steps), Grid(steps), weighting), noise(200, 2)
    minimise(student, lambda: objective(student, student, x, generator()))
    matrices, shifts = optimal_maps(steps)
    torch.testing.assert_close(student.network.matrices.detach(), matrices, atol=1e-6, rtol=0)
    torch.testing.assert_close(student.network.shifts.detach(), shifts, atol=1e-6, rtol=0)


def test_with_the_snr_weighting_a_student_learns_nothing_at_the_last_time():
    teacher = GaussianDenoiser(MEAN, COVARIANCE, COSINE)
    student = Denoiser(AffineTable(4, 2), "x", COSINE)
    objective = Objective(TwoSteps(teacher, 4), Grid(4), "snr")
    minimise(student, lambda: objective(student, student, noise(200, 2), generator()))
    _, shifts = optimal_maps(4)
    torch.testing.assert_close(student.network.shifts[:3].detach(), shifts[:3], atol=1e-4, rtol=0)
    assert (student.network.shifts[3] == 0).all()  # as it started, where the optimum is not 0
    assert (student.network.matrices[3] == 0).all()
    assert shifts[3].abs().min() > 0.1


@torch.no_grad()
def gaussian_table(steps, schedule, prediction):
    """A Gaussian's denoiser as a trained network would come: read off the closed form at three points of each time."""
    network, grid = AffineTable(steps, 2), Grid(steps)
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    for i, t in enumerate(grid.times):
        x_hat = GaussianDenoiser(MEAN, COVARIANCE, schedule)(points, t.expand(3))
        alpha, sigma = schedule.alpha_sigma(t)
        output = x_hat if prediction == "x" else (points - alpha * x_hat) / sigma
        network.shifts[i], network.matrices[i] = output[0], (output[1:] - output[0]).mT
    return Denoiser(network.requires_grad_(False), prediction, schedule, grid)


STEADY = TrainingSettings(
    220, batch_size=64, learning_rate=0.1, warmup=1, anneal="cosine", ema=0, max_gradient_norm=1e9
)


def end_of(denoiser, steps, z):
    *_, last = sample(denoiser, steps, z=z)
    return last


def test_progressive_distillation_of_a_gaussian_teacher_samples_in_1_step_what_the_teacher_does_in_4():
    # Its network is nobody's that we know: it has no config, and could not be saved.
    teacher, z = gaussian_table(4, COSINE, "x"), noise(50, 2)
    *_, last = progressive_distillation(teacher, noise(500, 2), 1, STEADY, session=QUIET)
    assert last.student.grid == Grid(1)
    slow = end_of(teacher, None, z)
    assert (end_of(teacher, 1, z) - slow).abs().max() > 0.5  # far from where the same teacher goes by itself in 1 step
    torch.testing.assert_close(end_of(last.student, None, z), slow, atol=1e-3, rtol=0)


@dataclasses.dataclass(frozen=True)
class Jump:
    """A method from outside: x̃ is where the teacher ends when it walks from z_t all the way down to t = 0."""

    teacher: Denoiser

    def __call__(self, x, z, t, average):
        for _ in range(self.teacher.grid.N):
            s = (t - 1 / self.teacher.grid.N).clamp(min=0)
            stepped = ddim_step(z, self.teacher(z, t.clamp(min=1 / self.teacher.grid.N)), t, s, self.teacher.schedule)
            z, t = torch.where(t[:, None] > 0, stepped, z), s
        return z


def test_a_method_from_outside_trains_through_the_same_loop():
    teacher, z = gaussian_table(4, COSINE, "x"), noise(50, 2)
    data, t = noise(500, 2), torch.full((50,), 0.5, dtype=torch.float64)
    (stage,) = progressive_distillation(
        teacher,
        data,
        2,
        STEADY,
        objective=lambda teacher, grid: Objective(Jump(teacher), grid, "constant"),
        session=QUIET,
    )
    slow = end_of(teacher, 4, z)
    torch.testing.assert_close(stage.student(z, torch.ones(50)), slow, atol=1e-3, rtol=0)
    z_mid = ddim_step(z, teacher(z, t), t, t - 0.25, COSINE)
    half = teacher(z_mid, t - 0.25)  # a last step, to t = 0, lands on x̂
    torch.testing.assert_close(stage.student(z, t), half, atol=1e-3, rtol=0)
    matrices, shifts = optimal_maps(2)
    assert (z @ matrices[1].mT + shifts[1] - slow).abs().max() > 0.5  # a student of algorithm 2 says something else


# Conversion.


STAND_STILL = TrainingSettings(1, batch_size=8, learning_rate=0.0)
DATA = noise(64, 2).float() / 3


@pytest.mark.parametrize(("before", "after"), [("eps", "v"), ("eps", "both"), ("both", "v"), ("x", "eps")])
def test_a_converted_model_starts_from_its_parents_weights(before, after):
    parent = tiny(before, FINITE, Grid(4))
    converted = convert(Confined(parent, 1.0), after, DATA, STAND_STILL, session=QUIET).raw
    assert (converted.prediction, converted.schedule, converted.grid) == (after, FINITE, Grid(4))
    assert converted(DATA, torch.ones(64)).shape == DATA.shape
    old, new = parent.network.state_dict(), converted.network.state_dict()
    different = {name for name in old if old[name].shape != new[name].shape}
    assert different == ({"last.weight", "last.bias"} if "both" in (before, after) else set())
    assert all(torch.equal(old[name], new[name]) for name in set(old) - different)


@pytest.mark.parametrize("after", ["v", "x"])
def test_a_converted_gaussian_model_denoises_as_its_parent_did(after):
    # ε̂ = (z − α x̂)/σ of the Gaussian data is affine in z, and so are the x̂ and the v̂ to be learned from it.
    parent = gaussian_table(4, FINITE, "eps")
    weights = copy.deepcopy(parent.network.state_dict())
    converted = convert(parent, after, noise(500, 2), STEADY, session=QUIET).raw
    z, t = noise(40, 2, seed=1), Grid(4).times.repeat(10)
    torch.testing.assert_close(converted(z, t), GaussianDenoiser(MEAN, COVARIANCE, FINITE)(z, t), atol=1e-3, rtol=0)
    assert same_weights(parent.network, weights)


def test_a_confined_parent_and_the_weighting_reach_the_conversion():
    parent = tiny("eps", LinearSchedule(), Grid(4))
    plain = convert(parent, "v", DATA, QUICK, session=QUIET).losses
    assert not torch.equal(convert(Confined(parent, 0.1), "v", DATA, QUICK, session=QUIET).losses, plain)
    assert not torch.equal(convert(parent, "v", DATA, QUICK, "constant", QUIET).losses, plain)
    assert torch.equal(convert(parent, "v", DATA, QUICK, "truncated_snr", QUIET).losses, plain)


# The chain.

QUICK = TrainingSettings(3, batch_size=8, learning_rate=0.01, warmup=1, ema=0.9)


def chain(start=8, end=1, *, teacher=None, settings=QUICK, data=DATA, folder=None, **options):
    teacher = teacher or tiny(grid=Grid(start))
    session = Session(folder=folder, checkpoint_seconds=-1, progress=False)
    return list(progressive_distillation(teacher, data, end, settings, session=session, **options))


@pytest.mark.parametrize(
    ("grid", "end", "expected"),
    [
        (Grid(8), 1, [Grid(4), Grid(2), Grid(1)]),
        (Grid(12), 3, [Grid(6), Grid(3)]),
        (Grid(8, missing=1), 2, [Grid(4, missing=1), Grid(2, missing=1)]),
        (Grid(8), 8, []),
    ],
)
def test_the_stages_halve_down_to_the_end(grid, end, expected):
    asked = []

    def look(teacher, grid):
        asked.append(grid)
        return distillation(teacher, grid)

    stages = chain(end=end, teacher=tiny(grid=grid), objective=look)
    assert asked == expected == [stage.grid for stage in stages] == [stage.student.grid for stage in stages]
    assert [stage.steps for stage in stages] == [grid.N for grid in expected]


@pytest.mark.parametrize(("start", "end"), [(6, 4), (12, 1), (1, 2), (4, 3), (4, 0), (4, -1)])
def test_a_start_that_does_not_halve_down_to_the_end_is_refused(start, end):
    with pytest.raises(ValueError, match=f"steps={start} cannot be halved down to end_steps={end}"):
        chain(start, end)


def test_a_teacher_of_no_grid_is_refused():
    with pytest.raises(ValueError, match=r"made for no grid: set teacher\.grid = Grid\(N\)"):
        chain(teacher=tiny())


def test_12_steps_become_6_and_3():
    teacher, z = gaussian_table(12, COSINE, "x"), noise(50, 2)
    *_, last = progressive_distillation(teacher, noise(500, 2), 3, STEADY, session=QUIET)
    assert last.steps == 3
    torch.testing.assert_close(end_of(last.student, 3, z), end_of(teacher, 12, z), atol=1e-2, rtol=0)


def test_each_student_starts_as_its_teacher_and_becomes_the_next():
    asked = []

    def look(teacher, grid):
        asked.append((teacher, Watched(distillation(teacher, grid))))
        return asked[-1][1]

    first = tiny(grid=Grid(8))
    stages = chain(teacher=first, objective=look)
    teachers = [first, stages[0].student, stages[1].student]
    for stage, teacher, (used, watched) in zip(stages, teachers, asked, strict=True):
        assert used is teacher
        assert same_weights(watched.weights[0], teacher)  # θ ← η: it starts as a copy
        assert stage.student is stage.trained.ema
        assert not same_weights(stage.trained.ema, stage.trained.raw)
        assert stage.student.prediction == "v"
    assert same_weights(first, tiny())  # the teacher is left as it was


def test_each_stage_draws_for_itself():
    drawn = []

    def look(teacher, grid):
        def objective(student, average, x, generator):
            drawn.append(x)
            return distillation(teacher, grid)(student, average, x, generator)

        return objective

    chain(objective=look)
    first, second, third = drawn[::3]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_a_student_trained_on_the_off_by_one_grid_never_sees_its_top_time():
    times = []

    def look(teacher, grid):
        def target(x, z, t, average):
            times.append(t)
            return x

        return Objective(target, grid)

    chain(end=4, teacher=tiny(grid=Grid(8, missing=1)), objective=look, settings=TrainingSettings(1, batch_size=400))
    assert set(torch.cat(times).tolist()) == {0.25, 0.5, 0.75}


def test_going_on_from_a_student_is_the_same_as_never_having_stopped():
    whole = chain()
    begun = next(iter(progressive_distillation(tiny(grid=Grid(8)), DATA, 1, QUICK, session=QUIET)))
    rest = chain(teacher=begun.student)
    assert [stage.steps for stage in rest] == [2, 1]
    assert same_weights(rest[-1].student, whole[-1].student)


def test_the_same_seed_gives_the_same_students_and_another_seed_others():
    assert same_weights(chain()[-1].student, chain()[-1].student)
    assert not same_weights(chain(settings=dataclasses.replace(QUICK, seed=1))[-1].student, chain()[-1].student)


def test_every_stage_may_have_its_own_settings():
    stages = chain(
        settings=lambda grid: TrainingSettings(grid.N + 1, batch_size=8, learning_rate=0.0 if grid.N == 2 else 0.01)
    )
    assert [len(stage.trained.losses) for stage in stages] == [5, 3, 2]
    learned = [not same_weights(one.student, other.student) for one, other in itertools.pairwise(stages)]
    assert learned == [False, True]


def test_the_weighting_and_a_confined_teacher_reach_the_loss():
    def losses(**options):
        return chain(8, 4, **options)[0].trained.losses

    plain = losses()
    assert not torch.equal(losses(objective=chosen("constant", None)), plain)
    assert not torch.equal(losses(objective=chosen("truncated_snr", 0.1)), plain)
    assert torch.equal(losses(objective=chosen("truncated_snr", None)), plain)


def test_students_may_predict_something_else_from_their_teachers_weights():
    teacher = tiny(grid=Grid(2))
    (stage,) = chain(teacher=teacher, settings=TrainingSettings(1, 8, 1e-12, ema=0), prediction="x")
    assert (stage.student.prediction, teacher.prediction) == ("x", "v")
    for old, new in zip(teacher.network.parameters(), stage.student.network.parameters(), strict=True):
        torch.testing.assert_close(old, new)


# Interrupted and started again.


def chosen(weighting="truncated_snr", limit=1.0, at=None, stop=None):
    """Algorithm 2 with another weighting, a confined teacher, and an interruption in the stage ``stop``."""

    def objective(teacher, grid):
        target = TwoSteps(Confined(teacher, limit), grid.N)
        return Watched(Objective(target, grid, weighting), at if stop == grid.N else None, interrupt)

    return objective


def test_each_stage_keeps_its_checkpoint_in_the_folder(tmp_path):
    chain(folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"student-{steps}.checkpoint" for steps in (4, 2, 1)}


@pytest.mark.parametrize(("stop", "at"), [(4, 2), (2, 1), (1, 0)])
def test_an_interrupted_chain_ends_in_the_same_bits(stop, at, tmp_path):
    whole = chain(objective=chosen())
    with pytest.raises(Interrupted):
        chain(objective=chosen(at=at, stop=stop), folder=tmp_path)
    resumed = chain(objective=chosen(), folder=tmp_path)
    for one, other in zip(resumed, whole, strict=True):
        assert same_weights(one.student, other.student)
        assert same_weights(one.trained.raw, other.trained.raw)
        assert torch.equal(one.trained.losses, other.trained.losses)


OTHER = {
    "the weighting": ({"objective": chosen("snr")}, "objective"),
    "the weights' limits": ({"objective": chosen(Clipped("truncated_snr", max=2.0))}, "objective"),
    "the teacher's limit": ({"objective": chosen(limit=0.5)}, "objective"),
    "the method": ({"objective": lambda teacher, grid: Watched(Objective(Clean(), grid))}, "objective"),
    "the teacher": ({"teacher": tiny(grid=Grid(8), seed=1)}, "denoiser, objective"),
    "the teacher's width": ({"teacher": tiny(grid=Grid(8), width=12)}, "denoiser, objective"),
    "the teacher's schedule": ({"teacher": tiny(schedule=FINITE, grid=Grid(8))}, "denoiser, objective"),
    "the teacher's grid": ({"teacher": tiny(grid=Grid(8, missing=1))}, "denoiser, objective"),
    "the students' prediction": ({"prediction": "x"}, "denoiser"),
    "the data": ({"data": DATA + 0.1}, "data"),
    "the settings": ({"settings": dataclasses.replace(QUICK, ema=0.8)}, "ema"),
    "a stage's settings": ({"settings": lambda grid: dataclasses.replace(QUICK, seed=grid.N)}, "seed"),
}


@pytest.mark.parametrize("what", OTHER)
@pytest.mark.parametrize("stop", [4, None])
def test_the_checkpoints_of_another_chain_are_refused(what, stop, interrupted_chains):
    # Both of a stage that was interrupted, and of stages that were finished.
    change, named = OTHER[what]
    with pytest.raises(
        DamagedFileError, match=rf"student-4\.checkpoint belongs to a training with another {named}: delete"
    ):
        chain(folder=interrupted_chains[stop], **{"objective": chosen()} | change)


@pytest.fixture(scope="module")
def interrupted_chains(tmp_path_factory):
    folders = {stop: tmp_path_factory.mktemp("chain") for stop in (4, None)}
    with pytest.raises(Interrupted):
        chain(objective=chosen(at=2, stop=4), folder=folders[4])
    chain(objective=chosen(), folder=folders[None])
    return folders


def test_a_second_stage_knows_the_first_ones_student(tmp_path):
    # The first stage's checkpoint is gone, and what comes out of it anew is another teacher.
    chain(folder=tmp_path)
    (tmp_path / "student-4.checkpoint").unlink()
    with pytest.raises(
        DamagedFileError, match=r"student-2\.checkpoint belongs to a training with another denoiser, objective"
    ):
        chain(folder=tmp_path, settings=lambda grid: dataclasses.replace(QUICK, seed=9) if grid.N == 4 else QUICK)


def test_a_conversion_goes_on_and_is_not_taken_for_another(tmp_path):
    parent, session = tiny("eps", FINITE, Grid(4)), Session("convert", tmp_path, -1, progress=False)
    whole = convert(Confined(parent, 1.0), "v", DATA, QUICK, session=session)
    again = convert(Confined(parent, 1.0), "v", DATA, QUICK, session=session)
    assert same_weights(again.ema, whole.ema)
    with pytest.raises(DamagedFileError, match="another objective"):
        convert(Confined(parent, 0.5), "v", DATA, QUICK, session=session)
    with pytest.raises(DamagedFileError, match="another denoiser"):
        convert(Confined(parent, 1.0), "x", DATA, QUICK, session=session)
