"""The README's moving picture of the explorer: ``python site/film.py``, where chromium is on the PATH."""

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from pdlib.explorer.__main__ import page

OUT = Path(__file__).parents[1] / "notebooks" / "explorer.gif"
# How long each picture stays, in ms, and what is set: fewer steps, until one is dead; then the clip that saves it.
FRAMES = [(900, f"weighting=snr&N={N}") for N in (64, 32, 16, 8)]
FRAMES += [(2200, "weighting=snr&N=4"), *((700, f"weighting=snr&N=4&clip_min={low}") for low in (0.01, 0.03, 0.1, 0.3))]
FRAMES += [(2200, "weighting=snr&N=4&clip_min=1")]


def main() -> int:
    """Turn the knobs, and write what is seen."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "explorer.html"
        file.write_text(page(), encoding="utf-8")
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        tab = browser.new_page(viewport={"width": 1000, "height": 640})
        shots = []
        for _, state in FRAMES:
            tab.goto(f"{file.as_uri()}#{state}")
            tab.reload()
            tab.wait_for_selector("path[data-mark=dots]")
            shots.append(Image.open(io.BytesIO(tab.screenshot())).convert("RGB").quantize(48))
        browser.close()
    shots[0].save(OUT, save_all=True, append_images=shots[1:], duration=[time for time, _ in FRAMES], loop=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
