import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import TOLERANCE, clean_start, column, relative_error, schedules, tensors, times, zero_terminal

from pdlib.predictions import (
    PREDICTIONS,
    Prediction,
    PredictionError,
    eps_from_output,
    eps_from_v,
    eps_from_x,
    output_channels,
    v_from_eps,
    v_from_x,
    x_from_both,
    x_from_eps,
    x_from_output,
    x_from_v,
)

BATCH = tensors(3, 4)
ONE = torch.ones(3, dtype=torch.float64)


def mixed(schedule, t, x, eps):
    """α, σ, z = α x + σ ε and v = α ε − σ x, by hand."""
    alpha, sigma = schedule.alpha_sigma(t)
    z = column(alpha) * x + column(sigma) * eps
    return alpha, sigma, z, column(alpha) * eps - column(sigma) * x


@given(schedules, times(3), BATCH, BATCH)
def test_x_follows_from_z_and_the_noise(schedule, t, x, eps):
    alpha, sigma, z, _ = mixed(schedule, t, x, eps)
    assert relative_error(x_from_eps(z, eps, alpha, sigma), x) <= TOLERANCE
    assert relative_error(eps_from_x(z, x, alpha, sigma), eps) <= TOLERANCE


@given(schedules, times(3), BATCH, BATCH, BATCH)
def test_an_error_in_the_noise_is_magnified_by_sigma_over_alpha(schedule, t, x, eps, error):
    alpha, sigma, z, _ = mixed(schedule, t, x, eps)
    found = x_from_eps(z, eps + error, alpha, sigma) - x
    expected = -column(sigma / alpha) * error
    assert relative_error(found, expected, scale=torch.cat([x, expected])) <= TOLERANCE


@given(schedules, times(3), BATCH, BATCH)
def test_x_and_the_noise_follow_from_z_and_v(schedule, t, x, eps):
    alpha, sigma, z, v = mixed(schedule, t, x, eps)
    assert relative_error(x_from_v(z, v, alpha, sigma), x) <= TOLERANCE
    assert relative_error(eps_from_v(z, v, alpha, sigma), eps) <= TOLERANCE
    assert relative_error(v_from_x(z, x, alpha, sigma), v, scale=x) <= TOLERANCE
    assert relative_error(v_from_eps(z, eps, alpha, sigma), v, scale=x) <= TOLERANCE


@given(times(3), BATCH, BATCH)
def test_v_is_the_velocity_of_z_along_the_angle_so_its_sign_is_minus(angle, x, eps):
    # z = x cos φ + ε sin φ; a plus sign in v = α ε − σ x would not be its derivative.
    def z_at(angle):
        return column(angle.cos()) * x + column(angle.sin()) * eps

    z, velocity = torch.func.jvp(z_at, (angle,), (ONE,))
    assert relative_error(v_from_x(z, x, angle.cos(), angle.sin()), velocity, scale=x) <= TOLERANCE
    assert relative_error(v_from_eps(z, eps, angle.cos(), angle.sin()), velocity, scale=x) <= TOLERANCE


@given(schedules, times(3), BATCH, BATCH, BATCH, BATCH)
def test_both_merges_two_outputs_and_trusts_each_where_it_is_good(schedule, t, x, eps, x_error, eps_error):
    alpha, sigma, z, _ = mixed(schedule, t, x, eps)
    assert relative_error(x_from_both(z, x, eps, alpha, sigma), x) <= TOLERANCE
    found = x_from_both(z, x + x_error, eps + eps_error, alpha, sigma) - x
    expected = column(sigma**2) * x_error - column(alpha * sigma) * eps_error  # neither factor above 1
    assert relative_error(found, expected, scale=x) <= TOLERANCE


@given(zero_terminal, BATCH, BATCH, BATCH)
def test_where_alpha_is_0_every_prediction_but_eps_still_says_what_x_is(schedule, x, eps, output):
    alpha, sigma, z, v = mixed(schedule, ONE, x, eps)
    assert torch.equal(z, eps)
    assert torch.equal(v, -x)
    assert torch.equal(x_from_v(z, output, alpha, sigma), -output)
    assert torch.equal(x_from_both(z, output, eps, alpha, sigma), output)
    assert torch.equal(eps_from_v(z, output, alpha, sigma), eps)
    assert torch.equal(eps_from_x(z, output, alpha, sigma), eps)
    assert torch.equal(v_from_x(z, x, alpha, sigma), v)


@given(clean_start, BATCH, BATCH, BATCH)
def test_where_sigma_is_0_the_output_no_longer_matters(schedule, x, eps, output):
    alpha, sigma, z, _ = mixed(schedule, 0 * ONE, x, eps)
    assert torch.equal(z, x)
    for prediction in ("eps", "v"):
        assert torch.equal(x_from_output(prediction, output, z, alpha, sigma), x)
    assert torch.equal(x_from_both(z, output, output, alpha, sigma), x)


@given(schedules, times(3), BATCH, BATCH, st.sampled_from(list(PREDICTIONS)))
def test_an_output_is_read_the_same_way_as_x_noise_or_v(schedule, t, x, eps, prediction):
    alpha, sigma, z, v = mixed(schedule, t, x, eps)
    right = {"x": x, "eps": eps, "v": v, "both": torch.cat([x, eps], dim=1)}[prediction]
    assert relative_error(x_from_output(prediction, right, z, alpha, sigma), x) <= TOLERANCE
    assert relative_error(eps_from_output(prediction, right, z, alpha, sigma), eps) <= TOLERANCE
    from_eps = v_from_eps(z, eps_from_output(prediction, right, z, alpha, sigma), alpha, sigma)
    assert relative_error(from_eps, v, scale=x) <= TOLERANCE


@given(schedules, times(3), BATCH, tensors(3, 8), st.sampled_from(list(PREDICTIONS)))
def test_the_two_readings_of_any_output_agree_with_each_other(schedule, t, z, output, prediction):
    alpha, sigma = schedule.alpha_sigma(t)
    output = output if prediction == "both" else output[:, :4]
    x = x_from_output(prediction, output, z, alpha, sigma)
    eps = eps_from_output(prediction, output, z, alpha, sigma)
    # One of the two at most is the network's; all the same z = α x̂ + σ ε̂.
    assert relative_error(column(alpha) * x + column(sigma) * eps, z, scale=torch.cat([x, eps, z])) <= TOLERANCE


@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 4, 4), (3, 3, 2, 2)])
def test_alpha_and_sigma_belong_to_the_batch_whatever_the_shape(shape):
    z, output = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    alpha, sigma = torch.tensor([1.0, 0.6, 0.0]), torch.tensor([0.0, 0.8, 1.0])
    x = x_from_output("v", output, z, alpha, sigma)
    assert (x.shape, x.dtype) == (shape, z.dtype)
    for found, expected in zip(x, [z[0], 0.6 * z[1] - 0.8 * output[1], -output[2]], strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("convert", [x_from_eps, v_from_eps])
def test_dividing_by_alpha_0_is_refused_with_advice(convert):
    z = torch.ones(2, 4)
    alpha, sigma = torch.tensor([0.5, 0.0]), torch.tensor([0.75**0.5, 1.0])
    with pytest.raises(PredictionError, match=r"at α = 0.*predicts v"):
        convert(z, z, alpha, sigma)
    assert convert(z, z, alpha[:1], sigma[:1]).isfinite().all()


def test_the_advice_for_an_eps_network_at_the_last_time_names_the_three_ways_out():
    z = torch.ones(1, 4)
    with pytest.raises(PredictionError) as caught:
        x_from_output("eps", z, z, torch.zeros(1), torch.ones(1))
    for way in ("predicts v, x or both", "log_snr_min=-20", "pdlib.distillation.convert"):
        assert way in str(caught.value)


@pytest.mark.parametrize("convert", [eps_from_x, v_from_x])
def test_dividing_by_sigma_0_is_refused_with_advice(convert):
    z = torch.ones(1, 4)
    with pytest.raises(PredictionError, match=r"at σ = 0.*use t > 0"):
        convert(z, z, torch.ones(1), torch.zeros(1))


def test_both_takes_twice_the_channels():
    assert [output_channels(prediction, 3) for prediction in PREDICTIONS] == [3, 3, 3, 6]


@pytest.mark.parametrize("read", [x_from_output, eps_from_output])
def test_an_unknown_prediction_is_named_with_those_there_are(read):
    z = torch.ones(1, 4)
    message = "prediction='score' is unknown; it must be one of x, eps, v, both"
    with pytest.raises(ValueError, match=message):
        read("score", z, z, torch.ones(1) / 2, torch.ones(1) / 2)
    with pytest.raises(ValueError, match=message):
        output_channels("score", 3)


@given(schedules, times(3), BATCH, BATCH)
def test_a_prediction_from_outside_is_one_entry(schedule, t, x, eps):
    # The network says how much there is to take away: z − x.
    alpha, sigma, z, _ = mixed(schedule, t, x, eps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PREDICTIONS, "residue", Prediction(lambda z, output, alpha, sigma: z - output, bounded=True))
        assert relative_error(x_from_output("residue", z - x, z, alpha, sigma), x) <= TOLERANCE
        assert relative_error(eps_from_output("residue", z - x, z, alpha, sigma), eps) <= TOLERANCE
        assert output_channels("residue", 3) == 3


def test_what_has_no_value_where_alpha_is_0_is_said_to_have_none():
    z, output = torch.ones(2, 1, 8)
    for name, prediction in PREDICTIONS.items():
        try:
            x_from_output(name, output[:, : 4 * prediction.outputs], z[:, :4], torch.zeros(1), torch.ones(1))
            assert prediction.bounded, name
        except PredictionError:
            assert not prediction.bounded, name
