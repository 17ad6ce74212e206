"""The self-test at a notebook's end: questions that answer at once, in the page itself."""

import json
from pathlib import Path

__all__ = ["questions", "self_test"]

_COLORS = {  # dark enough for white text; right and wrong are also told apart by the words
    "--jq-multiple-choice-bg": "#0b4f7a",
    "--jq-many-choice-bg": "#0b4f7a",
    "--jq-numeric-bg": "#0b4f7a",
    "--jq-numeric-input-bg": "#4d4d4d",
    "--jq-correct-color": "#0072B2",
    "--jq-incorrect-color": "#D55E00",
}


def questions(notebook: str) -> list[dict]:
    """The questions of a notebook, such as ``"01_forward_process"``, in the form that jupyterquiz reads."""
    return json.loads((Path(__file__).parent / "self_tests" / f"{notebook}.json").read_text(encoding="utf-8"))


def self_test(notebook: str) -> None:
    """Show a notebook's questions. They need no kernel: what was answered is judged in the page."""
    from jupyterquiz import display_quiz

    display_quiz(questions(notebook), max_width=900, shuffle_answers=False, colors=_COLORS)
