"""Chromium, driven by playwright, and servers to point it at; for the tests in a browser, and the benchmarks."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from playwright.sync_api import Browser, Page, sync_playwright

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# A background service of the browser's would call its maker's hosts.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield browser
        browser.close()


def settled(page: Page) -> Page:
    """The page, when two frames have passed: what was done to it before is drawn, even what waits for a next frame.

    Whatever is read from a page without waiting, as by ``evaluate``, is to be read from a settled one. What takes
    longer than two frames is to be waited for by ``expect`` or ``eventually``.
    """
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page


def eventually(page: Page, happened: Callable[[], bool]) -> None:
    """Wait until something holds; AssertionError if it does not within ten seconds."""
    until = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < until, "it did not happen within ten seconds"
        page.wait_for_timeout(25)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class _FileServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        pass  # a page that is left does not wait for all it asked for


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a folder's files until the block ends; yields the address."""
    with _FileServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def serve(*command: str, path: str = "", cwd: Path = NOTEBOOKS, env: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Run ``python -m command --port …`` until the block ends; yields the address at which it answers."""
    port = free_port()
    address = f"http://localhost:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--no-browser", "--port", str(port)],
        cwd=cwd,
        env={**env, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(240):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
            try:
                urllib.request.urlopen(address + path, timeout=2)
                break
            except urllib.error.HTTPError:
                break  # it answers
            except OSError:
                time.sleep(0.25)
        else:
            raise RuntimeError(f"{' '.join(command)} does not answer at {address}")
        yield address
    finally:
        process.terminate()
        process.wait(20)
