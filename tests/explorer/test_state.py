import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from states import any_state, good_state

from pdlib import CosineSchedule, DiscreteSchedule, Grid, LinearSchedule, zero_terminal_snr
from pdlib.explorer import (
    CHOICES,
    LABELS,
    PRESETS,
    ExplorerState,
    compute,
    from_dict,
    from_query,
    problems,
    to_query,
)
from pdlib.predictions import PREDICTIONS
from pdlib.weightings import WEIGHTINGS

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
    ours, theirs = (torch.stack(s.alpha_sigma(Grid(100).times)) for s in (state.noise_schedule, schedule))
    assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("T", [100, 4000])
def test_fewer_or_more_betas_end_at_about_the_same_noise(T):
    last = [compute(ExplorerState(schedule="discrete_linear", T=n)).step_alpha[-1].item() for n in (T, 1000)]
    assert math.log(last[0]) == pytest.approx(math.log(last[1]), abs=0.7)
