import math
import shlex
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import any_state, good_state

from pdlib import exact, schedules, training
from pdlib.distillation import distillation_target
from pdlib.explorer import (
    CHOICES,
    LABELS,
    PRESETS,
    ExplorerState,
    compute,
    from_dict,
    from_query,
    problems,
    python_lines,
    run_line,
    sentences,
    to_query,
)
from pdlib.predictions import PREDICTIONS, x_from_output
from pdlib.schedules import CosineSchedule, DiscreteSchedule, LinearSchedule, grid, zero_terminal_snr
from pdlib.settings import make_settings, parse_setting
from pdlib.weightings import WEIGHTINGS, weight

NOTES = PRESETS["The notes"]["4 steps"]
ALL_PRESETS = [(group, label) for group, states in PRESETS.items() for label in states]


# The figures.


def test_the_four_steps_of_the_notes():
    figures = compute(NOTES)
    assert [round(w, 2) for w in figures.step_w.tolist()] == [114.87, 159.92, 112.41, 0.00]
    assert [round(a**2, 4) for a in figures.step_alpha.tolist()] == [0.8469, 0.4938, 0.1442, 0.0000]
    assert round(figures.w.max().item(), 2) == 159.93
    said = sentences(figures)
    assert said["share"] == "at N = 4, 1 of 4 steps gets 0.0 % of the weight: t = 1.00"
    assert said["weight"] == "at the 4 steps, w = 114.87, 159.92, 112.41, 0.00"


@given(good_state)
def test_shares_are_those_of_the_weights_that_training_uses(state):
    figures = compute(state)
    assert figures.share.sum().item() == pytest.approx(1 if figures.step_w.sum() > 0 else 0)
    assert (figures.share >= 0).all()
    assert torch.equal(figures.dead, figures.share * state.N < state.threshold)
    if state.weighting != "log_snr_density":
        expected = weight(state.loss_weighting, state.noise_schedule, grid(state.N), state.N)
        assert torch.equal(figures.step_w, expected)


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
            self.true, self.shift = exact.GaussianDenoiser(mean, covariance, state.noise_schedule), shift
            self.schedule = self.true.schedule

        def __call__(self, z, t):
            x_hat = self.true(z, t)
            if not torch.equal(t, self.second):
                return x_hat
            (alpha_mid, sigma_mid), (alpha, sigma) = (self.schedule.alpha_sigma(s) for s in (t, t - 0.5 / N))
            return x_hat + (self.shift / (alpha - sigma / sigma_mid * alpha_mid))[:, None]

    t = grid(N)
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


# Problems.


@pytest.mark.parametrize(
    ("changes", "knobs", "said"),
    [
        ({"clip_min": 5.0, "clip_max": 1.0}, "clip_min clip_max", "clip minimum 5 is above clip maximum 1"),
        ({"log_snr_min": 3.0, "log_snr_max": -3.0}, "log_snr_min log_snr_max", "λ_min = 3 is not below λ_max = -3"),
        ({"log_snr_min": 0.0, "log_snr_max": 0.05}, "log_snr_min log_snr_max", "is not below λ_max = 0.05 by 0.1"),
        ({"T": 100, "N": 128}, "N T", "T = 100 is below N = 128: raise T or lower N"),
        ({"prediction": "eps"}, "prediction", "divides by α = 0 at t = 1"),
        ({"prediction": "eps", "schedule": "linear", "zero_terminal": True}, "prediction", "divides by α = 0"),
        ({"schedule": "linear", "log_snr_min": -5.0}, "log_snr_min schedule", "only the cosine schedules"),
        ({"schedule": "linear", "log_snr_max": 5.0}, "log_snr_max schedule", "only the cosine schedules"),
        ({"schedule": "discrete_linear", "T": 16, "N": 2}, "T schedule", "raise T above 20"),
        ({"N": 3}, "N", "no power of 2"),
        ({"N": 2048}, "N", "out of range"),
        ({"T": 0}, "T", "out of range"),
        ({"weighting": "nice"}, "weighting", "unknown"),
    ],
)
def test_what_is_wrong_is_said_at_each_knob_that_mends_it(changes, knobs, said):
    found = problems(replace(ExplorerState(), **changes))
    assert list(found) == knobs.split()
    assert all(said in line for line in found.values())
    with pytest.raises(ValueError, match=r"\w"):
        compute(replace(ExplorerState(), **changes))


@given(any_state)
def test_a_state_has_either_problems_or_figures(state):
    wrong = problems(state)
    assert wrong.keys() <= {field.name for field in fields(state)}
    if not wrong:
        compute(state)


# Links.


@given(good_state)
def test_a_link_restores_its_state(state):
    again, complaint = from_query(to_query(state))
    assert complaint == ""
    for field in fields(state):
        value = getattr(state, field.name)
        assert getattr(again, field.name) == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value)


def test_the_defaults_need_no_query():
    assert to_query(ExplorerState()) == ""
    assert from_query("") == (ExplorerState(), "")


@pytest.mark.parametrize(
    "query",
    [
        "N=abc",
        "N=4.5",
        "N",
        "N=3",
        "N=1e400",
        "M=4",
        "T=2&N=4",
        "clip_min=nan",
        "clip_min=inf",
        "clip_min=5&clip_max=1",
        "zero_terminal=maybe",
        "weighting=nice",
        "prediction=eps",
        "__class__=1",
    ],
)
def test_a_malformed_link_gives_the_defaults_and_says_why(query):
    state, complaint = from_query(query)
    assert state == ExplorerState()
    assert complaint.startswith("This link ")
    assert "the defaults are shown" in complaint


@given(st.text(max_size=60))
def test_no_link_is_an_error(query):
    state, _ = from_query(query)
    assert not problems(state)


def test_a_state_from_plain_values_has_the_right_kinds():
    state = from_dict({"N": 8.0, "clip_min": 1, "zero_terminal": False, "clip_max": None})
    assert state == ExplorerState(N=8, clip_min=1.0)
    assert type(state.N) is int


# Lines that train.


@pytest.mark.parametrize(("group", "label"), ALL_PRESETS)
def test_the_command_trains_with_what_is_on_the_screen(group, label):
    assert_command_matches(PRESETS[group][label])


@given(good_state)
def test_the_command_of_any_state_has_its_settings(state):
    assert_command_matches(state)


def assert_command_matches(state):
    line = run_line(state)
    if line.startswith("# no run: "):
        settings_know = state.schedule in (*schedules.SCHEDULES, "discrete_linear") and state.T == 1000
        usual = state.weighting != "log_snr_density" and not state.zero_terminal
        assert not (settings_know and usual)  # a usual state has a command
        return
    words = shlex.split(line)
    assert words[:2] == ["pdlib", "run"]
    settings = make_settings(**dict(parse_setting(word) for word in words[3::2]))
    assert settings.prediction == state.prediction
    assert state.N in settings.evaluated_steps
    t = grid(64)
    ours, theirs = state.noise_schedule.alpha_sigma(t), settings.noise_schedule.alpha_sigma(t)
    assert torch.allclose(torch.stack(ours), torch.stack(theirs), rtol=1e-9, atol=1e-12)
    steps = grid(state.N)
    trained = weight(settings.loss_weighting, settings.noise_schedule, steps, state.N)
    assert torch.allclose(compute(state).step_w, trained, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    "state",
    [
        ExplorerState(),
        ExplorerState(schedule="linear", zero_terminal=True, prediction="both", weighting="snr", clip_min=0.5, N=4),
        ExplorerState(schedule="discrete_linear", T=500, prediction="eps", weighting="log_snr_density_of_steps"),
        ExplorerState(schedule="discrete_scaled_linear", zero_terminal=True, clip_max=5.0),
        ExplorerState(schedule="cosine_offset", log_snr_min=-6.0, prediction="x"),
        ExplorerState(schedule="notes_cosine", weighting="snr_plus_one"),
        NOTES,
        PRESETS["The notes"]["4 steps, clipped at 1"],
    ],
)
def test_the_python_lines_train_with_what_is_on_the_screen(state, monkeypatch):
    used = {}  # the weight at each time that the training draws
    weigh = training.weight

    def recorded(weighting, schedule, t, steps=None):
        w = weigh(weighting, schedule, t, steps)
        used.update(zip(t.tolist(), w.tolist(), strict=True))
        return w

    monkeypatch.setattr(training, "weight", recorded)
    lines = python_lines(state)
    assert "TrainingSettings(updates=3000)" in lines
    namespace = {}
    exec(lines.replace("updates=3000", "updates=1").replace("seed=0", "seed=0, progress=False"), namespace)
    assert namespace["denoiser"].schedule == state.noise_schedule
    assert namespace["denoiser"].prediction == state.prediction
    assert len(namespace["trained"].losses) == 1
    assert used == dict(zip(grid(state.N).tolist(), compute(state).step_w.tolist(), strict=True))


def test_the_curve_on_T_steps_has_no_run_and_says_so():
    assert run_line(NOTES).startswith("# no run: ")


# Presets and choices.


def test_every_preset_has_a_picture():
    for states in PRESETS.values():
        for state in states.values():
            assert problems(state) == {}


def test_the_paper_is_there_with_each_output_under_each_weight():
    paper = PRESETS["The paper"].values()
    asked = {(p, w) for p in ("x", "v", "both") for w in ("snr", "truncated_snr", "snr_plus_one")}
    assert asked <= {(state.prediction, state.weighting) for state in paper}


def test_every_knob_has_a_label():
    assert sorted(LABELS) == sorted(field.name for field in fields(ExplorerState))


def test_the_choices_are_the_librarys():
    assert set(CHOICES["prediction"]) == set(PREDICTIONS)
    assert {name.removesuffix("_of_steps") for name in CHOICES["weighting"]} == set(WEIGHTINGS)


@pytest.mark.parametrize(
    ("state", "schedule"),
    [
        (ExplorerState(), CosineSchedule()),
        (ExplorerState(schedule="cosine_offset"), CosineSchedule(0.008)),
        (ExplorerState(log_snr_min=-6.0), CosineSchedule(log_snr_min=-6.0)),
        (ExplorerState(schedule="linear", zero_terminal=True), zero_terminal_snr(LinearSchedule())),
        (ExplorerState(schedule="discrete_linear"), DiscreteSchedule.linear_beta()),
        (ExplorerState(schedule="discrete_scaled_linear"), DiscreteSchedule.scaled_linear_beta()),
        (ExplorerState(schedule="notes_cosine", T=50), DiscreteSchedule.cosine(50, start_clean=False)),
    ],
)
def test_the_schedule_is_the_librarys(state, schedule):
    ours, theirs = (torch.stack(s.alpha_sigma(grid(100))) for s in (state.noise_schedule, schedule))
    assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("T", [100, 4000])
def test_fewer_or_more_betas_end_at_about_the_same_noise(T):
    last = [compute(ExplorerState(schedule="discrete_linear", T=n)).step_alpha[-1].item() for n in (T, 1000)]
    assert math.log(last[0]) == pytest.approx(math.log(last[1]), abs=0.7)
