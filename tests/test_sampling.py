import math
from itertools import islice

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import (
    ALL,
    TOLERANCE,
    ZERO_TERMINAL,
    clean_start,
    column,
    relative_error,
    schedules,
    tensors,
    zero_terminal,
)
from tiny import COSINE, generator, noise, tiny

from pdlib.denoiser import Confined, Denoiser
from pdlib.exact import GaussianDenoiser
from pdlib.grids import Grid
from pdlib.sampling import ancestral_step, ddim_step, sample, sample_batches
from pdlib.schedules import DiscreteSchedule

MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
ONE = torch.ones(1, dtype=torch.float64)
BATCH = tensors(1, 4)
variances = st.sampled_from([0.0, 0.5, 1.0])


@st.composite
def steps_down(draw):
    """Two times t > s, at least 1/100 apart, as tensors of shape (1,)."""
    s = draw(st.floats(0.01, 0.98))
    t = draw(st.floats(s + 0.01, 0.99))
    return t * ONE, s * ONE


class Recorder:
    """A denoiser that always answers the same and remembers the times it was asked at."""

    def __init__(self, answer, schedule=COSINE, grid=None):
        self.answer, self.schedule, self.grid, self.times = answer, schedule, grid, []

    def __call__(self, z, t):
        self.times.append(t)
        return torch.full_like(z, self.answer)


# One DDIM step.


@given(schedules, steps_down(), BATCH, BATCH)
def test_a_ddim_step_keeps_x_and_the_noise_and_mixes_them_anew(schedule, step, x, eps):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (schedule.alpha_sigma(time) for time in step)
    z = column(alpha_t) * x + column(sigma_t) * eps
    expected = column(alpha_s) * x + column(sigma_s) * eps
    assert relative_error(ddim_step(z, x, *step, schedule), expected, scale=torch.cat([x, eps])) <= TOLERANCE


@given(schedules, BATCH, BATCH)
def test_a_ddim_step_of_no_length_does_nothing(schedule, z, x_hat):
    assert relative_error(ddim_step(z, x_hat, ONE / 2, ONE / 2, schedule), z) <= TOLERANCE


@given(zero_terminal, st.floats(0.01, 0.99), BATCH, BATCH)
def test_a_ddim_step_from_pure_noise_takes_z_for_the_noise(schedule, s, z, x_hat):
    alpha, sigma = schedule.alpha_sigma(s * ONE)
    assert torch.equal(ddim_step(z, x_hat, ONE, s * ONE, schedule), column(alpha) * x_hat + column(sigma) * z)


@given(clean_start, st.floats(0.01, 1), BATCH, BATCH)
def test_a_step_to_the_end_returns_x_hat_exactly(schedule, t, z, x_hat):
    for variance in (0.0, 1.0):
        assert torch.equal(ancestral_step(z, x_hat, t * ONE, 0 * ONE, schedule, noise(1, 4), variance), x_hat)
    assert torch.equal(ddim_step(z, x_hat, t * ONE, 0 * ONE, schedule), x_hat)


def test_each_example_of_a_batch_has_its_own_times():
    z, x_hat, eps = noise(3, 3, 1, 2, 2)
    t, s = torch.tensor([0.9, 0.6, 1.0]), torch.tensor([0.5, 0.5, 0.0])
    for together, alone in [
        (ddim_step(z, x_hat, t, s, COSINE), lambda i: ddim_step(z[i], x_hat[i], t[i], s[i], COSINE)),
        (
            ancestral_step(z, x_hat, t, s, COSINE, eps),
            lambda i: ancestral_step(z[i], x_hat[i], t[i], s[i], COSINE, eps[i]),
        ),
    ]:
        assert together.shape == z.shape
        for i in range(3):
            torch.testing.assert_close(together[i : i + 1], alone(slice(i, i + 1)))


# DDIM as a whole: the probability flow is its limit.


@pytest.mark.parametrize("name", ALL)
def test_ddim_converges_to_the_exact_probability_flow_with_order_1(name):
    denoiser = GaussianDenoiser(MEAN, COVARIANCE, ALL[name])
    z = noise(50, 2)
    exact = denoiser.flow(z, torch.ones(50), torch.zeros(50))
    # Stable Diffusion's first beta is large: only a grid finer than its T = 1000 resolves that jump.
    first = 1000 if "scaled_linear" in name else 50
    errors = []
    for steps in (first, 2 * first, 4 * first):
        *_, found = sample(denoiser, steps, z=z)
        errors.append((found - exact).abs().max().item())
    orders = [math.log2(errors[0] / errors[1]), math.log2(errors[1] / errors[2])]
    assert orders == pytest.approx([1, 1], abs=0.03)
    assert errors[2] < 0.03


@given(st.integers(1, 64), tensors(1, 4))
def test_ddim_on_standard_normal_data_shrinks_by_a_cosine_every_step(steps, z):
    # There v̂ = 0, so a step by the angle δ = π/2N multiplies by cos δ, where the exact flow stands still.
    denoiser = GaussianDenoiser(torch.zeros(4), torch.eye(4), COSINE)
    *_, found = sample(denoiser, steps, z=z)
    assert relative_error(found, math.cos(math.pi / (2 * steps)) ** steps * z, scale=z) <= TOLERANCE


# The reference: diffusers' DDIM with eta = 0.


class Waves(torch.nn.Module):
    """Any smooth function of z and the time will do for comparing two samplers."""

    def forward(self, z, time):
        return torch.sin(3 * z + column(time)) + 0.5 * z


@pytest.mark.parametrize("steps", [4, 10])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(
    ("prediction", "theirs", "zero_snr"),
    [
        ("eps", "epsilon", False),
        ("x", "sample", False),
        ("v", "v_prediction", False),
        ("x", "sample", True),
        ("v", "v_prediction", True),
    ],
)
def test_ddim_is_that_of_diffusers(prediction, theirs, zero_snr, beta_schedule, steps):
    scheduler = DDIMScheduler(
        beta_schedule=beta_schedule,
        prediction_type=theirs,
        clip_sample=False,
        timestep_spacing="trailing",  # i/N, the top one t = 1
        set_alpha_to_one=True,
        rescale_betas_zero_snr=zero_snr,
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()  # theirs is float32: compare beyond that
    scheduler.set_timesteps(steps)
    schedule = DiscreteSchedule(scheduler.alphas_cumprod)
    assert (schedule.alpha_bar[-1] == 0) == zero_snr
    denoiser = Denoiser(Waves(), prediction, schedule)
    z = noise(5, 3)
    ours = list(sample(denoiser, steps, z=z))
    for i, timestep in enumerate(scheduler.timesteps):
        t = (timestep + 1).double().expand(5) / 1000
        z = scheduler.step(denoiser.output(z, t), int(timestep), z, eta=0.0).prev_sample
        assert relative_error(ours[i + 1], z) <= 1e-9


# Ancestral steps.


@given(schedules, steps_down(), BATCH, BATCH)
def test_an_ancestral_step_draws_from_the_posterior_of_z_s(schedule, step, z, x):
    # Independently, by Bayes' rule in precisions: the prior z_s ~ N(α_s x, σ_s²) meets the
    # observation z_t = a z_s + noise of variance σ_t² − a² σ_s², with a = α_t/α_s.
    assume(schedule.log_snr(step[1]) - schedule.log_snr(step[0]) > 0.01)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (schedule.alpha_sigma(time) for time in step)
    a = alpha_t / alpha_s
    added = sigma_t**2 - a**2 * sigma_s**2
    precision = 1 / sigma_s**2 + a**2 / added
    mean = (column(alpha_s / sigma_s**2) * x + column(a / added) * z) / column(precision)
    found = ancestral_step(z, x, *step, schedule, torch.zeros_like(z))
    deviation = ancestral_step(z, x, *step, schedule, torch.ones_like(z)) - found
    assert relative_error(found, mean, scale=torch.cat([z, x])) <= TOLERANCE
    assert relative_error(deviation**2, column(1 / precision).expand(1, 4)) <= 1e-8  # a difference: fewer digits


@given(schedules, steps_down(), variances, BATCH)
def test_the_variance_goes_from_that_of_the_posterior_to_that_of_the_forward_step(schedule, step, variance, z):
    assume(schedule.log_snr(step[1]) - schedule.log_snr(step[0]) > 0.01)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (schedule.alpha_sigma(time) for time in step)
    zero, one = torch.zeros_like(z), torch.ones_like(z)
    mean, shifted = (ancestral_step(z, z, *step, schedule, eps, variance) for eps in (zero, one))
    # Large: the noise that q(z_t | z_s) adds, σ_t² − (α_t/α_s)² σ_s². Small: that times σ_s²/σ_t².
    large = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    small = large * sigma_s**2 / sigma_t**2
    expected = small ** (1 - variance) * large**variance
    assert relative_error((shifted - mean) ** 2, column(expected).expand(1, 4)) <= 1e-8
    assert torch.equal(mean, ancestral_step(z, z, *step, schedule, zero))  # the mean is the same for all


@given(schedules, steps_down())
def test_the_small_variance_is_right_when_x_is_known_and_the_large_one_for_standard_normal_data(schedule, step):
    # An affine step z ↦ m z + …, plus noise of deviation d, makes variance V_t into m² V_t + d².
    (_, sigma_t), (_, sigma_s) = (schedule.alpha_sigma(time) for time in step)
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    for spread, variance, before, after in [(0.0, 0.0, sigma_t**2, sigma_s**2), (1.0, 1.0, ONE, ONE)]:
        denoiser = GaussianDenoiser(torch.zeros(1), spread * torch.eye(1), schedule)
        m = ancestral_step(one, denoiser(one, step[0]), *step, schedule, zero, variance)
        d = ancestral_step(zero, denoiser(zero, step[0]), *step, schedule, one, variance)
        assert relative_error(m**2 * before + d**2, after) <= TOLERANCE


@pytest.mark.parametrize("name", ZERO_TERMINAL)
def test_an_ancestral_step_from_pure_noise_forgets_z(name):
    schedule, x_hat, s = ZERO_TERMINAL[name], noise(1, 4), 0.3 * ONE
    alpha, sigma = schedule.alpha_sigma(s)
    eps = noise(1, 4, seed=1)
    found = ancestral_step(noise(1, 4, seed=2), x_hat, ONE, s, schedule, eps)
    torch.testing.assert_close(found, column(alpha) * x_hat + column(sigma) * eps)


@pytest.mark.parametrize("variance", [0.0, 1.0])
def test_many_ancestral_steps_end_in_the_variance_of_the_data(variance):
    # For Gaussian data every step is affine, so the variance can be followed without drawing a number.
    denoiser = GaussianDenoiser(torch.zeros(1), torch.tensor([[0.3]]), COSINE)
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    errors = []
    for steps in (100, 200, 400):
        found = ONE  # of z_1 ~ N(0, 1)
        for i in range(steps, 0, -1):
            t, s = i / steps * ONE, (i - 1) / steps * ONE
            m = ancestral_step(one, denoiser(one, t), t, s, COSINE, zero, variance)
            d = ancestral_step(zero, zero, t, s, COSINE, one, variance)
            found = m**2 * found + d**2
        errors.append(abs(found.item() - 0.3))
    assert errors[2] < 0.01
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("variance", [-0.1, 1.1])
def test_a_variance_outside_0_to_1_is_refused(variance):
    with pytest.raises(ValueError, match=r"between 0 \(small\) and 1 \(large\)"):
        ancestral_step(noise(1, 2), noise(1, 2), ONE, ONE / 2, COSINE, noise(1, 2), variance)


# The walk.


STEPS = [None, 0.0, 0.5]  # DDIM, and ancestral steps of two variances


@given(st.integers(1, 20), st.sampled_from(STEPS))
def test_a_walk_yields_every_z_from_the_noise_to_the_sample(steps, variance):
    denoiser, z = Recorder(0.5), noise(2, 3)
    walk = list(sample(denoiser, steps, z=z, variance=variance))
    assert len(walk) == steps + 1
    assert walk[0] is z
    assert torch.equal(walk[-1], torch.full_like(z, 0.5))  # at t = 0 the sample is the last x̂
    # Asked at i/N, i = N … 1: first at exactly 1, never at 0.
    assert [t.tolist() for t in denoiser.times] == [[i / steps] * 2 for i in range(steps, 0, -1)]


def asked(own, steps):
    """The times, as i, that a denoiser which was made for its own grid is asked at."""
    denoiser = Recorder(0.5, grid=own)
    assert len(list(sample(denoiser, steps, z=noise(1, 2)))) == len(denoiser.times) + 1
    N = steps.N if isinstance(steps, Grid) else steps or own.N
    return [t.item() * N for t in denoiser.times]


@pytest.mark.parametrize(
    ("own", "steps", "expected"),
    [
        (Grid(4), None, [4, 3, 2, 1]),  # nothing said: its own
        (Grid(4, missing=1), None, [3, 2, 1]),
        (Grid(4), 2, [2, 1]),  # a number: so many steps on a grid like its own
        (Grid(4, missing=1), 8, [7, 6, 5, 4, 3, 2, 1]),
        (Grid(4, missing=1), 1, []),
        (None, 3, [3, 2, 1]),
        (Grid(4, missing=1), Grid(3), [3, 2, 1]),  # a grid: that grid
        (Grid(4), Grid(4, missing=2), [2, 1]),
        (None, Grid(2, missing=1), [1]),
        (Grid(4), np.int64(2), [2, 1]),
    ],
)
def test_the_times_are_those_asked_for_or_the_denoisers_own(own, steps, expected):
    assert asked(own, steps) == expected


def test_what_is_missing_at_the_top_is_where_the_noise_is_taken_to_be():
    # The walk starts at t = 3/4, as if z were z_{3/4}: equal to the tail of a walk that arrives there with it.
    denoiser, z = GaussianDenoiser(MEAN, COVARIANCE, COSINE), noise(3, 2)
    found = list(sample(denoiser, Grid(4, missing=1), z=z))
    t, s = (torch.full((3,), time, dtype=torch.float64) for time in (0.75, 0.5))
    assert torch.equal(found[1], ddim_step(z, denoiser(z, t), t, s, COSINE))


def test_a_walk_can_be_left_at_any_step():
    denoiser = Recorder(0.5)
    assert len(list(islice(sample(denoiser, 1000, z=noise(2, 3)), 3))) == 3
    assert len(denoiser.times) == 2


@given(st.integers(1, 8), tensors(2, 3))
def test_every_step_of_a_ddim_walk_is_a_ddim_step(steps, z):
    denoiser = GaussianDenoiser(torch.zeros(3), 0.2 * torch.eye(3), COSINE)
    for i, found in zip(range(steps, -1, -1), sample(denoiser, steps, z=z), strict=True):
        assert torch.allclose(found, z, rtol=1e-12, atol=1e-14)
        t, s = (torch.tensor([time, time], dtype=torch.float64) for time in (i / steps, (i - 1) / steps))
        z = ddim_step(z, denoiser(z, t), t, s, COSINE) if i else z


def test_confining_a_denoiser_confines_every_x_hat_of_a_walk():
    z = noise(2, 3)
    confined, allowed = (list(sample(Recorder(answer), 4, z=z)) for answer in (1.0, 3.0))
    clipped = list(sample(Confined(Recorder(3.0), 1.0), 4, z=z))
    assert all(torch.equal(one, other) for one, other in zip(clipped, confined, strict=True))
    assert torch.equal(allowed[-1], torch.full_like(z, 3.0))
    assert torch.equal(list(sample(Confined(Recorder(-3.0), 0.5), 4, z=z))[-1], torch.full_like(z, -0.5))


def test_the_ancestral_walk_takes_its_variance_and_its_noise_from_the_arguments():
    denoiser, z = GaussianDenoiser(MEAN, COVARIANCE, COSINE), noise(2, 2)
    first, again, other = (
        list(sample(denoiser, 4, z=z, generator=generator(seed), variance=0.7)) for seed in (5, 5, 6)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])
    eps = noise(2, 2, seed=5)
    t, s = torch.ones(2), torch.full((2,), 0.75)
    assert torch.equal(first[1], ancestral_step(z, denoiser(z, t), t, s, COSINE, eps, 0.7))


def test_a_ddim_walk_draws_nothing():
    drawn = generator(5)
    list(sample(Recorder(0.5), 4, z=noise(2, 2), generator=drawn))
    assert torch.equal(drawn.get_state(), generator(5).get_state())


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        (0, {}, "steps=0: a sampler needs at least 1 step"),
        (2.5, {}, "steps=2.5: a sampler needs at least 1 step, and whole ones"),
        (None, {}, "steps: this denoiser was made for no number of steps; say with how many to sample"),
        (4, {"variance": 2.0}, "variance=2.0"),
    ],
)
def test_a_wrong_argument_is_named(steps, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        list(sample(Recorder(0.5), steps, z=noise(1, 2), **options))
    assert "\n" not in str(caught.value)


def test_more_steps_missing_than_there_are_is_refused():
    with pytest.raises(ValueError, match="missing=2: of 1 times between 0 and 1 can be left out"):
        list(sample(Recorder(0.5, grid=Grid(4, missing=2)), 1, z=noise(1, 2)))


# Batches.


@pytest.mark.parametrize("variance", [None, 0.3])
def test_batches_of_samples_are_the_ends_of_walks(variance):
    denoiser = Confined(GaussianDenoiser(MEAN, COVARIANCE, COSINE), 0.9)
    found = sample_batches(denoiser, 600, 3, generator=generator(), variance=variance, shape=(2,))
    draws, expected = generator(), []
    for size in (256, 256, 88):
        z = torch.randn(size, 2, generator=draws)
        *_, last = sample(denoiser, 3, z=z, variance=variance, generator=draws)
        expected.append(last)
    assert torch.equal(found, torch.cat(expected))
    assert not torch.equal(found[:256], found[256:512])


def test_batches_are_of_the_denoisers_own_steps_and_shape_unless_told_otherwise():
    denoiser = Denoiser(Waves(), "v", COSINE, Grid(4), (3,))
    own = sample_batches(denoiser, 5, generator=generator())
    assert own.shape == (5, 3)
    assert torch.equal(own, sample_batches(denoiser, 5, 4, generator=generator(), shape=(3,)))
    assert not torch.equal(own, sample_batches(denoiser, 5, 2, generator=generator()))
    assert sample_batches(denoiser, 5, generator=generator(), shape=(2,)).shape == (5, 2)
    assert sample_batches(denoiser, 0, generator=generator()).shape == (0, 3)


def test_batches_of_no_known_shape_are_refused():
    with pytest.raises(ValueError, match="shape: this denoiser does not say what shape its samples have; give it"):
        sample_batches(Recorder(0.5), 5, 4, generator=generator())


def test_batches_of_samples_need_no_gradients():
    *_, walked = sample(tiny(), 3, z=torch.ones(2, 2))
    assert walked.requires_grad
    assert not sample_batches(tiny(), 2, 3, generator=generator(), shape=(2,)).requires_grad
