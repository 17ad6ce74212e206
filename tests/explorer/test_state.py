import math

import pytest
import torch
from states import has_picture

from pdlib import CosineSchedule, DiscreteSchedule, Grid, LinearSchedule, zero_terminal_snr
from pdlib.explorer import KNOBS, PRESETS, ExplorerState, compute, from_dict, from_query
from pdlib.predictions import PREDICTIONS
from pdlib.weightings import WEIGHTINGS

# Links.


def test_a_link_gives_its_state():
    state = from_query("N=8&weighting=snr&clip_min=0.1&clip_max=off&zero_terminal=true&schedule=linear&T=1000")
    assert state == ExplorerState(N=8, weighting="snr", clip_min=0.1, zero_terminal=True, schedule="linear")
    assert from_query("") == ExplorerState()


@pytest.mark.parametrize(
    "query",
    ["N=abc", "N=4.5", "N", "N=1e400", "M=4", "clip_min=nan", "clip_min=inf", "zero_terminal=maybe", "__class__=1"],
)
def test_a_malformed_link_is_refused_and_its_knob_named(query):
    with pytest.raises(ValueError, match=r"steps N|'M'|clip minimum|zero terminal SNR|__class__") as refused:
        from_query(query)
    assert "\n" not in str(refused.value)


def test_a_state_from_plain_values_has_the_right_kinds():
    state = from_dict({"N": 8.0, "clip_min": 1, "zero_terminal": False, "clip_max": None})
    assert state == ExplorerState(N=8, clip_min=1.0)
    assert (type(state.N), type(state.clip_min)) == (int, float)


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_min": 5.0, "clip_max": 1.0},
        {"log_snr_min": 3.0, "log_snr_max": -3.0},
        {"schedule": "discrete_linear", "T": 16},
        {"weighting": "nice"},
        {"schedule": "nice"},
        {"prediction": "nice"},
    ],
)
def test_what_the_library_refuses_has_no_figures(changes):
    with pytest.raises((ValueError, KeyError)):
        compute(ExplorerState(**changes))


# Presets and choices.


def test_every_preset_has_a_picture():
    for states in PRESETS.values():
        for state in states.values():
            assert has_picture(vars(state))
            compute(state)


def test_the_paper_is_there_with_each_output_under_each_weight():
    paper = PRESETS["The paper"].values()
    asked = {(p, w) for p in ("x", "v", "both") for w in ("snr", "truncated_snr", "snr_plus_one")}
    assert asked <= {(state.prediction, state.weighting) for state in paper}


def test_every_knob_has_a_label():
    assert KNOBS.keys() == vars(ExplorerState()).keys()
    assert all(knob["label"] and knob["about"] for knob in KNOBS.values())


def test_the_choices_are_the_librarys():
    assert set(KNOBS["prediction"]["options"]) == set(PREDICTIONS)
    assert {name.removesuffix("_of_steps") for name in KNOBS["weighting"]["options"]} == set(WEIGHTINGS)


@pytest.mark.parametrize(
    ("state", "schedule"),
    [
        (ExplorerState(), CosineSchedule()),
        (ExplorerState(schedule="cosine_offset"), CosineSchedule(0.008)),
        (ExplorerState(log_snr_min=-6.0), CosineSchedule(log_snr_min=-6.0)),
        (ExplorerState(schedule="linear", log_snr_min=-6.0), LinearSchedule()),  # which has no such end
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
    last = [compute(ExplorerState(schedule="discrete_linear", T=n)).steps.alpha[-1].item() for n in (T, 1000)]
    assert math.log(last[0]) == pytest.approx(math.log(last[1]), abs=0.7)
