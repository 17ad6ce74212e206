"""``python -m pdlib.explorer [FILE]``: writes the explorer as a page, one file that needs no server, and opens it."""

from __future__ import annotations

import argparse
import webbrowser
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from pdlib.explorer.widget import CSS, MODULE
from pdlib.files import cache_folder, write_bytes


def page() -> str:
    """The page's HTML. It names its script and style by their hashes: nothing else may run, or be asked for."""
    module = MODULE + '\nmount(document.querySelector("main > div"));\n'
    script, style = (f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}" for text in (module, CSS))
    html = Path(__file__).with_name("page.html").read_text("utf-8")
    return html.format(css=CSS, module=module, script=script, style=style)


def main() -> None:
    """Write the page and open it."""
    parser = argparse.ArgumentParser(prog="python -m pdlib.explorer", description="The weighting explorer, as a page.")
    parser.add_argument("file", nargs="?", type=Path, default=cache_folder() / "explorer.html", help="where it goes")
    parser.add_argument("--no-browser", action="store_true", help="only write it")
    options = parser.parse_args()
    write_bytes(options.file, page().encode())
    print(options.file.resolve().as_uri())
    if not options.no_browser:
        webbrowser.open(options.file.resolve().as_uri())


if __name__ == "__main__":
    main()
