import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import ALL, TOLERANCE, column, relative_error, schedules, tensors, times, zero_terminal

from pdlib.grids import Grid
from pdlib.objectives import Objective
from pdlib.predictions import eps_from_x, v_from_x
from pdlib.schedules import CosineSchedule, DiscreteSchedule
from pdlib.weightings import WEIGHTINGS, Clipped, Density, on_grid, weight

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


@given(schedules, st.floats(0, 1, exclude_min=True), st.sampled_from([*WEIGHTINGS, *map(Density, (1, 4, 1000))]))
def test_every_weight_is_finite_and_not_negative_wherever_there_is_noise(schedule, t, weighting):
    t = torch.tensor([max(t, 1e-6)])
    w = weight(weighting, schedule, t)
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


def snr_over_its_fall(schedule, i, N):
    """SNR_i / (SNR_{i−1} − SNR_i) as it is written, one number at a time."""

    def snr(i):
        alpha, sigma = schedule.alpha_sigma(torch.tensor([i / N], dtype=torch.float64))
        return math.inf if sigma == 0 else (alpha / sigma).item() ** 2

    return 0.0 if snr(i - 1) == math.inf else snr(i) / (snr(i - 1) - snr(i))


@given(schedules, st.integers(1, 64), st.data())
def test_the_density_over_steps_is_the_snr_over_its_fall(schedule, steps, data):
    i = data.draw(st.integers(1, steps))
    t = Grid(steps).times[i - 1 : i]
    expected = snr_over_its_fall(schedule, i, steps)
    assert weight(Density(steps), schedule, t).item() == pytest.approx(expected, rel=1e-8, abs=1e-12)


@given(zero_terminal.filter(lambda schedule: schedule != ALL["notes_cosine"]), st.integers(1, 1000))
def test_the_density_over_steps_is_0_at_both_ends(schedule, steps):
    # At i = 1 the SNR falls from infinity (no noise at t = 0); at i = N there is no SNR left.
    ends = Grid(steps).times[[0, -1]]
    assert weight(Density(steps), schedule, ends).tolist() == [0, 0]


def test_the_density_over_steps_tends_to_n_times_the_density():
    t, schedule = Grid(8).times[:-1], CosineSchedule()
    limit = weight("log_snr_density", schedule, t)
    assert torch.equal(limit, weight(Density(), schedule, t))
    errors = [relative_error(weight(Density(steps), schedule, t) / steps, limit) for steps in (800, 8000)]
    assert errors[0] < 0.02
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.05)


def test_the_notes_figures_of_the_weight_at_1000_steps():
    schedule = DiscreteSchedule.cosine(1000, start_clean=False)
    w = weight(Density(1000), schedule, Grid(1000).times)
    assert w[[249, 499, 749, 999]].tolist() == pytest.approx([114.87, 159.92, 112.41, 0.00], abs=5e-3)
    assert w.max().item() == pytest.approx(159.93, abs=5e-3)
    assert w[-1] == 0


def test_on_4_steps_the_weight_is_0_for_one_of_the_4():
    w = weight(Density(4), CosineSchedule(), Grid(4).times[1:])  # i = 1 has no noise before it
    assert (w > 0).tolist() == [True, True, False]


# Clipping.


@given(schedules, times(4), st.sampled_from(list(WEIGHTINGS)), st.floats(0, 1), st.floats(1, 10))
def test_clipping_confines_a_weight_and_changes_nothing_within(schedule, t, name, low, high):
    plain, found = weight(name, schedule, t), weight(Clipped(name, low, high), schedule, t)
    assert found.tolist() == [min(max(value, low), high) for value in plain.tolist()]


@given(schedules, times(4), st.sampled_from(list(WEIGHTINGS)), st.floats(0, 10))
def test_one_limit_leaves_the_other_side_alone(schedule, t, name, limit):
    plain = weight(name, schedule, t)
    assert weight(Clipped(name, min=limit), schedule, t).tolist() == [max(value, limit) for value in plain.tolist()]
    above = weight(Clipped(name, max=limit + 0.1), schedule, t).tolist()
    assert above == [min(value, limit + 0.1) for value in plain.tolist()]
    assert torch.equal(weight(Clipped(name), schedule, t), plain)


@given(schedules, st.sampled_from([4, 8, 50]), st.floats(0.5, 2))
def test_a_normalised_weight_is_the_clipped_one_over_its_mean_over_the_grid(schedule, steps, low):
    t = Grid(steps).times
    plain = [max(snr_over_its_fall(schedule, i, steps), low) for i in range(1, steps + 1)]
    normalised = Clipped(Density(steps), min=low, normalize=steps)
    found = weight(normalised, schedule, t)
    assert found.mean().item() == pytest.approx(1, rel=1e-12)
    assert found.tolist() == pytest.approx([value * steps / sum(plain) for value in plain], rel=1e-8)
    # At some of the times only, the mean is still that over the whole grid.
    assert torch.equal(weight(normalised, schedule, t[:1]), found[:1])


def test_clipping_from_below_gives_the_last_step_a_weight():
    w = weight(Clipped(Density(4), min=1, normalize=4), CosineSchedule(), Grid(4).times)
    assert w.min() > 0.9
    assert w[-1] == w.min()


def test_truncated_snr_is_the_snr_clipped_at_1():
    t, schedule = Grid(16).times, CosineSchedule()
    assert torch.equal(weight("truncated_snr", schedule, t), weight(Clipped("snr", min=1), schedule, t))


def test_a_clipped_weighting_can_be_clipped_again():
    t, schedule = Grid(16).times, CosineSchedule()
    twice = weight(Clipped(Clipped("snr", min=0.1), max=5), schedule, t)
    assert torch.equal(twice, weight(Clipped("snr", 0.1, 5), schedule, t))


# On a grid.


@pytest.mark.parametrize("weighting", ["log_snr_density", Density(), Clipped("log_snr_density", 1, 5)])
def test_on_a_grid_the_density_is_that_of_its_steps(weighting):
    expected = [snr_over_its_fall(CosineSchedule(), i, 8) for i in range(1, 9)]
    if isinstance(weighting, Clipped):
        expected = [min(max(value, 1), 5) for value in expected]
    found = weight(on_grid(weighting, 8), CosineSchedule(), Grid(8).times)
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("weighting", ["log_snr_density", Clipped("log_snr_density", 0.01, 5)])
def test_without_a_grid_the_density_is_itself(weighting):
    t = Grid(8).times
    assert torch.equal(weight(on_grid(weighting, None), CosineSchedule(), t), weight(weighting, CosineSchedule(), t))


def test_steps_that_are_given_stay_on_any_grid():
    assert on_grid(Density(4), 8) == Density(4)
    assert on_grid(Clipped(Density(4), 1, normalize=16), 8) == Clipped(Density(4), 1, normalize=16)


@given(schedules, times(4), st.sampled_from([name for name in WEIGHTINGS if name != "log_snr_density"]))
def test_what_knows_of_no_steps_is_the_same_on_a_grid(schedule, t, name):
    assert torch.equal(weight(on_grid(name, 8), schedule, t), weight(name, schedule, t))


# From outside.


def sixteenth(schedule, t):
    return schedule.alpha_sigma(t)[1] ** 16


def test_a_weighting_from_outside_is_one_entry_or_none(monkeypatch):
    monkeypatch.setitem(WEIGHTINGS, "sixteenth", sixteenth)
    t, schedule = Grid(4).times, CosineSchedule()
    expected = torch.sin(math.pi / 2 * t) ** 16
    for weighting in ("sixteenth", sixteenth, Clipped("sixteenth"), on_grid("sixteenth", 4)):
        torch.testing.assert_close(weight(weighting, schedule, t), expected)
    assert Objective(None, Grid(4), "sixteenth") == Objective(None, Grid(4), sixteenth)
    torch.testing.assert_close(weight(Clipped("sixteenth", 0.5), schedule, t), expected.clamp(min=0.5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: weight("uniform", CosineSchedule(), ONE),
            "weighting='uniform' is unknown; it must be one of constant",
        ),
        (lambda: weight("snrr", CosineSchedule(), ONE), "weighting='snrr' is unknown; did you mean 'snr'"),
        (lambda: Clipped("uniform", 1), "weighting='uniform' is unknown"),
        (lambda: on_grid("uniform", 4), "weighting='uniform' is unknown"),
        (lambda: Clipped("snr", min=2, max=1), "clip_min=2 is above clip_max=1: lower the one or raise the other"),
        # Weights below 0 train uphill, and no weight at all trains nothing.
        (lambda: Clipped("snr", max=-1), "clip_max=-1: must be above 0, or no weight is left"),
        (lambda: Clipped("snr", max=0), "clip_max=0"),
        (lambda: Clipped("snr", max=math.nan), "clip_max=nan"),
        (lambda: Clipped("snr", min=-0.5), "clip_min=-0.5: a weight is a finite number of 0 or more"),
        (lambda: Clipped("snr", min=math.nan), "clip_min=nan"),
        (lambda: Clipped("snr", min=math.inf), "clip_min=inf"),
    ],
)
def test_a_wrong_argument_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_limits_that_do_nothing_are_allowed():
    t, schedule = Grid(8).times, CosineSchedule()
    assert torch.equal(weight(Clipped("snr", 0, math.inf), schedule, t), weight("snr", schedule, t))
    assert weight(Clipped("snr", 2, 2), schedule, t).tolist() == [2] * 8
