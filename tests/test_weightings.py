import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import ALL, TOLERANCE, column, relative_error, schedules, tensors, times, zero_terminal

from pdlib.predictions import eps_from_x, v_from_x
from pdlib.schedules import CosineSchedule, DiscreteSchedule, grid
from pdlib.weightings import WEIGHTINGS, Clipped, clipped, weight

ONE = torch.ones(1, dtype=torch.float64)


def losses(schedule, t, x, eps, error):
    """‖x̂ − x‖², ‖ε̂ − ε‖² and ‖v̂ − v‖² of one x̂ = x + error, each example's own."""
    alpha, sigma = schedule.alpha_sigma(t)
    z = column(alpha) * x + column(sigma) * eps
    v = column(alpha) * eps - column(sigma) * x
    x_hat = x + error
    eps_hat, v_hat = eps_from_x(z, x_hat, alpha, sigma), v_from_x(z, x_hat, alpha, sigma)
    return tuple((found - true).square().sum(1) for found, true in [(x_hat, x), (eps_hat, eps), (v_hat, v)])


def close(found, expected):
    return ((found / expected - 1).abs() <= TOLERANCE).all()


@given(schedules, times(3), tensors(3, 4), tensors(3, 4), tensors(3, 4))
def test_truncated_snr_is_the_larger_of_the_x_loss_and_the_eps_loss(schedule, t, x, eps, error):
    x_loss, eps_loss, _ = losses(schedule, t, x, eps, error)
    assert close(weight("truncated_snr", schedule, t) * x_loss, torch.maximum(x_loss, eps_loss))


@given(schedules, times(3), tensors(3, 4), tensors(3, 4), tensors(3, 4))
def test_snr_plus_one_is_the_v_loss(schedule, t, x, eps, error):
    x_loss, _, v_loss = losses(schedule, t, x, eps, error)
    assert close(weight("snr_plus_one", schedule, t) * x_loss, v_loss)


@given(schedules, times(3), tensors(3, 4), tensors(3, 4), tensors(3, 4))
def test_snr_is_the_eps_loss_and_constant_the_x_loss(schedule, t, x, eps, error):
    x_loss, eps_loss, _ = losses(schedule, t, x, eps, error)
    assert close(weight("snr", schedule, t) * x_loss, eps_loss)
    assert torch.equal(weight("constant", schedule, t) * x_loss, x_loss)


@given(zero_terminal, tensors(1, 4), tensors(1, 4), tensors(1, 4))
def test_where_alpha_is_0_the_eps_loss_teaches_nothing_and_the_others_teach_x(schedule, x, eps, error):
    x_loss, eps_loss, v_loss = losses(schedule, ONE, x, eps, error)
    assert eps_loss == 0
    assert {name: weight(name, schedule, ONE).item() for name in WEIGHTINGS} == {
        "constant": 1,
        "snr": 0,
        "truncated_snr": 1,
        "snr_plus_one": 1,
        "log_snr_density": 0,
    }
    assert close(v_loss, x_loss)


@given(schedules, st.floats(0, 1, exclude_min=True), st.sampled_from(WEIGHTINGS), st.sampled_from([None, 1, 4, 1000]))
def test_every_weight_is_finite_and_not_negative_wherever_there_is_noise(schedule, t, name, steps):
    t = torch.tensor([max(t, 1e-6)])
    w = weight(name, schedule, t, steps)
    assert w.isfinite().all()
    assert (w >= 0).all()
    assert (w.shape, w.dtype) == (t.shape, torch.float64)


# The log-SNR density: what the plain ε loss weighs each term of the variational bound with.


@given(times(5))
def test_on_the_cosine_schedule_the_log_snr_density_is_half_a_sine_and_a_sech_of_lambda(t):
    schedule = CosineSchedule()
    found = weight("log_snr_density", schedule, t)
    assert close(found, torch.sin(math.pi * t) / (2 * math.pi))
    assert close(found, 1 / torch.cosh(schedule.log_snr(t) / 2) / (2 * math.pi))


@pytest.mark.parametrize("name", ALL)
def test_the_log_snr_density_is_the_density_of_lambda_when_t_is_uniform(name):
    # So its integral over the λ that t = 0.1 … 0.9 covers is 0.8, by the midpoint rule on cells of 1/1000.
    t = torch.arange(100, 901, dtype=torch.float64) / 1000
    widths = -ALL[name].log_snr(t).diff()
    assert (weight("log_snr_density", ALL[name], t[:-1] + 0.0005) * widths).sum() == pytest.approx(0.8, rel=1e-4)


@given(schedules, st.integers(2, 64))
def test_the_discretised_density_is_the_snr_over_its_fall(schedule, steps):
    t = grid(steps)[1:-1]
    snr = schedule.log_snr(grid(steps)).exp()
    assert close(weight("log_snr_density", schedule, t, steps), snr[1:-1] / (snr[:-2] - snr[1:-1]))


@given(zero_terminal, st.integers(1, 1000))
def test_the_discretised_density_is_0_at_both_ends(schedule, steps):
    # At i = 1 the SNR falls from infinity (no noise at t = 0); at i = N there is no SNR left.
    ends = grid(steps)[[0, -1]]
    assert weight("log_snr_density", schedule, ends, steps).tolist() == [0, 0]


def test_the_discretised_density_tends_to_n_times_the_density():
    t, schedule = grid(8)[:-1], CosineSchedule()
    limit = weight("log_snr_density", schedule, t)
    errors = [relative_error(weight("log_snr_density", schedule, t, steps) / steps, limit) for steps in (800, 8000)]
    assert errors[0] < 0.02
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.05)


def test_the_notes_figures_of_the_weight_at_1000_steps():
    schedule = DiscreteSchedule.cosine(1000, start_clean=False)
    w = weight("log_snr_density", schedule, grid(1000), steps=1000)
    assert w[[249, 499, 749, 999]].tolist() == pytest.approx([114.87, 159.92, 112.41, 0.00], abs=5e-3)
    assert w.max().item() == pytest.approx(159.93, abs=5e-3)
    assert w[-1] == 0


def test_on_4_steps_the_weight_is_0_for_one_of_the_4():
    w = weight("log_snr_density", CosineSchedule(), grid(4)[1:], steps=4)  # i = 1 has no noise before it
    assert (w > 0).tolist() == [True, True, False]


# Clipping.


@given(schedules, times(4), st.sampled_from(WEIGHTINGS), st.floats(0, 1), st.floats(1, 10))
def test_clipping_confines_a_weight_and_changes_nothing_within(schedule, t, name, low, high):
    plain, found = weight(name, schedule, t), weight(clipped(name, low, high), schedule, t)
    assert found.tolist() == [min(max(value, low), high) for value in plain.tolist()]


@given(schedules, st.sampled_from([4, 8, 50]), st.floats(0.5, 2))
def test_a_normalised_weight_is_the_clipped_one_with_mean_1_over_the_grid(schedule, steps, low):
    t = grid(steps)
    plain = weight(clipped("log_snr_density", min=low), schedule, t, steps)
    found = weight(clipped("log_snr_density", min=low, normalize=True), schedule, t, steps)
    assert found.mean().item() == pytest.approx(1, rel=1e-12)
    assert close(found, plain / plain.mean())
    # At some of the times only, the mean is still that over the whole grid.
    assert torch.equal(weight(clipped("log_snr_density", min=low, normalize=True), schedule, t[:1], steps), found[:1])


def test_clipping_from_below_gives_the_last_step_a_weight():
    t = grid(4)
    w = weight(clipped("log_snr_density", min=1, normalize=True), CosineSchedule(), t, steps=4)
    assert w.min() > 0.9
    assert w[-1] == w.min()


def test_truncated_snr_is_the_snr_clipped_at_1():
    t = grid(16)
    schedule = CosineSchedule()
    assert torch.equal(weight("truncated_snr", schedule, t), weight(clipped("snr", min=1), schedule, t))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda t: weight("uniform", CosineSchedule(), t),
            "weighting='uniform' is unknown; it must be one of constant",
        ),
        (lambda t: clipped("uniform", 1), "weighting='uniform' is unknown"),
        (lambda t: weight(Clipped("uniform"), CosineSchedule(), t), "weighting='uniform' is unknown"),
        (lambda t: clipped("snr", min=2, max=1), "clip minimum 2 is above clip maximum 1"),
        (lambda t: weight(clipped("snr", 1, normalize=True), CosineSchedule(), t), "give steps"),
    ],
)
def test_a_wrong_argument_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build(ONE)
