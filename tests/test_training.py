import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import column, schedules, tensors, times, zero_terminal
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pdlib.denoiser import Denoiser
from pdlib.exact import GaussianDenoiser
from pdlib.files import DamagedFileError
from pdlib.schedules import CosineSchedule
from pdlib.training import (
    NotFiniteError,
    TrainingSettings,
    denoising_loss,
    diffuse,
    fit,
    random_grid_times,
    weighted_loss,
)
from pdlib.unet import MLP
from pdlib.weightings import WEIGHTINGS, clipped, weight

COSINE = CosineSchedule()
STANDARD = GaussianDenoiser(torch.zeros(3), torch.eye(3), COSINE)  # of data x ~ N(0, I): E[x | z] = α z


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# What a training draws.


@given(schedules, times(4), tensors(4, 3))
def test_diffusing_mixes_the_data_with_the_noise_it_returns(schedule, t, x):
    z, eps = diffuse(x, t, GaussianDenoiser(torch.zeros(3), torch.eye(3), schedule), generator())
    alpha, sigma = schedule.alpha_sigma(t)
    assert torch.equal(z, column(alpha) * x + column(sigma) * eps)
    assert torch.equal(eps, noise(4, 3))


@given(zero_terminal)
def test_at_the_last_time_what_a_network_sees_is_the_noise_itself(schedule):
    # So the identity is a perfect ε network there, and has learned nothing of x.
    denoiser = GaussianDenoiser(torch.zeros(3), torch.eye(3), schedule)
    z, eps = diffuse(noise(4, 3, seed=1), torch.ones(4), denoiser, generator())
    assert torch.equal(z, eps)


@pytest.mark.parametrize("steps", [1, 2, 5, 64])
def test_times_are_drawn_evenly_from_1_over_n_to_1(steps):
    t = random_grid_times(steps * 1000, steps, generator())
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == [i / steps for i in range(1, steps + 1)]  # never 0, and 1 among them
    chi_square = ((counts - 1000) ** 2 / 1000).sum().item()  # of mean N − 1 and variance 2 (N − 1)
    assert chi_square <= steps - 1 + 4 * (2 * (steps - 1)) ** 0.5


def continuous_times(count):
    seen = []

    def look(z, t):
        seen.append(t)
        return z

    look.schedule = COSINE
    denoising_loss(look, noise(count, 1), generator(), "constant")
    return seen[0]


def test_continuous_times_are_uniform():
    t = continuous_times(10_000)
    assert t.dtype == torch.float64
    assert t.mean().item() == pytest.approx(0.5, abs=0.01)  # standard error 0.003
    assert t.var().item() == pytest.approx(1 / 12, abs=0.005)


def test_continuous_times_may_be_1_and_are_never_0(monkeypatch):
    # A uniform number is in [0, 1): the 0 that it may be must become the noisiest time, not the clean one.
    monkeypatch.setattr(torch, "rand", lambda count, **kwargs: torch.zeros(count, dtype=torch.float64))
    assert continuous_times(3).tolist() == [1, 1, 1]


# The losses.


def test_the_weighted_loss_is_a_mean_over_entries_and_examples():
    # Two examples, errors (1, 3) and (2, 2), at t = 1/2, where 1/σ² = 2, and t = 1, where it is 1.
    x_hat = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    found = weighted_loss(x_hat, torch.zeros(2, 2), STANDARD, torch.tensor([0.5, 1.0]), "snr_plus_one")
    assert found.item() == pytest.approx((2 * (1 + 9) / 2 + 1 * (4 + 4) / 2) / 2)


@pytest.mark.parametrize("weighting", [*WEIGHTINGS, clipped("log_snr_density", min=1, normalize=True)])
def test_the_weighted_loss_weighs_each_example_at_its_own_time(weighting):
    t, error = torch.tensor([0.25, 0.5, 1.0]), noise(3, 1, 2, 2)
    found = weighted_loss(error + 1, torch.ones_like(error), STANDARD, t, weighting, steps=4)
    expected = (weight(weighting, COSINE, t, 4) * error.square().mean((1, 2, 3))).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("steps", [None, 1, 4])
def test_the_best_denoisers_loss_is_the_posterior_variance(steps):
    # x ~ N(0, I): E[x | z] = α z leaves the variance σ², which the v weighting 1/σ² makes 1 at every time.
    x = noise(20_000, 3, seed=1)
    found = denoising_loss(STANDARD, x, generator(), "snr_plus_one", steps)
    assert found.item() == pytest.approx(1, abs=0.03)  # standard error √(2/60000) = 0.006


def test_the_denoising_loss_vanishes_only_for_the_data_themselves():
    x = noise(100, 3)

    def knows(z, t):
        return x

    def is_off(z, t):
        return x + 0.1

    knows.schedule = is_off.schedule = COSINE
    assert denoising_loss(knows, x, generator(), steps=4) == 0
    t = random_grid_times(100, 4, generator())
    expected = 0.01 * weight("truncated_snr", COSINE, t).mean().item()  # the weighting if none is named
    assert denoising_loss(is_off, x, generator(), steps=4).item() == pytest.approx(expected, rel=1e-9)


# The learning rate.


@given(st.sampled_from(["linear", "cosine", "constant"]), st.integers(1, 20), st.integers(30, 100))
def test_the_rate_rises_over_the_warmup_and_falls_to_0_unless_constant(anneal, warmup, updates):
    settings = TrainingSettings(updates, learning_rate=2.0, warmup=warmup, anneal=anneal)
    rates = [settings.rate(update) for update in range(updates + 1)]
    assert rates[0] == pytest.approx(2.0 / warmup)
    assert max(rates) <= 2.0
    assert all(before >= after for before, after in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    half = {"linear": 1.0, "cosine": 1.0, "constant": 2.0}[anneal]
    end = {"linear": 0.0, "cosine": 0.0, "constant": 2.0}[anneal]
    assert TrainingSettings(100, learning_rate=2.0, warmup=warmup, anneal=anneal).rate(50) == pytest.approx(half)
    assert rates[-1] == pytest.approx(end, abs=1e-9)


def test_the_cosine_falls_later_than_the_line():
    rates = {
        anneal: TrainingSettings(100, learning_rate=1.0, warmup=0, anneal=anneal).rate(25)
        for anneal in ("linear", "cosine")
    }
    assert rates == pytest.approx({"linear": 0.75, "cosine": 0.5 + 0.5 * 0.5**0.5})


# The update loop.

DATA = 0.5 + 0.1 * noise(256, 2).float()


def small(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Denoiser(MLP(2, width=16, blocks=1), "v", COSINE)


def train(loss=denoising_loss, denoiser=None, seed=0, **options):
    options = {"updates": 12, "batch_size": 16, "warmup": 3, "learning_rate": 0.01, "ema": 0.8} | options
    extra = {name: options.pop(name) for name in ("checkpoint", "checkpoint_seconds") if name in options}
    settings = TrainingSettings(**options)
    return fit(denoiser or small(), loss, DATA, settings, seed=seed, progress=False, **extra)


def same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == other_name and torch.equal(a, b) for (name, a), (other_name, b) in pairs)


def test_training_lowers_the_loss():
    losses = train(updates=100).losses
    assert losses[-50:].mean() < 0.6 * losses[:10].mean()


def test_the_same_seed_gives_the_same_bits_whatever_the_global_generator():
    torch.manual_seed(1)
    one = train()
    torch.manual_seed(2)
    other = train()
    assert same_weights(one.raw, other.raw)
    assert same_weights(one.ema, other.ema)
    assert torch.equal(one.losses, other.losses)
    assert not same_weights(one.raw, train(seed=1).raw)


def recording(weights):
    def loss(denoiser, x, generator):
        weights.append(copy.deepcopy(denoiser.state_dict()))
        return denoising_loss(denoiser, x, generator)

    return loss


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_the_averaged_weights_are_the_moving_average_of_the_raw_ones(decay):
    weights = []
    trained = train(recording(weights), ema=decay)
    history = [*weights[1:], trained.raw.state_dict()]  # after each update
    for name, found in trained.ema.state_dict().items():
        average = history[0][name]
        for after in history[1:]:
            average = decay * average + (1 - decay) * after[name]
        torch.testing.assert_close(found, average)
    assert same_weights(trained.ema, trained.raw) == (decay == 0)


def test_what_comes_back_is_ready_for_sampling():
    trained = train()
    for denoiser in (trained.ema, trained.raw):
        assert not denoiser.network.training
        assert not any(parameter.requires_grad for parameter in denoiser.parameters())
        assert (denoiser.prediction, denoiser.schedule) == ("v", COSINE)
    assert trained.losses.shape == trained.gradient_norms.shape == (12,)
    assert (trained.gradient_norms > 0).all()


def test_a_network_that_was_frozen_is_trained():
    frozen = train().raw
    assert not same_weights(train(denoiser=Denoiser(copy.deepcopy(frozen.network), "v", COSINE)).raw, frozen)


def test_long_gradients_are_scaled_to_the_limit_and_short_ones_left_alone():
    used = []

    def hook(optimizer, *_):
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        used.append(torch.cat([gradient.flatten() for gradient in gradients]).norm())

    limit = 0.75
    handle = register_optimizer_step_pre_hook(hook)
    try:
        trained = train(max_gradient_norm=limit)
    finally:
        handle.remove()
    before = trained.gradient_norms
    assert before.min() < limit < before.max()
    torch.testing.assert_close(torch.stack(used), before.clamp(max=limit), rtol=1e-4, atol=0)


def test_every_update_uses_its_own_learning_rate():
    used = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    try:
        train(anneal="cosine")
    finally:
        handle.remove()
    settings = TrainingSettings(12, warmup=3, learning_rate=0.01, anneal="cosine")
    assert used == [settings.rate(update) for update in range(12)]


def breaking(at, how):
    """The denoising loss, until at its so-manyeth call ``how`` is done to it."""
    calls = []

    def loss(denoiser, x, generator):
        calls.append(None)
        value = denoising_loss(denoiser, x, generator)
        return how(denoiser, value) if len(calls) == at + 1 else value

    return loss


def infinite_gradient(denoiser, value):
    return value + (0 * next(denoiser.parameters()).sum()).sqrt()  # √0 has no slope


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda denoiser, value: value * float("nan"), "at update 5 the loss is nan"),
        (lambda denoiser, value: value * float("inf"), "at update 5 the loss is inf"),
        (infinite_gradient, "at update 5 the loss is .* its gradient's norm nan"),
    ],
)
def test_a_loss_that_is_not_finite_stops_before_it_is_used(how, message):
    denoiser = small()
    with pytest.raises(NotFiniteError, match=message):
        train(breaking(5, how), denoiser)
    weights = []
    train(recording(weights))
    assert same_weights_dict(denoiser.state_dict(), weights[5])  # those after 5 updates


def same_weights_dict(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


@pytest.mark.parametrize("at", [1, 7, 11])
def test_a_training_that_was_interrupted_ends_in_the_same_bits(at, tmp_path):
    checkpoint = tmp_path / "teacher.checkpoint"
    whole = train()
    with pytest.raises(Interrupted):
        train(breaking(at, interrupt), checkpoint=checkpoint, checkpoint_seconds=-1)
    resumed = train(breaking(12 - at, interrupt), denoiser=small(seed=9), checkpoint=checkpoint)  # no update twice
    assert same_weights(resumed.raw, whole.raw)
    assert same_weights(resumed.ema, whole.ema)
    assert torch.equal(resumed.losses, whole.losses)
    assert torch.equal(resumed.gradient_norms, whole.gradient_norms)


def test_a_finished_training_is_read_from_its_checkpoint(tmp_path):
    checkpoint = tmp_path / "teacher.checkpoint"
    whole = train(checkpoint=checkpoint, checkpoint_seconds=-1)
    again = train(interrupt, denoiser=small(seed=9), checkpoint=checkpoint)
    assert same_weights(again.ema, whole.ema)
    assert again.seconds >= whole.seconds * 0.5


def test_after_a_broken_loss_the_last_good_checkpoint_is_kept(tmp_path):
    checkpoint = tmp_path / "teacher.checkpoint"
    with pytest.raises(NotFiniteError, match=r"last good checkpoint is kept in .*teacher\.checkpoint"):
        train(breaking(5, lambda _, value: value * float("nan")), checkpoint=checkpoint, checkpoint_seconds=-1)
    assert same_weights(train(checkpoint=checkpoint).raw, train().raw)


def test_without_a_checkpoint_none_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train()
    train(checkpoint=tmp_path / "late.checkpoint", checkpoint_seconds=1000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [{"seed": 1}, {"learning_rate": 0.02}, {"updates": 13}, {"ema": 0.9}])
def test_a_checkpoint_of_other_settings_is_refused(other, tmp_path):
    checkpoint = tmp_path / "teacher.checkpoint"
    train(checkpoint=checkpoint, checkpoint_seconds=-1)
    with pytest.raises(DamagedFileError, match="other settings: delete it to train anew"):
        train(checkpoint=checkpoint, **other)


def test_a_truncated_checkpoint_is_refused(tmp_path):
    checkpoint = tmp_path / "teacher.checkpoint"
    train(checkpoint=checkpoint, checkpoint_seconds=-1)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedFileError, match="is damaged"):
        train(checkpoint=checkpoint)


def with_dropout():
    denoiser = small()
    with torch.random.fork_rng(devices=[]):
        nn.init.normal_(denoiser.network.last.weight)
    denoiser.network.last = nn.Sequential(nn.Dropout(0.5), denoiser.network.last)
    return denoiser


def test_dropout_too_is_a_matter_of_the_seed_alone(tmp_path):
    checkpoint = tmp_path / "teacher.checkpoint"
    torch.manual_seed(1)
    whole = train(denoiser=with_dropout())
    assert torch.initial_seed() == 1  # the caller's generator is as it was
    with pytest.raises(Interrupted):
        train(breaking(7, interrupt), denoiser=with_dropout(), checkpoint=checkpoint, checkpoint_seconds=-1)
    torch.manual_seed(2)
    assert same_weights(train(denoiser=with_dropout(), checkpoint=checkpoint).raw, whole.raw)
