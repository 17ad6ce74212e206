import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import pdlib
from pdlib.grids import Grid
from pdlib.runs.settings import (
    CURVES,
    NAMES,
    NETWORK,
    PRESETS,
    Settings,
    SettingsError,
    allowed,
    check_parameters,
    make_settings,
    notebook_parameters,
    parse_setting,
    settings_to_json,
    upgraded,
)
from pdlib.schedules import SCHEDULES, CosineSchedule
from pdlib.training import TrainingSettings
from pdlib.weightings import Clipped


def refusal(**overrides):
    """The one line with which settings are refused."""
    with pytest.raises(SettingsError) as caught:
        make_settings(**overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Presets and overrides.


def test_a_preset_changes_what_it_names_and_an_override_changes_that():
    assert make_settings() == Settings()
    smoke = make_settings("smoke", steps=16)
    assert smoke.steps == 16
    assert smoke.width == 16 != Settings().width
    assert smoke.prediction == Settings().prediction


def test_a_method_brings_what_it_wants_where_nothing_else_is_said():
    flow, halving = make_settings(method="mean_flow"), make_settings("mnist-cpu", method="progressive_distillation")
    assert flow.stage_learning_rate != halving.stage_learning_rate == Settings().stage_learning_rate
    assert make_settings("mnist-cpu").stage_learning_rate == flow.stage_learning_rate  # the preset's own method
    assert make_settings(method="mean_flow", stage_learning_rate=1e-5).stage_learning_rate == "1e-05"
    assert make_settings("study", method="mean_flow").stage_learning_rate == make_settings("study").stage_learning_rate


def test_an_unknown_preset_is_refused():
    assert (
        refusal(preset="fast")
        == "preset='fast' is unknown; it must be one of default, smoke, study, mnist-cpu, cifar10-gpu"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_a_preset_for_a_gpu_does_not_begin_on_a_cpu_unasked():
    with pytest.raises(SettingsError, match=r"device='cuda' does not work here.*use cpu, as there is no cuda here"):
        make_settings("cifar10-gpu")


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_survive_json(preset):
    settings = make_settings(preset, attention=[1], clip_max=5, device="cpu")
    assert make_settings(**json.loads(json.dumps(settings_to_json(settings)))) == settings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("teacher_updates=1200", 1200),
        ("prediction=x", "x"),
        ("learning_rate=3e-4", 3e-4),
        ("discrete_teacher=True", True),
        ("discrete_teacher=false", False),
        ("multipliers=1,2,4", (1, 2, 4)),
        ("multipliers=(1, 2)", (1, 2)),
        ("multipliers=(2,)", (2,)),
        ("attention=", ()),
        ("clip_min=none", None),
        ("clip_max=5", 5.0),
        ("student_prediction=None", None),
        ("curves=distilled, ddim", ("distilled", "ddim")),
        ("data=a=b", "a=b"),
        ("stage_updates=450,2:600", "450,2:600"),
        ("stage_learning_rate=5e-4,1:2e-3", "0.0005,1:0.002"),
        ("stage_learning_rate=.5E-3", "0.0005"),
    ],
)
def test_text_becomes_the_settings_own_type(text, value):
    name, given = parse_setting(text)
    found = getattr(make_settings(**{name: given}), name)
    assert (name, found, type(found)) == (text.split("=")[0], value, type(value))


def test_every_setting_can_be_given_as_the_text_of_its_default():
    as_text = {name: str(field.default) for name, field in Settings.model_fields.items() if name != "curves"}
    assert make_settings(**as_text, curves=",".join(CURVES[:2])) == Settings()


def test_a_path_is_a_name_and_a_tilde_is_home(tmp_path):
    assert make_settings(data=tmp_path).data == str(tmp_path)
    assert make_settings(data="~/x.npy").data == os.path.expanduser("~/x.npy")


def test_they_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Settings().steps = 8


def test_importing_them_imports_no_torch():
    code = "import sys, pdlib.runs.settings as s; s.allowed('schedule', False); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# What follows from them.


def test_the_chain_that_they_ask_for():
    settings = make_settings(steps=16, end_steps=2, missing=1)
    assert settings.grid == Grid(16, missing=1)
    assert settings.evaluated_steps == [16, 8, 4, 2]
    assert make_settings(steps=16, end_steps=16).evaluated_steps == [16]


def test_the_teachers_training():
    expected = TrainingSettings(3000, 128, 1e-3, 100, "linear", 0.999, 1.0, seed=3)
    assert make_settings(seed=3).teacher_training == expected
    assert make_settings(seed=3, warmup=5).teacher_training == replace(expected, warmup=5)


def test_a_stage_has_its_own_updates_rate_batch_and_warmup():
    usual = TrainingSettings(800, 32, 2e-4, 20, "linear", 0.99, 1.0, seed=0)
    late = {16: (1200, 2e-4), 8: (2200, 3e-4), 4: (3200, 4e-4), 2: (4000, 5e-4), 1: (5200, 7e-4)}
    for steps in (32, 16, 8, 4, 2, 1):
        updates, rate = late.get(steps, (800, 2e-4))
        expected = replace(usual, updates=updates, learning_rate=rate)
        assert make_settings().stage_training(Grid(steps)) == expected
    assert make_settings(batch_size=48, stage_batch_size=0).stage_training(Grid(8)).batch_size == 48
    settings = make_settings(stage_updates="40,16:90,1:10", stage_warmup=0)
    assert [settings.stage_training(Grid(n)).updates for n in (16, 8, 1)] == [90, 40, 10]
    assert settings.stage_training(Grid(8)).warmup == 0
    assert make_settings(stage_updates=70).stage_training(Grid(1)).updates == 70


def test_weighting_and_schedule():
    assert make_settings().loss_weighting == "truncated_snr"
    assert make_settings(clip_min=1).loss_weighting == Clipped("truncated_snr", 1, None)
    schedule = make_settings(schedule="cosine_offset", log_snr_min=-6).noise_schedule
    assert schedule == CosineSchedule(0.008, log_snr_min=-6)


def test_a_name_from_outside_is_a_name(monkeypatch):
    assert "flat" in refusal(weighting="flat")
    monkeypatch.setitem(pdlib.WEIGHTINGS, "flat", lambda schedule, t: torch.ones_like(t))
    monkeypatch.setitem(pdlib.SCHEDULES, "mine", lambda T: CosineSchedule(0.1))
    monkeypatch.setitem(pdlib.METHODS, "jump", pdlib.METHODS["progressive_distillation"])
    monkeypatch.setitem(pdlib.PREDICTIONS, "score", pdlib.PREDICTIONS["eps"])
    settings = make_settings(weighting="flat", schedule="mine", method="jump")
    assert settings.noise_schedule == CosineSchedule(0.1)
    assert "flat" in allowed("weighting")
    assert "α_1 = 0" in refusal(prediction="score")  # its kind is asked, not its name


# What a run is.


def test_the_device_is_no_part_of_a_run():
    assert settings_to_json(make_settings()).keys() == Settings.model_fields.keys() - {"device"}


def test_a_given_teacher_brings_its_network(tmp_path):
    for name in NETWORK:
        value = getattr(Settings(), name)
        assert refusal(teacher=str(tmp_path), **{name: value}).startswith(f"{name}={value}: the given teacher")
    settings = make_settings("smoke", teacher=str(tmp_path))
    assert not settings_to_json(settings).keys() & {*NETWORK}
    assert make_settings(**settings_to_json(settings)).teacher == str(tmp_path)


THEN = {  # what a run was by default, where it is another now
    "stage_updates": "450,4:600,2:600,1:600",
    "stage_learning_rate": 0.0005,
    "stage_batch_size": 0,
    "curves": CURVES,
}
FIRST = {  # what the first edition wrote, where it is not what is written now
    "few_step_updates": 600,
    "stage_updates": 450,
    "weights": "ema",
    "skip_top": False,
    "device": "cuda",
    "width": 32,
}


@pytest.mark.parametrize(
    ("changed", "today"),
    [
        ({}, {}),
        ({"few_step_updates": None}, {"stage_updates": 450}),
        ({"few_step_updates": 60, "stage_updates": 60}, {"stage_updates": 60}),
        ({"few_step_updates": 90, "stage_updates": 40}, {"stage_updates": "40,4:90,2:90,1:90"}),
        ({"weights": "raw"}, {"stage_ema": 0}),
        ({"skip_top": True, "end_steps": 2}, {"missing": 1, "end_steps": 2}),
        ({"width": 16}, {"width": 16, "mlp_width": 64}),
    ],
)
def test_a_folder_of_the_first_edition_is_the_same_run(changed, today):
    assert upgraded(FIRST | changed) == settings_to_json(make_settings(**THEN | today))
    assert upgraded(changed) == upgraded(FIRST | changed)  # older still: what it does not name had its default
    assert upgraded(upgraded(FIRST | changed)) == upgraded(FIRST | changed)


def test_a_folder_from_before_students_had_a_batch_size_of_their_own_is_the_same_run():
    then = settings_to_json(make_settings(**THEN))
    assert upgraded({name: value for name, value in then.items() if name != "stage_batch_size"}) == then


def test_a_first_edition_run_of_a_given_teacher_is_one_now():
    config = upgraded(FIRST | {"teacher": "../t", "width": 16, "multipliers": [1, 2]})
    assert config["teacher"] == "../t"
    assert "width" not in config


@pytest.mark.parametrize("config", [{"few": 1}, {"steps": None}, {"width": None}, {"skip_top": [1]}, {"steps": [1]}])
def test_a_config_that_holds_no_settings_is_refused(config):
    with pytest.raises(SettingsError):
        upgraded(config)


# Each mistake gets one line with the name, the value and what is allowed.

BAD = {
    "stage_update=5": "stage_update='5': there is no setting 'stage_update'; did you mean 'stage_updates'?",
    "zzz=5": "there is no setting 'zzz'; there are data, subset, split",
    "teacher_updates=many": "teacher_updates='many': must be a whole number from 1 to 100,000,000",
    "teacher_updates=1.5": "must be a whole number",
    "teacher_updates=0": "must be a whole number from 1",
    "stage_updates=450,4": "stage_updates='450,4': must be a whole number, as 450, or as in 450,2:600,1:600",
    "stage_updates=0": "must be a whole number",
    "stage_learning_rate=fast": "stage_learning_rate='fast': must be a number, as 0.0005, or as in 0.0005,2:0.001",
    "stage_learning_rate=1e-3,1:0": "stage_learning_rate=1e-3,1:0: must be from 1e-12 to 1,000",
    "stage_updates=450,2:x": "must be a whole number",
    "learning_rate=fast": "learning_rate='fast': must be a number from 1e-12 to 1000",
    "learning_rate=-1": "must be a number from 1e-12",
    "discrete_teacher=maybe": "discrete_teacher='maybe': must be true or false",
    "multipliers=1,a": "multipliers='1,a': must be a whole number from 1 to 16, or more after commas",
    "multipliers=1,,2": "multipliers='1,,2': must be a whole number",
    "multipliers=": "multipliers='': must be a whole number",
    "attention=2": "attention=(2,): must name resolutions from 0 to 1",
    "prediction=epsilon": "prediction='epsilon' is unknown; did you mean 'eps'? it must be one of x, eps, v, both",
    "student_prediction=w": "student_prediction='w' is unknown; it must be one of x, eps, v, both",
    "weighting=sn": "weighting='sn' is unknown; did you mean 'snr'?",
    "schedule=cosin": "schedule='cosin' is unknown; did you mean 'cosine'?",
    "method=pd": "method='pd' is unknown; it must be one of progressive_distillation",
    "channels=blue": "channels='blue': must be one of grey, rgb, or none",
    "size=2": "size='2': must be a whole number from 4 to 1,024, or none",
    "anneal=step": "anneal='step': must be one of linear, cosine, constant",
    "ema=1": "ema='1': must be a number from 0 to below 1",
    "sampler_variance=2": "must be a number from 0 to 1",
    "noise_seeds=1": "noise_seeds='1': must be a whole number from 2",
    "seed=-1": "seed='-1': must be a whole number from 0",
    "steps=48": "steps=48 cannot be halved down to end_steps=1",
    "end_steps=3": "steps=64 cannot be halved down to end_steps=3",
    "end_steps=128": "steps=64 cannot be halved down to end_steps=128",
    "prediction=eps": "prediction='eps': α_1 = 0 with schedule='cosine'",
    "student_prediction=eps": "student_prediction='eps': α_1 = 0",
    "convert_updates=10": "convert_updates=10: say to what, with student_prediction",
    "missing=1": "missing=1 leaves no step to train at N = 1: use end_steps=2 or more",
    "missing=2": "missing='2': must be a whole number from 0 to 1",
    "curves=ddim": "curves=ddim: must be distilled, and then any of ddim, stochastic",
    "curves=distilled,ddim,ddim": "must be distilled, and then any of",
    "curves=distilled,dim": "curves='distilled,dim': must be one of distilled, ddim, stochastic, or more after commas",
    "data=": "data='': must be a name or a path",
    "teacher=": "teacher='': must be a name or a path, or none",
    "log_snr_min=5": "log_snr_min='5': must be a number from -60 to 0",  # such a z_1 is hardly noise
    "clip_max=0": "clip_max='0': must be a number from 1e-09",
    "clip_max=-1": "clip_max='-1': must be a number from 1e-09",
}


@pytest.mark.parametrize("text", BAD)
def test_a_mistake_is_named_with_what_is_allowed(text):
    name, value = parse_setting(text)
    assert BAD[text] in refusal(**{name: value})


def test_an_assignment_needs_its_sign():
    with pytest.raises(SettingsError, match="--set steps: write it as key=value"):
        parse_setting("steps")


NUMBERS = [name for name, field in Settings.model_fields.items() if type(field.default) in (int, float)]
MAYBE = ["clip_min", "clip_max", "clip_x", "log_snr_min", "log_snr_max", "size"]


@pytest.mark.parametrize("name", [*NUMBERS, *MAYBE])
@pytest.mark.parametrize("value", ["inf", "nan", "-1e300", "1e13", "9" * 5000, math.inf, math.nan, True, [1], "", None])
def test_a_number_is_a_finite_one_within_reach(name, value):
    if not (name in MAYBE and value is None):
        line = refusal(**{name: value})
        assert line.startswith(f"{name}=")
        assert "number from" in line
        assert len(line) < 200


def test_the_highest_seed_can_be_drawn_from():
    highest = 2**43
    assert make_settings(seed=highest).seed == highest
    assert "seed=" in refusal(seed=highest + 1)
    torch.Generator().manual_seed(1_000_003 * (highest + 1) + 10_000)  # as evaluations are seeded


def test_clips_that_cross_are_refused():
    assert "clip" in refusal(clip_min=2, clip_max=1)


def test_only_cosine_schedules_take_ends_of_lambda():
    for name in ("linear", "cosine_clipped", "discrete_cosine"):
        line = refusal(schedule=name, log_snr_min=-6)
        assert "log_snr_min=-6.0" in line
        assert "only cosine and cosine_offset" in line


def test_an_eps_network_is_allowed_where_no_division_is_by_0():
    for name, make in SCHEDULES.items():
        alpha = make(1000).alpha_sigma(torch.ones(1, dtype=torch.float64))[0].item()
        if alpha > 0:
            assert make_settings(prediction="eps", schedule=name).prediction == "eps"
        else:
            assert "α_1 = 0" in refusal(prediction="eps", schedule=name)
    assert make_settings(prediction="eps", missing=1, end_steps=2).missing == 1


@pytest.mark.parametrize(
    ("given", "unit", "near"),
    [
        ({"width": 7}, 2, 8),
        ({"width": 9, "attention": "0"}, 4, 8),
        ({"width": 11, "attention": "0"}, 4, 12),
        ({"width": 4, "heads": 64}, 32, 32),
        ({"width": 5, "heads": 3}, 3, 6),
    ],
)
def test_channels_with_attention_divide_by_the_heads(given, unit, near):
    assert f"must be a multiple of {unit} for heads={given.get('heads', 4)}: use width={near}" in refusal(**given)
    settings = make_settings(**given | {"width": near})
    for level in (*settings.attention, -1):
        assert near * settings.multipliers[level] % settings.heads == 0


@pytest.mark.parametrize("device", ["gpu", "tpu3000", "meta", "xla", "mps", "cuda:99", ""])
def test_a_device_is_tried(device):
    line = refusal(device=device)
    assert line.startswith(f"device={device!r}")
    assert len(line) < 120


# The list of them.


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_means_and_what_it_may_be(name):
    assert Settings.model_fields[name].description
    assert allowed(name)
    if name in NAMES:
        assert all(known in allowed(name) for known in getattr(pdlib, f"{name.split('_')[-1].upper()}S"))


# Notebooks.


def test_the_parameters_of_a_notebook_are_its_plain_values():
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


def test_a_notebook_can_be_run_again_in_the_same_kernel():
    kernel = {"In": ["", "T = 4", "check"], "T": 4}
    check_parameters(kernel, T=range(10))
    kernel |= {"time": 1.0, "rows": [1], "T": 5}  # later cells; and then the first again, changed
    check_parameters(kernel, T=range(10))
    assert notebook_parameters(kernel) == {"T": 5}
    kernel["T"] = 11
    with pytest.raises(SettingsError, match="T=11"):
        check_parameters(kernel, T=range(10))


def test_a_mistyped_parameter_that_was_mended_is_gone():
    kernel = {"TT": 4}
    with pytest.raises(SettingsError, match="there is no parameter 'TT'"):
        check_parameters(kernel, T=range(10))
    kernel["T"] = 4
    check_parameters(kernel, T=range(10))
    assert notebook_parameters(kernel) == {"T": 4}


def test_what_a_startup_file_defines_is_no_parameter():
    kernel = {"In": ["", "T = 4  # steps\nname: str = 'a'", "check_parameters(globals(), …)"]}
    kernel |= {"favourite": 7, "T": 4, "name": "a"}
    assert notebook_parameters(kernel) == {"T": 4, "name": "a"}


def test_older_runs_are_measured_to_what_they_were_then():
    assert upgraded({"data": "mnist", "missing": 0})["test"] == "none"
    for data in ("digits", "ring", "mine.npz", "/a/mine.npy"):
        assert upgraded({"data": data, "missing": 0})["test"] == "auto"
    assert upgraded({"data": "mnist", "missing": 0, "test": "auto"})["test"] == "auto"
