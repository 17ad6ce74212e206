"""Forty folders as others may bring them: each healthy, or with one known mistake of config or weights.

python tests/interop/strangers.py SEED prints what the diagnosis says of each.
"""

import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler, UNet2DModel

from pdlib.data import load_data
from pdlib.interop.diagnosis import diagnose_folder

UPDATES, BATCH = 300, 64
LINEAR = {"beta_schedule": "linear", "timestep_spacing": "trailing", "clip_sample": False}
ZERO = LINEAR | {"rescale_betas_zero_snr": True}
V, X, EPS = ({"prediction_type": kind} for kind in ("v_prediction", "sample", "epsilon"))


def network(**config):
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "layers_per_block": 1}
    size = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (16, 32), "norm_num_groups": 8}
    return UNet2DModel(**{**size, **blocks, "add_attention": False, **config})


@cache
def trained(prediction="v_prediction", low=-1.0, classes=None, updates=UPDATES, seed=0, **betas):
    """A small network trained on digits in the usual way, with a loop such as the library documents."""
    digits = load_data("digits")
    x = (digits.x + 1) * (1 - low) / 2 + low
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = network(num_class_embeds=classes)
        schedule = DDPMScheduler(prediction_type=prediction, **betas)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-3, fused=True)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, max(updates, 1))
        for _ in range(updates):
            batch, t = torch.randint(len(x), (BATCH,)), torch.randint(1000, (BATCH,))
            eps = torch.randn(BATCH, 1, 8, 8)
            z = schedule.add_noise(x[batch], eps, t)
            labels = {"class_labels": torch.where(torch.rand(BATCH) < 0.1, 10, digits.labels[batch])} if classes else {}
            targets = {"epsilon": eps, "sample": x[batch], "v_prediction": schedule.get_velocity(x[batch], eps, t)}
            (unet(z, t, **labels).sample - targets[prediction]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
    return unet.eval().requires_grad_(False)


def of(prediction, rescaled=True, **more):
    return trained(prediction["prediction_type"], rescale_betas_zero_snr=rescaled, **more)


class Folder(NamedTuple):
    """One folder: how it is made, and what is to be found in it."""

    unet: object
    scheduler: object
    expected: tuple = ()
    images: bool = True
    steps: int | None = None


def changed(unet, **config):
    """The same weights under another config."""
    other = network(**{**{k: v for k, v in unet.config.items() if not k.startswith("_")}, **config})
    other.load_state_dict(unet.state_dict())
    return other


def spoiled(unet, change):
    """Another copy with its weights changed."""
    other = changed(unet)
    with torch.no_grad():
        change(other)
    return other


def fill(value):
    def change(unet):
        unet.conv_out.weight.fill_(value)

    return change


def reset_half(unet):
    for block in (*unet.up_blocks, unet.conv_norm_out):
        for layer in block.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()


def folders(seed=0):
    """All of them, by name; the networks' weights and training drawn from a seed."""
    v, x, eps = of(V, seed=seed), of(X, seed=seed), of(EPS, rescaled=False, seed=seed)
    shifted, of_classes = of(V, low=0.0, seed=seed), of(V, classes=11, seed=seed)
    healthy_v, ill_eps = DDIMScheduler(**ZERO, **V), ("terminal SNR", "unbounded targets")
    scaled = ZERO | {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}
    cosine = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing", "clip_sample": False}
    return {
        # healthy
        "v, zero SNR": Folder(v, healthy_v),
        "v, zero SNR, config alone": Folder(v, healthy_v, images=False),
        "v, four steps": Folder(v, healthy_v, steps=4),
        "v, clipped without need": Folder(v, DDIMScheduler(**{**ZERO, "clip_sample": True}, **V)),
        "v, a DDPM scheduler": Folder(v, DDPMScheduler(**ZERO, **V)),
        "v, linspace": Folder(v, DDIMScheduler(**{**ZERO, "timestep_spacing": "linspace"}, **V)),
        "v, all timesteps": Folder(v, DDIMScheduler(**{**ZERO, "timestep_spacing": "leading"}, **V), steps=1000),
        "x, zero SNR": Folder(x, DDIMScheduler(**ZERO, **X)),
        "x, config alone": Folder(x, DDIMScheduler(**ZERO, **X), images=False),
        "v of ten classes": Folder(of_classes, healthy_v),
        # the sampler's times
        "leading": Folder(v, DDIMScheduler(**{**ZERO, "timestep_spacing": "leading"}, **V), ("wrong top time",)),
        "leading, four steps": Folder(
            v, DDIMScheduler(**{**ZERO, "timestep_spacing": "leading"}, **V), ("wrong top time",), steps=4
        ),
        "leading, offset by one": Folder(
            v, DDIMScheduler(**{**ZERO, "timestep_spacing": "leading", "steps_offset": 1}, **V), ("wrong top time",)
        ),
        "leading, config alone": Folder(
            x, DDIMScheduler(**{**ZERO, "timestep_spacing": "leading"}, **X), ("wrong top time",), images=False
        ),
        "the last step at timestep 0": Folder(v, DDIMScheduler(**ZERO, **V, set_alpha_to_one=False), ("last step",)),
        # the schedule's end
        "v, SNR above 0": Folder(v, DDIMScheduler(**LINEAR, **V), ("terminal SNR",)),
        "v, SNR above 0, Euler": Folder(
            v, EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing", **V),
            ("terminal SNR",), images=False,
        ),
        "ε": Folder(eps, DDIMScheduler(**LINEAR, **EPS), ill_eps),
        "ε, config alone": Folder(eps, DDIMScheduler(**LINEAR, **EPS), ill_eps, images=False),
        "ε, clipped": Folder(eps, DDIMScheduler(**{**LINEAR, "clip_sample": True}, **EPS), (*ill_eps, "clipping")),
        "ε, thresholded": Folder(eps, DDIMScheduler(**LINEAR, **EPS, thresholding=True), (*ill_eps, "clipping")),
        "ε, as saved by default": Folder(eps, DDPMScheduler(), ("wrong top time", *ill_eps, "clipping")),
        "ε, PNDM": Folder(
            eps, PNDMScheduler(beta_start=1e-4, beta_end=0.02),
            ("wrong top time", *ill_eps, "clipping", "last step"), images=False,
        ),
        "ε at zero SNR": Folder(eps, DDIMScheduler(**ZERO, **EPS), ("unbounded targets",)),
        # clipping
        "clipped to a half": Folder(
            v, DDIMScheduler(**{**ZERO, "clip_sample": True, "clip_sample_range": 0.5}, **V), ("clipping",)
        ),
        # what the network predicts
        "ε said to be v": Folder(eps, DDIMScheduler(**LINEAR, **V), ("terminal SNR", "prediction type")),
        "ε said to be v, no images": Folder(
            eps, DDIMScheduler(**LINEAR, **V), ("terminal SNR", "prediction type"), images=False
        ),
        "ε said to be x": Folder(eps, DDIMScheduler(**LINEAR, **X), ("terminal SNR", "prediction type")),
        "v said to be ε": Folder(v, DDIMScheduler(**ZERO, **EPS), ("unbounded targets", "prediction type")),
        "v said to be x": Folder(v, DDIMScheduler(**ZERO, **X), ("prediction type",)),
        "x said to be v": Folder(x, DDIMScheduler(**ZERO, **V), ("prediction type",)),
        # the noise schedule
        "linear said to be cosine": Folder(v, DDIMScheduler(**cosine, **V), ("schedule",)),
        "linear said to be scaled linear": Folder(v, DDIMScheduler(**scaled, **V), ("schedule",)),
        "linear to another end": Folder(v, DDIMScheduler(**ZERO, **V, beta_end=0.005), ("schedule",)),
        "half the timesteps": Folder(v, DDIMScheduler(**ZERO, **V, num_train_timesteps=500), ("schedule",)),
        # the weights
        "images in [0, 1]": Folder(shifted, healthy_v, ("range",)),
        "NaN": Folder(spoiled(v, fill(torch.nan)), healthy_v, ("weights",), images=False),
        "no training": Folder(trained(updates=0), healthy_v, ("untrained",)),
        "half of it reset": Folder(spoiled(v, reset_half), healthy_v, ("untrained",)),
        "sine for cosine": Folder(changed(v, flip_sin_to_cos=False), healthy_v, ("schedule",)),
    }  # fmt: skip


def diagnosed(folder):
    """What is found in one of them, saved and opened again."""
    with tempfile.TemporaryDirectory() as home:
        DDPMPipeline(folder.unet, folder.scheduler).save_pretrained(home)
        # A pipeline makes its own kind of scheduler: what the folder holds is the one that was given.
        folder.scheduler.save_pretrained(Path(home) / "scheduler")
        digits = load_data("digits")
        images = (digits.x[:128], digits.labels[:128]) if folder.images else (None, None)
        if folder.unet.config.num_class_embeds is None:
            images = (images[0], None)
        return diagnose_folder(home, *images, folder.steps)


if __name__ == "__main__":
    right, seed = 0, int(sys.argv[1]) if len(sys.argv) > 1 else 0
    for name, folder in folders(seed).items():
        found = diagnosed(folder)
        hit = tuple(finding.culprit for finding in found) == folder.expected
        right += hit
        shown = ", ".join(f"{finding.culprit} {finding.figure:.3g}" for finding in found) or "healthy"
        print(f"{'✓' if hit else '✗'}  {name:<34} {shown}")
        print("\n".join(f"      {finding}" for finding in found), end="\n" * bool(found))
    print(f"{right} of {len(folders(seed))} right")
