"""How long the weighting explorer takes from a slider's movement to the changed pixels, drawn in two ways.

Ours draws SVG as text in Python and lets the browser put it in its place. The other way keeps one
matplotlib figure, updates its artists, and sends it as a PNG. All else is the same: the page, the
slider, the message to Python and back. A movement ends when the browser has drawn the second frame
after the picture changed (and, for a PNG, has decoded it).

The slider is λ_min, which moves every panel, at N = T = 1024, the largest N there is: T below N is
refused. Both pages are measured in turn, in one headless browser; before them, how soon the page of
`make explore` is ready.

    python benchmarks/explorer_latency.py

prints the figures and writes them to benchmarks/results/explorer_latency.json.
"""

from __future__ import annotations

import base64
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import nbformat
from matplotlib.figure import Figure
from playwright.sync_api import Browser, Page

from pdlib.explorer import ExplorerState, WeightingExplorer, to_query
from pdlib.runs.evaluation import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "explorer"))
from browser import chromium, serve, serve_explorer

MOVEMENTS = 120
BOUNDS = {"median_ms": 100, "p95_ms": 200, "ready_s": 8}
STATE = ExplorerState(N=1024, T=1024, log_snr_min=-20.0, clip_min=1.0, weighting="snr")


class MatplotlibExplorer(WeightingExplorer):
    """The explorer with its panels on one persistent figure, sent as a PNG."""

    def _artists(self) -> tuple[Figure, list]:
        if not hasattr(self, "_drawn"):
            with matplotlib.rc_context({"font.size": 8, "figure.dpi": 96}):
                figure = Figure(figsize=(7.4, 7.6))
                axes = figure.subplots(3, 2).flat
                lines = [axis.plot([], [], drawstyle=style)[0] for axis in axes for style in ("default", "steps-pre")]
                for axis in axes:
                    axis.grid(True)
                    axis.set_xlim(0, 1)
            self._drawn = (figure, lines)
        return self._drawn

    def _show(self) -> None:
        figure, lines = self._artists()
        f = self._figures
        curves = [
            *((f.t, f.alpha), (f.step_t, f.step_alpha), (f.t, f.w), (f.step_t, f.step_w)),
            *((f.step_t, f.share), (f.step_t, f.share), (f.step_t, f.eps_amplification)),
            *((f.step_t, f.own_amplification), (f.step_t, f.sensitivity), (f.step_t, f.sensitivity)),
        ]
        for line, (x, y) in zip(lines, curves, strict=False):
            line.set_data(x.numpy(), y.numpy())
            line.axes.relim()
            line.axes.autoscale_view(scalex=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        source = base64.b64encode(buffer.getvalue()).decode()
        self.panels = {"weight": f'<img width="700" src="data:image/png;base64,{source}">'}
        self.lines = {"python": "", "command": "", "query": ""}


MEASURE = """async (movements) => {
    const slider = document.querySelector('[data-knob=log_snr_min] [type=range]');
    const drawing = document.querySelector('[data-panel=weight] .drawing');
    const frame = () => new Promise(requestAnimationFrame);
    let empty = 0, watching = true;
    const look = () => {
        if (!drawing.firstElementChild?.getBoundingClientRect().height) empty++;
        if (watching) requestAnimationFrame(look);
    };
    look();
    const move = (value) => {
        slider.value = value;
        slider.dispatchEvent(new Event('input', {bubbles: true}));
    };
    const changed = () => new Promise((done) => {
        const observer = new MutationObserver(async () => {
            observer.disconnect();
            await drawing.querySelector('img')?.decode();
            await frame();
            await frame();
            done();
        });
        observer.observe(drawing, {childList: true});
    });
    const times = [];
    for (let k = 0; k < movements; k++) {
        const seen = changed(), started = performance.now();
        move(-20 + (k % 20) * 0.5 + 0.5);
        await seen;
        times.push(performance.now() - started);
        await new Promise((rest) => setTimeout(rest, 60));
    }
    // A fast drag: a movement in every frame; then how long until the last one is seen, and how many were.
    let drawn = 0;
    const counter = new MutationObserver(() => drawn++);
    counter.observe(drawing, {childList: true});
    let latest = performance.now();
    const follow = new MutationObserver(() => (latest = performance.now()));
    follow.observe(drawing, {childList: true});
    for (let k = 0; k < 100; k++) {
        move(-30 + 0.25 * k);
        await frame();
    }
    const released = performance.now();
    await new Promise((rest) => setTimeout(rest, 2000));
    watching = false;
    return {times, empty, drag_drawn: drawn, drag_lag: Math.max(0, latest - released)};
}"""


def notebook(folder: Path, cell: str) -> None:
    """A page that is nothing but this cell."""
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    page.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(page, folder / "page.ipynb")


def open_page(browser: Browser, address: str) -> Page:
    """A page whose panels are drawn."""
    page = browser.new_page(viewport={"width": 1024, "height": 1400})
    page.goto(address)
    page.wait_for_selector("[data-panel=weight] .drawing > *", timeout=60_000)
    return page


def main() -> None:
    cells = {
        "SVG as text (pdlib)": "from pdlib.explorer import WeightingExplorer as Explorer",
        "matplotlib PNG": "from explorer_latency import MatplotlibExplorer as Explorer",
    }
    result: dict = {"machine": machine(), "load_average": os.getloadavg()[0], "N": STATE.N, "T": STATE.T}
    print(f"load average before: {result['load_average']:.2f}")
    with chromium() as browser:
        with serve_explorer() as address:
            started = time.perf_counter()
            page = open_page(browser, address)
            result["ready_s"] = time.perf_counter() - started
            page.close()
        print(f"the page of make explore is ready in {result['ready_s']:.1f} s (bound: {BOUNDS['ready_s']} s)")
        for name, cell in cells.items():
            with tempfile.TemporaryDirectory() as folder:
                here = str(Path(__file__).parent)
                start = f"import sys; sys.path.insert(0, {here!r})\n{cell}\n"
                notebook(Path(folder), f"{start}Explorer.from_link({to_query(STATE)!r})")
                with serve("voila", "page.ipynb", path="/voila/files/none", cwd=Path(folder)) as address:
                    page = open_page(browser, address)
                    page.wait_for_timeout(500)
                    found = page.evaluate(MEASURE, MOVEMENTS)
                    page.close()
            times = sorted(found["times"])
            result[name] = figures = {
                "median_ms": statistics.median(times),
                "p95_ms": times[int(0.95 * len(times))],
                "longest_ms": times[-1],
                "movements": len(times),
                "frames_without_picture": found["empty"],
                "drag_pictures_of_100": found["drag_drawn"],
                "drag_lag_ms": found["drag_lag"],
            }
            print(
                f"{name}: median {figures['median_ms']:.0f} ms (bound: {BOUNDS['median_ms']}), 95th percentile "
                f"{figures['p95_ms']:.0f} ms (bound: {BOUNDS['p95_ms']}), longest {figures['longest_ms']:.0f} ms over "
                f"{len(times)} movements; frames without a picture: {found['empty']}; of 100 movements in a fast drag "
                f"{found['drag_drawn']} drawn, the last of them {found['drag_lag']:.0f} ms after its end"
            )
    (Path(__file__).with_name("results") / f"{Path(__file__).stem}.json").write_text(
        json.dumps(result, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
