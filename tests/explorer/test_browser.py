import base64
import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote, urlencode

import nbformat
import numpy as np
import pytest
from browser import NOTEBOOKS, eventually, find_chromium, serve, settled
from playwright.sync_api import expect
from states import has_picture, values

from pdlib.explorer import (
    CSS,
    KNOBS,
    MODULE,
    PRESETS,
    ExplorerState,
    compute,
    from_dict,
    from_query,
    python_lines,
    run_line,
)
from pdlib.explorer.__main__ import page as page_html
from pdlib.plots import COLORS

pytestmark = pytest.mark.skipif(
    find_chromium() is None and "PDLIB_BROWSER_REQUIRED" not in os.environ, reason="needs chromium on the PATH"
)
ARTIFACTS = Path(__file__).parents[2] / "test-artifacts"
SITE = "http://localhost:1"  # which the browser's routes answer: no server is asked
LOOK = "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
PANELS = ["share", "weight", "schedule", "amplification", "sensitivity"]
NOTES = PRESETS["The notes"]["4 steps"]


def plain_page(script, policy=""):
    """The files of a page of someone else's, which takes the explorer's module and style, and says what to do."""
    html = "<!doctype html><link rel=stylesheet href=explorer.css><div id=here></div>"
    html += "<script type=module src=own.js></script>"
    return {
        "/": ("text/html", html, {"Content-Security-Policy": policy} if policy else {}),
        "/own.js": ("text/javascript", f'import explorer, {{mount, PANELS}} from "./explorer.js"; {script}', {}),
        "/explorer.js": ("text/javascript", MODULE, {}),
        "/explorer.css": ("text/css", CSS, {}),
        "/favicon.ico": ("image/png", "", {}),
    }


@pytest.fixture
def open_page(browser):
    """Opens the explorer's page; when the test ends, no page may have complained, or asked for anything else."""
    opened = []

    def open_one(query="", width=1280, height=800, theme="light", files=None, permissions=(), url=None):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        context.grant_permissions(list(permissions))
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.complaints, page.asked = [], []
        page.on("console", lambda said: said.type in ("error", "warning") and page.complaints.append(said.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        served = {"/": ("text/html", page_html(), {})} | (files or {})

        def answer(route):
            kind, body, headers = served[re.sub("[#?].*", "", route.request.url.removeprefix(SITE))]
            route.fulfill(body=body, headers={"Content-Type": f"{kind}; charset=utf-8"} | headers)

        page.route(f"{SITE}/**", answer)
        page.goto(url or f"{SITE}/#{query}")
        page.wait_for_selector("[data-panel] figcaption:not(:empty)")
        opened.append(page)
        return settled(page)

    yield open_one
    for page in opened:
        assert settled(page).complaints == []
        assert all(asked.startswith((SITE, "data:", "blob:", "file:")) for asked in page.asked)
        page.context.close()


@pytest.fixture
def page(open_page):
    return open_page()


def knob(page, name):
    return page.locator(f"[data-knob={name}]")


def slide(page, name, value):
    if knob(page, name).locator("[type=checkbox]").count():
        knob(page, name).locator("[type=checkbox]").check()
    knob(page, name).locator("[type=range], [type=number]").fill(value)


def caption(page, name):
    return page.locator(f"[data-panel={name}] figcaption")


def assert_shows(page, state):
    """The lines to copy, the address, the sentence and the bars become those of the state."""
    lines = f"{python_lines(state)}\n\n# or, in a shell\n{run_line(state)}"
    settled(page)  # of two states that train alike the lines are the same
    expect(page.locator(".pdlib-explorer pre")).to_contain_text(lines)
    figures, N = compute(state), state.N
    dead = int(figures.dead.sum())
    said = f"{dead} of {N} step" if dead else "always 0" if figures.steps.w.sum() == 0 else "no step is dead"
    expect(caption(page, "share")).to_contain_text(f"at N = {N}, ")
    expect(caption(page, "share")).to_contain_text(said)
    if N <= 64 and state.axis == "t":
        bars = [box(bar) for bar in shapes(page, "share", "bars")]
        heights = np.array([bottom - top for _, top, _, bottom in bars])
        assert heights / (heights.sum() or 1) == pytest.approx(figures.share.numpy(), abs=3e-3)
    expect(page.locator(".problem, .notice:not(:empty), .stale")).to_have_count(0)


def assert_address(page, state):
    eventually(page, lambda: from_query(page.evaluate("location.hash.slice(1)")) == state)


def shapes(page, panel, mark, extra=""):
    """The shapes that are drawn inside the axes as one kind of mark, each as its points."""
    marks = settled(page).locator(f"[data-panel={panel}] .marks [data-mark={mark}]{extra}")
    return [shape for d in marks.evaluate_all("all => all.map(e => e.getAttribute('d'))") for shape in outlines(d)]


def outlines(d):
    """The points that an SVG path goes through, one list for each of its parts."""
    parts, x, y = [], 0.0, 0.0
    for command, numbers in re.findall(r"([A-Za-z])([^A-Za-z]*)", d):
        given = [float(number) for number in re.findall(r"-?[\d.]+", numbers)]
        per = {"h": 1, "v": 1, "a": 7, "z": 0}.get(command.lower(), 2)
        for i in range(0, len(given), per or 1):
            *_, second, first = [0.0, *given[i : i + per]]
            start = (x, y) if command.islower() else (0.0, 0.0)
            if command.lower() == "h":
                x = start[0] + first
            elif command.lower() == "v":
                y = start[1] + first
            else:
                x, y = start[0] + second, start[1] + first
            if command.lower() == "m":
                parts.append([])
            parts[-1].append((x, y))
    return parts


def box(shape):
    """left, top, right, bottom"""
    across, upwards = zip(*shape, strict=True)
    return min(across), min(upwards), max(across), max(upwards)


def axes(page, panel):
    """left, top, right, bottom of a panel's axes, in the units of its shapes."""
    settled(page)
    return page.locator(f"[data-panel={panel}] svg").evaluate(
        """svg => {
            const [x, y] = [svg.querySelector('.x'), svg.querySelector('.y')];
            const at = (g) => g.getAttribute('transform').match(/[\\d.]+/g).map(Number);
            const wide = x.querySelector('.domain').getBBox(), high = y.querySelector('.domain').getBBox();
            return [at(y)[0], high.y, wide.x + wide.width, at(x)[1]];
        }"""
    )


# Browser and Python.

AGREE = """async (states) => {
    const {compute, problems, toQuery, fromQuery, pythonLines, runLine} = await import('/explorer.js');
    const bytes = (numbers) => {
        const view = new Uint8Array(Float64Array.from(numbers).buffer);
        let text = '';
        for (let i = 0; i < view.length; i += 32768) text += String.fromCharCode(...view.subarray(i, i + 32768));
        return btoa(text);
    };
    return states.map((state) => {
        const wrong = problems(state);
        if (Object.keys(wrong).length) return {wrong};
        const {fine, steps, ...f} = compute(state);
        const along = ['t', 'alpha', 'sigma', 'log_snr', 'density', 'w', 'plain'];
        const each = ['share', 'dead', 'eps_amplification', 'own_amplification', 'sensitivity'];
        const curves = [fine, steps].flatMap((one) => along.map((name) => one[name]));
        const numbers = [...curves, ...each.map((name) => f[name])];
        const [query, python, run] = [toQuery(state), pythonLines(state), runLine(state)];
        return {numbers: bytes(numbers.flat()), query, again: fromQuery(query), python, run};
    });
}"""


def test_browser_and_python_agree_on_2000_random_states(open_page):
    """To 1e-9, relative to the value; of λ, which passes through 0, absolute. 0 and ∞ are 0 and ∞ in both."""
    page = open_page(files=plain_page("mount(document.querySelector('#here'))"))
    draw, good = random.Random(0), 0
    while good < 2000:
        given = [values(draw) for _ in range(1000)]
        for state, found in zip(given, page.evaluate(AGREE, given), strict=True):
            assert ("wrong" in found) != has_picture(state), (state, found.get("wrong"))
            if "wrong" in found:
                continue
            good += 1
            python = ExplorerState(**state)
            f = compute(python)
            ours = [*vars(f.fine).values(), *vars(f.steps).values()]
            ours += [f.share, f.dead.double(), f.eps_amplification, f.own_amplification, f.sensitivity]
            theirs = np.frombuffer(base64.b64decode(found["numbers"]))
            ours_flat = np.concatenate([one.numpy() for one in ours])
            lambdas = np.concatenate([np.full(len(one), k in (3, 10)) for k, one in enumerate(ours)])
            assert theirs.shape == ours_flat.shape
            with np.errstate(invalid="ignore"):
                size = np.where(lambdas, 1, np.abs(ours_flat))
                off = (theirs != ours_flat) & ~(np.abs(theirs - ours_flat) <= 1e-9 * size)
            assert not off.any(), (state, ours_flat[off][:3], theirs[off][:3])
            assert (found["python"], found["run"]) == (python_lines(python), run_line(python))
            linked = from_query(found["query"])
            assert found["again"] == {"state": asdict(linked), "notice": ""}
            for name, value in asdict(linked).items():
                assert value == (pytest.approx(state[name], rel=1e-9) if isinstance(value, float) else state[name])


# The page.


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_both_widths_and_follows_the_theme(open_page, width, theme):
    page = open_page(width=width, theme=theme)
    page.screenshot(path=ARTIFACTS / f"explorer-{width}-{theme}.png")
    page.get_by_label("compare").check()
    page.get_by_role("button", name="4 steps", exact=True).click()
    assert_shows(page, NOTES)
    page.screenshot(path=ARTIFACTS / f"explorer-{width}-{theme}-4-steps.png", full_page=True)
    assert page.title() == "Weighting explorer"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for element in page.locator(".pdlib-explorer :is(button, select, input, summary)").all():
        if place := element.bounding_box():
            assert place["x"] + place["width"] <= width
            assert min(place["width"], place["height"]) >= 24, element.evaluate("e => e.outerHTML")
    # Words stand out as the accessibility guidelines ask (4.5 to 1), and so do lines (3 to 1).
    ink, paper = page.locator(".pdlib-explorer").evaluate(LOOK)
    assert contrast(ink, paper) > 4.5
    soft = page.locator("[data-panel=share] .x text >> nth=0").evaluate("e => getComputedStyle(e).fill")
    assert contrast(soft, paper) > 4.5
    for line in page.locator("[data-panel] .marks [data-mark]:not([fill])").all():
        assert contrast(line.evaluate("e => getComputedStyle(e).stroke"), paper) > 3
    grey = page.locator("[data-frozen] >> nth=0").evaluate("e => getComputedStyle(e).stroke")
    assert contrast(grey, paper) > 3
    assert (luminance(paper) < 0.2) == (theme == "dark")


def luminance(color):
    parts = [float(part) / 255 for part in re.findall(r"[\d.]+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_shares_and_every_knob_are_on_the_first_screen(page):
    for element in [page.locator("[data-panel=share]"), *page.locator("[data-knob]").all()]:
        place = element.bounding_box()
        assert place["y"] >= 0
        assert place["y"] + place["height"] <= 800
    tops = [page.locator(f"[data-panel={name}]").bounding_box()["y"] for name in PANELS]
    assert tops == sorted(tops)
    assert page.locator("[aria-pressed]:visible").count() == 2  # all other presets are folded away


def test_on_a_narrow_page_the_shares_stay_in_view_and_dots_show_the_others(open_page):
    page = open_page(width=400)
    knob(page, "scale").scroll_into_view_if_needed()
    page.mouse.wheel(0, 300)
    eventually(page, lambda: page.evaluate("scrollY + innerHeight > document.documentElement.scrollHeight - 1"))
    expect(page.locator("[data-panel=share] svg")).to_be_in_viewport(ratio=1)
    assert settled(page).locator("[data-panel=share] svg").bounding_box()["y"] < 400
    dots = page.get_by_role("navigation").get_by_role("button")
    assert dots.count() == len(PANELS)
    dots.nth(3).click()
    expect(dots.nth(3)).to_have_attribute("aria-current", "true")
    expect(page.locator("[data-panel=amplification] svg")).to_be_in_viewport(ratio=0.95)
    expect(page.locator("[data-panel=share] svg")).not_to_be_in_viewport()


# The knobs.


@pytest.mark.parametrize(
    ("name", "turn", "state"),
    [
        ("N", lambda k: k.locator("input").fill("2"), {"N": 4}),
        ("N", lambda k: k.locator("input").fill("9"), {"N": 512}),
        ("weighting", lambda k: k.locator("select").select_option("log_snr_density_of_steps"), None),
        ("schedule", lambda k: k.locator("select").select_option("discrete_scaled_linear"), None),
        ("prediction", lambda k: k.locator("select").select_option("x"), None),
        ("axis", lambda k: k.locator("select").select_option("density"), None),
        ("scale", lambda k: k.locator("select").select_option("linear"), None),
        ("clip_min", lambda k: k.locator("[type=checkbox]").check(), {"clip_min": 1.0}),
        ("clip_max", lambda k: k.locator("[type=checkbox]").check(), {"clip_max": 5.0}),
        ("log_snr_min", lambda k: k.locator("[type=checkbox]").check(), {"log_snr_min": -20.0}),
        ("log_snr_max", lambda k: k.locator("[type=checkbox]").check(), {"log_snr_max": 20.0}),
        ("T", lambda k: k.locator("input").fill("50"), {"T": 50}),
        ("threshold", lambda k: k.locator("input").fill("-0.5"), {"threshold": 0.32}),
    ],
)
def test_a_knob_moved_changes_its_panels_and_the_address(page, name, turn, state):
    before = page.locator(".panels").inner_html()
    turn(knob(page, name))
    state = ExplorerState(**(state or {name: knob(page, name).locator("select").input_value()}))
    assert_shows(page, state)
    assert_address(page, state)
    assert page.locator(".panels").inner_html() != before


def test_the_switch_rescales_the_schedule(open_page):
    page = open_page("schedule=linear")
    knob(page, "zero_terminal").locator("input").check()
    assert_shows(page, ExplorerState(schedule="linear", zero_terminal=True))
    expect(caption(page, "schedule")).to_contain_text("α = 0")


def test_a_clip_slides(page):
    slide(page, "clip_max", "2")
    assert_shows(page, ExplorerState(clip_max=100.0))
    expect(knob(page, "clip_max").locator("output")).to_have_text("100")


def test_each_preset_takes_one_click_sets_every_knob_and_is_marked(page):
    page.get_by_text("More presets").click()
    for group, states in PRESETS.items():
        for label, state in states.items():
            button = page.get_by_role("group", name=group, exact=True).get_by_role("button", name=label, exact=True)
            button.click()
            assert_shows(page, state)
            assert page.locator("[aria-pressed=true]").all_text_contents().count(label) >= 1
            assert button.evaluate(LOOK) != page.get_by_role("button", name="Copy link").evaluate(LOOK)
            # What is turned next starts from the preset: the knobs hold its values, and not what their stops allow.
            other = "linear" if state.scale == "log" else "log"
            knob(page, "scale").locator("select").select_option(other)
            assert_shows(page, replace(state, scale=other))
            assert button.get_attribute("aria-pressed") == "false"


def test_reset_brings_the_defaults_back_and_ends_comparing(open_page):
    page = open_page("N=8&clip_min=0.1&schedule=linear")
    page.get_by_label("compare").check()
    page.get_by_role("button", name="Reset").click()
    assert_shows(page, ExplorerState())
    assert_address(page, ExplorerState())
    expect(page.locator("[data-frozen]")).to_have_count(0)


@pytest.mark.parametrize(
    ("query", "name", "why"),
    [
        ("schedule=linear", "log_snr_min", "only the cosine schedules"),
        ("schedule=linear&log_snr_max=5", "log_snr_max", "only the cosine schedules"),
        ("", "zero_terminal", "α = 0 at t = 1 already"),
    ],
)
def test_a_knob_that_has_no_say_is_disabled_and_says_why(open_page, query, name, why):
    page = open_page(query)
    expect(knob(page, name).locator(".note")).to_contain_text(why)
    for control in knob(page, name).locator("input").all():
        assert control.is_disabled()
    assert_shows(page, from_query(query))
    knob(page, "schedule").locator("select").select_option("cosine_offset" if query else "linear")
    expect(knob(page, name).locator(".note")).to_be_hidden()
    assert knob(page, name).locator("[type=checkbox]").is_enabled()


def test_compare_keeps_the_present_curves_in_grey_and_says_which(page):
    page.get_by_label("compare").check()
    before = shapes(page, "sensitivity", "stairs", ":not([data-frozen])")
    knob(page, "N").locator("input").fill("2")
    assert_shows(page, ExplorerState(N=4))
    expect(page.locator(".grey")).to_have_text("in grey: steps N 16")
    (grey,) = shapes(page, "share", "stairs", "[data-frozen]")
    assert len({x for x, _ in grey}) == 17
    (grey,) = shapes(page, "sensitivity", "stairs", "[data-frozen]")
    assert [x for x, _ in grey] == [x for x, _ in before[0]]
    page.get_by_label("compare").uncheck()
    assert_shows(page, ExplorerState(N=4))
    expect(page.locator("[data-frozen]")).to_have_count(0)


@pytest.mark.parametrize("axis", ["t", "log_snr", "density"])
def test_every_panel_keeps_its_grey_curves(open_page, axis):
    page = open_page(f"axis={axis}")
    page.get_by_label("compare").check()
    knob(page, "schedule").locator("select").select_option("linear")
    knob(page, "weighting").locator("select").select_option("snr")
    for name in PANELS:
        assert shapes(page, name, "stairs", "[data-frozen]") + shapes(page, name, "curve", "[data-frozen]"), name


WHERE = """() => {
    const e = document.activeElement, box = e.getBoundingClientRect();
    return {
        name: e.closest('[data-knob]')?.dataset.knob ?? e.labels?.[0]?.textContent ?? e.textContent,
        type: e.type ?? e.tagName,
        uncovered: document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) == e,
        outline: getComputedStyle(e).outlineStyle,
    };
}"""


@pytest.mark.parametrize("width", [1280, 400])
def test_everything_can_be_done_by_keyboard_alone(open_page, width):
    page = open_page(width=width)
    share = caption(page, "share")

    def tab_to(name, kind, key="Tab"):
        for _ in range(70):
            page.keyboard.press(key)
            focus = page.evaluate(WHERE)
            if focus["type"] == kind and re.match(name + ("$" if kind == "button" else ""), focus["name"]):
                assert focus["uncovered"], focus  # and not under the strip of panels
                assert focus["outline"] != "none"
                return
        raise AssertionError(f"the {key} key does not lead to {name}")

    tab_to("4 steps", "button")
    page.keyboard.press("Enter")
    assert_shows(page, NOTES)
    tab_to("More presets", "SUMMARY")
    page.keyboard.press("Enter")
    tab_to("min-SNR-5", "button")
    page.keyboard.press("Enter")
    assert_shows(page, PRESETS["Notebook 04"]["min-SNR-5"])
    tab_to("4 steps", "button", "Shift+Tab")
    page.keyboard.press("Enter")
    tab_to("More presets", "SUMMARY")
    page.keyboard.press("Enter")
    tab_to("compare", "checkbox")
    page.keyboard.press("Space")
    tab_to("N", "range")
    page.keyboard.press("ArrowLeft")
    expect(share).to_contain_text("at N = 2, 1 of 2 steps")
    expect(page.locator("[data-panel=share] [data-frozen]")).to_have_count(1)
    tab_to("weighting", "select-one")
    page.keyboard.press("s")  # the first choice that begins with it
    expect(caption(page, "weight")).to_contain_text("w = 0.98, 0.00")
    tab_to("clip_min", "checkbox")
    page.keyboard.press("Space")
    expect(share).to_contain_text("no step is dead")
    tab_to("clip_min", "range")
    page.keyboard.press("Home")
    expect(share).to_contain_text("1 of 2 steps")
    tab_to("Copy settings", "button")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name=re.compile("^Copied|^Not allowed"))).to_be_visible()
    tab_to("threshold", "range", key="Shift+Tab")


def test_every_control_has_a_name_and_every_knob_a_tooltip(page):
    for element in page.locator(".pdlib-explorer :is(input, select, button)").all():
        named = element.evaluate("e => (e.labels?.[0]?.textContent || e.getAttribute('aria-label') || e.textContent)")
        assert named.strip()
    assert [knob(page, name).get_attribute("title") for name in KNOBS] == [about["about"] for about in KNOBS.values()]
    for name in PANELS:
        panel = page.locator(f"[data-panel={name}] svg")
        assert panel.get_attribute("role") == "img"
        assert caption(page, name).text_content() in panel.get_attribute("aria-label")


# Bad input.

CLIPS, ENDS = ["clip_min", "clip_max"], ["log_snr_min", "log_snr_max"]


@pytest.mark.parametrize(
    ("turns", "at", "said", "still"),
    [
        ([("clip_max", "0"), ("clip_min", "2")], CLIPS, "clip minimum 100 is above clip maximum 1", "clip minimum 1."),
        ([("clip_min", "0.5"), ("clip_max", "0")], CLIPS, "3.2 is above clip maximum 1", "clip maximum 5"),
        ([("log_snr_min", "5"), ("log_snr_max", "-5")], ENDS, "λ_min = 5 is not below λ_max = −5", "λ_max 20"),
        ([("log_snr_min", "0"), ("log_snr_max", "0")], ENDS, "by 0.1", "λ_max 20"),
        ([("T", "10")], ["N", "T"], "T = 10 is below N = 16", "training steps T 1000"),
        ([("N", "10")], ["N", "T"], "T = 1000 is below N = 1024", "steps N 16"),
        ([("T", "")], ["T"], "give a number from 1 to 4096", "training steps T 1000"),
        ([("T", "50.5")], ["T"], "not a whole number", "training steps T 1000"),
        ([("prediction", "eps")], ["prediction"], "divides by α = 0 at t = 1", "network predicts v"),
        (
            [("N", "1"), ("schedule", "linear"), ("T", "16"), ("schedule", "discrete_linear")],
            *(["schedule", "T"], "raise T above 20", "schedule linear"),
        ),
    ],
)
def test_what_is_wrong_stands_at_its_knobs_and_the_dimmed_panels_say_what_they_show(page, turns, at, said, still):
    for name, value in turns[:-1]:
        set_knob(page, name, value)
    for switch in knob(page, turns[-1][0]).locator("[type=checkbox]").all():
        switch.check()
    weight, lines = settled(page).locator("[data-panel=weight] .marks"), page.locator("pre")
    before, address = weight.inner_html(), lines.text_content()
    set_knob(page, *turns[-1])
    expect(page.locator(".notice")).to_contain_text(f"The panels still show {still}")
    assert set(page.locator("[data-knob]:has(.problem)").evaluate_all("all => all.map(e => e.dataset.knob)")) == set(at)
    for name in at:
        expect(knob(page, name).locator(".problem")).to_contain_text(said)
        assert knob(page, name).locator("[aria-invalid=true]").count() == 1
    settled(page)
    assert (weight.inner_html(), lines.text_content()) == (before, address)
    assert float(page.locator(".panels").evaluate("e => getComputedStyle(e).opacity")) < 0.6
    page.get_by_role("button", name="4 steps", exact=True).click()  # all is well again
    assert_shows(page, NOTES)
    assert page.locator(".panels").evaluate("e => getComputedStyle(e).opacity") == "1"


def set_knob(page, name, value):
    if knob(page, name).locator("select").count():
        knob(page, name).locator("select").select_option(value)
    else:
        slide(page, name, value)


# Links, settings, pictures.


def test_a_link_restores_its_state_and_a_new_one_is_followed(open_page):
    state = ExplorerState(N=8, weighting="snr", clip_min=0.1, schedule="linear", axis="log_snr")
    page = open_page("N=8&weighting=snr&clip_min=0.1&schedule=linear&axis=log_snr")
    assert_shows(page, state)
    assert knob(page, "N").locator("input").input_value() == "3"
    page.evaluate("location.hash = '#N=2'")
    assert_shows(page, ExplorerState(N=2))


@pytest.mark.parametrize(
    "query",
    [
        *("N=abc", "N=4.5", "N", "N=3", "N=1e400", "M=4", "T=2&N=4", "clip_min=nan", "clip_min=inf"),
        *("clip_min=5&clip_max=1", "zero_terminal=maybe", "weighting=nice", "prediction=eps", "__proto__=1"),
        *("constructor=1", "weighting=constructor", "%", "N=" + quote("<script>document.title = 1</script>")),
    ],
)
def test_a_malformed_link_gives_the_defaults_and_says_why(open_page, query):
    page = open_page(query)
    expect(page.locator(".notice")).to_contain_text("the defaults are shown: ")
    expect(page.locator(".pdlib-explorer pre")).to_contain_text(run_line(ExplorerState()))
    assert page.title() == "Weighting explorer"


def test_settings_and_link_are_copied(open_page):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    knob(page, "N").locator("input").fill("2")
    page.get_by_role("button", name="Copy settings").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == f"{python_lines(ExplorerState(N=4))}\n\n# or, in a shell\n{run_line(ExplorerState(N=4))}"
    page.get_by_role("button", name="Copy link").click()
    page.wait_for_function(f"navigator.clipboard.readText().then((text) => text === '{SITE}/#N=4')")


@pytest.mark.parametrize("kind", ["SVG", "PNG"])
def test_the_picture_is_saved(open_page, kind, tmp_path):
    from xml.etree import ElementTree

    from matplotlib.image import imread

    page = open_page(theme="dark")
    page.get_by_label("compare").check()
    page.get_by_role("button", name="4 steps", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Save picture ({kind})").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    if kind == "PNG":
        pixels = imread(path)
        assert pixels.shape[0] > 1000
        assert pixels.shape[1] > 1500
        assert pixels[0, 0, :3].tolist() == [1, 1, 1]
        for name in ("alpha", "sigma", "log_snr_density"):
            color = np.array([int(COLORS[name][i : i + 2], 16) / 255 for i in (1, 3, 5)])
            assert (np.abs(pixels[..., :3] - color).max(axis=-1) < 0.01).sum() > 100, name
        return
    svg = path.read_text("utf-8")
    assert len(list(ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}svg"))) == 6
    assert "var(" not in svg
    assert "currentColor" not in svg
    assert not re.findall(r"https?://(?!www\.w3\.org/)", svg)
    words = " ".join(ElementTree.fromstring(svg).itertext())
    for part in ("1 of 4 steps gets 0.0 %", "schedule=notes_cosine", "N=4", "Weighting explorer"):
        assert part in words


# What is drawn.


def test_what_is_drawn_is_inside_its_axes(open_page):
    page, draw = open_page(), random.Random(1)
    for _ in range(12):
        given = values(draw)
        while not has_picture(given):
            given = values(draw)
        texts = {name: "off" if value is None else str(value) for name, value in given.items()}
        texts["zero_terminal"] = texts["zero_terminal"].lower()
        page.evaluate("query => (location.hash = query)", urlencode(texts))
        expect(page.locator("pre")).to_contain_text(python_lines(ExplorerState(**given)))
        settled(page)
        for name in PANELS:
            assert "NaN" not in page.locator(f"[data-panel={name}]").inner_html()
            left, top, right, bottom = axes(page, name)
            for mark in ("curve", "stairs", "bars"):
                for shape in shapes(page, name, mark):
                    a, b, c, d = box(shape)
                    assert left - 1 <= a <= c <= right + 1
                    assert top - 1 <= b <= d <= bottom + 1


def test_the_dead_step_of_the_notes_is_marked_over_its_own_stretch(open_page):
    page = open_page("schedule=notes_cosine&weighting=log_snr_density&N=4&scale=linear")
    left, top, right, bottom = axes(page, "share")
    (band,) = shapes(page, "share", "bands")
    assert box(band) == pytest.approx((left + 0.75 * (right - left), top, right, bottom), abs=1.5)
    assert len(shapes(page, "share", "crosses")) == 2  # of two strokes
    expect(page.locator("[data-panel=share]")).to_contain_text("dead: under 1 % of the fair share")
    page.get_by_role("button", name="Reset").click()
    assert shapes(page, "share", "bands") == []


@pytest.mark.parametrize(("threshold", "dead"), [(0.01, False), (0.5, True)])
def test_a_threshold_decides_what_is_dead(open_page, threshold, dead):
    assert bool(shapes(open_page(f"threshold={threshold}"), "share", "bands")) == dead


def test_the_shares_of_many_steps_are_on_a_log_axis_from_the_least_to_the_largest(open_page):
    page = open_page("N=1024&T=1024&weighting=snr_plus_one")
    left, top, right, bottom = axes(page, "share")
    (stairs,) = shapes(page, "share", "stairs")
    heights = np.array([y for _, y in stairs])
    share = compute(ExplorerState(N=1024, T=1024, weighting="snr_plus_one")).share
    decades = (share.max() / share.min()).log10().item()
    labels = page.locator("[data-panel=share] .y text").all_text_contents()
    assert all(label.startswith("10") for label in labels)
    assert heights.max() - heights.min() > 0.5 * (bottom - top)
    for name in ("share", "weight"):  # where the panel has fewer pixels than there are steps, the last one is there
        assert shapes(page, name, "stairs")[0][-1][0] == pytest.approx(axes(page, name)[2], abs=0.6)
    middle = heights[np.argmin(np.abs(np.array([x for x, _ in stairs]) - (left + right) / 2))]
    half = ((share[511] / share.min()).log10() / decades).item()
    assert (heights.max() - middle) / (heights.max() - heights.min()) == pytest.approx(half, abs=0.02)


def test_the_stairs_pass_through_the_values_at_the_steps(open_page):
    page = open_page("weighting=snr_plus_one&N=4&scale=linear")
    figures = compute(ExplorerState(weighting="snr_plus_one", N=4, scale="linear"))
    left, _, right, bottom = axes(page, "weight")
    (stairs,) = shapes(page, "weight", "stairs")
    middles = left + (figures.steps.t - 0.5 / 4) * (right - left)
    treads = list(pairwise(stairs))
    for middle, value in zip(middles.tolist(), figures.steps.w.tolist(), strict=True):
        (height,) = {a[1] for a, b in treads if a[1] == b[1] and min(a[0], b[0]) < middle < max(a[0], b[0])}
        ratio = value / figures.steps.w[-1].item()
        assert (bottom - height) / (bottom - stairs[-1][1]) == pytest.approx(ratio, abs=0.1)


def test_a_clip_shows_both_curves(open_page):
    assert len(shapes(open_page(), "weight", "curve")) == 1
    page = open_page("clip_max=5")
    assert len(shapes(page, "weight", "curve")) == 2
    expect(page.locator("[data-panel=weight] svg")).to_contain_text("w, not clipped")


@pytest.mark.parametrize(
    ("panel", "query", "beyond"),
    [
        ("weight", "weighting=snr", "below"),  # 0 at t = 1, on a logarithmic axis
        ("weight", "weighting=snr&scale=linear", None),
        ("amplification", "", "above"),  # infinite at t = 1
        ("amplification", "schedule=linear", None),
    ],
)
def test_what_is_off_the_axis_is_an_arrow_and_not_a_dot(open_page, panel, query, beyond):
    page = open_page(f"N=4&{query}")
    _, axis_top, _, axis_bottom = axes(page, panel)
    *dots, last = outlines(page.locator(f"[data-panel={panel}] [data-mark=dots]").get_attribute("d"))
    _, top, _, bottom = box(last)
    assert (bottom > axis_bottom + 5) == (beyond == "below")
    assert (top < axis_top - 5) == (beyond == "above")
    assert all(box(dot)[1] == box(dot)[3] for dot in dots)  # a dot is two arcs at one height


def test_a_pointer_reads_the_values_of_the_step_below_it(open_page):
    page = open_page("N=4&weighting=snr_plus_one")
    figures = compute(ExplorerState(N=4, weighting="snr_plus_one"))
    left, top, right, bottom = axes(page, "share")
    place = page.locator("[data-panel=share] svg").bounding_box()
    for i in range(4):
        page.mouse.move(place["x"] + left + (i + 0.5) / 4 * (right - left), place["y"] + (top + bottom) / 2)
        tip = page.locator("[data-panel=share] .tip")
        expect(tip).to_contain_text(f"step {i + 1} of 4, t = {figures.steps.t[i]:.2f}")
        expect(tip).to_contain_text(f"share: {100 * figures.share[i]:.2f} %")
    page.mouse.move(5, 5)
    expect(tip).to_be_hidden()


# Sentences.

DEAD = "schedule=notes_cosine&weighting=log_snr_density&N=4"
LEAST = "no step is dead: the smallest share is"


@pytest.mark.parametrize(
    ("query", "name", "sentence"),
    [
        (DEAD, "share", "at N = 4, 1 of 4 steps gets 0.0 % of the weight: t = 1.00"),
        (DEAD, "weight", "at the 4 steps, w = 114.87, 159.92, 112.41, 0.00"),
        ("weighting=snr&N=1", "share", "at N = 1, the loss is always 0: no step gets any weight"),
        (
            "weighting=log_snr_density_of_steps&N=4",
            "share",
            "at N = 4, 2 of 4 steps get 0.0 % of the weight together: t = 0.25, 1.00",
        ),
        (
            "weighting=constant&N=4",
            "share",
            f"at N = 4, {LEAST} 25.00 % of the weight, 1.00 times the fair share, at t = 0.25",
        ),
        ("N=64", "share", f"at N = 64, {LEAST} 0.04 % of the weight, 0.02 times the fair share, at t = 0.50"),
        ("", "schedule", "at t = 1, α = 0: training ends in pure noise, where sampling starts"),
        (
            "schedule=discrete_linear",
            "schedule",
            "at t = 1, α = 0.0064: sampling starts from pure noise, which training never shows",
        ),
        (
            "schedule=discrete_linear&prediction=eps",
            "amplification",
            "an ε error is magnified most at t = 1.00: 157.41 times",
        ),
        (
            "prediction=x",
            "amplification",
            "an ε error is magnified without bound at t = 1.00, where α = 0; an error in x at most 1.00 times",
        ),
        (
            "N=1",
            "sensitivity",
            "an error where the teacher's two steps end, at t″ = t − 1/N, is magnified most at t = 1.00: 1.00 times",
        ),
    ],
)
def test_what_is_said(open_page, query, name, sentence):
    expect(caption(open_page(query), name)).to_have_text(sentence)


# Movement.


def test_no_frame_is_without_a_picture_and_a_fast_drag_leaves_no_queue(open_page):
    page = open_page("N=1024&T=1024&log_snr_min=-30")  # λ_min moves every panel
    page.evaluate(
        """async () => {
            Object.assign(window, {empty: 0, seen: 0, drawn: 0, watching: true});
            const figures = [...document.querySelectorAll('figure')];
            const look = () => {
                window.seen++;
                for (const f of figures) if (!f.querySelector('.marks')?.getBoundingClientRect().height) window.empty++;
                if (window.watching) requestAnimationFrame(look);
            };
            new MutationObserver(() => window.drawn++).observe(
                document.querySelector('[data-panel=weight] .marks'), {childList: true});
            look();
            const slider = document.querySelector('[data-knob=log_snr_min] [type=range]');
            for (let stop = -30; stop <= 10; stop += 0.25) {
                slider.value = stop;
                slider.dispatchEvent(new Event('input', {bubbles: true}));
                slider.dispatchEvent(new Event('input', {bubbles: true}));
                await new Promise(requestAnimationFrame);
            }
        }"""
    )
    assert_shows(page, ExplorerState(N=1024, T=1024, log_snr_min=10.0))
    empty, seen, changes = page.evaluate("() => (window.watching = false, [empty, seen, drawn])")
    assert empty == 0
    assert seen >= 161
    assert 1 < changes <= seen + 2  # of two movements in a frame, the last alone is drawn


# What else the page is, and is not.


def test_the_page_runs_no_script_but_its_own(page):
    script = "Object.assign(document.createElement('script'), {textContent: 'window.other = 1'})"
    page.evaluate(f"document.body.append({script})")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"window.other = 1\">')")
    eventually(page, lambda: sum("Content Security Policy" in said for said in page.complaints) == 2)
    assert settled(page).evaluate("window.other") is None
    page.complaints = [said for said in page.complaints if "Content Security Policy" not in said]


def test_the_module_serves_any_page_under_a_strict_policy(open_page):
    script = "mount(document.querySelector('#here'), {N: 4, weighting: 'snr'})"
    files = plain_page(script, policy="default-src 'self'; img-src data:")
    page = open_page(files=files)
    expect(caption(page, "share")).to_have_text("at N = 4, 1 of 4 steps gets 0.0 % of the weight: t = 1.00")
    knob(page, "N").locator("input").fill("3")
    expect(caption(page, "share")).to_contain_text("at N = 8")
    page.wait_for_timeout(300)
    assert page.evaluate("location.hash") == ""  # the address is that page's own
    with page.expect_download() as download:
        page.get_by_role("button", name="Save picture (PNG)").click()
    assert download.value.suggested_filename.endswith(".png")


MODEL = """
    const given = {settings: {weighting: 'snr', N: 4, clip_min: 1}, frozen: null};
    const values = {...given, knobs: ['N', 'clip_min'], panels: ['weight', 'share']};
    const listeners = {};
    window.model = {
        get: (name) => values[name],
        set: (changes) => Object.assign(values, changes),
        on: (name, act) => (listeners[name] = act),
        save_changes: () => (window.saved = structuredClone(values)),
        fromPython: (name, value) => ((values[name] = value), listeners[`change:${name}`]()),
    };
    explorer.render({model: window.model, el: document.querySelector('#here')});
"""


def test_a_notebooks_simple_form_has_what_it_is_asked_for_and_tells_its_model(open_page):
    page = open_page(files=plain_page(MODEL))
    assert page.locator("[data-knob]").evaluate_all("all => all.map(e => e.dataset.knob)") == ["N", "clip_min"]
    assert page.locator("[data-panel]").evaluate_all("all => all.map(e => e.dataset.panel)") == ["weight", "share"]
    assert page.locator("[aria-pressed]").count() == 0
    knob(page, "N").locator("input").fill("3")
    state = ExplorerState(weighting="snr", N=8, clip_min=1.0)
    assert from_dict(page.evaluate("saved.settings")) == state
    page.get_by_label("compare").check()
    assert from_dict(page.evaluate("saved.frozen")) == state
    page.get_by_role("button", name="Reset").click()  # also what has no knob is as it was
    assert from_dict(page.evaluate("saved.settings")) == replace(state, N=4)
    assert page.evaluate("saved.frozen") is None
    page.evaluate("document.activeElement.blur(), model.fromPython('settings', {N: 2, weighting: 'constant'})")
    expect(caption(page, "share")).to_contain_text("at N = 2, no step is dead: the smallest share is 50.00 %")
    assert knob(page, "N").locator("input").input_value() == "1"
    page.evaluate("model.fromPython('frozen', {...saved.settings, N: 16})")
    expect(page.locator(".grey")).to_have_text("in grey: steps N 16")


def test_a_panel_is_one_entry(open_page):
    another = "PANELS.another = {...PANELS.share, say: (f) => `${f.state.N} steps`}"
    page = open_page(files=plain_page(f"{another}; mount(document.querySelector('#here'), {{N: 8}})"))
    expect(caption(page, "another")).to_have_text("8 steps")
    assert len(shapes(page, "another", "bars")) == 8


def test_python_m_writes_one_file_that_opens_without_a_server(open_page, tmp_path):
    file = tmp_path / "explorer.html"
    command = [sys.executable, "-m", "pdlib.explorer", str(file), "--no-browser"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith(file.as_uri())
    page = open_page(url=f"{file.as_uri()}#N=4")
    assert_shows(page, ExplorerState(N=4))
    knob(page, "N").locator("input").fill("1")
    assert_address(page, ExplorerState(N=2))
    assert "notebook" not in page.inner_text("body").lower().replace("notebook 04", "")


# In JupyterLab.


def test_the_stored_notebook_is_alive_without_a_kernel_or_a_picture_where_not_trusted(browser, tmp_path):
    stored = NOTEBOOKS / "explorer.ipynb"
    assert stored.stat().st_size < 500_000
    bundles = [output.data for cell in nbformat.read(stored, 4).cells for output in cell.get("outputs", [])]
    assert any("image/png" in bundle for bundle in bundles)
    settings = tmp_path / "settings" / "@jupyterlab"
    for name, chosen in {
        "apputils-extension/themes": {"theme": "JupyterLab Dark"},
        "apputils-extension/notification": {"fetchNews": "false"},
    }.items():
        (settings / name).parent.mkdir(parents=True, exist_ok=True)
        (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(chosen))
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(stored, work / "trusted.ipynb")
    changed = nbformat.read(stored, 4)  # what is trusted is the content
    changed.cells.append(nbformat.v4.new_markdown_cell("one more"))
    nbformat.write(changed, work / "untrusted.ipynb")
    home = os.environ | {"JUPYTER_DATA_DIR": str(tmp_path / "data")}
    subprocess.run([sys.executable, "-m", "jupyter", "trust", "trusted.ipynb"], cwd=work, env=home, check=True)
    options = ["--IdentityProvider.token=", f"--LabApp.user_settings_dir={tmp_path / 'settings'}", "--allow-root"]
    options += [f"--LabApp.workspaces_dir={tmp_path / 'workspaces'}"]
    with serve("jupyter", "lab", *options, cwd=work, env=home) as url:
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        page.set_default_timeout(30_000)
        page.goto(f"{url}/lab/workspaces/a/tree/untrusted.ipynb")
        expect(page.locator(".jp-OutputArea-output img")).to_be_visible(timeout=30_000)
        assert page.locator(".pdlib-explorer").count() == 0
        page.goto(f"{url}/lab/workspaces/b/tree/trusted.ipynb")
        expect(caption(page, "share")).to_contain_text("at N = 16", timeout=30_000)
        cells = nbformat.read(stored, 4).cells
        expect(page.locator(".jp-Cell")).to_have_count(len(cells))
        expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
        slider = knob(page, "N").locator("input")
        slider.focus()
        for key in ("ArrowLeft", "ArrowLeft", "d", "d", "a"):  # the last three are Lab's: delete the cell, insert one
            slider.press(key)
        expect(caption(page, "share")).to_contain_text("at N = 4")
        assert settled(page).locator(".jp-Cell").count() == len(cells)
        expect(page.locator(".pdlib-explorer pre")).to_contain_text('WeightingExplorer.from_link("N=4")')
        assert page.locator(".pdlib-explorer input[type=checkbox]").count() == 6
        paper = page.locator(".pdlib-explorer").evaluate("e => getComputedStyle(e).backgroundColor")
        assert luminance(paper) < 0.2
        page.locator(".pdlib-explorer").screenshot(path=ARTIFACTS / "explorer-lab-dark.png")
        page.close()
