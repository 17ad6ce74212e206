import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import ALL, TOLERANCE, ZERO_TERMINAL, column, relative_error, schedules, tensors, times

from pdlib.exact import EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser
from pdlib.predictions import v_from_x
from pdlib.schedules import CosineSchedule

COSINE = CosineSchedule()
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
T = torch.linspace(0.05, 1, 20, dtype=torch.float64)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior_mean_in_1d(log_density, z, t, schedule):
    """E[x | z] from Bayes' rule alone: sums over a fine grid of x, exact to rounding for these densities."""
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    log_likelihood = -((z - column(alpha) * x) ** 2) / (2 * column(sigma) ** 2)
    return column((log_density(x) + log_likelihood).softmax(1) @ x)


@given(schedules, times(4), tensors(4, 1), st.floats(-1, 1), st.floats(0.05, 1))
def test_the_gaussian_denoiser_is_bayes_rule(schedule, t, z, mean, variance):
    as_tensor = torch.tensor([mean, variance], dtype=torch.float64)
    denoiser = GaussianDenoiser(as_tensor[:1], as_tensor[1:, None], schedule)
    t = t.clamp(min=0.1)  # so that the sum's cells are much finer than the likelihood
    expected = posterior_mean_in_1d(lambda x: -((x - mean) ** 2) / (2 * variance), z, t, schedule)
    assert relative_error(denoiser(z, t), expected, scale=z) <= TOLERANCE


@given(schedules, times(4), tensors(4, 2))
def test_the_gaussian_denoiser_is_its_formula_for_correlated_data(schedule, t, z):
    alpha, sigma = schedule.alpha_sigma(t)
    found = GaussianDenoiser(MEAN, COVARIANCE, schedule)(z, t)
    for i in range(4):
        noisy = alpha[i] ** 2 * COVARIANCE + sigma[i] ** 2 * torch.eye(2, dtype=torch.float64)
        expected = MEAN + alpha[i] * COVARIANCE @ torch.linalg.solve(noisy, z[i] - alpha[i] * MEAN)
        assert relative_error(found[i], expected) <= TOLERANCE


@pytest.mark.parametrize("name", ZERO_TERMINAL)
def test_where_nothing_is_left_of_x_the_answer_is_the_mean_of_the_data(name):
    schedule, one, z = ZERO_TERMINAL[name], torch.ones(3).double(), noise(3, 2)
    points = noise(7, 2, seed=1)
    mixture = MixtureDenoiser(
        torch.tensor([0.25, 0.75]), torch.stack([MEAN, -MEAN]), COVARIANCE.repeat(2, 1, 1), schedule
    )
    torch.testing.assert_close(GaussianDenoiser(MEAN, COVARIANCE, schedule)(z, one), MEAN.expand(3, 2))
    torch.testing.assert_close(mixture(z, one), (0.25 * MEAN - 0.75 * MEAN).expand(3, 2))
    torch.testing.assert_close(EmpiricalDenoiser(points, schedule)(z, one), points.mean(0).expand(3, 2))


def test_without_noise_the_answer_is_what_is_seen():
    zero, z = torch.zeros(3).double(), noise(3, 2)
    mixture = MixtureDenoiser(
        torch.tensor([0.25, 0.75]), torch.stack([MEAN, -MEAN]), COVARIANCE.repeat(2, 1, 1), COSINE
    )
    torch.testing.assert_close(GaussianDenoiser(MEAN, COVARIANCE, COSINE)(z, zero), z)
    torch.testing.assert_close(mixture(z, zero), z)
    assert torch.equal(EmpiricalDenoiser(z, COSINE)(z + 1e-3, zero), z)  # the nearest point


def test_data_that_do_not_vary_are_known_exactly():
    denoiser = GaussianDenoiser(MEAN, torch.zeros(2, 2), COSINE)
    assert torch.equal(denoiser(noise(20, 2), T), MEAN.expand(20, 2))
    assert torch.equal(denoiser(noise(1, 2), torch.zeros(1)), MEAN.expand(1, 2))


# The exact probability flow.


@given(schedules, times(1), st.integers(10, 989), tensors(1, 2))
def test_the_flow_solves_the_probability_flow_equation(schedule, t, index, z):
    # Along the angle φ, with z = x cos φ + ε sin φ, the equation is dz/dφ = v̂(z).
    denoiser = GaussianDenoiser(MEAN, COVARIANCE, schedule)
    s = torch.tensor([(index + 0.3) / 1000], dtype=torch.float64)  # where no discrete schedule has its kinks
    at_s, speed = torch.func.jvp(lambda s: denoiser.flow(z, t, s), (s,), (torch.ones_like(s),))
    _, angle_speed = torch.func.jvp(schedule.angle, (s,), (torch.ones_like(s),))
    expected = v_from_x(at_s, denoiser(at_s, s), *schedule.alpha_sigma(s))
    assert relative_error(speed / column(angle_speed), expected, scale=at_s) <= TOLERANCE


@given(schedules, times(3), times(3), times(3), tensors(3, 2))
def test_the_flow_in_two_stretches_is_the_flow_in_one_and_it_goes_back(schedule, t, between, s, z):
    denoiser = GaussianDenoiser(MEAN, COVARIANCE, schedule)
    there = denoiser.flow(z, t, s)
    assert relative_error(denoiser.flow(denoiser.flow(z, t, between), between, s), there) <= TOLERANCE
    assert relative_error(denoiser.flow(there, s, t), z) <= TOLERANCE


def test_the_flow_turns_noise_into_the_data():
    # An affine map z ↦ c + M z takes N(0, I) to N(c, M Mᵀ): read c and M off three points.
    denoiser = GaussianDenoiser(MEAN, COVARIANCE, COSINE)
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    moved = denoiser.flow(z, torch.ones(3), torch.zeros(3))
    matrix = (moved[1:] - moved[0]).mT
    torch.testing.assert_close(moved[0], MEAN)
    torch.testing.assert_close(matrix @ matrix.mT, COVARIANCE)


# Mixtures and finite data sets.


@given(schedules, times(4), tensors(4, 1))
def test_the_mixture_denoiser_is_bayes_rule(schedule, t, z):
    t = t.clamp(min=0.1)
    weights, means, variances = torch.tensor([[0.3, 0.7], [-1.0, 0.5], [0.1, 0.4]], dtype=torch.float64)
    denoiser = MixtureDenoiser(weights, means[:, None], variances[:, None, None], schedule)

    def log_density(x):
        scores = -((x[:, None] - means) ** 2) / (2 * variances) - 0.5 * variances.log() + weights.log()
        return scores.logsumexp(1)

    expected = posterior_mean_in_1d(log_density, z, t, schedule)
    assert relative_error(denoiser(z, t), expected, scale=z) <= TOLERANCE


def test_a_mixture_of_equal_components_is_one_gaussian():
    z = noise(20, 2)
    mixture = MixtureDenoiser(torch.tensor([0.2, 0.8]), MEAN.repeat(2, 1), COVARIANCE.repeat(2, 1, 1), COSINE)
    torch.testing.assert_close(mixture(z, T), GaussianDenoiser(MEAN, COVARIANCE, COSINE)(z, T))


def test_responsibilities_are_the_weights_at_the_end_and_certain_near_the_start():
    weights, means = torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    mixture = MixtureDenoiser(weights, means, 0.01 * torch.eye(2).repeat(2, 1, 1), COSINE)
    at_end = mixture.responsibilities(noise(4, 2), torch.ones(4))
    torch.testing.assert_close(at_end, weights.double().expand(4, 2))
    assert mixture.responsibilities(means.double(), torch.full((2,), 0.01)).diagonal().min() > 1 - 1e-12


@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)])
@pytest.mark.parametrize("name", ALL)
def test_the_empirical_denoiser_weighs_each_point_by_its_likelihood(name, shape):
    schedule, points, z = ALL[name], noise(6, *shape, seed=1), noise(20, *shape)
    alpha, sigma = schedule.alpha_sigma(T)
    found = EmpiricalDenoiser(points, schedule)(z, T)
    for i in range(20):
        squares = torch.stack([(z[i] - alpha[i] * point).square().sum() for point in points])
        weights = torch.exp(-(squares - squares.min()) / (2 * sigma[i] ** 2))
        expected = sum(w * point for w, point in zip(weights, points, strict=True)) / weights.sum()
        assert relative_error(found[i], expected) <= TOLERANCE


def test_the_empirical_denoiser_is_a_mixture_of_points():
    points, z = noise(5, 2, seed=1), noise(20, 2)
    mixture = MixtureDenoiser(torch.full((5,), 0.2), points, torch.zeros(5, 2, 2), COSINE)
    torch.testing.assert_close(EmpiricalDenoiser(points, COSINE)(z, T), mixture(z, T))


def test_without_noise_a_mixture_of_points_is_the_nearest_and_a_cloud_is_what_is_seen():
    zero, points = torch.zeros(3).double(), noise(5, 2, seed=1)
    near = points[:3] + 1e-3 * noise(3, 2)
    mixture = MixtureDenoiser(torch.full((5,), 0.2), points, torch.zeros(5, 2, 2), COSINE)
    assert torch.equal(mixture(near, zero), points[:3])
    both = torch.stack([torch.zeros(2, 2), torch.eye(2)]).double()  # a point, and a cloud about another
    answer = MixtureDenoiser(torch.tensor([0.5, 0.5]), points[:2], both, COSINE)
    seen = torch.stack([points[0], points[1], noise(2, seed=2)])
    assert answer.responsibilities(seen, zero)[:, 0].tolist() == [1, 0, 0]  # of z at the point itself: surely the point
    torch.testing.assert_close(answer(seen, zero), seen)


@pytest.mark.parametrize(
    "denoiser",
    [
        GaussianDenoiser(MEAN, COVARIANCE, COSINE),
        MixtureDenoiser(torch.ones(1), MEAN[None], COVARIANCE[None], COSINE),
        EmpiricalDenoiser(noise(5, 2), COSINE),
    ],
)
def test_the_answer_has_the_type_of_the_question(denoiser):
    z = noise(20, 2)
    found = denoiser(z.float(), T)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), denoiser(z, T), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianDenoiser(MEAN, torch.eye(3), COSINE), r"shape \(2, 2\)"),
        (lambda: GaussianDenoiser(MEAN, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), COSINE), "symmetric"),
        (lambda: GaussianDenoiser(MEAN, torch.diag(torch.tensor([1.0, -0.1])), COSINE), "negative eigenvalue, -0.1"),
        (lambda: MixtureDenoiser(torch.tensor([0.5, 0.4]), MEAN, COVARIANCE, COSINE), "sum to 1"),
        (lambda: MixtureDenoiser(torch.tensor([1.5, -0.5]), MEAN, COVARIANCE, COSINE), "positive"),
    ],
)
def test_what_is_no_distribution_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_one_standard_deviation_stays_one_along_the_flow():
    # z_1 = 1 is one standard deviation out; at t = 0 one standard deviation is √Σ.
    denoiser = GaussianDenoiser(torch.zeros(1), torch.tensor([[0.09]]), COSINE)
    half = denoiser.flow(torch.ones(1, 1).double(), torch.ones(1), torch.tensor([0.5]))
    end = denoiser.flow(torch.ones(1, 1).double(), torch.ones(1), torch.zeros(1))
    assert half.item() == pytest.approx(math.sqrt(0.5 * 0.09 + 0.5))
    assert end.item() == pytest.approx(0.3)
