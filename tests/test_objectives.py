import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import TOLERANCE, clean_start, column, relative_error, schedules, tensors, times, zero_terminal
from tiny import COSINE, Interrupted, Watched, generator, interrupt, noise, same_weights, tiny
from torch import nn
from torch.utils.data import TensorDataset

from pdlib.denoiser import Confined, Denoiser
from pdlib.exact import GaussianDenoiser
from pdlib.files import DamagedFileError
from pdlib.grids import Grid
from pdlib.networks import MLP
from pdlib.objectives import Answer, Clean, Objective, PerClass, TwoSteps, distillation_target
from pdlib.predictions import PredictionError
from pdlib.sampling import ddim_step
from pdlib.schedules import diffuse
from pdlib.training import Session, TrainingSettings, fit
from pdlib.weightings import WEIGHTINGS, Clipped, Density, weight


class Closed:
    """A denoiser from a formula, which remembers what it was asked."""

    def __init__(self, formula, schedule=COSINE):
        self.formula, self.schedule, self.asked = formula, schedule, []

    def __call__(self, z, t):
        self.asked.append((z, t))
        return self.formula(z, t)


def waves(z, t):
    """No denoiser of anything: the identities hold for any function."""
    return torch.sin(3 * z + column(t)) - 0.5 * z


def loss(objective, student, x, seed=0):
    return objective(student, student, x, generator(seed))


# The target x̃ of distillation.


@st.composite
def grid_times(draw, count=4):
    """N, and some of its times i/N."""
    steps = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 32, 100, 512, 1024]))
    index = draw(st.lists(st.integers(1, steps), min_size=count, max_size=count))
    return steps, Grid(steps).times[torch.tensor(index) - 1]


@given(schedules, grid_times(), st.integers(0, 99))
def test_one_student_step_with_the_target_lands_where_two_teacher_steps_do(schedule, grid_times, seed):
    steps, t = grid_times
    teacher, z = Closed(waves, schedule), noise(4, 3, seed=seed)
    t_mid, t_end = t - 0.5 / steps, t - 1 / steps
    z_mid = ddim_step(z, teacher(z, t), t, t_mid, schedule)
    z_end = ddim_step(z_mid, teacher(z_mid, t_mid), t_mid, t_end, schedule)
    target = distillation_target(teacher, z, t, steps)
    assert relative_error(ddim_step(z, target, t, t_end, schedule), z_end) <= TOLERANCE


@given(schedules, grid_times(), st.integers(0, 99))
def test_the_target_in_angles_is_a_law_of_sines(schedule, grid_times, seed):
    # With α = cos φ and σ = sin φ: x̃ = (sin φ z'' − sin φ'' z) / sin(φ − φ''), and a DDIM step turns
    # (x̂, ε̂) by an angle. The whole target again, in that other form.
    steps, t = grid_times
    z = noise(4, 3, seed=seed)
    t_end = t - 1 / steps
    walked = z
    for now, later in [(t, t - 0.5 / steps), (t - 0.5 / steps, t_end)]:
        phi, psi = column(schedule.angle(now)), column(schedule.angle(later))
        walked = (psi.sin() * walked + (phi - psi).sin() * waves(walked, now)) / phi.sin()
    phi, psi = column(schedule.angle(t)), column(schedule.angle(t_end))
    expected = (phi.sin() * walked - psi.sin() * z) / (phi - psi).sin()
    found = TwoSteps(Closed(waves, schedule), steps)(noise(4, 3), z, t, None)
    # Dividing by sin(φ − φ'') costs as many digits as N has.
    assert relative_error(found, expected) <= TOLERANCE * max(1, steps / 10)


@given(clean_start, st.integers(1, 1024), st.integers(0, 99))
def test_at_the_lowest_time_the_target_is_the_teachers_second_x_hat_exactly(schedule, steps, seed):
    t, z = Grid(steps).times[:1], noise(1, 3, seed=seed)
    assert t - 1 / steps == 0
    t_mid = t - 0.5 / steps
    z_mid = ddim_step(z, waves(z, t), t, t_mid, schedule)
    assert torch.equal(distillation_target(Closed(waves, schedule), z, t, steps), waves(z_mid, t_mid))


@given(zero_terminal, st.integers(2, 512), st.integers(0, 99))
def test_at_the_highest_time_the_target_is_free_of_the_signal_that_is_not_there(schedule, steps, seed):
    # α = 0, σ = 1: x̃ = (z'' − σ'' z)/α'', and the first teacher step takes z for the noise.
    t, z = torch.ones(1, dtype=torch.float64), noise(1, 3, seed=seed)
    (a_mid, s_mid), (a_end, s_end) = (schedule.alpha_sigma(t - part / steps) for part in (0.5, 1))
    z_mid = a_mid * waves(z, t) + s_mid * z
    x_hat = waves(z_mid, t - 0.5 / steps)
    z_end = a_end * x_hat + s_end / s_mid * (z_mid - a_mid * x_hat)
    expected = (z_end - s_end * z) / a_end
    found = distillation_target(Closed(waves, schedule), z, t, steps)
    assert relative_error(found, expected) <= TOLERANCE * max(1, steps / 10)


@given(schedules, grid_times(), st.floats(0.1, 2))
def test_a_teacher_who_is_certain_is_copied(schedule, grid_times, certain):
    steps, t = grid_times
    target = distillation_target(Closed(lambda z, t: torch.full_like(z, certain), schedule), noise(4, 3), t, steps)
    # Dividing by sin(φ − φ'') costs as many digits as N has.
    assert relative_error(target, torch.full_like(target, certain)) <= TOLERANCE * max(1, steps / 10)


def test_the_teacher_is_asked_at_t_and_half_a_student_step_below():
    teacher = Closed(waves)
    distillation_target(teacher, noise(4, 3), Grid(4).times, steps=4)
    assert [t.tolist() for _, t in teacher.asked] == [[0.25, 0.5, 0.75, 1], [0.125, 0.375, 0.625, 0.875]]


def test_a_confined_teacher_is_confined_in_both_of_its_answers():
    z, t = noise(4, 3), Grid(4).times
    found = distillation_target(Confined(Closed(waves), 0.3), z, t, 4)
    by_hand = Closed(lambda z, t: waves(z, t).clamp(-0.3, 0.3))
    assert torch.equal(found, distillation_target(by_hand, z, t, 4))
    for _, asked_at in by_hand.asked:
        assert waves(_, asked_at).abs().max() > 0.3  # both had something to confine


def test_an_eps_teacher_is_refused_where_alpha_is_0():
    teacher = Denoiser(MLP(3, width=8), "eps", COSINE)
    with pytest.raises(PredictionError, match="α = 0"):
        distillation_target(teacher, torch.randn(4, 3), Grid(4).times, 4)


# What an objective draws.


@given(schedules, times(4), tensors(4, 3))
def test_diffusing_mixes_the_data_with_the_noise_it_returns(schedule, t, x):
    z, eps = diffuse(x, t, schedule, generator())
    alpha, sigma = schedule.alpha_sigma(t)
    assert torch.equal(z, column(alpha) * x + column(sigma) * eps)
    assert torch.equal(eps, noise(4, 3))


@given(zero_terminal)
def test_at_the_last_time_what_a_network_sees_is_the_noise_itself(schedule):
    # So the identity is a perfect ε network there, and has learned nothing of x.
    z, eps = diffuse(noise(4, 3, seed=1), torch.ones(4), schedule, generator())
    assert torch.equal(z, eps)


def draws(grid, x, target=None):
    """The z and t that an objective shows its student."""
    student = Closed(waves)
    loss(Objective(target or Clean(), grid, "constant"), student, x)
    return student.asked[0]


@pytest.mark.parametrize("grid", [Grid(1), Grid(5), Grid(64), Grid(4, missing=1), Grid(6, missing=4)])
def test_the_grids_times_are_drawn_evenly(grid):
    n = len(grid.times)
    t = draws(grid, noise(n * 1000, 1))[1]
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == [i / grid.N for i in range(1, grid.N + 1 - grid.missing)]  # never 0
    chi_square = ((counts - 1000) ** 2 / 1000).sum().item()  # of mean n − 1 and variance 2 (n − 1)
    assert chi_square <= n - 1 + 4 * (2 * (n - 1)) ** 0.5


def test_continuous_times_are_uniform():
    t = draws(None, noise(10_000, 1))[1]
    assert t.dtype == torch.float64
    assert t.mean().item() == pytest.approx(0.5, abs=0.01)  # standard error 0.003
    assert t.var().item() == pytest.approx(1 / 12, abs=0.005)


def test_continuous_times_may_be_1_and_are_never_0():
    # A uniform number is in [0, 1): the 0 that it may be becomes the noisiest time, not the clean one.
    assert torch.equal(draws(None, noise(5, 1))[1], 1 - torch.rand(5, generator=generator(), dtype=torch.float64))


@pytest.mark.parametrize("target", [Clean(), Answer(Closed(waves)), TwoSteps(Closed(waves), 4)])
def test_the_student_sees_the_data_mixed_with_standard_noise(target):
    x = torch.full((20_000, 1), 0.7, dtype=torch.float64)
    z, t = draws(Grid(4), x, target)
    alpha, sigma = COSINE.alpha_sigma(t)
    eps = (z - column(alpha) * x) / column(sigma)
    # Standard errors: 1/√20000 = 0.007 of the mean, √(2/20000) = 0.01 of the variance.
    assert eps.mean().item() == pytest.approx(0, abs=0.03)
    assert eps.var().item() == pytest.approx(1, abs=0.04)


# The loss.


def test_the_loss_is_a_mean_over_entries_and_examples():
    # Errors of 1 and 3 in every example; the weight is 1/σ² = 1/sin²(πt/2).
    student = Closed(lambda z, t: torch.tensor([[1.0, 3.0]]).expand_as(z))
    found = loss(Objective(lambda x, z, t, average: torch.zeros_like(x), Grid(4), "snr_plus_one"), student, noise(5, 2))
    weights = [1 / math.sin(math.pi * t / 2) ** 2 for t in student.asked[0][1].tolist()]
    assert len(set(weights)) > 1
    assert found.item() == pytest.approx(sum(w * (1 + 9) / 2 for w in weights) / 5)


@pytest.mark.parametrize(
    "weighting", [*WEIGHTINGS, Clipped("log_snr_density", min=1, normalize=4), lambda schedule, t: 2 + t]
)
@pytest.mark.parametrize("grid", [None, Grid(4)])
def test_every_example_is_weighed_at_its_own_time(weighting, grid):
    x = noise(6, 1, 2, 2)
    student = Closed(lambda z, t: 0.5 * z)
    found = loss(Objective(Clean(), grid, weighting), student, x)
    z, t = student.asked[0]
    if grid and weighting == "log_snr_density":  # on a grid it is that of its steps
        weighting = Density(4)
    elif grid and isinstance(weighting, Clipped):
        weighting = Clipped(Density(4), min=1, normalize=4)
    expected = sum(weight(weighting, COSINE, t[i]) * (0.5 * z[i] - x[i]).square().mean() for i in range(6)) / 6
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_on_a_grid_the_density_is_that_between_its_steps():
    # SNR_i / (SNR_{i−1} − SNR_i), by hand, for the second of two steps back from t = 3/4 of the grid of 4.
    student = Closed(lambda z, t: torch.ones_like(z))
    found = loss(Objective(lambda x, z, t, average: 0 * x, Grid(4, missing=1), "log_snr_density"), student, noise(9, 1))
    snr = {i: 1 / math.tan(math.pi * i / 8) ** 2 if i else math.inf for i in range(5)}
    of_each = [0 if i == 1 else snr[i] / (snr[i - 1] - snr[i]) for i in (student.asked[0][1] * 4).tolist()]
    assert found.item() == pytest.approx(sum(of_each) / 9)


@pytest.mark.parametrize("grid", [None, Grid(1), Grid(4)])
def test_the_best_denoisers_loss_is_the_posterior_variance(grid):
    # x ~ N(0, I): E[x | z] = α z leaves the variance σ², which the v weighting 1/σ² makes 1 at every time.
    best = GaussianDenoiser(torch.zeros(3), torch.eye(3), COSINE)
    found = loss(Objective(Clean(), grid, "snr_plus_one"), best, noise(20_000, 3, seed=1))
    assert found.item() == pytest.approx(1, abs=0.03)  # standard error √(2/60000) = 0.006


def test_the_loss_of_clean_data_vanishes_only_for_the_data_themselves():
    x = noise(100, 3)
    objective = Objective(Clean(), Grid(4))
    assert loss(objective, Closed(lambda z, t: x), x) == 0
    off = Closed(lambda z, t: x + 0.1)
    found = loss(objective, off, x).item()
    expected = 0.01 * weight("truncated_snr", COSINE, off.asked[0][1]).mean().item()  # the weighting if none is named
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("limit", [None, 1.0, 0.3])
def test_an_answers_loss_is_the_distance_to_the_parents_confined_x_hat(limit):
    confined = math.inf if limit is None else limit
    student = Closed(lambda z, t: waves(z, t).clamp(-confined, confined) + 0.1)
    found = loss(Objective(Answer(Confined(Closed(waves), limit)), Grid(4), "snr_plus_one"), student, noise(500, 3))
    w = weight("snr_plus_one", COSINE, student.asked[0][1])
    assert found.item() == pytest.approx(0.01 * w.mean().item(), rel=1e-9)


@pytest.mark.parametrize("grid", [None, Grid(4)])
def test_an_unknown_weighting_is_refused_at_once(grid):
    with pytest.raises(ValueError, match="weighting='snrr' is unknown; did you mean 'snr'"):
        Objective(Clean(), grid, "snrr")


# What reaches a target.


@pytest.mark.parametrize("target", [Answer, lambda teacher: TwoSteps(teacher, 4)])
def test_a_target_passes_no_gradient_on(target):
    layer = nn.Linear(3, 3).double()
    student, fixed = Closed(lambda z, t: layer(z)), Closed(lambda z, t: layer(z).detach())

    def gradient(teacher):
        layer.zero_grad()
        # Half of what the teacher says, so that a student who is its own teacher has something to learn.
        objective = Objective(lambda *arguments: target(teacher)(*arguments) / 2, Grid(4))
        loss(objective, student, noise(4, 3)).backward()
        return layer.weight.grad.clone()

    torch.testing.assert_close(gradient(student), gradient(fixed))
    assert gradient(student).abs().max() > 0


def test_a_target_is_given_the_data_the_noisy_data_and_their_time():
    given = []
    x, student = noise(4, 3), Closed(waves)
    loss(Objective(lambda *arguments: given.extend(arguments) or arguments[0], Grid(4)), student, x)
    z, t = student.asked[0]
    assert given[0] is x
    assert torch.equal(given[1], z)
    assert torch.equal(given[2], t)
    assert given[3] is student


class Level(nn.Module):
    """The simplest thing that trains: x̂ is one number."""

    schedule = COSINE

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, z, t):
        return self.level.expand_as(z)


def test_the_students_average_reaches_the_target():
    levels, averaging = [], []

    def beyond(x, z, t, average):  # one more than the average says
        averaging.append(not average.training)
        return average(z, t) + 1

    def objective(student, average, x, generator):
        levels.append(student.level.item())
        return Objective(beyond, None, "constant")(student, average, x, generator)

    settings = TrainingSettings(8, 2, 0.1, warmup=1, ema=0.5)
    trained = fit(Level(), objective, noise(4, 1), settings, Session(progress=False))
    average = levels[0]
    for update, level in enumerate(levels):
        if update:
            average = level if update == 1 else 0.5 * average + 0.5 * level
        assert trained.losses[update].item() == pytest.approx((average + 1 - level) ** 2)
    assert levels[-1] > 0.4  # it went on and on after its own average
    assert all(averaging)


def test_a_target_that_asks_the_average_trains_a_network_of_ours():
    # Half of what the average says and half of the data: no worse than the data alone, and not the same.
    data = 0.5 + 0.1 * noise(64, 2).float()
    settings, quiet = TrainingSettings(30, 16, 0.01, warmup=1, ema=0.5), Session(progress=False)
    own = fit(tiny(), Objective(lambda x, z, t, average: (x + average(z, t)) / 2), data, settings, quiet)
    plain = fit(tiny(), Objective(Clean()), data, settings, quiet)
    assert not same_weights(own.raw, plain.raw)
    learned, before = (loss(Objective(Clean()), denoiser, data) for denoiser in (own.ema, tiny()))
    assert learned < 0.8 * before


# Class-conditional objectives.


class ByLabel(nn.Module):
    """A class-conditional denoiser that learns one number for each class: x̂ = that number."""

    def __init__(self, values):
        super().__init__()
        self.values, self.schedule = nn.Parameter(torch.tensor(values)), COSINE

    def forward(self, z, t, labels):
        return self.values[labels][:, None].expand_as(z)


def test_teacher_student_and_average_are_bound_to_each_batchs_labels():
    student, average, teacher = ByLabel([1.0, 2.0]), ByLabel([0.0, 0.0]), ByLabel([5.0, 7.0])
    x, labels = noise(6, 2).float(), torch.tensor([0, 1, 1, 0, 1, 1])
    objective = PerClass(teacher, lambda bound: Objective(Answer(bound), Grid(4), "constant"))
    # (5 − 1)² twice and (7 − 2)² four times
    assert loss(objective, student, (x, labels)).item() == pytest.approx((2 * 16 + 4 * 25) / 6)
    seen = []

    def target(x, z, t, average):
        seen.append(average(z, t))
        return x

    objective = PerClass(None, lambda _: Objective(target, Grid(4), "constant"))
    objective(student, average, (x, labels), generator())
    assert torch.equal(seen[0], torch.zeros(6, 2))


def test_each_class_is_learned_from_its_own_examples():
    x, labels = torch.tensor([[-1.0, -1.0], [0.5, 0.5]]).repeat(50, 1), torch.tensor([0, 1]).repeat(50)
    objective = PerClass(None, lambda _: Objective(Clean(), None, "constant"))
    settings = TrainingSettings(updates=300, batch_size=16, learning_rate=0.05, ema=0.9)
    trained = fit(ByLabel([0.0, 0.0]), objective, TensorDataset(x, labels), settings, Session(progress=False)).ema
    torch.testing.assert_close(trained.values, torch.tensor([-1.0, 0.5]), rtol=0, atol=0.02)


def test_a_class_conditional_training_goes_on_to_the_same_bits_and_knows_other_labels(tmp_path):
    x, labels = noise(40, 2).float(), torch.arange(40) % 2
    objective = PerClass(ByLabel([5.0, 7.0]), lambda bound: Objective(Answer(bound), Grid(4)))
    settings, session = TrainingSettings(updates=20, batch_size=8), Session("x", tmp_path, 0.0, progress=False)
    whole = fit(ByLabel([0.0, 0.0]), objective, TensorDataset(x, labels), settings, Session(progress=False))
    stopped = Watched(objective, at=12, happens=interrupt)
    with pytest.raises(Interrupted):
        fit(ByLabel([0.0, 0.0]), stopped, TensorDataset(x, labels), settings, session)
    other = TensorDataset(x, 1 - labels)
    with pytest.raises(DamagedFileError, match="belongs to a training with another"):
        fit(ByLabel([0.0, 0.0]), Watched(objective), other, settings, session)
    again = fit(ByLabel([0.0, 0.0]), Watched(objective), TensorDataset(x, labels), settings, session)
    assert same_weights(again.raw, whole.raw)
