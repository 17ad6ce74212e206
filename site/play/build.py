"""Puts all that these pages need into a folder: themselves, their models, and onnxruntime-web from npm.

    python site/play/build.py site/build/play
    python site/play/build.py                    here, for a server of the folder site/

Versions are pinned in site/package.json; nothing is fetched where they are there already.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "node_modules" / "onnxruntime-web"
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def build(folder: Path = HERE) -> None:
    """Copy the pages and the runtime into a folder; SystemExit, in one line, where npm is missing or fails."""
    with FileLock(HERE.parent / ".npm.lock"):  # one at a time
        _fetch()
    if folder.resolve() != HERE.resolve():
        shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("*.py", "ort", "__pycache__"), dirs_exist_ok=True)
    (folder / "ort").mkdir(exist_ok=True)
    for name in RUNTIME:
        shutil.copyfile(PACKAGE / "dist" / name, folder / "ort" / name)


def _fetch() -> None:
    """npm's packages into site/node_modules, unless they are there already, of the pinned version."""
    wanted = json.loads((HERE.parent / "package.json").read_text(encoding="utf-8"))["dependencies"]["onnxruntime-web"]
    about = PACKAGE / "package.json"
    if about.is_file() and json.loads(about.read_text(encoding="utf-8"))["version"] == wanted:
        return
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(
            "the pages that draw need onnxruntime-web from npm: install Node.js 20 or later, and try again"
        )
    done = subprocess.run([npm, "ci", "--silent"], cwd=HERE.parent, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise SystemExit(f"npm ci in {HERE.parent} failed: {lines[0]}")


if __name__ == "__main__":
    build(*map(Path, sys.argv[1:2]))
