"""The pages that need no kernel, in a browser, served by a plain file server: what they show against Python's."""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from itertools import product
from pathlib import Path

import pytest
import torch
from axe_playwright_python.base import AXE_FILE_PATH
from browser import eventually, find_chromium, serve_folder, settled
from playwright.sync_api import expect
from tiny import COSINE, PerClass

from pdlib.denoiser import Denoiser, OfClasses
from pdlib.exact import EmpiricalDenoiser, MixtureDenoiser
from pdlib.grids import Grid
from pdlib.networks import network_from_config
from pdlib.objectives import distillation_target
from pdlib.sampling import sample
from pdlib.schedules import schedule_from_config

PLAY = Path(__file__).parents[1] / "site" / "play"
PAGES = ("draw", "straighten", "x_tilde")
WAYS = ("as-it-should-be", "off-by-one", "snr", "never-promoted")
in_browser = pytest.mark.skipif(
    (find_chromium() is None or shutil.which("npm") is None) and "PDLIB_BROWSER_REQUIRED" not in os.environ,
    reason="needs chromium and npm on the PATH",
)


def script(name):
    spec = importlib.util.spec_from_file_location(f"play_{name}", PLAY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stored = script("train").stored


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "play"
    try:
        script("build").build(folder)
    except SystemExit as error:  # no network, as a rule
        if "PDLIB_BROWSER_REQUIRED" in os.environ:
            raise RuntimeError(error) from error
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def address(built):
    with serve_folder(built.parent) as served:
        yield f"{served}play"


@pytest.fixture(scope="module")
def open_page(browser, address):
    opened = []

    def opens(name, **options):
        page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
        opened.append(page)
        page.set_default_timeout(20_000)
        page.wrong, page.asked = [], []
        page.on("console", lambda message: page.wrong.append(message.text))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(f"{address}/{name}.html")
        page.wait_for_selector("body[data-ready]", timeout=60_000)
        return page

    yield opens
    for page in opened:
        assert settled(page).wrong == []
        assert not [url for url in page.asked if not url.startswith((address, "blob:"))]
        page.close()


@pytest.fixture(scope="module")
def draw(open_page):
    return open_page("draw")


@pytest.fixture(scope="module")
def straighten(open_page):
    return open_page("straighten", reduced_motion="reduce")


@pytest.fixture(scope="module")
def x_tilde(open_page):
    return open_page("x_tilde")


def saved(page):
    """The numbers behind what is shown, as the page saves them."""
    expect(page.locator(".stale")).to_have_count(0, timeout=30_000)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the numbers").click()
    return json.loads(Path(download.value.path()).read_text(encoding="utf-8"))


def last(denoiser, z, steps=None):
    return deque(sample(denoiser, steps, z=z), maxlen=1).pop()


@functools.cache
def networks(folder=PLAY / "models" / "digits"):
    """Those of the page, N -> denoiser, with their weights as they are stored."""
    found = {}
    for name, about in json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["networks"].items():
        schedule = schedule_from_config(about["schedule"])
        grid, shape = Grid(**about["grid"]), tuple(about["shape"])
        like = Denoiser(network_from_config(about["network"]), about["prediction"], schedule, grid, shape)
        (found[int(name)],) = stored(folder / f"{name}.q16", like, [grid])
    return found


@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_reads_well_and_loads_only_what_it_needs(name, request):
    page = request.getfixturevalue(name)
    assert "pdlib" in page.title() and page.locator("nav a").first.get_attribute("href") == "../index.html"
    assert any(url.endswith(".wasm") for url in page.asked) == (name == "draw")
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert policy.startswith("default-src 'self'") and "unsafe-inline" not in policy and "'unsafe-eval'" not in policy
    axe = Path(AXE_FILE_PATH).read_text(encoding="utf-8")
    page.evaluate(axe)
    for width, scheme in product((400, 1280), ("light", "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert settled(page).evaluate("document.documentElement.scrollWidth") <= width
        for wrong in page.evaluate("axe.run()")["violations"]:
            assert wrong["impact"] not in ("serious", "critical"), (
                width,
                scheme,
                wrong["help"],
                wrong["nodes"][0]["html"],
            )


@in_browser
@pytest.mark.parametrize("count", ["1", "16"])
def test_images_are_those_of_python(count, draw):
    draw.get_by_label("at once").select_option(count)
    numbers, denoisers = saved(draw), networks()
    noise = torch.tensor(numbers["noise"]).view(numbers["shape"])
    assert len(noise) == int(count) and 0.8 < noise.std() < 1.2
    teacher = denoisers[max(denoisers)]
    for steps, denoiser in denoisers.items():
        found = torch.tensor(numbers[str(steps)]).view(noise.shape)
        assert (found - last(denoiser, noise)).abs().max() <= 1e-3
        if denoiser is not teacher:
            found = torch.tensor(numbers[f"hurried-{steps}"]).view(noise.shape)
            assert (found - last(teacher, noise, steps)).abs().max() <= 1e-3


@in_browser
def test_the_keyboard_alone_makes_noise_and_mixes_two_as_on_a_sphere(draw):
    def noise_after(key, at, times=1):
        at.focus()  # to save the numbers is a click elsewhere
        for _ in range(times):
            draw.keyboard.press(key)
        return torch.tensor(saved(draw)["noise"])

    draw.get_by_label("at once").select_option("1")
    morph, noise = draw.get_by_label("from one noise"), draw.get_by_role("slider", name="Noise: drag")
    first = torch.tensor(saved(draw)["noise"])
    one = noise_after("Enter", draw.get_by_role("button", name="New noise"))
    assert not torch.allclose(one, first)
    other = noise_after("End", morph)
    torch.testing.assert_close(noise_after("Home", morph), one, rtol=0, atol=1e-5)
    half = noise_after("ArrowRight", morph, times=50)
    torch.testing.assert_close(half, (one + other) / 2**0.5, rtol=0, atol=1e-5)
    noise_after("Home", morph)
    turned = noise_after("ArrowRight", noise)
    assert (turned - one).abs().max() > 0 and turned @ one > 0.9 * turned.norm() * one.norm()
    torch.testing.assert_close(noise_after("ArrowLeft", noise), one, rtol=0, atol=1e-5)


@in_browser
def test_dragging_turns_the_noise_and_every_picture_follows(draw):
    draw.get_by_label("at once").select_option("1")
    before = saved(draw)
    box = draw.locator("#noise").bounding_box()
    draw.mouse.move(box["x"] + 10, box["y"] + 40)
    draw.mouse.down()
    draw.mouse.move(box["x"] + 80, box["y"] + 10, steps=4)
    draw.mouse.up()
    after = saved(draw)
    assert all(after[name] != before[name] for name in ("noise", *map(str, networks())))


@in_browser
def test_a_class_can_be_asked_for(built, browser, address):
    from pdlib.interop.onnx import save_for_page

    denoisers = {}
    for steps in (2, 1):
        torch.manual_seed(steps)
        network = PerClass(4)
        for weights in network.parameters():
            weights.data = weights + 0.3 * torch.randn(weights.shape)
        denoisers[str(steps)] = Denoiser(network, "x", COSINE, Grid(steps), (1, 2, 2)).requires_grad_(False)
    save_for_page(denoisers, built / "models" / "classes")
    page = browser.new_page()
    page.route("**/models/digits/*", lambda route: route.continue_(url=route.request.url.replace("digits", "classes")))
    page.goto(f"{address}/draw.html")
    page.wait_for_selector("body[data-ready]")
    images = {}
    for label in (0, 2):
        page.get_by_label("class").select_option(str(label))
        numbers = saved(page)
        noise = torch.tensor(numbers["noise"]).view(numbers["shape"])
        for name, denoiser in denoisers.items():
            images[label] = torch.tensor(numbers[name]).view(noise.shape)
            assert (images[label] - last(OfClasses(denoiser, label), noise, denoiser.grid)).abs().max() <= 1e-3
    assert (images[0] - images[2]).abs().max() > 0.01
    page.close()


class Perfect:
    """A student that says what it is taught to the last digit: x̃, but where its loss has no weight, its teacher's x̂."""

    schedule = COSINE

    def __init__(self, taught_by, copied_from, grid, dead):
        self.taught_by, self.copied_from, self.grid, self.dead = taught_by, copied_from, grid, dead

    def __call__(self, z, t):
        alpha, _ = self.schedule.alpha_sigma(t[:1])
        if self.dead and alpha == 0:
            return self.copied_from(z, t)
        return distillation_target(self.taught_by, z, t, self.grid.N)


def students(data, way):
    """N -> the first teacher, and the students of a chain, as the page has them."""
    if data == "moons":
        folder = PLAY / "models" / "moons"
        about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        schedule = schedule_from_config(about["schedule"])
        like = Denoiser(network_from_config(about["network"]), about["prediction"], schedule, None, (2,))
        first = stored(folder / "teacher.q16", like, [Grid(**about["teacher"])])
        chain = stored(folder / f"{way}.q16", like, [Grid(**grid) for grid in about["chains"][way]])
        return {one.grid.N: one for one in first + chain}
    means = torch.tensor([[-1.0, -0.6], [1.0, -0.6], [0.0, 1.0]])
    teacher = MixtureDenoiser(torch.tensor([0.5, 0.3, 0.2]), means, 0.03 * torch.eye(2).expand(3, 2, 2), COSINE)
    teacher.grid = Grid(32)
    missing = int(way == "off-by-one")
    found = parent = {32: teacher}
    for grid in Grid(32, missing).down_to(1 + missing):
        parent = found[2 * grid.N]
        found[grid.N] = Perfect(teacher if way == "never-promoted" else parent, parent, grid, way == "snr")
    return found


@in_browser
@pytest.mark.parametrize(("data", "way"), [*product(("moons", "heaps"), WAYS)])
def test_the_animations_end_where_sample_does(data, way, straighten):
    page, chain = straighten, students(data, way)
    page.get_by_role("combobox", name="data", exact=True).select_option(data)
    page.get_by_label("break it").select_option(way)
    page.get_by_label("steps N").select_option("32")
    halve = page.get_by_role("button", name="Halve")
    goal, ends, steps = last(chain[32], torch.tensor(saved(page)["noise"]).view(-1, 2)), {}, 32
    while steps > min(chain):
        steps //= 2
        halve.click()
        expect(page.get_by_label("steps N")).to_have_value(str(steps))
        expect(page.locator("#status")).to_contain_text(f"{steps - chain[steps].grid.missing} in place of 32")
    expect(halve).to_be_disabled()
    for steps in (8, min(chain)):
        page.get_by_label("steps N").select_option(str(steps))
        expect(page.locator("#right-title")).to_contain_text(f", {steps - chain[steps].grid.missing} step")
        numbers = saved(page)
        noise = torch.tensor(numbers["noise"]).view(-1, 2)
        ends[steps] = torch.tensor(numbers["shown"]["student"]).view(-1, 2)
        assert numbers["t"] == 0 and (ends[steps] - last(chain[steps], noise)).abs().max() <= 1e-3
        assert (torch.tensor(numbers["shown"]["teacher"]).view(-1, 2) - goal).abs().max() <= 1e-3
    away = {steps: (end - goal).square().mean().sqrt().item() for steps, end in ends.items()}
    whole = way == "as-it-should-be"
    assert (away[min(chain)] < 0.05) == whole, away  # halving straightens, and what is broken shows in the end
    assert away[8] < 0.12, away


@in_browser
def test_the_animation_plays_to_its_end_and_can_be_held(straighten):
    page = straighten
    page.emulate_media(reduced_motion="no-preference")
    page.get_by_role("combobox", name="data", exact=True).select_option("moons")
    page.get_by_label("break it").select_option("as-it-should-be")
    page.get_by_label("steps N").select_option("2")
    expect(page.locator("#right-title")).to_have_text("Student, 2 steps")
    page.get_by_role("button", name="Play").click()
    slider = page.get_by_label("from noise to data")
    eventually(page, lambda: float(slider.input_value()) > 0.2)
    slider.focus()
    page.keyboard.press("Home")
    numbers = saved(page)
    assert numbers["t"] == 1 and numbers["shown"]["student"] == numbers["noise"]
    page.get_by_role("button", name="Play").focus()
    page.keyboard.press("Enter")
    eventually(page, lambda: float(slider.input_value()) == 1)
    numbers = saved(page)
    wanted = last(students("moons", "as-it-should-be")[2], torch.tensor(numbers["noise"]).view(-1, 2))
    assert (torch.tensor(numbers["shown"]["student"]).view(-1, 2) - wanted).abs().max() <= 1e-3
    page.emulate_media(reduced_motion="reduce")


TWO_POINTS = EmpiricalDenoiser(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), COSINE)


@in_browser
@pytest.mark.parametrize(("N", "i"), [(1, 1), (2, 1), (4, 3), (8, 8)])
def test_the_target_moves_as_distillation_target_does(N, i, x_tilde):
    page = x_tilde
    page.get_by_label("student’s steps N").select_option(str(N))
    page.get_by_label("its step i").select_option(str(i))
    for z in ("-1.3", "0.5"):
        page.get_by_label("where both start").fill(z)
        numbers = saved(page)
        z_t, t = torch.tensor([[float(z)]], dtype=torch.float64), torch.tensor([i / N], dtype=torch.float64)
        wanted = distillation_target(TWO_POINTS, z_t, t, N).item()
        assert numbers["xTilde"] == pytest.approx(wanted, abs=1e-9)
        assert numbers["landed"] == pytest.approx(numbers["zEnd"], abs=1e-9)
        expect(page.locator("#values")).to_contain_text(f"x̃, the target{wanted:.3f}".replace("-", "−"))


@in_browser
def test_z_moves_by_drag_and_by_key_and_what_is_not_the_target_misses(open_page):
    page = open_page("x_tilde")  # a browser saves ten files of a page without asking
    handle = page.get_by_role("slider", name="z at time t")
    handle.scroll_into_view_if_needed()
    start = saved(page)["z"]
    handle.focus()
    page.keyboard.press("ArrowUp")
    higher = saved(page)["z"]
    assert higher > start
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 50, steps=5)
    page.mouse.up()
    numbers = saved(page)
    assert numbers["z"] > higher
    moved = handle.bounding_box()
    assert moved["y"] + moved["height"] / 2 == pytest.approx(y - 50, abs=2)  # it stays under the pointer
    page.get_by_label("the student says").select_option("first")
    numbers = saved(page)
    assert abs(numbers["landed"] - numbers["zEnd"]) > 0.01
    expect(page.get_by_role("status")).to_contain_text("from where the teacher’s two do")


def test_without_npm_the_build_says_what_to_install(tmp_path):
    for name in ("play/build.py", "package.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(PLAY.parent / name, tmp_path / name)
    command = [sys.executable, tmp_path / "play" / "build.py", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert done.returncode == 1 and "install Node.js" in done.stderr and done.stderr.count("\n") == 1


def test_what_is_stored_is_small():
    sizes = [path.stat().st_size for path in (PLAY / "models").rglob("*") if path.is_file()]
    assert len(sizes) > 10 and max(sizes) < 1_000_000 and sum(sizes) < 8_000_000
