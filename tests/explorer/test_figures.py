from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from states import good_state

from pdlib import GaussianDenoiser, Grid, distillation_target
from pdlib.explorer import PRESETS, ExplorerState, compute, sentences
from pdlib.predictions import PREDICTIONS, x_from_output

NOTES = PRESETS["The notes"]["4 steps"]


def test_the_four_steps_of_the_notes():
    figures = compute(NOTES)
    assert [round(w, 2) for w in figures.step_w.tolist()] == [114.87, 159.92, 112.41, 0.00]
    assert [round(a**2, 4) for a in figures.step_alpha.tolist()] == [0.8469, 0.4938, 0.1442, 0.0000]
    assert round(figures.w.max().item(), 2) == 159.93
    said = sentences(figures)
    assert said["share"] == "at N = 4, 1 of 4 steps gets 0.0 % of the weight: t = 1.00"
    assert said["weight"] == "at the 4 steps, w = 114.87, 159.92, 112.41, 0.00"


@given(good_state)
def test_shares_are_those_of_the_weights(state):
    figures = compute(state)
    assert figures.share.sum().item() == pytest.approx(1 if figures.step_w.sum() > 0 else 0)
    assert (figures.share >= 0).all()
    assert torch.equal(figures.dead, figures.share * state.N < state.threshold)
    snr = (figures.step_alpha / figures.step_sigma) ** 2
    named = {"constant": snr**0, "snr": snr, "truncated_snr": snr.clamp(min=1), "snr_plus_one": 1 + snr}
    if state.weighting in named:
        low, high = state.clip_min or 0, state.clip_max or torch.inf
        assert torch.allclose(figures.step_w, named[state.weighting].clamp(low, high), rtol=1e-9)


@pytest.mark.parametrize("weighting", ["log_snr_density", "log_snr_density_of_steps"])
def test_a_density_is_that_of_its_steps(weighting):
    state = ExplorerState(weighting=weighting, N=8, T=100)
    steps = state.T if weighting == "log_snr_density" else state.N
    t = torch.arange(1, 9, dtype=torch.float64) / 8
    snr, before = (torch.exp(state.noise_schedule.log_snr(s)) for s in (t, t - 1 / steps))
    assert torch.allclose(compute(state).step_w, snr / (before - snr), rtol=1e-9)


@pytest.mark.parametrize("log_snr_min", [20.0, 24.0, 28.0, 29.9])
def test_a_schedule_that_hardly_adds_noise_can_be_rescaled_to_zero_terminal_snr(log_snr_min):
    """α_t, nearly 1 everywhere, then runs from 1 to 0 along one curve, however near."""
    state = ExplorerState(zero_terminal=True, weighting="log_snr_density")
    near, far = (compute(replace(state, log_snr_min=low)) for low in (log_snr_min, 14.0))
    for name in ("alpha", "sigma", "w", "step_w", "sensitivity"):
        assert torch.allclose(getattr(near, name), getattr(far, name), rtol=1e-5), name
    narrow = compute(replace(state, log_snr_min=log_snr_min, log_snr_max=30.0))
    assert narrow.w.max() < 200


@given(good_state)
def test_every_figure_is_a_number_and_every_panel_has_its_sentence(state):
    figures = compute(state)
    for field in fields(figures):
        value = getattr(figures, field.name)
        if isinstance(value, torch.Tensor):
            assert value.shape == ((state.T,) if field.name in TIME_FIELDS else (state.N,))
            assert not value.isnan().any(), field.name
    assert all(sentences(figures).values())
    assert all("nan" not in sentence for sentence in sentences(figures).values())


TIME_FIELDS = {"t", "alpha", "sigma", "log_snr", "density", "plain", "w"}


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
    alpha, sigma = figures.step_alpha, figures.step_sigma
    z = torch.zeros(8, 1, dtype=torch.float64)
    if prediction == "both":  # two errors, at right angles in the mean
        parts = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
        moved = [x_from_output("both", part.double().expand(8, 2), z, alpha, sigma).flatten() for part in parts]
        found = (moved[0] ** 2 + moved[1] ** 2).sqrt()
    else:
        found = x_from_output(prediction, torch.ones(8, 1, dtype=torch.float64), z, alpha, sigma).flatten().abs()
    assert torch.allclose(found, figures.own_amplification)


# Sentences.


@pytest.mark.parametrize(
    ("changes", "name", "sentence"),
    [
        ({"weighting": "snr", "N": 1}, "share", "at N = 1, the loss is always 0: no step gets any weight"),
        (
            {"weighting": "log_snr_density_of_steps", "N": 4},
            "share",
            "at N = 4, 2 of 4 steps get 0.0 % of the weight together: t = 0.25, 1.00",
        ),
        (
            {"weighting": "constant", "N": 4},
            "share",
            "at N = 4, no step is dead: the smallest share is 25.00 % of the weight, 1.00 times the fair share, "
            "at t = 0.25",
        ),
        (
            {"N": 64},
            "share",
            "at N = 64, no step is dead: the smallest share is 0.04 % of the weight, 0.02 times the fair share, "
            "at t = 0.50",
        ),
        ({}, "schedule", "at t = 1, α = 0: training ends in pure noise, where sampling starts"),
        (
            {"schedule": "discrete_linear"},
            "schedule",
            "at t = 1, α = 0.0064: sampling starts from pure noise, which training never shows",
        ),
        (
            {"schedule": "discrete_linear", "prediction": "eps"},
            "amplification",
            "an ε error is magnified most at t = 1.00: 157.41 times",
        ),
        (
            {"prediction": "x"},
            "amplification",
            "an ε error is magnified without bound at t = 1.00, where α = 0; an error in x at most 1.00 times",
        ),
        (
            {"N": 1},
            "sensitivity",
            "an error where the teacher's two steps end, at t″ = t − 1/N, is magnified most at t = 1.00: 1.00 times",
        ),
    ],
)
def test_what_is_said(changes, name, sentence):
    assert sentences(compute(ExplorerState(**changes)))[name] == sentence


@given(good_state)
def test_the_sentence_counts_the_dead_steps(state):
    figures = compute(state)
    count = int(figures.dead.sum())
    said = sentences(figures)["share"]
    assert said.startswith(f"at N = {state.N}, ")
    if figures.step_w.sum() == 0:
        assert "always 0" in said
    elif count == 0:
        assert "no step is dead" in said
    else:
        assert f"{count} of {state.N} step" in said
