"""The students that draw in the page: how soon they are there, how long an image takes, and how near to Python's it is.

The page is built and served from this machine to a headless browser, with nothing cached. A time is of one image, or of
16 at once, of a student or the teacher, over several noises. Its images are compared with those of ``sample`` with the
same stored weights; and those of the stored weights, in sixteen bits each, with those of the run that they came from,
over 256 noises.

    python benchmarks/students_in_the_page.py [RUN]

prints the figures and writes them to benchmarks/results/students_in_the_page.json. RUN is by default runs/default.
"""

import json
import os
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from playwright.sync_api import Browser, Page, expect

from pdlib.denoiser import Denoiser
from pdlib.grids import Grid
from pdlib.networks import network_from_config
from pdlib.runs import load_run
from pdlib.runs.evaluation import machine
from pdlib.sampling import sample
from pdlib.schedules import schedule_from_config

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "site" / "play"))
from browser import chromium, serve_folder
from build import build
from train import MODELS, stored

ROOT = Path(__file__).parents[1]
LOADS, NOISES = 5, 20
BOUNDS = {"load_s": 3, "one_step_ms": 30, "one_step_16_images_ms": 200, "from_python": 1e-3, "from_float32": 1e-2}


def networks() -> dict[int, Denoiser]:
    """Those of the page, with their weights as they are stored."""
    found = {}
    for name, about in json.loads((MODELS / "digits" / "manifest.json").read_text())["networks"].items():
        grid, schedule = Grid(**about["grid"]), schedule_from_config(about["schedule"])
        like = Denoiser(network_from_config(about["network"]), about["prediction"], schedule, grid, about["shape"])
        (found[int(name)],) = stored(MODELS / "digits" / f"{name}.q16", like, [grid])
    return found


def last(denoiser: Denoiser, z: torch.Tensor) -> torch.Tensor:
    return deque(sample(denoiser, z=z), maxlen=1).pop()


def open_page(browser: Browser, address: str) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    return page


def drawn(page: Page, act: Callable[[], object]) -> None:
    """Do something on the page, and wait until every picture is of the new noise."""
    act()
    expect(page.locator(".stale")).to_have_count(0, timeout=60_000)


def times(page: Page, count: int, steps: list[int]) -> dict[int, list[float]]:
    """The milliseconds of each network over several noises."""
    drawn(page, lambda: page.get_by_label("at once").select_option(str(count)))
    found = {N: [] for N in steps}
    for _ in range(NOISES):
        drawn(page, lambda: page.get_by_role("button", name="New noise").click())
        for N in steps:
            found[N].append(float(page.locator(f"[data-key='{N}']").get_attribute("data-ms")))
    return found


def numbers(page: Page) -> dict:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the numbers").click()
    return json.loads(Path(download.value.path()).read_text(encoding="utf-8"))


def main() -> None:
    run, stored_networks = load_run(sys.argv[1] if len(sys.argv) > 1 else ROOT / "runs" / "default"), networks()
    steps = sorted(stored_networks)
    result = {"machine": machine(), "load_average_before": os.getloadavg()[0], "noises": NOISES}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        build(Path(folder) / "play")
        with serve_folder(Path(folder)) as address:
            pages = [open_page(browser, f"{address}play/draw.html") for _ in range(LOADS)]
            loads = [float(page.locator("body").get_attribute("data-loaded-ms")) / 1e3 for page in pages]
            one, many = (times(pages[-1], count, steps) for count in (1, 16))
            saved = numbers(pages[-1])
    result["load_average_after"] = os.getloadavg()[0]
    z = torch.tensor(saved["noise"]).view(saved["shape"])
    images = {N: (torch.tensor(saved[str(N)]).view(z.shape), last(stored_networks[N], z)) for N in steps}
    python = {N: (page - ours).abs().max().item() for N, (page, ours) in images.items()}
    many_z = torch.randn(256, *z.shape[1:], generator=torch.Generator().manual_seed(0))
    rounding = {N: last(one, many_z) - last(run.denoiser(N), many_z) for N, one in stored_networks.items()}
    rounding = {N: difference.abs().max().item() for N, difference in rounding.items()}
    result |= {
        "load_s": statistics.median(loads),
        "one_step_ms": statistics.median(one[1]),
        "one_step_16_images_ms": statistics.median(many[1]),
        "from_python": max(python.values()),
        "from_float32": max(rounding.values()),
        "each_load_s": loads,
        "median_ms_by_steps": {N: statistics.median(found) for N, found in one.items()},
        "median_ms_of_16_by_steps": {N: statistics.median(found) for N, found in many.items()},
        "from_python_by_steps": python,
        "from_float32_by_steps": rounding,
    }
    for name, value in result.items():
        print(f"{name}: {value}" + (f" (bound: {BOUNDS[name]})" if name in BOUNDS else ""))
    file = Path(__file__).with_name("results") / f"{Path(__file__).stem}.json"
    file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
