"""The self-tests: each question has one right answer, and a word for each wrong one."""

import json
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

import pdlib.exercises.quiz
from pdlib.exercises.quiz import questions, self_test

NAMES = sorted(path.stem for path in (Path(pdlib.exercises.quiz.__file__).parent / "self_tests").glob("*.json"))
ALL = [pytest.param(question, id=f"{name}-{k}") for name in NAMES for k, question in enumerate(questions(name), 1)]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_ends_with_six_to_ten_questions_of_both_kinds(name):
    kinds = [question["type"] for question in questions(name)]
    assert 6 <= len(kinds) <= 10
    assert set(kinds) == {"multiple_choice", "numeric"}


@pytest.mark.parametrize("question", ALL)
def test_a_question_has_one_right_answer_and_a_word_for_each_wrong_one(question):
    right = [answer for answer in question["answers"] if answer.get("correct")]
    wrong = [answer for answer in question["answers"] if not answer.get("correct")]
    assert len(right) == 1
    assert all(len(answer["feedback"]) > 15 for answer in question["answers"])
    if question["type"] == "numeric":
        assert any(answer.get("type") == "default" for answer in wrong)
        low, high = right[0].get("range", [right[0].get("value")] * 2)
        assert low <= high
    else:
        texts = [answer["answer"] for answer in question["answers"]]
        assert len(set(texts)) == len(texts) >= 3
    assert "$" not in str(question)  # formulas as text: they show everywhere


@pytest.mark.parametrize("name", NAMES[:1])
def test_it_is_shown_whole_and_asks_no_kernel(name):
    InteractiveShell.instance()
    with capture_output() as shown:
        self_test(name)
    html, script = (output.data for output in shown.outputs)
    assert "text/html" in html
    for question in questions(name):
        assert json.dumps(question["question"]) in script["application/javascript"]
