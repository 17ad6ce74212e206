import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given
from hypothesis import strategies as st
from strategies import ALL, CLEAN_START, TOLERANCE, ZERO_TERMINAL, clean_start, relative_error, schedules, times

from pdlib.schedules import (
    CosineSchedule,
    DiscreteSchedule,
    LinearSchedule,
    ZeroTerminalSNR,
    expand,
    grid,
    schedule_from_config,
    zero_terminal_snr,
)

ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


@given(schedules, times(5))
def test_variance_is_preserved_and_every_quantity_is_one_function_of_the_log_snr(schedule, t):
    alpha, sigma = schedule.alpha_sigma(t)
    log_snr = schedule.log_snr(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=0, atol=1e-14)
    assert relative_error(alpha, log_snr.sigmoid().sqrt()) <= TOLERANCE  # α² = sigmoid(λ)
    assert relative_error(schedule.angle(t), torch.atan(torch.exp(-log_snr / 2))) <= TOLERANCE


@given(schedules, st.integers(10, 989), st.floats(0.1, 0.9))
def test_dlog_snr_is_the_derivative_of_log_snr(schedule, index, fraction):
    # Between two grid points of the discrete schedules: at a grid point they have a kink.
    t = torch.tensor([(index + fraction) / 1000], dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(schedule.log_snr(t).sum(), t)
    assert ((schedule.dlog_snr(t) / derivative - 1).abs() <= TOLERANCE).all()


@given(schedules, st.floats(0, 1), st.floats(0, 1))
def test_more_time_is_more_noise(schedule, one, other):
    early, late = sorted((one, other))
    alpha, sigma = schedule.alpha_sigma(torch.tensor([early, late], dtype=torch.float64))
    assert alpha[0] >= alpha[1]
    assert sigma[0] <= sigma[1]


@pytest.mark.parametrize("name", ZERO_TERMINAL)
def test_a_zero_terminal_schedule_ends_in_pure_noise_exactly(name):
    schedule = ZERO_TERMINAL[name]
    alpha, sigma = schedule.alpha_sigma(ENDS)
    assert (alpha[1], sigma[1]) == (0, 1)
    assert schedule.log_snr(ENDS)[1] == schedule.dlog_snr(ENDS)[1] == -math.inf
    assert schedule.angle(ENDS)[1] == math.pi / 2


@given(clean_start)
def test_a_schedule_that_starts_clean_has_no_noise_at_0_exactly(schedule):
    alpha, sigma = schedule.alpha_sigma(ENDS)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert schedule.log_snr(ENDS)[0] == math.inf
    assert schedule.dlog_snr(ENDS)[0] == -math.inf


def test_only_the_schedules_said_to_do_so_have_noise_left_at_the_start_or_signal_left_at_the_end():
    ends = {name: schedule.alpha_sigma(ENDS) for name, schedule in ALL.items()}
    assert {name for name, (alpha, _) in ends.items() if alpha[1] > 0} == set(ALL) - set(ZERO_TERMINAL)
    assert {name for name, (_, sigma) in ends.items() if sigma[0] > 0} == set(ALL) - set(CLEAN_START)


@given(times(5))
def test_the_cosine_schedule_is_a_cosine(t):
    alpha, sigma = CosineSchedule().alpha_sigma(t)
    assert relative_error(alpha, torch.cos(math.pi / 2 * t)) <= TOLERANCE
    assert relative_error(sigma, torch.sin(math.pi / 2 * t)) <= TOLERANCE
    assert relative_error(CosineSchedule().angle(t), math.pi / 2 * t) <= TOLERANCE


@given(st.floats(0, 0.1), times(5))
def test_the_cosine_offset_is_that_of_nichol_and_dhariwal(offset, t):
    def f(t):  # their equation 17: ᾱ = f(t)/f(0)
        return torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2

    alpha, sigma = CosineSchedule(offset).alpha_sigma(t)
    expected = f(t) / f(torch.zeros(1).double())
    assert relative_error(alpha**2, expected) <= TOLERANCE
    assert relative_error(sigma**2, 1 - expected) <= TOLERANCE


@given(st.floats(-25, -5), st.floats(5, 25), times(5))
def test_a_range_for_the_log_snr_is_kept_and_its_ends_are_reached(low, high, t):
    schedule = CosineSchedule(log_snr_min=low, log_snr_max=high)
    assert relative_error(schedule.log_snr(ENDS), torch.tensor([high, low], dtype=torch.float64)) <= TOLERANCE
    # The official code: λ = −2 log tan(a t + b), with a and b such that the ends are λ_max and λ_min.
    b = math.atan(math.exp(-high / 2))
    a = math.atan(math.exp(-low / 2)) - b
    assert ((torch.exp(-schedule.log_snr(t) / 2) / torch.tan(a * t + b) - 1).abs() <= TOLERANCE).all()


@given(st.floats(0.01, 1), st.floats(1, 30), times(3))
def test_the_linear_schedule_solves_its_differential_equation(low, high, t):
    t = t.requires_grad_()
    alpha, _ = LinearSchedule(low, high).alpha_sigma(t)
    (slope,) = torch.autograd.grad(alpha.log().sum(), t)  # d log α/dt = −β/2
    assert relative_error(slope, -(low + t * (high - low)) / 2) <= TOLERANCE


def test_the_linear_schedule_is_the_limit_of_the_discrete_one():
    # β_i = β(i/T)/T: the betas of 1e-4 … 0.02 at T = 1000, spread ever finer.
    t = grid(10)
    alpha, _ = LinearSchedule().alpha_sigma(t)
    errors = [
        relative_error(DiscreteSchedule.linear_beta(T, 0.1 / T, 20 / T).alpha_sigma(t)[0], alpha)
        for T in (1000, 10_000)
    ]
    assert errors[0] < 0.06
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)


@pytest.mark.parametrize("name", ["discrete_cosine", "discrete_linear", "discrete_linear_zero_terminal"])
def test_a_discrete_schedule_returns_its_values_on_the_grid(name):
    schedule = ALL[name]
    alpha, sigma = schedule.alpha_sigma(grid(schedule.T))
    assert relative_error(alpha**2, schedule.alpha_bar) <= TOLERANCE
    assert ((sigma**2 / (1 - schedule.alpha_bar) - 1).abs() <= TOLERANCE).all()


@pytest.mark.parametrize("T", [3, 7, 49, 1000, 4000])
def test_a_time_reached_by_subtraction_is_still_on_the_grid(T):
    values = torch.linspace(0.9, 0, T, dtype=torch.float64)
    schedule = DiscreteSchedule(values)
    t = grid(T)[1:] - 1 / T  # (i + 1)/T − 1/T is not i/T to the last bit
    assert relative_error(schedule.alpha_sigma(t)[0] ** 2, values[:-1]) <= 1e-15 * T
    # The slope jumps at a grid point: from the left, it is that of the segment below.
    torch.testing.assert_close(schedule.dlog_snr(t), schedule.dlog_snr(grid(T)[:-1]))


@given(st.floats(0, 1))
def test_between_grid_points_a_discrete_schedule_interpolates_the_angle(fraction):
    schedule = DiscreteSchedule([0.75, 0.25, 0.0])  # angles 30°, 60° and 90°
    for index, (low, high) in enumerate([(0, 30), (30, 60), (60, 90)]):
        t = torch.tensor([(index + fraction) / 3], dtype=torch.float64)
        assert schedule.angle(t).item() == pytest.approx(math.radians(low + fraction * (high - low)), abs=1e-7)


@given(st.floats(0.05, 0.5), st.floats(5, 30), times(5))
def test_rescaling_makes_the_terminal_snr_0_and_is_affine_in_alpha(low, high, t):
    original = LinearSchedule(low, high)
    schedule = zero_terminal_snr(original)
    assert isinstance(schedule, ZeroTerminalSNR)
    alpha, sigma = schedule.alpha_sigma(torch.cat([ENDS, t]))
    before, _ = original.alpha_sigma(torch.cat([ENDS, t]))
    assert (alpha[1], alpha[0], sigma[0]) == (0, 1, 0)
    assert relative_error(alpha, (before - before[1]) / (1 - before[1])) <= TOLERANCE


def test_rescaling_leaves_a_zero_terminal_schedule_alone_and_keeps_the_noise_at_0():
    schedule = CosineSchedule()
    assert zero_terminal_snr(schedule) is schedule
    noisy = DiscreteSchedule([0.9, 0.5, 0.1], alpha_bar_0=0.95)
    rescaled = zero_terminal_snr(noisy)
    assert rescaled.alpha_bar[-1] == 0
    assert rescaled.alpha_bar[0] == pytest.approx(0.9)
    assert rescaled.alpha_sigma(ENDS)[0][0] ** 2 == pytest.approx(0.95)


# The reference: diffusers, whose schedulers hold ᾱ_1 … ᾱ_T in float32.


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (DiscreteSchedule.linear_beta(), {"beta_schedule": "linear"}),
        (
            DiscreteSchedule.scaled_linear_beta(),
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (DiscreteSchedule.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_the_discrete_schedules_are_those_of_diffusers(ours, theirs):
    theirs = DDPMScheduler(num_train_timesteps=1000, **theirs).alphas_cumprod.double()
    # Its cosine clips the last beta at 0.999, where ours goes down to ᾱ_T = 0.
    assert relative_error(ours.alpha_bar[:-1], theirs[:-1]) < 1e-6
    assert ((ours.alpha_bar / theirs - 1).abs()[:-1] < 1e-4).all()


def test_the_rescaling_is_that_of_diffusers():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    theirs = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    ours = zero_terminal_snr(DiscreteSchedule.linear_beta()).alpha_bar
    assert ours[-1] == theirs[-1] == 0
    assert ((ours / theirs - 1).abs()[:-1] <= TOLERANCE).all()


def test_the_notes_values_of_the_cosine_schedule_of_1000_steps():
    # cos²((π/2)(i/1000 + 0.008)/1.008) at i = 250, 500, 750, 1000: not divided by its value at 0.
    alpha_bar = DiscreteSchedule.cosine(1000, start_clean=False).alpha_bar
    assert alpha_bar[[249, 499, 749, 999]].tolist() == pytest.approx([0.8469, 0.4938, 0.1442, 0], abs=5e-5)
    assert alpha_bar[-1] == 0


@given(st.integers(1, 2048))
def test_the_grid_runs_from_1_over_n_to_1_exactly(steps):
    t = grid(steps)
    assert t.dtype == torch.float64
    assert (len(t), t[0], t[-1]) == (steps, 1 / steps, 1)
    assert t[0] - 1 / steps == 0  # t'' of the lowest time is 0 to the last bit
    torch.testing.assert_close(t.diff(), torch.full((steps - 1,), 1 / steps, dtype=torch.float64), rtol=1e-9, atol=0)


@given(st.integers(1, 2048))
def test_the_wrong_grids_top_time_keeps_signal(steps):
    # Trained on i = 0 … N − 1, a network never sees t = 1; its noisiest input still holds α = sin(π/2N) of the data.
    wrong_top = torch.tensor([1 - 1 / steps], dtype=torch.float64)
    alpha, _ = CosineSchedule().alpha_sigma(wrong_top)
    assert alpha.item() == pytest.approx(math.sin(math.pi / (2 * steps)), rel=1e-10)
    assert CosineSchedule().alpha_sigma(grid(steps))[0][-1] == 0


@pytest.mark.parametrize("name", ALL)
def test_a_schedule_is_rebuilt_from_its_config(name):
    schedule = ALL[name]
    again = schedule_from_config(schedule.config())
    t = torch.linspace(0, 1, 33)
    assert again == schedule
    assert hash(again) == hash(schedule)
    for found, expected in zip(again.alpha_sigma(t), schedule.alpha_sigma(t), strict=True):
        assert torch.equal(found, expected)
    assert [other for other in ALL if ALL[other] == schedule] == [name]


@given(schedules)
def test_results_have_the_shape_of_t_and_are_float64(schedule):
    t = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    found = [*schedule.alpha_sigma(t), schedule.log_snr(t), schedule.dlog_snr(t), schedule.angle(t)]
    assert {(value.shape, value.dtype) for value in found} == {(t.shape, torch.float64)}


def test_expand_shapes_and_casts_to_multiply_z():
    z = torch.zeros(2, 1, 3, 3, dtype=torch.float32)
    value = expand(torch.tensor([2.0, 3.0], dtype=torch.float64), z)
    assert (value.shape, value.dtype) == ((2, 1, 1, 1), torch.float32)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CosineSchedule(offset=-0.1), "offset=-0.1"),
        (lambda: CosineSchedule(log_snr_min=5, log_snr_max=-5), "log_snr_min=5 is not below log_snr_max=-5"),
        (lambda: LinearSchedule(beta_min=0), "0 < beta_min"),
        (lambda: LinearSchedule(beta_min=3, beta_max=2), "0 < beta_min <= beta_max"),
        (lambda: DiscreteSchedule([]), "at least one value"),
        (lambda: DiscreteSchedule([0.5, math.nan]), "finite"),
        (lambda: DiscreteSchedule([0.5, 0.5]), "must fall strictly"),
        (lambda: DiscreteSchedule([0.5, -0.1]), "must fall strictly"),
        (lambda: DiscreteSchedule([1.0, 0.5]), "must fall strictly"),
        (lambda: DiscreteSchedule([0.5], alpha_bar_0=1.5), "at most 1"),
        (lambda: schedule_from_config({"name": "sine"}), "'sine' is unknown; it must be one of cosine, linear"),
        (lambda: schedule_from_config({"name": "cosine", "s": 1}), "wrong arguments"),
        (lambda: grid(0), "at least 1 step"),
    ],
)
def test_a_wrong_argument_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
