"""Builds the book from the stored notebooks: ``python site/build.py [FOLDER]``, by default site/build."""

import inspect
import shutil
import sys
import tempfile
from base64 import b64decode
from pathlib import Path

from book import LIBRARY, NOTEBOOKS, cells
from play.build import build as play
from sphinx.cmd.build import main as sphinx

import pdlib
from pdlib.explorer.widget import CSS

HERE = Path(__file__).parent
OPTIONS = {"class": "   :members:", "function": "", "data": "   :no-value:"}


def stage(source: Path) -> None:
    """Puts all pages into one folder: the notebooks as they are, those of this folder, and one for each core file."""
    shutil.copytree(NOTEBOOKS, source, ignore=shutil.ignore_patterns("runs", ".*", "*.json"))
    for page in HERE.glob("*.md"):
        shutil.copy(page, source)
    (source / "library").mkdir()
    for file, names in LIBRARY.items():
        directives = [f".. automodule:: pdlib.{file}"]
        for name in names:
            thing = getattr(pdlib, name)
            kind = "class" if isinstance(thing, type) else "function" if inspect.isfunction(thing) else "data"
            directives.append(f".. auto{kind}:: pdlib.{file}.{name}\n{OPTIONS[kind]}")
        text = "\n\n".join(directives)
        (source / "library" / f"{file}.md").write_text(f"# {file}\n\n```{{eval-rst}}\n{text}\n```\n", encoding="utf-8")
    promise = next(
        output["data"]["image/png"]
        for cell in cells("00_start_here")
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    )
    (source / "promise.png").write_bytes(b64decode("".join(promise)))


def build(out: Path) -> int:
    """Puts the site in place of what is in a folder, if it is built without a warning; Sphinx's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        source, doctrees, site = (Path(folder) / name for name in ("source", "doctrees", "site"))
        stage(source)
        code = sphinx(["-q", "-W", "--keep-going", "-c", str(HERE), "-d", str(doctrees), str(source), str(site)])
        if code == 0:
            (site / "_static" / "explorer.css").write_text(CSS, encoding="utf-8")
            play(site / "play")
            shutil.rmtree(out, ignore_errors=True)
            shutil.move(site, out)
    return code


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else HERE / "build").resolve()))
