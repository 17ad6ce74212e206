from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from states import good_state

from pdlib import GaussianDenoiser, Grid, distillation_target
from pdlib.explorer import PRESETS, ExplorerState, compute
from pdlib.predictions import PREDICTIONS, x_from_output

NOTES = PRESETS["The notes"]["4 steps"]


def test_the_four_steps_of_the_notes():
    figures = compute(NOTES)
    assert [round(w, 2) for w in figures.steps.w.tolist()] == [114.87, 159.92, 112.41, 0.00]
    assert [round(a**2, 4) for a in figures.steps.alpha.tolist()] == [0.8469, 0.4938, 0.1442, 0.0000]
    assert round(figures.fine.w.max().item(), 2) == 159.93


@given(good_state)
def test_shares_are_those_of_the_weights(state):
    figures = compute(state)
    assert figures.share.sum().item() == pytest.approx(1 if figures.steps.w.sum() > 0 else 0)
    assert (figures.share >= 0).all()
    assert torch.equal(figures.dead, figures.share * state.N < state.threshold)
    snr = (figures.steps.alpha / figures.steps.sigma) ** 2
    named = {"constant": snr**0, "snr": snr, "truncated_snr": snr.clamp(min=1), "snr_plus_one": 1 + snr}
    if state.weighting in named:
        low, high = state.clip_min or 0, state.clip_max or torch.inf
        assert torch.allclose(figures.steps.w, named[state.weighting].clamp(low, high), rtol=1e-9)


@pytest.mark.parametrize("weighting", ["log_snr_density", "log_snr_density_of_steps"])
def test_a_density_is_that_of_its_steps(weighting):
    state = ExplorerState(weighting=weighting, N=8, T=100)
    steps = state.T if weighting == "log_snr_density" else state.N
    t = torch.arange(1, 9, dtype=torch.float64) / 8
    snr, before = (torch.exp(state.noise_schedule.log_snr(s)) for s in (t, t - 1 / steps))
    assert torch.allclose(compute(state).steps.w, snr / (before - snr), rtol=1e-9)


@pytest.mark.parametrize("log_snr_min", [20.0, 24.0, 28.0, 29.9])
def test_a_schedule_that_hardly_adds_noise_can_be_rescaled_to_zero_terminal_snr(log_snr_min):
    """α_t, nearly 1 everywhere, then runs from 1 to 0 along one curve, however near."""
    state = ExplorerState(zero_terminal=True, weighting="log_snr_density")
    near, far = (compute(replace(state, log_snr_min=low)) for low in (log_snr_min, 14.0))
    for name in ("alpha", "sigma", "w"):
        assert torch.allclose(getattr(near.fine, name), getattr(far.fine, name), rtol=1e-5), name
    assert torch.allclose(near.steps.w, far.steps.w, rtol=1e-5)
    assert torch.allclose(near.sensitivity, far.sensitivity, rtol=1e-5)
    narrow = compute(replace(state, log_snr_min=log_snr_min, log_snr_max=30.0))
    assert narrow.fine.w.max() < 200


@given(good_state)
def test_every_figure_is_a_number_of_its_grid(state):
    figures = compute(state)
    for curves, count in ((figures.fine, state.T), (figures.steps, state.N)):
        for name, values in vars(curves).items():
            assert values.shape == (count,)
            assert not values.isnan().any(), name
    for name in ("share", "dead", "eps_amplification", "own_amplification", "sensitivity"):
        assert getattr(figures, name).shape == (state.N,)
        assert not getattr(figures, name).isnan().any(), name


@given(st.sampled_from([1, 2, 4, 16]), st.sampled_from(["cosine", "linear", "discrete_linear"]))
def test_the_sensitivity_is_how_far_an_error_of_the_teachers_moves_the_target(N, name):
    state = ExplorerState(schedule=name, N=N)

    class Shifted:
        """A teacher whose second step lands a little further."""

        def __init__(self, shift):
            mean, covariance = torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64)
            self.true, self.shift = GaussianDenoiser(mean, covariance, state.noise_schedule), shift
            self.schedule = self.true.schedule

        def __call__(self, z, t):
            x_hat = self.true(z, t)
            if not torch.equal(t, self.second):
                return x_hat
            (alpha_mid, sigma_mid), (alpha, sigma) = (self.schedule.alpha_sigma(s) for s in (t, t - 0.5 / N))
            return x_hat + (self.shift / (alpha - sigma / sigma_mid * alpha_mid))[:, None]

    t = Grid(N).times
    z = torch.ones(N, 1, dtype=torch.float64)
    targets = []
    for shift in (0.0, 1e-3):
        teacher = Shifted(shift)
        teacher.second = t - 0.5 / N
        targets.append(distillation_target(teacher, z, t, N))
    moved = (targets[1] - targets[0]).flatten() / 1e-3
    assert torch.allclose(moved, compute(state).sensitivity, rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_amplification_is_what_an_error_of_the_output_becomes(prediction):
    figures = compute(ExplorerState(schedule="linear", prediction=prediction, N=8))
    alpha, sigma = figures.steps.alpha, figures.steps.sigma
    z = torch.zeros(8, 1, dtype=torch.float64)
    if prediction == "both":  # two errors, at right angles in the mean
        parts = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
        moved = [x_from_output("both", part.double().expand(8, 2), z, alpha, sigma).flatten() for part in parts]
        found = (moved[0] ** 2 + moved[1] ** 2).sqrt()
    else:
        found = x_from_output(prediction, torch.ones(8, 1, dtype=torch.float64), z, alpha, sigma).flatten().abs()
    assert torch.allclose(found, figures.own_amplification)
