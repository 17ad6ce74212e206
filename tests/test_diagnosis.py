import math
from itertools import pairwise

import pytest
import torch
from tiny import COSINE, FINITE

from pdlib.data import load_data
from pdlib.denoiser import Confined, Denoiser
from pdlib.diagnosis import CULPRITS, diagnose, diagnose_student, measured_times, residuals, x_errors
from pdlib.exact import EmpiricalDenoiser, GaussianDenoiser
from pdlib.grids import Grid
from pdlib.networks import MLP
from pdlib.objectives import Clean, Objective, TwoSteps, distillation_target
from pdlib.schedules import DiscreteSchedule, LinearSchedule, diffuse, zero_terminal_snr
from pdlib.training import Session, TrainingSettings, fit
from pdlib.weightings import Clipped, Density

MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)


def network(prediction="v", schedule=COSINE, grid=None):
    return Denoiser(MLP(2, out_channels=4 if prediction == "both" else 2, width=4), prediction, schedule, grid)


HEALTHY = [
    *[(network(prediction), Grid(steps), weighting) for prediction in ("x", "v", "both")
      for steps in (1, 2, 4, 64) for weighting in ("truncated_snr", "snr_plus_one")],
    *[(network("x"), Grid(steps), "constant") for steps in (1, 8, 1024)],
    *[(network("v"), Grid(steps), "truncated_snr") for steps in (16, 256, 1024)],
    *[(network("v", FINITE), Grid(steps), "truncated_snr") for steps in (1, 8)],
    (network("v"), Grid(4), Clipped("snr", min=1)),
    (network("v"), Grid(1), Clipped("log_snr_density", min=1)),
    (network("v"), Grid(4), lambda schedule, t: torch.ones_like(t)),
    (network("v", zero_terminal_snr(LinearSchedule())), Grid(4), "truncated_snr"),
    (network("v", zero_terminal_snr(DiscreteSchedule.scaled_linear_beta())), Grid(8), "snr_plus_one"),
    (GaussianDenoiser(MEAN, COVARIANCE, COSINE), Grid(4), "truncated_snr"),
    (Confined(network("v", grid=Grid(4)), 1.0),),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(HEALTHY)))
def test_the_diagnosis_is_silent_on_the_healthy(case):
    assert diagnose(*HEALTHY[case]) == []


ILL = [
    # the off-by-one grid: α at the highest time is sin(π/2N)
    *[((network(), Grid(n, missing=1)), {"wrong top time": math.sin(math.pi / 2 / n)}) for n in (1024, 64, 4, 2, 1)],
    # a last SNR above 0
    ((network("v", LinearSchedule()), Grid(4)), {"terminal SNR": 0.0066}),
    ((network("v", DiscreteSchedule.linear_beta()), Grid(64)), {"terminal SNR": 0.0064}),
    ((GaussianDenoiser(MEAN, COVARIANCE, DiscreteSchedule.scaled_linear_beta()), Grid(1)), {"terminal SNR": 0.068}),
    # weights of 0
    *[((network(), Grid(n), weighting), {"dead steps": 0})
      for n in (64, 4, 1) for weighting in ("snr", "log_snr_density", Density())],
    # an ε network
    ((network("eps", FINITE), Grid(4)), {"unbounded targets": math.exp(10)}),
    ((network("eps", LinearSchedule()), Grid(8)), {"terminal SNR": 0.0066, "unbounded targets": 152.2}),
    # several at once
    ((network("v", LinearSchedule()), Grid(2, missing=1)), {"wrong top time": 0.28, "terminal SNR": 0.0066}),
    ((network(), Grid(1, missing=1), "snr"), {"wrong top time": 1}),
    ((network(), Grid(4, missing=1), "log_snr_density"), {"wrong top time": 0.38, "dead steps": 0}),
    ((network("eps", FINITE), Grid(4), "snr"), {"dead steps": 0, "unbounded targets": math.exp(10)}),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(ILL)))
def test_the_diagnosis_names_what_is_wrong_and_nothing_else(case):
    arguments, expected = ILL[case]
    found = diagnose(*arguments)
    assert {finding.culprit: pytest.approx(finding.figure, rel=0.02, abs=1e-6) for finding in found} == expected
    assert [finding.culprit for finding in found] == [name for name in CULPRITS if name in expected]


def test_the_diagnosis_says_which_steps_are_dead():
    (finding,) = diagnose(network(), Grid(4), "snr")
    assert "of 4 steps 1 gets less than 1 % of the fair share of the loss: t = 1." in str(finding)
    (finding,) = diagnose(network(), Grid(2), "log_snr_density")
    assert "of 2 steps 2 get less" in str(finding)
    assert "t = 1, 0.5." in str(finding)


def test_a_denoiser_is_diagnosed_on_the_grid_that_it_was_made_for():
    (finding,) = diagnose(network(grid=Grid(4, missing=1)))
    assert (finding.culprit, finding.figure) == ("wrong top time", pytest.approx(math.sin(math.pi / 8)))
    assert diagnose(network(grid=Grid(4, missing=1)), Grid(4)) == []  # unless another is named
    with pytest.raises(
        ValueError, match=r"grid: this denoiser was made for no number of steps; say for which Grid\(N\)"
    ):
        diagnose(network())


def test_an_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="weighting='snrr' is unknown; did you mean 'snr'"):
        diagnose(network(), Grid(4), "snrr")


# What is measured on images, or on points.


@pytest.fixture(scope="module")
def moons():
    return load_data("moons").x


@pytest.fixture(scope="module")
def teacher(moons):
    made = Denoiser(MLP(width=64), "v", COSINE, Grid(16), shape=(2,))
    return fit(made, Objective(Clean()), moons, TrainingSettings(updates=1500), Session(progress=False)).ema


def student(teacher, moons, updates=300, weighting="truncated_snr", grid=None, made_for=None):
    """The student that learns from a teacher at some times; what it says that it was made for may be others."""
    grid = grid or teacher.grid.halved()
    objective = Objective(TwoSteps(teacher, grid.N), grid, weighting)
    settings = TrainingSettings(updates, learning_rate=5e-4, warmup=20, ema=0.97)
    made = fit(teacher.student(grid=grid), objective, moons, settings, Session(progress=False)).ema
    made.grid = made_for or grid
    return made


@pytest.fixture(scope="module")
def chain(teacher, moons):
    """The healthy students for 8, 4, 2 steps."""
    students = [teacher]
    while students[-1].grid.N > 2:
        students.append(student(students[-1], moons))
    return students


def what(one, teacher, x, first=None):
    left = residuals(one, teacher, x[:512])
    of_first = None if first is None else residuals(one, first, x[:512])
    return [finding.culprit for finding in diagnose_student(left, of_first)]


def test_healthy_students_have_learned_what_their_teachers_tell(chain, teacher, moons):
    for above, one in pairwise(chain):
        left = residuals(one, above, moons[:512])
        assert left.shape == (one.grid.N,)
        assert left.max() < 0.1
        assert what(one, above, moons, None if above is teacher else teacher) == []


def test_the_residual_is_that_of_x_tilde_beside_a_copys(teacher, moons):
    x, copy = moons[:256], teacher.student(grid=Grid(2))
    torch.testing.assert_close(residuals(copy, teacher, x), torch.ones(2, dtype=torch.float64))
    one = teacher.student(grid=Grid(2))
    with torch.no_grad():
        one.network.last.bias.add_(0.1)
    left, g = residuals(one, teacher, x, seed=5), torch.Generator().manual_seed(5)
    for i, time in enumerate((0.5, 1.0)):
        t = torch.full((256,), time, dtype=torch.float64)
        z, _ = diffuse(x, t, COSINE, g)
        target = distillation_target(teacher, z, t, 2)
        with torch.no_grad():
            missed = [(target - network(z, t)).double().square().mean() for network in (one, teacher)]
        assert left[i] == pytest.approx((missed[0] / missed[1]).item(), rel=1e-5)


def test_a_student_that_was_not_trained_is_told_from_one_that_was_for_too_short(teacher, moons):
    assert what(teacher.student(grid=Grid(2)), teacher, moons) == ["never trained"]
    assert what(student(teacher, moons, updates=12, grid=Grid(2)), teacher, moons) == ["too few updates"]


def test_dead_steps_are_seen_in_the_student_itself(chain, moons):
    four = next(one for one in chain if one.grid.N == 4)
    by_weight = student(four, moons, weighting="snr")
    by_grid = student(four, moons, grid=Grid(2, missing=1), made_for=Grid(2))
    for one in (by_weight, by_grid):
        (finding,) = diagnose_student(residuals(one, four, moons[:512]))
        assert finding.culprit == "dead steps"
        assert "at t = 1 " in str(finding)


def test_a_chain_whose_students_were_never_promoted_is_seen(chain, teacher, moons):
    of_the_first = student(teacher, moons, updates=600, grid=Grid(2))
    four = next(one for one in chain if one.grid.N == 4)
    assert what(of_the_first, four, moons, teacher) == ["never promoted"]
    (finding,) = diagnose_student(residuals(of_the_first, four, moons), residuals(of_the_first, teacher, moons))
    assert finding.figure > 2


def test_students_and_teachers_on_different_schedules_are_not_compared(teacher, moons):
    other = teacher.student(grid=Grid(4))
    other.schedule = FINITE
    assert what(other, other, moons) == ["never trained"]
    other.schedule = LinearSchedule()
    with pytest.raises(ValueError, match=r"the student is on LinearSchedule.*give its own teacher"):
        residuals(other, teacher, moons)
    other.schedule, other.grid = COSINE, None
    with pytest.raises(ValueError, match=r"give student.grid = Grid\(N\)"):
        residuals(other, teacher, moons)


def test_the_error_of_x_hat_stands_beside_answers_that_need_no_network(moons):
    x, times = moons[:512], torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    exact = EmpiricalDenoiser(moons, COSINE)
    errors = x_errors(exact, x, times)
    assert (errors["network"] <= 1.01 * torch.stack([*errors.values()]).amin(0)).all()
    assert errors["zero"] == pytest.approx(x.square().mean().item(), rel=1e-5)
    assert errors["mean"] == pytest.approx((x - x.mean(0)).square().mean().item(), rel=1e-5)
    assert errors["eps = z"][0] < errors["zero"][0]
    assert errors["eps = z"].isinf().tolist() == [False, False, True]


def test_the_times_that_are_measured_are_the_schedules_own():
    for prediction, schedule, last in (("v", COSINE, 1.0), ("eps", COSINE, 0.999), ("eps", LinearSchedule(), 1.0)):
        times = measured_times(network(prediction, schedule))
        assert (len(times), times[-1].item()) == (10, last)
    times = measured_times(network("v", DiscreteSchedule.linear_beta(32)))
    torch.testing.assert_close(times * 32, (times * 32).round())
