"""What a network of diffusers costs as a denoiser of ours, beside the bare network.

The bare network is given its timesteps; the denoiser is given our times, looks the timesteps up, and turns the output
into x̂. The two are timed in turn, in one process, so that their ratio holds on a noisy machine.

    python benchmarks/interop_cost.py

prints the figures and writes them to benchmarks/results/interop_cost.json.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import diffusers
import torch

from pdlib.denoiser import Denoiser
from pdlib.interop.unet2d import UNet2D
from pdlib.runs.evaluation import machine
from pdlib.schedules import DiscreteSchedule

ROUNDS, BATCH = 61, 64
SIZES = {"digits, 8×8": (8, (16, 32)), "digits, wider": (8, (32, 64)), "32×32": (32, (32, 64))}


def main() -> None:
    """Time each size, print, and write."""
    found = {"machine": machine(), "diffusers": diffusers.__version__, "torch": torch.__version__, "batch": BATCH}
    for name, (pixels, channels) in SIZES.items():
        found[name] = measured(pixels, channels)
        print(name, found[name])
    (Path(__file__).with_name("results") / f"{Path(__file__).stem}.json").write_text(
        json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    )


@torch.no_grad()
def measured(pixels: int, channels: tuple[int, int]) -> dict[str, float]:
    """The median of many rounds, in each of which both are called once."""
    config = {"sample_size": pixels, "block_out_channels": list(channels), "norm_num_groups": 8, "layers_per_block": 1}
    config |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
    schedule = DiscreteSchedule.linear_beta()
    t = torch.arange(1, schedule.T + 1, dtype=torch.float64) / schedule.T
    network = UNet2D(3, None, config, (schedule.angle(t) * 2 / torch.pi).tolist()).eval()
    denoiser = Denoiser(network, "eps", schedule)
    z, index = torch.randn(BATCH, 3, pixels, pixels), torch.randint(schedule.T, (BATCH,))
    bare, ours = [], []
    for _ in range(ROUNDS):
        for work, times in (
            (lambda: network.unet(z, index, return_dict=False), bare),
            (lambda: denoiser(z, (index + 1).double() / schedule.T), ours),
        ):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
    ratios = sorted(one / other for one, other in zip(ours, bare, strict=True))
    return {"bare_ms": 1e3 * statistics.median(bare), "ours_ms": 1e3 * statistics.median(ours)} | {
        "ratio": statistics.median(ratios), "ratio_quartiles": [ratios[ROUNDS // 4], ratios[3 * ROUNDS // 4]]
    }  # fmt: skip


if __name__ == "__main__":
    main()
