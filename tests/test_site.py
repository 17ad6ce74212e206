"""The book, built once and looked at in a browser, served by a plain file server."""

import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
import yaml
from axe_playwright_python.base import AXE_FILE_PATH
from browser import find_chromium, serve_folder, settled
from filelock import FileLock
from playwright.sync_api import expect

import pdlib
from pdlib.exercises import questions

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("[!.]*.ipynb"))
TESTED = [path.stem for path in sorted((ROOT / "pdlib" / "exercises" / "self_tests").glob("*.json"))]
in_browser = pytest.mark.skipif(
    find_chromium() is None and "PDLIB_BROWSER_REQUIRED" not in os.environ, reason="needs chromium on the PATH"
)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the built site; where several processes test, the first one builds it for all."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    if shutil.which("npm") is None and "PDLIB_BROWSER_REQUIRED" not in os.environ:
        pytest.skip("needs npm on the PATH")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            done = subprocess.run([sys.executable, ROOT / "site" / "build.py", folder], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def pages(site):
    """Every page's HTML by its path in the site."""
    found = sorted(site.rglob("*.html"))
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in found}


@pytest.fixture(scope="module")
def address(site):
    with serve_folder(site) as served:
        yield served


def watched(browser, **options):
    """A page that keeps what went wrong: errors in the console, failed requests, and requests elsewhere."""
    page = browser.new_page(**options)
    page.wrong = []
    page.on("console", lambda said: said.type == "error" and page.wrong.append(said.text))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    elsewhere = ("http://127.0.0.1", "file:", "data:", "blob:")
    page.on("request", lambda asked: asked.url.startswith(elsewhere) or page.wrong.append(asked.url))
    return page


# What is in the files.


def linked(html, kind):
    """The addresses that a page's tags point to, but for what is on other hosts and what is in the page itself."""
    found = re.findall(rf'<(?:{kind})\b[^>]*?\s(?:href|src)="([^"]*)"', html)
    return {unquote(one).replace("&amp;", "&") for one in found if not re.match(r"[a-z]+:", one)}


def test_every_link_inside_leads_somewhere(site, pages):
    """All of them; and from the start page every page is reached."""
    ids = {name: {"", *re.findall(r'\sid="([^"]+)"', html)} for name, html in pages.items()}
    lost, leads = [], {name: set() for name in pages}
    for name, html in pages.items():
        for link in linked(html, "a|link|img|script"):
            place, anchor = urldefrag(urljoin(name, re.sub(r"\?[^#]*", "", link)))
            place = place or name
            leads[name].add(place)
            if not (site / place).is_file() or (place in ids and anchor not in ids[place]):
                lost.append((name, link))
    assert lost == []
    reached, new = set(), {"index.html"}
    while new:
        reached |= new
        new = set().union(*(leads[name] for name in new)) & pages.keys() - reached
    assert pages.keys() - reached <= {"search.html"}


def test_every_page_keeps_a_strict_policy_and_is_small(site, pages):
    total = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert total < 60e6
    for name, html in pages.items():
        policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
        assert policy.startswith("default-src 'self'"), name
        assert not re.search("unsafe|http", policy.replace("'wasm-unsafe-eval'", "")), name
        scripts = re.findall(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", html, re.DOTALL)
        hashes = {f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts}
        assert hashes <= set(policy.replace(";", "").split()), name
        assert not re.search(r"<style|<[^>]*\s(?:style|on\w+)=", re.sub(r"(?s)<script.*?</script>", "", html)), name
        loaded = {urljoin(name, link).partition("?")[0] for link in linked(html, "link|img|script")}
        files = {site / file for file in loaded if (site / file).is_file()}
        assert len(html.encode()) + sum(file.stat().st_size for file in files if file.suffix != ".html") < 1.5e6, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.relative_to(ROOT).as_posix() for path in NOTEBOOKS])
def test_a_notebooks_page_shows_what_is_stored_and_needs_no_kernel(path, pages, site):
    name = path.relative_to(ROOT / "notebooks").with_suffix("").as_posix()
    html = pages[f"{name}.html"]
    outputs = [
        output.get("data", {})
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", [])
    ]
    assert html.count("<img ") >= sum("image/png" in data for data in outputs) or name == "explorer"  # which is alive
    assert all(len(alt) > 10 for alt in re.findall(r'<img alt="([^"]*)"', html))
    assert not re.search("widget-view|application/javascript|var questions|not attempted yet", html) or "/" in name
    assert html.count("colab.research.google.com/github/") == html.count("mybinder.org/v2/gh/") == 1
    assert (site / "_sources" / f"{name}.ipynb").read_bytes() == path.read_bytes()


def test_previous_and_next_stay_on_the_main_road(pages):
    road = [f"{path.stem}.html" for path in NOTEBOOKS if path.parent.name == "notebooks" and path.stem[0] == "0"]
    assert len(road) == 10
    for one, other in pairwise(road):
        assert re.search(r'class="next-page" href="([^"]*)"', pages[one])[1] == other
        assert re.search(r'class="prev-page" href="([^"]*)"', pages[other])[1] == one


def test_the_library_is_there_name_by_name(pages):
    library = "".join(html for name, html in pages.items() if name.startswith("library/"))
    described = {name.rpartition(".")[2] for name in re.findall(r'id="(pdlib\.\w+\.\w+)"', library)}
    assert set(pdlib.__all__) - {"interop"} <= described


def test_the_workflows_test_what_is_supported_and_publish_what_is_built():
    tests, site = (yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text()) for name in ("tests", "site"))
    makefile = (ROOT / "Makefile").read_text()
    low, high = map(int, re.search(r"\(3, (\d+)\) <= sys.version_info < \(3, (\d+)\)", makefile).groups())
    matrix = tests["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(low, high)]
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    steps = tests["jobs"]["test"]["steps"]
    assert re.search(r"\.\[[a-z,]+\]", makefile)[0] in " ".join(step.get("run", "") for step in steps)
    assert {"path": "site/build"} in [step.get("with") for step in site["jobs"]["publish"]["steps"]]


# What a browser makes of them.


# What sticks out of the window, and is in nothing that scrolls.
TOO_WIDE = """() => [...document.querySelectorAll("main *, article *")].filter((part) => {
    if (part.closest("svg, .visually-hidden") || part.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let box = part; box; box = box.parentElement)
        if (/auto|scroll|clip/.test(getComputedStyle(box).overflowX) && box.tagName != "BODY") return false;
    return true;
}).map((part) => part.outerHTML.slice(0, 200))"""


FLATTEN = "document.querySelectorAll('.highlight pre, math').forEach(part => (part.textContent += ''))"


@in_browser
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (400, "dark")])
def test_every_page_opens_without_an_error_and_fits(width, theme, browser, address, pages):
    page = watched(browser, viewport={"width": width, "height": 900}, color_scheme=theme)
    axe, paints = AXE_FILE_PATH.read_text(), []
    for number, name in enumerate(pages):
        page.goto(address + name)
        assert settled(page).wrong == [], name
        assert page.evaluate(TOO_WIDE) == [], name
        paints.append(page.evaluate("performance.getEntriesByType('paint')[0]?.startTime ?? 0"))
        light = page.evaluate("getComputedStyle(document.body).backgroundColor").startswith("rgb(255")
        assert light == (theme == "light"), name
        whole = name == "03_x_tilde.html"  # with every letter of code and formulas, whose colours all pages share
        if whole or number % 2 == (theme == "light"):
            if not whole:
                page.evaluate(FLATTEN)
            page.evaluate(axe)
            found = page.evaluate("axe.run({resultTypes: ['violations']})")
            grave = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
            grave = [(one["id"], one["nodes"][0]["html"]) for one in grave]
            assert grave == [], name
    assert sorted(paints)[len(paints) // 2] < 1000
    page.close()


@in_browser
def test_self_tests_answer_by_keyboard(browser, address):
    page = watched(browser)
    page.goto(address + "03_x_tilde.html")
    numeric, choice = (page.locator(f"form.quiz:has({one})").first for one in ("[inputmode]", "[type=radio]"))

    def answered(text):
        numeric.locator("input").focus()
        page.keyboard.press("Control+A")
        page.keyboard.type(text)
        page.keyboard.press("Enter")
        settled(page)
        status = numeric.get_by_role("status")
        return status.get_attribute("class"), status.inner_text()

    for text in ("0.8", "0,8", "28/35"):
        assert answered(text) == ("right", questions("03_x_tilde")[0]["answers"][0]["feedback"])
    assert answered("0.35") == ("wrong", questions("03_x_tilde")[0]["answers"][1]["feedback"])
    assert answered("−1000") == ("wrong", questions("03_x_tilde")[0]["answers"][-1]["feedback"])
    assert answered("much") == ("", "Type a number first.")
    choice.locator("input").first.focus()
    page.keyboard.press("Enter")
    expect(choice.get_by_role("status")).to_have_text("Choose one first.")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    first = next(question for question in questions("03_x_tilde") if question["type"] == "multiple_choice")
    expect(choice.get_by_role("status")).to_have_text(first["answers"][1]["feedback"])
    assert page.wrong == []
    page.close()


ANSWER = """answers => [...document.querySelectorAll("form.quiz")].map((form, k) => {
    const inputs = form.querySelectorAll("input");
    if (inputs.length > 1) inputs[answers[k]].checked = true; else inputs[0].value = answers[k];
    form.requestSubmit();
    return form.querySelector("[role=status]").className;
})"""


@in_browser
def test_the_right_answers_are_right_and_no_others(browser, address):
    page = watched(browser)
    for name in TESTED:
        page.goto(f"{address}{name}.html")
        right, wrong = [], []
        for question in questions(name):
            answers = question["answers"]
            if question["type"] == "numeric":
                middles = {kind: [sum(a["range"]) / 2 for a in answers[:-1] if a["correct"] == kind] for kind in (1, 0)}
            else:
                middles = {kind: [k for k, a in enumerate(answers) if a["correct"] == kind] for kind in (1, 0)}
            right.append(middles[1][0])
            wrong.append(middles[0][0])
        assert page.evaluate(ANSWER, right) == ["right"] * len(right), name
        assert page.evaluate(ANSWER, wrong) == ["wrong"] * len(wrong), name
    page.close()


@in_browser
def test_search_theme_and_folded_code_work(browser, address):
    page = watched(browser, color_scheme="dark")
    page.goto(address)
    page.get_by_placeholder("Search").first.fill("off by one")
    page.keyboard.press("Enter")
    expect(page.locator("#search-results li a[href*='05_alpha_T_failure.html']").first).to_be_visible()
    page.goto(address + "03_x_tilde.html")
    code = page.locator("details").first
    expect(code.locator("pre")).to_be_hidden()
    code.locator("summary").click()
    expect(code.locator("pre")).to_be_visible()
    dark = settled(page).evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator(".theme-toggle-content button").click()  # from the system's to the other one
    expect(page.locator("body")).not_to_have_css("background-color", dark)
    page.goto(address)
    expect(page.locator("body")).not_to_have_css("background-color", dark)
    assert page.wrong == []
    page.close()


@in_browser
@pytest.mark.parametrize("place", ["server", "disk"])
def test_the_explorer_is_alive_in_the_book(place, browser, address, site):
    page = watched(browser)
    page.goto(f"{address}explorer.html" if place == "server" else (site / "explorer.html").as_uri())
    page.wait_for_selector("#explorer svg")
    before = settled(page).locator("#explorer").inner_html()
    page.get_by_role("button", name="4 steps", exact=True).click()
    page.wait_for_function("before => document.querySelector('#explorer').innerHTML !== before", arg=before)
    assert page.wrong == []
    page.close()


@in_browser
def test_it_opens_from_the_disk_too(browser, site):
    page = watched(browser)
    for name in ("index.html", "03_x_tilde.html"):
        page.goto((site / name).as_uri())
        assert settled(page).wrong == []
        assert page.evaluate("getComputedStyle(document.querySelector('.sidebar-tree')).fontSize") == "14px"
    assert page.evaluate(ANSWER, [0] * len(questions("03_x_tilde")))[0] == "wrong"
    page.close()
