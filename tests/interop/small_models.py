"""Small models of diffusers that the tests of interop share: untrained, but with an output."""

import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

from pdlib.interop.diffusers import load


def unet(channels=1, seed=0, **config):
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = UNet2DModel(in_channels=channels, out_channels=channels, **{**sizes, **blocks, **config})
    return made.eval().requires_grad_(False)


def write(folder, prediction_type="epsilon", network=None, **scheduler):
    """A pipeline's folder, as its library writes it."""
    DDPMPipeline(unet(), DDIMScheduler()).save_pretrained(folder)
    (network or unet()).save_pretrained(folder / "unet")
    DDIMScheduler(**{"prediction_type": prediction_type, "clip_sample": False, **scheduler}).save_pretrained(
        folder / "scheduler"
    )
    return folder


def loaded(folder, *arguments, **options):
    return load(write(folder, *arguments, **options))


def noise(count=4, channels=1, seed=1):
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def their_samples(pipeline, steps, z, **options):
    """Their sampling loop, on given noise and before its images are cut to [0, 1]."""
    pipeline.scheduler.set_timesteps(steps)
    for t in pipeline.scheduler.timesteps:
        z = pipeline.scheduler.step(
            pipeline.unet(z, t, **options).sample, t, z, use_clipped_model_output=True
        ).prev_sample
    return z
