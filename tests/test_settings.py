import json
import math
from dataclasses import fields

import pytest

from pdlib.schedules import SCHEDULES, CosineSchedule
from pdlib.settings import (
    PRESETS,
    Settings,
    SettingsError,
    check_parameters,
    make_settings,
    notebook_parameters,
    parse_setting,
    settings_to_json,
)
from pdlib.weightings import Clipped

# Presets and overrides.


def test_a_preset_changes_what_it_names_and_an_override_changes_that():
    assert make_settings() == Settings()
    smoke = make_settings("smoke", steps=16)
    assert smoke.steps == 16
    assert smoke.width == PRESETS["smoke"]["width"] != Settings().width
    assert smoke.prediction == Settings().prediction


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_survive_json(preset):
    settings = make_settings(preset, attention=[1], clip_max=5)
    assert make_settings(**json.loads(json.dumps(settings_to_json(settings)))) == settings


def test_every_setting_can_be_given_as_text():
    for field in fields(Settings):
        value = getattr(Settings(), field.name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert parse_setting(f"{field.name}={text}") == (field.name, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("stage_updates=1200", 1200),
        ("prediction=x", "x"),
        ("learning_rate=3e-4", 3e-4),
        ("discrete_teacher=True", True),
        ("discrete_teacher=false", False),
        ("multipliers=1,2,4", (1, 2, 4)),
        ("multipliers=(1, 2)", (1, 2)),
        ("attention=", ()),
        ("clip_min=none", None),
        ("clip_max=5", 5.0),
        ("few_step_updates=None", None),
        ("data=a=b", "a=b"),
    ],
)
def test_text_becomes_the_settings_own_type(text, value):
    name, found = parse_setting(text)
    assert (name, found, type(found)) == (text.split("=")[0], value, type(value))


def test_what_follows_from_the_settings():
    settings = make_settings(steps=16, end_steps=2, few_step_updates=90, stage_updates=40, clip_min=1)
    assert settings.evaluated_steps == [16, 8, 4, 2]
    assert settings.updates_by_stage == {1: 90, 2: 90, 4: 90}
    assert make_settings(few_step_updates=None).updates_by_stage == {}
    assert settings.loss_weighting == Clipped("truncated_snr", 1, None)
    assert make_settings().loss_weighting == "truncated_snr"
    assert (settings.stage_training.updates, settings.stage_training.learning_rate) == (40, 5e-4)
    assert (settings.teacher_training.updates, settings.teacher_training.ema) == (3000, 0.999)


# Each mistake gets one line with the name, the value and what is allowed.

BAD = {
    "stage_update=5": "there is no setting 'stage_update'; did you mean 'stage_updates'?",
    "zzz=5": "there is no setting 'zzz'; the settings are data, prediction",
    "stage_updates": "--set stage_updates: write it as key=value",
    "stage_updates=many": "stage_updates='many': must be a whole number",
    "stage_updates=1.5": "stage_updates='1.5': must be a whole number",
    "stage_updates=0": "stage_updates=0: must be at least 1",
    "learning_rate=fast": "learning_rate='fast': must be a number",
    "learning_rate=nan": "learning_rate=nan: must be between 1e-12 and 1000",
    "learning_rate=-1": "learning_rate=-1.0: must be between 1e-12 and 1000",
    "discrete_teacher=maybe": "discrete_teacher='maybe': must be true or false",
    "multipliers=1,a": "multipliers='1,a': must be whole numbers, as in 1,2",
    "multipliers=": "multipliers=(): must be whole numbers of 1 or more",
    "attention=2": "attention=(2,): must name resolutions from 0 to 1",
    "prediction=epsilon": "prediction='epsilon' is unknown; it must be one of x, eps, v, both",
    "weighting=sn": "weighting='sn' is unknown; it must be one of constant, snr, truncated_snr",
    "schedule=cosin": "schedule='cosin' is unknown; it must be one of cosine",
    "anneal=step": "anneal='step' is unknown; it must be one of linear, cosine, constant",
    "weights=best": "weights='best' is unknown; it must be one of ema, raw",
    "ema=1": "ema=1.0: must be between 0 and 1",
    "sampler_variance=2": "sampler_variance=2.0: must be between 0 and 1",
    "noise_seeds=1": "noise_seeds=1: must be at least 2",
    "seed=-1": "seed=-1: must be between 0 and",
    "steps=48": "steps=48 cannot be halved down to end_steps=1",
    "end_steps=3": "steps=64 cannot be halved down to end_steps=3",
    "end_steps=128": "steps=64 cannot be halved down to end_steps=128",
    "prediction=eps": "prediction='eps' with schedule='cosine': α_1 = 0",
    "student_prediction=eps": "student_prediction='eps' with schedule='cosine': α_1 = 0",
    "student_prediction=w": "student_prediction='w' is unknown; it must be one of x, eps, v, both",
    "convert_updates=10": "convert_updates=10: say to what, with student_prediction",
    "skip_top=True": "skip_top=True leaves no step to train at N = 1: use end_steps=2 or more",
    "curves=ddim": "curves=ddim: must be distilled, and then any of ddim, stochastic",
    "curves=distilled,dim": "curves=distilled,dim: must be distilled, and then any of ddim, stochastic",
    "device=tpu3000": "tpu3000",
}


@pytest.mark.parametrize("text", BAD)
def test_a_mistake_is_named_with_what_is_allowed(text):
    with pytest.raises(SettingsError) as caught:
        name, value = parse_setting(text)
        make_settings(**{name: value})
    message = str(caught.value)
    assert BAD[text] in message
    assert "\n" not in message


def test_clips_that_cross_are_refused():
    with pytest.raises(SettingsError, match=r"clip.*2"):
        make_settings(clip_min=2, clip_max=1)


def test_only_cosine_schedules_take_ends_of_lambda():
    schedule = make_settings(schedule="cosine_offset", log_snr_min=-6).noise_schedule
    assert schedule == CosineSchedule(0.008, log_snr_min=-6)
    for name in ("linear", "cosine_clipped", "discrete_cosine"):
        with pytest.raises(SettingsError, match=f"log_snr_min=-6.0.*{name}.*only cosine and cosine_offset"):
            make_settings(schedule=name, log_snr_min=-6)
    with pytest.raises(SettingsError, match=r"log_snr_min=3.0 is not below log_snr_max=2.0"):
        make_settings(log_snr_min=3, log_snr_max=2)


def test_an_unknown_preset_is_refused():
    with pytest.raises(SettingsError, match="preset='fast' is unknown; it must be one of default, smoke, study"):
        make_settings("fast")


def test_an_eps_network_is_allowed_where_the_last_alpha_is_not_0():
    for name, make in SCHEDULES.items():
        alpha = make().alpha_sigma(make_time(1.0))[0].item()
        if alpha > 0:
            assert make_settings(prediction="eps", schedule=name).prediction == "eps"
        else:
            with pytest.raises(SettingsError, match="α_1 = 0"):
                make_settings(prediction="eps", schedule=name)


def make_time(value):
    import torch

    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize("value", [True, [1], math.inf, "1e400"])
def test_a_whole_number_is_nothing_else(value):
    with pytest.raises(SettingsError, match=r"steps=.*must be a whole number"):
        make_settings(steps=value)


# Notebooks.


def test_the_parameters_of_a_notebook_are_its_plain_values():
    import torch

    namespace = {"T": 1000, "name": "cosine", "pair": [1, 2], "none": None, "torch": torch, "_": 3, "Out": [], "f": len}
    assert notebook_parameters(namespace) == {"T": 1000, "name": "cosine", "pair": [1, 2], "none": None}


def test_parameters_that_are_allowed_pass():
    check_parameters({"T": 1000, "schedule": "cosine"}, T=range(2, 5001), schedule=["cosine", "linear"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"T": 1}, "T=1: must be a whole number from 2 to 10"),
        ({"T": 2.5}, "T=2.5: must be a whole number from 2 to 10"),
        ({"T": True}, "T=True: must be a whole number from 2 to 10"),
        ({"schedule": "cosin"}, "schedule='cosin': must be one of cosine, linear"),
        ({"schedul": "cosine"}, "there is no parameter 'schedul'; did you mean 'schedule'?"),
    ],
)
def test_parameters_that_are_not_are_named(parameters, message):
    with pytest.raises(SettingsError, match=message.replace("?", r"\?")) as caught:
        check_parameters(parameters, T=range(2, 11), schedule=["cosine", "linear"])
    assert caught.value._render_traceback_() == [f"SettingsError: {caught.value}"]
