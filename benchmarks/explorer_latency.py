"""How soon the weighting explorer's page is ready, and how long from a slider's movement to the changed pixels.

The page is the one that ``python -m pdlib.explorer`` writes, served from this machine to a headless browser. The slider
is λ_min, which moves every panel, at N = T = 1024, the largest N there is: T below N is refused. A movement comes at
any moment of the screen's 60 frames a second, and ends when the frame that shows it is painted; when the next frame
begins is measured too. Ready is a page that nothing is cached for, when its last panel is drawn.

    python benchmarks/explorer_latency.py

prints the figures, each of several rounds and their median, and writes them to
benchmarks/results/explorer_latency.json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser

from pdlib.explorer import MODULE
from pdlib.explorer.__main__ import page
from pdlib.runs.evaluation import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import chromium, serve_folder

ROUNDS, MOVEMENTS = 5, 120
BOUNDS = {"median_ms": 16, "p95_ms": 25, "ready_s": 0.7}
QUERY = "N=1024&T=1024&log_snr_min=-20&clip_min=1&weighting=snr"

MEASURE = """async (movements) => {
    const slider = document.querySelector('[data-knob=log_snr_min] [type=range]');
    const marks = document.querySelector('[data-panel=weight] .marks');
    const frame = () => new Promise(requestAnimationFrame);
    const after = () => new Promise((done) => {
        const {port1, port2} = new MessageChannel();
        port1.onmessage = done;
        port2.postMessage(0);
    });
    const rest = (ms) => new Promise((done) => setTimeout(done, ms));
    let empty = 0, watching = true;
    const look = () => {
        if (!marks.getBoundingClientRect().height) empty++;
        if (watching) requestAnimationFrame(look);
    };
    look();
    const move = (value) => {
        slider.value = value;
        slider.dispatchEvent(new Event('input', {bubbles: true}));
    };
    const [painted, second, script] = [[], [], []];
    for (let k = 0; k < movements; k++) {
        await rest(50 + 17 * Math.random());
        const before = marks.innerHTML, started = performance.now();
        move(-20 + (k % 20) * 0.5 + 0.5);
        script.push(performance.now() - started);
        await frame();
        await after();
        painted.push(performance.now() - started);
        await frame();
        second.push(performance.now() - started);
        if (marks.innerHTML === before) throw Error('nothing has changed');
    }
    // A fast drag: a movement in every frame; then how long until the last one is drawn.
    let latest = performance.now();
    const follow = new MutationObserver(() => (latest = performance.now()));
    follow.observe(marks, {childList: true});
    for (let k = 0; k < 100; k++) {
        move(-30 + 0.25 * k);
        await frame();
    }
    const released = performance.now();
    await rest(500);
    watching = false;
    return {painted, second, script, empty, drag_lag: Math.max(0, latest - released)};
}"""


def seconds_until_ready(browser: Browser, address: str) -> float:
    """From the call to a new browser's first page, with nothing cached, until the last panel has its sentence."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    view = context.new_page()
    started = time.perf_counter()
    view.goto(address)
    view.wait_for_selector("[data-panel=sensitivity] figcaption:not(:empty)")
    took = time.perf_counter() - started
    context.close()
    return took


def one_round(browser: Browser, address: str) -> dict[str, float]:
    """All figures, measured once."""
    found = {"ready_s": seconds_until_ready(browser, address)}
    view = browser.new_page(viewport={"width": 1280, "height": 800})
    view.goto(f"{address}#{QUERY}")
    view.wait_for_selector("[data-panel=sensitivity] figcaption:not(:empty)")
    view.wait_for_timeout(300)
    times = view.evaluate(MEASURE, MOVEMENTS)
    view.close()
    for name, prefix in (("painted", ""), ("second", "second_frame_"), ("script", "script_")):
        ordered = sorted(times[name])
        found[f"{prefix}median_ms"] = statistics.median(ordered)
        found[f"{prefix}p95_ms"] = ordered[int(0.95 * len(ordered))]
    found["frames_without_picture"] = times["empty"]
    return found | {"drag_lag_ms": times["drag_lag"]}


def main() -> None:
    result: dict = {"machine": machine(), "load_average_before": os.getloadavg()[0], "movements": MOVEMENTS}
    result |= {"page_kB": len(page().encode()) / 1e3, "module_kB": len(MODULE.encode()) / 1e3}
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "index.html").write_text(page(), "utf-8")
        with serve_folder(Path(folder)) as address:
            rounds = [one_round(browser, address) for _ in range(ROUNDS)]
    result["load_average_after"] = os.getloadavg()[0]
    result["rounds"] = rounds
    result["median_of_rounds"] = medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    print(f"load average: {result['load_average_before']:.2f} before, {result['load_average_after']:.2f} after")
    for name, value in medians.items():
        bound = f" (bound: {BOUNDS[name]})" if name in BOUNDS else ""
        print(f"{name}: {value:.3g}{bound}; in each round {', '.join(f'{one[name]:.3g}' for one in rounds)}")
    file = Path(__file__).with_name("results") / f"{Path(__file__).stem}.json"
    file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
