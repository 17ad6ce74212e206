import shlex

import pytest
import torch
from hypothesis import given
from states import good_state

from pdlib import Grid, weight
from pdlib.explorer import PRESETS, ExplorerState, compute, python_lines, run_line
from pdlib.runs.settings import make_settings, parse_setting
from pdlib.weightings import on_grid

NOTES = PRESETS["The notes"]["4 steps"]
ALL_PRESETS = [(group, label) for group, states in PRESETS.items() for label in states]


@pytest.mark.parametrize(("group", "label"), ALL_PRESETS)
def test_the_command_trains_with_what_is_on_the_screen(group, label):
    assert_command_matches(PRESETS[group][label])


@given(good_state)
def test_the_command_of_any_state_has_its_settings(state):
    assert_command_matches(state)


def assert_command_matches(state):
    line = run_line(state)
    if line.startswith("# no run: "):
        low, high = state.ends
        in_range = (low or 0) <= 0 <= (high or 0)
        assert state.T != 1000 or state.weighting == "log_snr_density" or state.zero_terminal or not in_range
        return
    words = shlex.split(line)
    assert words[:2] == ["pdlib", "run"]
    settings = make_settings(**dict(parse_setting(word) for word in words[3::2]))
    assert settings.prediction == state.prediction
    assert state.N in settings.evaluated_steps
    t = Grid(64).times
    ours, theirs = state.noise_schedule.alpha_sigma(t), settings.noise_schedule.alpha_sigma(t)
    assert torch.allclose(torch.stack(ours), torch.stack(theirs), rtol=1e-9, atol=1e-12)
    trained = weight(on_grid(settings.loss_weighting, state.N), settings.noise_schedule, Grid(state.N).times)
    assert torch.allclose(compute(state).steps.w, trained, rtol=1e-6, atol=1e-12)


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
def test_the_python_lines_train_with_what_is_on_the_screen(state):
    lines, made = python_lines(state), {}
    assert "TrainingSettings(updates=3000)" in lines
    exec(lines.replace("updates=3000", "updates=1"), made)
    denoiser, objective = made["denoiser"], made["objective"]
    assert denoiser.schedule == state.noise_schedule
    assert denoiser.prediction == state.prediction
    assert denoiser.grid == objective.grid == Grid(state.N)
    w = weight(objective.weighting, denoiser.schedule, objective.grid.times)
    assert torch.equal(w, compute(state).steps.w)
    assert len(made["trained"].losses) == 1


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (NOTES, "with the density as on N steps"),
        (ExplorerState(schedule="discrete_linear", T=500), "T = 1000, not 500"),
        (ExplorerState(log_snr_min=5.0), "λ_min at 0 or below"),
        (ExplorerState(log_snr_min=-5.0, zero_terminal=True), "switch one of them off"),
    ],
)
def test_what_has_no_run_says_why(state, why):
    assert run_line(state).startswith("# no run: ")
    assert why in run_line(state)
