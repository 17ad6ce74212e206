import json
import math
import sys
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMScheduler, UNet2DModel
from interop.small_models import loaded, noise, their_samples, unet, write
from safetensors.torch import load_file, save_file

from pdlib.denoiser import Confined, Denoiser, Guided, OfClasses
from pdlib.grids import Grid
from pdlib.interop import InteropError, is_foreign, open_denoiser
from pdlib.interop.card import sampling_steps
from pdlib.interop.diffusers import (
    PREDICTION_TYPES,
    as_its_scheduler_samples,
    betas,
    load,
    pipeline,
    read_folder,
    save,
    scheduler_grid,
)
from pdlib.interop.unet2d import new_unet2d
from pdlib.sampling import sample
from pdlib.schedules import CosineSchedule, DiscreteSchedule

SCHEDULES = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero": {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
    "trained": {"trained_betas": np.linspace(1e-3, 0.1, 200).tolist(), "num_train_timesteps": 200},
}
AGREES = {"rtol": 1e-5, "atol": 1e-5}


def sized(difference, z):
    """The largest difference, beside the size of what is compared where that is above 1."""
    return (difference.abs().max() / z.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize(("kind", "schedule"), [*product(PREDICTION_TYPES, SCHEDULES)])
def test_x_hat_is_theirs_at_every_timestep(kind, schedule, tmp_path):
    denoiser = loaded(tmp_path, kind, **SCHEDULES[schedule])
    theirs, z = DDIMPipeline.from_pretrained(tmp_path), noise()
    T = theirs.scheduler.config.num_train_timesteps
    theirs.scheduler.set_timesteps(T)
    for i in (0, 1, T // 3, T - 2, T - 1 - (kind == "epsilon" and schedule == "zero")):
        wanted = theirs.scheduler.step(theirs.unet(z, i).sample, i, z).pred_original_sample
        found = denoiser(z, torch.full((len(z),), (i + 1) / T, dtype=torch.float64))
        assert sized(found - wanted, wanted) <= 1e-5


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("kind", "schedule"), [*product(PREDICTION_TYPES, SCHEDULES)])
def test_ddim_samples_are_their_pipelines(kind, schedule, spacing, tmp_path):
    if (kind, schedule) == ("epsilon", "zero"):
        pytest.skip("ε at α = 0 has no x̂, theirs neither")
    final = spacing != "linspace"
    denoiser = loaded(tmp_path, kind, timestep_spacing=spacing, set_alpha_to_one=final, **SCHEDULES[schedule])
    theirs, z = DDIMPipeline.from_pretrained(tmp_path), noise()
    for steps in (4, 10, 50):
        wanted = their_samples(theirs, steps, z)
        *_, found = sample(denoiser, scheduler_grid(theirs.scheduler.config, steps), z=z)
        assert sized(found - wanted, wanted) <= 1e-5


def test_samples_are_clipped_as_its_scheduler_says(tmp_path):
    denoiser = loaded(tmp_path, clip_sample=True, clip_sample_range=0.7)
    theirs, z = DDIMPipeline.from_pretrained(tmp_path), noise()
    confined, grid = as_its_scheduler_samples(tmp_path, denoiser, 10)
    *_, found = sample(confined, grid, z=z)
    wanted = their_samples(theirs, 10, z)
    torch.testing.assert_close(found, wanted, **AGREES)
    assert wanted.abs().max() < 1.5 < their_samples_unclipped(theirs, z).abs().max()


def their_samples_unclipped(theirs, z):
    theirs.scheduler.register_to_config(clip_sample=False)
    return their_samples(theirs, 10, z)


def test_between_its_timesteps_it_is_told_one_between(tmp_path):
    denoiser = loaded(tmp_path)
    angle = denoiser.schedule.angle(torch.tensor([9.5, 10, 10.25, 0.2, 1000]) / 1000) * 2 / math.pi
    expected = torch.tensor([8.5, 9, 9.25, 0, 999], dtype=torch.float64)
    torch.testing.assert_close(denoiser.network.timestep(angle), expected, rtol=0, atol=1e-6)
    above = denoiser.network.timestep(torch.ones(1, dtype=torch.float64))  # α = 0, past the end of its schedule
    assert above.item() == 999


STUDENTS = {
    "ε parent, cut, v student": ("epsilon", "linear", 16, -6.0, "v"),
    "ε parent, cut, ε student": ("epsilon", "linear", 16, -6.0, None),
    "v, zero SNR, T a multiple": ("v_prediction", "zero", 8, None, None),
    "v, zero SNR, the clean side left out": ("v_prediction", "zero", 64, None, None),
    "the same, of another embedding": ("v_prediction", "zero", 48, None, None),
    "x, cosine": ("sample", "cosine", 32, None, None),
    "x, own betas": ("sample", "trained", 16, None, "x"),
}


@pytest.mark.parametrize("case", STUDENTS)
def test_a_students_pipeline_makes_the_students_images(case, tmp_path):
    kind, schedule, first, end, prediction = STUDENTS[case]
    flip = first != 64  # sine and cosine, one before the other or the other way round
    theirs = unet(flip_sin_to_cos=flip, freq_shift=int(flip))
    teacher = loaded(tmp_path / "theirs", kind, network=theirs, **SCHEDULES[schedule])
    teacher.schedule = teacher.schedule.for_steps(first, end)
    for steps in (1, 4, first):
        student = teacher.student(prediction, Grid(steps))
        folder = tmp_path / f"out-{steps}"
        save(student, folder)
        out = DDIMPipeline.from_pretrained(folder)
        generator = torch.Generator().manual_seed(1)
        images = out(batch_size=4, generator=generator, num_inference_steps=steps, output_type="np").images
        *_, found = sample(student, z=noise())
        wanted = (found / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        torch.testing.assert_close(torch.from_numpy(images), wanted, **AGREES)
        exact = their_samples(out, steps, noise())
        assert sized(found - exact, exact) <= 1e-5
        again = load(folder)
        assert (again.prediction, again.grid, again.shape) == (student.prediction, Grid(steps), (1, 8, 8))
        torch.testing.assert_close([*sample(again, z=noise())][-1], found, **AGREES)


def test_what_a_pipelines_config_says(tmp_path):
    teacher = loaded(tmp_path, "v_prediction", **SCHEDULES["zero"])
    teacher.grid = Grid(8)
    config = pipeline(teacher).scheduler.config
    said = ("prediction_type", "timestep_spacing", "clip_sample", "thresholding", "set_alpha_to_one")
    assert [config[name] for name in said] == ["v_prediction", "trailing", False, False, True]
    assert config.trained_betas[-1] == 1.0


@pytest.mark.parametrize("steps", [1, 12, 48])
def test_a_network_trained_here_from_the_start_goes_out(steps, tmp_path):
    own = {"size": (8, 8), "schedule": CosineSchedule(), "steps": 48}
    network = new_unet2d(1, 1, 8, (1, 2), 1, (1,), 2, 0.0, **own)
    network.unet.load_state_dict(unet(attention_head_dim=8, norm_num_groups=8).state_dict())
    student = Denoiser(network, "v", CosineSchedule(), Grid(steps), (1, 8, 8)).eval().requires_grad_(False)
    save(student, tmp_path / "out")
    wanted = their_samples(DDIMPipeline.from_pretrained(tmp_path / "out"), steps, noise())
    torch.testing.assert_close([*sample(student, z=noise())][-1], wanted, **AGREES)


def test_it_is_saved_and_changes_its_prediction_like_any_network_of_ours(tmp_path):
    denoiser = loaded(tmp_path / "theirs", "v_prediction", network=unet(num_class_embeds=3))
    student = denoiser.student("both", Grid(4), seed=3)
    student.save(tmp_path / "ours")
    again, labels = Denoiser.load(tmp_path / "ours"), torch.tensor([0, 1, 2, 2])
    t = torch.full((4,), 0.5, dtype=torch.float64)
    assert (again.classes, again.schedule) == (3, denoiser.schedule)
    with torch.no_grad():
        torch.testing.assert_close(again(noise(), t, labels), student(noise(), t, labels))


def test_the_betas_multiply_to_the_alpha_bar_that_they_are_made_of():
    for schedule in (DiscreteSchedule.cosine(1000), DiscreteSchedule.linear_beta(1000), DiscreteSchedule.cosine(4)):
        product = torch.cumprod(1 - torch.tensor(betas(schedule.alpha_bar), dtype=torch.float32), 0).double()
        torch.testing.assert_close(product, schedule.alpha_bar, rtol=3e-7, atol=1e-12)


# Classes.


def test_a_class_conditional_model_is_theirs_for_every_label(tmp_path):
    denoiser = loaded(tmp_path, "v_prediction", network=unet(num_class_embeds=4), **SCHEDULES["zero"])
    theirs, labels = DDIMPipeline.from_pretrained(tmp_path), torch.tensor([0, 3, 1, 1])
    theirs.scheduler.register_to_config(timestep_spacing="trailing")
    wanted = their_samples(theirs, 10, noise(), class_labels=labels)
    *_, found = sample(OfClasses(denoiser, labels), 10, z=noise())
    torch.testing.assert_close(found, wanted, **AGREES)


def test_a_model_bound_to_a_class_goes_out_as_one_that_knows_none(tmp_path):
    denoiser = loaded(tmp_path / "theirs", "v_prediction", network=unet(num_class_embeds=4), **SCHEDULES["zero"])
    denoiser.grid = Grid(4)
    save(OfClasses(denoiser, 2), tmp_path / "out")
    out = DDIMPipeline.from_pretrained(tmp_path / "out")
    assert out.unet.config.num_class_embeds is None
    *_, found = sample(OfClasses(denoiser, 2), z=noise())
    torch.testing.assert_close(found, their_samples(out, 4, noise()), **AGREES)
    with pytest.raises(InteropError, match="bound to 2 classes: bind it to one"):
        pipeline(OfClasses(denoiser, [1, 2]))


def test_the_card_of_a_class_conditional_model_runs_as_it_stands(tmp_path, monkeypatch):
    denoiser = loaded(tmp_path / "theirs", "v_prediction", network=unet(num_class_embeds=4), **SCHEDULES["zero"])
    denoiser.grid = Grid(4)
    monkeypatch.chdir(tmp_path)
    save(denoiser, "out", teacher="someone/digits", teacher_steps=64, guidance=2.0, figures={"distance": "1.2"})
    card = (tmp_path / "out" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    namespace = {}
    exec(code, namespace)
    assert namespace["z"].shape == (8, 1, 8, 8)
    for said in ("base_model: someone/digits", "**4 steps**", "64 steps", "weight 2", "| distance | 1.2 |", "Salimans"):
        assert said in card


def test_the_card_of_an_unconditional_model_runs_as_it_stands(tmp_path, monkeypatch):
    denoiser = loaded(tmp_path / "theirs", "v_prediction", **SCHEDULES["zero"])
    denoiser.grid = Grid(2)
    monkeypatch.chdir(tmp_path)
    save(denoiser, "out")
    card = (tmp_path / "out" / "README.md").read_text()
    namespace = {}
    exec(card.split("```python\n")[1].split("```")[0], namespace)
    assert len(namespace["images"]) == 8
    assert sampling_steps(tmp_path / "out" / "README.md") == 2
    assert sampling_steps(tmp_path / "no.md") is None


# What cannot go out, and what cannot come in.


def test_what_cannot_go_out_says_why_and_writes_nothing(tmp_path):
    teacher = loaded(tmp_path / "theirs", "v_prediction", **SCHEDULES["zero"])
    squeezed, odd, both = teacher.student(grid=Grid(4)), teacher.student(grid=Grid(3)), teacher.student("both", Grid(4))
    squeezed.schedule = CosineSchedule(log_snr_min=-6)
    cases = {
        "asked between its own timesteps": squeezed,
        "no multiple of its 3 steps": odd,
        "prediction='both' has no counterpart": both,
        "it samples by renoising steps": teacher.student(grid=Grid(4), sampler="renoising"),
        "both must be known": teacher,
        "a Guided has no counterpart": Guided(teacher, 2.0, 0),
        "a Confined has no counterpart": Confined(teacher, 1.0),
    }
    for why, student in cases.items():
        with pytest.raises(InteropError, match=why):
            save(student, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InteropError, match="is there already: give a new folder; nothing was written"):
        save(teacher.student(grid=Grid(4)), tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def edit(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "gone"}))


def in_unet(**changes):
    return lambda folder: edit(folder / "unet" / "config.json", **changes)


def in_scheduler(**changes):
    return lambda folder: edit(folder / "scheduler" / "scheduler_config.json", **changes)


def in_index(**changes):
    return lambda folder: edit(folder / "model_index.json", **changes)


def weights(change):
    def damage(folder):
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        change(path)

    return damage


def without_a_tensor(path):
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path)


def pickled(path):
    path.unlink()
    torch.save({}, path.with_name("diffusion_pytorch_model.bin"))


UNREADABLE = {
    "another architecture": (in_unet(_class_name="UNet2DConditionModel"), "holds a UNet2DConditionModel: pdlib reads"),
    "a latent pipeline": (
        in_index(_class_name="StableDiffusionPipeline", vae=["diffusers", "AutoencoderKL"]),
        "StableDiffusionPipeline of .*vae.*: pdlib reads a UNet2DModel that works on pixels",
    ),
    "a transformer": (
        in_index(_class_name="DiTPipeline", unet="gone", transformer=["diffusers", "DiTTransformer2DModel"]),
        "DiTPipeline of .*transformer.*not latent, text-conditional or transformer models",
    ),
    "no betas": (
        in_scheduler(_class_name="FlowMatchEulerDiscreteScheduler", beta_schedule="gone", trained_betas="gone"),
        "which has no betas",
    ),
    "betas of a kind unknown": (in_scheduler(beta_schedule="of mine"), "no betas that diffusers knows"),
    "too few betas": (in_scheduler(trained_betas=[0.1, 0.2]), "2 trained_betas and num_train_timesteps=1000"),
    "betas of 0": (in_scheduler(trained_betas=[0.0] * 1000), "alpha_bar must fall strictly"),
    "a prediction unknown": (in_scheduler(prediction_type="flow"), "pdlib reads epsilon, sample, v_prediction"),
    "no number of timesteps": (in_scheduler(num_train_timesteps="gone"), "does not say its num_train_timesteps"),
    "no channels": (in_unet(in_channels="gone", block_out_channels=None), "its in_channels, block_out_channels"),
    "a block unknown": (in_unet(down_block_types=["MyBlock", "DownBlock2D"]), "do not fit its config"),
    "learned variances": (in_unet(out_channels=2), "2 channels out of 1: learned variances"),
    "fourier times": (in_unet(time_embedding_type="fourier"), "pdlib reads positional times"),
    "JSON cut off": (lambda folder: (folder / "unet" / "config.json").write_text('{"sample'), "is not valid JSON"),
    "no scheduler": (
        lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(), "without a scheduler"
    ),
    "no config": (lambda folder: (folder / "unet" / "config.json").unlink(), "holds no config.json"),
    "no weights": (weights(lambda path: path.unlink()), "holds no weights"),
    "a pickle": (weights(pickled), "a pickle, which can run code when opened: convert it once.*save_pretrained"),
    "weights cut off": (weights(lambda path: path.write_bytes(path.read_bytes()[:-1000])), "cannot be read"),
    "weights of another size": (in_unet(block_out_channels=[16, 16]), "do not fit its config"),
    "a tensor missing": (weights(without_a_tensor), "missing keys conv_in.weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_says_so_in_a_line(case, tmp_path):
    damage, message = UNREADABLE[case]
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(InteropError, match=message) as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_models_folder_is_read_with_its_scheduler_beside_it(tmp_path):
    write(tmp_path, "v_prediction")
    assert load(tmp_path / "unet").prediction == "v"
    flat = tmp_path / "flat"  # as the first models on the hub lie there
    flat.mkdir()
    for path in (tmp_path / "unet").iterdir():
        path.rename(flat / path.name)
    (tmp_path / "scheduler" / "scheduler_config.json").rename(flat / "scheduler_config.json")
    (tmp_path / "model_index.json").rename(flat / "model_index.json")
    assert load(flat).prediction == "v"


def test_what_else_lies_in_a_config_is_left_alone(tmp_path):
    write(tmp_path)
    in_unet(decay=0.9999, optimization_step=100)(tmp_path)  # as averaged weights are saved
    assert "decay" not in load(tmp_path).network.config["unet"]


@pytest.mark.parametrize("beta_schedule", ["sigmoid", "laplace"])
def test_every_beta_schedule_of_theirs_is_read(beta_schedule, tmp_path):
    write(tmp_path, "v_prediction")
    theirs = DDPMScheduler(beta_schedule=beta_schedule, num_train_timesteps=100)
    theirs.save_pretrained(tmp_path / "scheduler")
    torch.testing.assert_close(load(tmp_path).schedule.alpha_bar.float(), theirs.alphas_cumprod)


def test_a_prediction_type_that_old_folders_do_not_name_is_epsilon(tmp_path):
    write(tmp_path)
    in_scheduler(prediction_type="gone")(tmp_path)
    assert read_folder(tmp_path).prediction_type == "epsilon"


def test_whose_a_folder_is(tmp_path):
    write(tmp_path / "theirs")
    assert is_foreign(tmp_path / "theirs")
    assert is_foreign(tmp_path / "theirs" / "unet")
    assert is_foreign("google/ddpm-cifar10-32")
    assert not is_foreign(tmp_path)
    assert not is_foreign(tmp_path / "no" / "folder")
    open_denoiser(tmp_path / "theirs").save(tmp_path / "ours")
    assert not is_foreign(tmp_path / "ours")
    assert open_denoiser(tmp_path / "ours").prediction == "eps"


def test_without_diffusers_a_line_says_what_to_install(tmp_path, monkeypatch):
    loaded(tmp_path / "theirs").save(tmp_path / "ours")
    for name in [name for name in sys.modules if name.startswith(("diffusers.", "pdlib.interop."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InteropError, match=r"need that package: pip install 'pdlib\[diffusers\]'"):
        open_denoiser(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"need that package: pip install 'pdlib\[diffusers\]'"):
        open_denoiser(tmp_path / "ours")


def test_the_network_is_diffusers_own(tmp_path):
    denoiser = loaded(tmp_path)
    assert type(denoiser.network.unet) is UNet2DModel
