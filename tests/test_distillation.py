import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import TOLERANCE, clean_start, column, relative_error, schedules, zero_terminal
from torch import nn

import pdlib.distillation
from pdlib.denoiser import Denoiser
from pdlib.distillation import (
    CULPRITS,
    conversion_loss,
    convert,
    diagnose,
    distillation_loss,
    distillation_target,
    progressive_distillation,
    stage_steps,
)
from pdlib.exact import GaussianDenoiser
from pdlib.predictions import PredictionError
from pdlib.sampling import ddim_step, sample
from pdlib.schedules import CosineSchedule, DiscreteSchedule, LinearSchedule, grid, zero_terminal_snr
from pdlib.training import TrainingSettings, random_grid_times
from pdlib.unet import MLP
from pdlib.weightings import WEIGHTINGS, clipped, weight

COSINE = CosineSchedule()
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)


class Closed:
    """A denoiser from a formula, which remembers the times it was asked at."""

    def __init__(self, formula, schedule=COSINE):
        self.formula, self.schedule, self.times = formula, schedule, []

    def __call__(self, z, t):
        self.times.append(t)
        return self.formula(z, t)


def waves(z, t):
    """No denoiser of anything: the identities hold for any function."""
    return torch.sin(3 * z + column(t)) - 0.5 * z


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@st.composite
def grid_times(draw, count=4):
    """N, and some of its times i/N."""
    steps = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 32, 100, 512, 1024]))
    index = draw(st.lists(st.integers(1, steps), min_size=count, max_size=count))
    return steps, grid(steps)[torch.tensor(index) - 1]


# The target x̃.


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
    found = distillation_target(Closed(waves, schedule), z, t, steps)
    # Dividing by sin(φ − φ'') costs as many digits as N has.
    assert relative_error(found, expected) <= TOLERANCE * max(1, steps / 10)


@given(clean_start, st.integers(1, 1024), st.integers(0, 99))
def test_at_the_lowest_time_the_target_is_the_teachers_second_x_hat_exactly(schedule, steps, seed):
    t, z = grid(steps)[:1], noise(1, 3, seed=seed)
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
    teacher, t = Closed(waves), grid(4)
    distillation_target(teacher, noise(4, 3), t, steps=4)
    assert [asked.tolist() for asked in teacher.times] == [[0.25, 0.5, 0.75, 1], [0.125, 0.375, 0.625, 0.875]]


def test_clipping_confines_both_of_the_teachers_answers():
    def confined(z, t):
        return waves(z, t).clamp(-0.3, 0.3)

    z, t = noise(4, 3), grid(4)
    found = distillation_target(Closed(waves), z, t, 4, clip=0.3)
    assert torch.equal(found, distillation_target(Closed(confined), z, t, 4))
    assert not torch.equal(found, distillation_target(Closed(waves), z, t, 4))


def test_the_target_carries_no_gradient_to_the_teacher():
    layer = nn.Linear(3, 3).double()
    assert not distillation_target(Closed(lambda z, t: layer(z)), noise(4, 3), grid(4), 4).requires_grad


def test_an_eps_teacher_is_refused_where_alpha_is_0():
    teacher = Denoiser(MLP(3, width=8), "eps", COSINE)
    with pytest.raises(PredictionError, match="α = 0"):
        distillation_target(teacher, torch.randn(4, 3), grid(4), 4)


# The losses.


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("steps", [1, 4])
def test_the_distillation_loss_is_the_weighted_distance_to_the_target(weighting, steps):
    teacher = Closed(waves)
    student = Closed(lambda z, t: distillation_target(teacher, z, t, steps, clip=0.5) + 0.1)
    x = noise(500, 3)
    found = distillation_loss(student, teacher, x, steps, generator(3), weighting, clip=0.5)
    t = random_grid_times(500, steps, generator(3))  # the times are drawn first
    assert torch.equal(student.times[0], t)
    w = weight(weighting, COSINE, t, steps)
    assert found.item() == pytest.approx(0.01 * w.mean().item(), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("clip", [None, 1.0, 0.3])
def test_the_conversion_loss_is_the_weighted_distance_to_the_parents_clipped_x_hat(clip):
    limit = math.inf if clip is None else clip
    student = Closed(lambda z, t: waves(z, t).clamp(-limit, limit) + 0.1)
    x = noise(500, 3)
    found = conversion_loss(student, Closed(waves), x, 4, generator(3), "snr_plus_one", clip)
    w = weight("snr_plus_one", COSINE, random_grid_times(500, 4, generator(3)), 4)
    assert found.item() == pytest.approx(0.01 * w.mean().item(), rel=1e-9)


@pytest.mark.parametrize("loss", [distillation_loss, conversion_loss])
def test_the_student_sees_the_data_mixed_with_standard_noise_at_times_of_the_grid(loss):
    seen = []

    def look(z, t):
        seen.append((z, t))
        return z

    x = torch.full((20_000, 1), 0.7, dtype=torch.float64)
    loss(Closed(look), Closed(waves), x, 4, generator())
    z, t = seen[0]
    assert t.unique().tolist() == [0.25, 0.5, 0.75, 1]
    alpha, sigma = COSINE.alpha_sigma(t)
    eps = (z - column(alpha) * x) / column(sigma)
    # Standard errors: 1/√20000 = 0.007 of the mean, √(2/20000) = 0.01 of the variance.
    assert eps.mean().item() == pytest.approx(0, abs=0.03)
    assert eps.var().item() == pytest.approx(1, abs=0.04)


# The optimum: distilling a closed-form Gaussian teacher.


class AffineTable(nn.Module):
    """One affine map z ↦ A z + b per time i/N: with a Gaussian teacher the target is affine in z, so this can be it."""

    def __init__(self, steps, dimensions):
        super().__init__()
        self.steps, self.config = steps, {"channels": dimensions, "out_channels": dimensions}
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
    x = noise(200, 2)
    minimise(student, lambda: distillation_loss(student, teacher, x, steps, generator(), weighting))
    matrices, shifts = optimal_maps(steps)
    torch.testing.assert_close(student.network.matrices.detach(), matrices, atol=1e-6, rtol=0)
    torch.testing.assert_close(student.network.shifts.detach(), shifts, atol=1e-6, rtol=0)


def test_with_the_snr_weighting_a_student_learns_nothing_at_the_last_time():
    teacher = GaussianDenoiser(MEAN, COVARIANCE, COSINE)
    student = Denoiser(AffineTable(4, 2), "x", COSINE)
    minimise(student, lambda: distillation_loss(student, teacher, noise(200, 2), 4, generator(), "snr"))
    _, shifts = optimal_maps(4)
    torch.testing.assert_close(student.network.shifts[:3].detach(), shifts[:3], atol=1e-4, rtol=0)
    assert (student.network.shifts[3] == 0).all()  # as it started, where the optimum is not 0
    assert (student.network.matrices[3] == 0).all()
    assert shifts[3].abs().min() > 0.1


@torch.no_grad()
def gaussian_table(steps, schedule, prediction):
    """A Gaussian's denoiser as a trained network would come: read off the closed form at three points of each time."""
    network = AffineTable(steps, 2)
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    for i, t in enumerate(grid(steps)):
        x_hat = GaussianDenoiser(MEAN, COVARIANCE, schedule)(points, t.expand(3))
        alpha, sigma = schedule.alpha_sigma(t)
        output = x_hat if prediction == "x" else (points - alpha * x_hat) / sigma
        network.shifts[i], network.matrices[i] = output[0], (output[1:] - output[0]).mT
    return Denoiser(network.requires_grad_(False), prediction, schedule)


CLIPPED = CosineSchedule(log_snr_min=-20, log_snr_max=20)
STEADY = TrainingSettings(300, batch_size=64, learning_rate=0.1, warmup=1, anneal="cosine", max_gradient_norm=1e9)


def test_progressive_distillation_of_a_gaussian_teacher_samples_in_1_step_what_the_teacher_does_in_4():
    teacher = gaussian_table(4, COSINE, "x")
    z = noise(50, 2)
    *_, slow = sample(teacher, 4, z)
    *_, last = progressive_distillation(teacher, noise(500, 2), 4, 1, STEADY, seed=0, weights="raw", progress=False)
    *_, fast = sample(last.student, 1, z)
    # Far from where the same teacher goes by itself in 1 step.
    *_, undistilled = sample(teacher, 1, z)
    assert (undistilled - slow).abs().max() > 0.5
    torch.testing.assert_close(fast, slow, atol=1e-3, rtol=0)


# Conversion.


def random_mlp(prediction, schedule=COSINE, channels=2):
    """A small denoiser whose output layer, which starts at 0, says something too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MLP(2, channels, width=16, blocks=1)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return Denoiser(network, prediction, schedule)


STAND_STILL = TrainingSettings(1, batch_size=8, learning_rate=0.0)
DATA = noise(64, 2).float() / 3


@pytest.mark.parametrize(("before", "after"), [("eps", "v"), ("eps", "both"), ("both", "v"), ("x", "eps")])
def test_a_converted_model_starts_from_its_parents_weights(before, after):
    parent = random_mlp(before, CLIPPED, channels=4 if before == "both" else 2)
    converted = convert(parent, after, DATA, 4, STAND_STILL, seed=0, progress=False).raw
    assert (converted.prediction, converted.schedule) == (after, CLIPPED)
    assert converted(DATA, torch.ones(64)).shape == DATA.shape
    old, new = parent.network.state_dict(), converted.network.state_dict()
    different = {name for name in old if old[name].shape != new[name].shape}
    assert different == ({"last.weight", "last.bias"} if "both" in (before, after) else set())
    assert all(torch.equal(old[name], new[name]) for name in set(old) - different)


@pytest.mark.parametrize("after", ["v", "x"])
def test_a_converted_gaussian_model_denoises_as_its_parent_did(after):
    # ε̂ = (z − α x̂)/σ of the Gaussian data is affine in z, and so are the x̂ and the v̂ to be learned from it.
    parent = gaussian_table(4, CLIPPED, "eps")
    weights = copy.deepcopy(parent.network.state_dict())
    converted = convert(parent, after, noise(500, 2), 4, STEADY, seed=0, clip=None, progress=False).raw
    z, t = noise(40, 2, seed=1), grid(4).repeat(10)
    torch.testing.assert_close(converted(z, t), GaussianDenoiser(MEAN, COVARIANCE, CLIPPED)(z, t), atol=1e-3, rtol=0)
    assert all(torch.equal(value, weights[name]) for name, value in parent.network.state_dict().items())


# The chain.


def test_the_stages_halve_down_to_the_end():
    assert stage_steps(64, 1) == [32, 16, 8, 4, 2, 1]
    assert stage_steps(12, 3) == [6, 3]
    assert stage_steps(8, 8) == []


@pytest.mark.parametrize(("start", "end"), [(6, 4), (12, 1), (1, 2), (4, 3), (4, 0), (0, 1), (-4, 1), (4, -1)])
def test_a_start_that_does_not_halve_down_to_the_end_is_refused(start, end):
    with pytest.raises(ValueError, match=f"steps={start} cannot be halved down to end_steps={end}"):
        stage_steps(start, end)


QUICK = TrainingSettings(3, batch_size=8, learning_rate=0.01, warmup=1, ema=0.9)


def chain(start=8, end=1, teacher=None, **options):
    teacher = teacher or random_mlp("v")
    options = {"settings": QUICK, "seed": 0, "progress": False} | options
    return list(progressive_distillation(teacher, DATA, start, end, **options))


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_each_student_becomes_the_next_teacher(weights, monkeypatch):
    asked = []

    def spy(student, teacher, x, steps, *rest):
        asked.append((steps, teacher, copy.deepcopy(student)))
        return distillation_loss(student, teacher, x, steps, *rest)

    monkeypatch.setattr(pdlib.distillation, "distillation_loss", spy)
    first = random_mlp("v")
    stages = chain(teacher=first, weights=weights)
    assert [stage.steps for stage in stages] == [4, 2, 1]
    assert [steps for steps, _, _ in asked] == [4, 4, 4, 2, 2, 2, 1, 1, 1]
    teachers = [first, stages[0].student, stages[1].student]
    for stage, teacher, (_, used, student) in zip(stages, teachers, asked[::3], strict=True):
        assert used is teacher
        assert same_weights(student, teacher)  # θ ← η: it starts as a copy
        assert stage.student is (stage.trained.ema if weights == "ema" else stage.trained.raw)
        assert not same_weights(stage.trained.ema, stage.trained.raw)
        assert stage.student.prediction == "v"
    assert same_weights(first, random_mlp("v"))  # the teacher is left as it was


def test_each_stage_draws_for_itself(monkeypatch):
    drawn = []

    def spy(student, teacher, x, *rest):
        drawn.append(x)
        return distillation_loss(student, teacher, x, *rest)

    monkeypatch.setattr(pdlib.distillation, "distillation_loss", spy)
    chain()
    first, second, third = drawn[::3]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_going_on_from_a_student_is_the_same_as_never_having_stopped():
    whole = chain()
    begun = next(iter(progressive_distillation(random_mlp("v"), DATA, 8, 1, QUICK, seed=0, progress=False)))
    rest = chain(start=4, teacher=begun.student)
    assert same_weights(rest[-1].student, whole[-1].student)


def test_the_same_seed_gives_the_same_students_and_another_seed_others():
    assert same_weights(chain()[-1].student, chain()[-1].student)
    assert not same_weights(chain()[-1].student, chain(seed=1)[-1].student)


def test_some_stages_may_have_their_own_number_of_updates():
    assert [len(stage.trained.losses) for stage in chain(updates={2: 5})] == [3, 5, 3]


def test_each_stage_keeps_its_checkpoint_in_the_folder(tmp_path):
    chain(folder=tmp_path, checkpoint_seconds=-1)
    assert {path.name for path in tmp_path.iterdir()} == {f"student-{steps}.checkpoint" for steps in (4, 2, 1)}


def test_the_weighting_and_the_clip_reach_the_loss():
    plain = chain(8, 4)[0].trained.losses
    assert not torch.equal(chain(8, 4, weighting="constant")[0].trained.losses, plain)
    assert not torch.equal(chain(8, 4, clip=0.1)[0].trained.losses, plain)


def test_an_unknown_kind_of_weights_is_named():
    with pytest.raises(ValueError, match="weights='best' is unknown; it must be one of ema, raw"):
        chain(weights="best")


# Settings that students other than their teacher's copies take.


def test_students_may_predict_something_else_from_their_teachers_weights():
    teacher = Denoiser(MLP(2, width=8), "v", COSINE)
    data = noise(64, 2).float()
    (stage,) = progressive_distillation(
        teacher, data, 2, 1, TrainingSettings(1, 8, 1e-12, ema=0), seed=0, prediction="x", progress=False
    )
    assert stage.student.prediction == "x"
    for old, new in zip(teacher.network.parameters(), stage.student.network.parameters(), strict=True):
        torch.testing.assert_close(old, new)


@pytest.mark.parametrize("loss", [distillation_loss, conversion_loss])
def test_the_top_time_is_left_out_where_that_is_asked_for(loss):
    student = Closed(waves)
    teacher = Closed(waves)
    loss(student, teacher, noise(400, 2), 4, generator(), skip_top=True)
    assert set(torch.cat(student.times).tolist()) == {0.25, 0.5, 0.75}


# The diagnosis.

FINITE = CosineSchedule(log_snr_min=-20, log_snr_max=20)


def network(prediction="v", schedule=COSINE):
    return Denoiser(MLP(2, out_channels=4 if prediction == "both" else 2, width=4), prediction, schedule)


HEALTHY = [
    *[(network(prediction), steps, weighting) for prediction in ("x", "v", "both")
      for steps in (1, 2, 4, 64) for weighting in ("truncated_snr", "snr_plus_one")],
    *[(network("x"), steps, "constant") for steps in (1, 8, 1024)],
    *[(network("v"), steps, "truncated_snr") for steps in (16, 256, 1024)],
    *[(network("v", FINITE), steps, "truncated_snr") for steps in (1, 8)],
    (network("v"), 4, clipped("snr", min=1)),
    (network("v"), 1, clipped("log_snr_density", min=1)),
    (network("v", zero_terminal_snr(LinearSchedule())), 4, "truncated_snr"),
    (network("v", zero_terminal_snr(DiscreteSchedule.scaled_linear_beta())), 8, "snr_plus_one"),
    (GaussianDenoiser(MEAN, COVARIANCE, COSINE), 4, "truncated_snr"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(HEALTHY)))
def test_the_diagnosis_is_silent_on_the_healthy(case):
    assert diagnose(*HEALTHY[case]) == []


def without_top(steps):
    return grid(steps)[:-1]


ILL = [
    # the off-by-one grid: α at the highest time is sin(π/2N)
    *[((network(), n, "truncated_snr", without_top(n)), {"wrong top time": math.sin(math.pi / 2 / n)})
      for n in (1024, 64, 4, 2, 1)],
    # a last SNR above 0
    ((network("v", LinearSchedule()), 4), {"terminal SNR": 0.0066}),
    ((network("v", DiscreteSchedule.linear_beta()), 64), {"terminal SNR": 0.0064}),
    ((GaussianDenoiser(MEAN, COVARIANCE, DiscreteSchedule.scaled_linear_beta()), 1), {"terminal SNR": 0.068}),
    # weights of 0
    *[((network(), n, weighting), {"dead steps": 0}) for n in (64, 4, 1) for weighting in ("snr", "log_snr_density")],
    # an ε network
    ((network("eps", FINITE), 4), {"unbounded targets": math.exp(10)}),
    ((network("eps", LinearSchedule()), 8), {"terminal SNR": 0.0066, "unbounded targets": 152.2}),
    # several at once
    ((network("v", LinearSchedule()), 2, "truncated_snr", without_top(2)),
     {"wrong top time": 0.28, "terminal SNR": 0.0066}),
    ((network(), 1, "snr", without_top(1)), {"wrong top time": 1}),
    ((network(), 4, "log_snr_density", torch.arange(4) / 4), {"wrong top time": 0.38, "dead steps": 0}),
    ((network("eps", FINITE), 4, "snr"), {"dead steps": 0, "unbounded targets": math.exp(10)}),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(ILL)))
def test_the_diagnosis_names_what_is_wrong_and_nothing_else(case):
    arguments, expected = ILL[case]
    found = diagnose(*arguments)
    assert {finding.culprit: pytest.approx(finding.figure, rel=0.02, abs=1e-6) for finding in found} == expected
    assert [finding.culprit for finding in found] == [name for name in CULPRITS if name in expected]


def test_the_diagnosis_says_which_steps_are_dead():
    (finding,) = diagnose(network(), 4, "snr")
    assert "of 4 steps 1 gets less than 1 % of the fair share of the loss: t = 1." in str(finding)
    (finding,) = diagnose(network(), 2, "log_snr_density")
    assert "of 2 steps 2 get less" in str(finding)
    assert "t = 1, 0.5." in str(finding)
