"""What the book needs beyond Sphinx: notebooks made ready for the page, formulas as MathML, the order of the pages."""

import ast
import json
import os
import re
import tomllib
import unicodedata
from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Where a workflow of GitHub's builds the book, it is that repository's.
REPOSITORY = os.environ.get("GITHUB_REPOSITORY") or _PROJECT["urls"]["Repository"].removeprefix("https://github.com/")


def _parsed(file: str) -> ast.Module:
    path = ROOT / "pdlib" / f"{file}.py"
    path = path if path.is_file() else ROOT / "pdlib" / file / "__init__.py"
    return ast.parse(path.read_text(encoding="utf-8"))


# The core's public names, by the file that they are in: what pdlib/__init__.py loads lazily.
LIBRARY: dict[str, list[str]] = next(
    ast.literal_eval(found.value)
    for found in ast.walk(_parsed("__init__"))
    if isinstance(found, ast.keyword) and found.arg == "submod_attrs"
)
_OPENINGS = {file: (ast.get_docstring(_parsed(file)) or "").splitlines()[0].rstrip(".:") for file in LIBRARY}
_FILES = [f"- [{file}](library/{file}.md): {_OPENINGS[file]}.\n  *{', '.join(LIBRARY[file])}*" for file in LIBRARY]


def cells(name: str) -> list[dict[str, Any]]:
    """The cells of a stored notebook."""
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


# The stored report's first two figures: a student's quality, and its speed.
_OUTPUTS = [output["data"] for cell in cells("report") for output in cell.get("outputs", [])]
_REPORT = "".join("".join(data.get("text/markdown", "")) for data in _OUTPUTS)
_FIGURES = re.findall(r"<div><b>(.*?)</b><span>(.*?)</span></div>", _REPORT)[:2]
NUMBERS = ", and ".join(f"**{figure}** {what}" for figure, what in reversed(_FIGURES))

# The roads, with the titles and in the order of the map in the first notebook.
_MAP = "".join("".join(cell["source"]) for cell in cells("00_start_here") if cell["cell_type"] == "markdown")
_LINKS = [
    (page, title)
    for title, page in re.findall(r"\[([^]]+)\]\(((?:side_roads/)?\d\d_\w+)\.ipynb\)", _MAP)
    if not title.endswith(".ipynb")
]
ROAD = {"00_start_here": "00 Start here"} | {page: title for page, title in _LINKS if "/" not in page}
SIDE_ROADS = {
    page: {side: title for side, title in _LINKS if side.startswith(f"side_roads/{page[:2]}")} for page in ROAD
}
SOLUTIONS = {f"solutions/{path.stem}": ROAD[path.stem] for path in sorted(NOTEBOOKS.glob("solutions/*.ipynb"))}
PLAY = {"draw": "Draw", "straighten": "Straighten", "x_tilde": "The target x̃, by hand"}
BESIDE = {"explorer": "The weighting explorer", "report": "A report", "compare": "Runs compared"}
REFERENCE = {"library": "The library", "solutions": "Solutions"}


def toctree(pages: dict[str, str], caption: str = "") -> str:
    """A table of contents, for the sidebar."""
    lines = "\n".join(f"{title} <{'' if '://' in page else '/'}{page}>" for page, title in pages.items())
    return f"\n\n```{{toctree}}\n:hidden:\n{f':caption: {caption}' if caption else ''}\n{lines}\n```\n"


TREES = {
    "index": toctree(ROAD, "The road")
    + toctree({f"play://{page}.html": title for page, title in PLAY.items()} | BESIDE, "Beside the road")
    + toctree(REFERENCE, "To look up"),
    "library": "\n".join(_FILES) + toctree({f"library/{file}": file for file in LIBRARY}),
    "solutions": toctree(SOLUTIONS).replace(":hidden:", ""),
} | {page: toctree(sides) for page, sides in SIDE_ROADS.items() if sides}


# Notebooks


def quiz(name: str) -> str:
    """A self-test as forms. What is said to an answer is in the page, hidden; book.js shows it."""
    from pdlib.exercises import questions

    forms = []
    for number, question in enumerate(questions(name), 1):
        choices, said = [], []
        for answer in question["answers"]:
            low, high = answer.get("range", ("", ""))
            kind = "right" if answer.get("correct") else "wrong"
            limits = f'class="{kind}" data-low="{low}" data-high="{high}"'
            said.append(f"<p hidden {limits}>{escape(answer['feedback'])}</p>")
            if "answer" in answer:
                choice = f"<span>{escape(answer['answer'])}</span>"
                choices.append(f'<label><input type="radio" name="answer"> {choice}</label>')
        field = '<label>Your number: <input name="answer" inputmode="decimal" autocomplete="off"></label>'
        code = f"<pre>{escape(question['code'])}</pre>" if "code" in question else ""
        forms.append(
            f'<form class="quiz"><fieldset><legend>{number}. {escape(question["question"])}</legend>{code}'
            f"{''.join(choices) or field}<button>Check</button>{''.join(said)}"
            '<p role="status"></p></fieldset></form>'
        )
    return "".join(forms)


def _checked(cell: dict[str, Any]) -> list[str]:
    """The exercises whose answer a cell checks."""
    return re.findall(r'check\("([^"]+)"', "".join(cell["source"])) if cell["cell_type"] == "code" else []


def _exercise(text: str, following: list[dict[str, Any]]) -> str | None:
    """The exercise that a section of the solutions is about."""
    found = (name for cell in following for name in _checked(cell))
    return next(found, None) if text.startswith("## Exercise") else None


def _figure(following: list[dict[str, Any]], heading: str) -> str:
    """What a figure shows, in words: its caption, the slanted sentence below it, or else the section it is in."""
    below = "".join(following[0]["source"]) if following and following[0]["cell_type"] == "markdown" else ""
    caption = re.match(r"\*([^*].*?)\*(?!\*)", below, re.DOTALL)
    return re.sub(r"[$\\{}*`]", "", caption[1] if caption else f"A figure of the section “{heading}”")


EXPLORER = '<div id="explorer"><noscript>It computes in your browser, and needs JavaScript for it.</noscript></div>'


def _markdown(text: str) -> dict[str, Any]:
    """A cell that is added."""
    return {"cell_type": "markdown", "id": sha256(text.encode()).hexdigest()[:8], "metadata": {}, "source": text}


def _outputs(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """A cell's stored outputs without what needs a kernel."""
    kept = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "text" in output and set("".join(output["text"])) <= {"✓", "\n"}:  # a claim that holds, and no more
            continue
        if data.pop("application/vnd.jupyter.widget-view+json", None) and not any("image" in kind for kind in data):
            if "%|" in "".join(data["text/plain"]):  # a progress bar
                continue
            data["text/plain"] = "(knobs, in a running notebook)"
        if "text/markdown" in data:  # the runs that were compared are not in the book
            data["text/markdown"] = re.sub(r"\[([^]]+)\]\([^)]*/report.html\)", r"\1", "".join(data["text/markdown"]))
        kept.append(output)
    return kept


def prepare(app: Any, page: str, source: list[str]) -> None:
    """Makes a page's source, as it is stored, ready for MyST."""
    if not str(app.env.doc2path(page)).endswith(".ipynb"):
        source[0] = source[0].replace("REPOSITORY", REPOSITORY).replace("NUMBERS", NUMBERS) + TREES.get(page, "")
        return
    notebook, heading = json.loads(source[0]), ""
    notebook["metadata"].pop("widgets", None)
    for index, cell in enumerate(notebook["cells"]):
        following = notebook["cells"][index + 1 :]
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ (.*)", text, re.MULTILINE) or [heading])[-1]
            text = text.replace('<a id="card"></a>', "(card)=").replace("](solutions)", "](solutions.md)")
            if page.startswith("solutions/") and (found := _exercise(text, following)):
                text = f"(solution-{found})=\n{text}"
            cell["source"] = re.sub(r"^(\$\$.*?\$\$)$", r"\n\1\n", text, flags=re.DOTALL | re.MULTILINE)
            continue
        tags = cell["metadata"].setdefault("tags", [])
        if page in BESIDE:
            tags.append("remove-input")
        elif "parameters" in tags:
            tags.append("hide-input")
        cell["metadata"]["mystnb"] = {"image": {"alt": _figure(following, heading)}}
        cell["outputs"] = _outputs(cell)
        if page == "explorer" and "WeightingExplorer" in text:
            notebook["cells"][index] = _markdown(f"```{{raw}} html\n{EXPLORER}\n```")
        elif found := re.search(r'self_test\("(\w+)"\)', text):
            notebook["cells"][index] = _markdown(f"```{{raw}} html\n{quiz(found[1])}\n```")
        elif _checked(cell) and not page.startswith("solutions/"):
            solution = f"[A solution](#solution-{_checked(cell)[0]})"
            data = {"text/markdown": f"An exercise: write it in the notebook, where the check answers. ({solution}.)"}
            cell["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": data}]
    if page in TREES:
        notebook["cells"].append(_markdown(TREES[page]))
    source[0] = json.dumps(notebook)


# Formulas


def _letter(kind: str, letter: str) -> str:
    """A capital as a sign of its own: most browsers know no variants."""
    name = f"{kind.upper()} CAPITAL {letter}"
    try:
        return unicodedata.lookup(f"MATHEMATICAL {name}")
    except KeyError:  # ℒ, ℝ and others that are older
        return unicodedata.lookup(name)


def mathml(latex: str, display: str) -> str:
    """A formula that browsers typeset themselves, without a script or a font."""
    text = convert(latex, display=display)
    for kind, letter in re.findall(r'<mi mathvariant="(script|double-struck)">([A-Z])</mi>', text):
        text = text.replace(f'<mi mathvariant="{kind}">{letter}</mi>', f"<mi>{_letter(kind, letter)}</mi>")
    # Primes that are in an upright font's place already.
    return re.sub(r"<msup>(<mi>[^<]*</mi>)<mi>(&#x0203[23];)</mi></msup>", r"<mrow>\1<mo>\2</mo></mrow>", text)


def _inline(writer: Any, node: nodes.Element) -> None:
    formula = mathml(node.astext(), "inline")
    stop = node.get("stop")
    writer.body.append(f'<span class="nowrap">{formula}{stop}</span>' if stop else formula)
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.Element) -> None:
    writer.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def stops(app: Any, doctree: nodes.document, page: str) -> None:
    """Puts the punctuation after a formula to it: browsers may break a line between the two."""
    for formula in doctree.findall(nodes.math):
        following = formula.next_node(descend=False, siblings=True)
        if isinstance(following, nodes.Text) and (stop := re.match(r"[.,;:!?)]+", following)):
            formula["stop"] = stop[0]
            following.parent.replace(following, nodes.Text(following[stop.end() :]))


# Pages


def names(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """A dictionary without words of its own says what is in it, not what a dictionary is."""
    if isinstance(thing, dict) and lines and lines == (dict.__doc__ or "").splitlines()[: len(lines)]:
        lines[:] = ["By name: " + ", ".join(f"``{key}``" for key in thing) + "."]


def context(app: Any, page: str, template: str, values: dict[str, Any], doctree: Any) -> None:
    """Gives a page its notebook's places; on the main road, previous and next stay on it."""
    tree = values["furo_navigation_tree"]
    tree = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    play = f'internal" href="{values["content_root"]}play/'  # pages that are no source of Sphinx's
    values["furo_navigation_tree"] = tree.replace('external" href="play://', play)
    road = ["index", *ROAD]
    if page in ROAD:
        place = road.index(page)
        near = {"prev": road[place - 1], "next": road[place + 1] if place + 1 < len(road) else None}
        for way, other in near.items():
            if other:
                title = app.builder.render_partial(app.env.titles[other])["title"]
                values[way] = {"link": app.builder.get_relative_uri(page, other), "title": title}
    if page == "explorer":  # alive: its module, the only script that is in a page, is named by its hash
        from pdlib.explorer.widget import MODULE

        values["module"] = MODULE + '\nmount(document.querySelector("#explorer"));\n'
        values["hash"] = f" 'sha256-{b64encode(sha256(values['module'].encode()).digest()).decode()}'"
    if doctree is not None and str(app.env.doc2path(page)).endswith(".ipynb"):
        path = f"notebooks/{page}.ipynb"
        values["notebook"] = {
            "colab": f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/{path}",
            "binder": f"https://mybinder.org/v2/gh/{REPOSITORY}/main?labpath={quote(path, safe='')}",
            "file": f"{values['content_root']}_sources/{page}.ipynb",
        }


def setup(app: Any) -> dict[str, bool]:
    """Tells Sphinx of all that."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", names)
    app.connect("doctree-resolved", stops)
    app.connect("html-page-context", context, priority=900)  # after the theme
    return {"parallel_read_safe": True, "parallel_write_safe": True}
