import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import pdlib.exercises
from pdlib.exercises import EXERCISES, Exercise, check, exercise

# The notebooks' exercises, each against its own reference and mistakes.

NAMES = sorted(EXERCISES)


def hints(name):
    """The hints of an exercise, in the order in which its mistakes are tried."""
    return list(EXERCISES[name].mistakes(*EXERCISES[name].cases(torch.Generator().manual_seed(0)).values()))


def mistaken(name, hint):
    """The answer that makes this mistake."""

    def answer(**case):
        value = EXERCISES[name].mistakes(*case.values())[hint]
        return value() if callable(value) else value

    return answer


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_right(name):
    assert repr(check(name, lambda **case: EXERCISES[name].reference(*case.values()))) == "right"


@pytest.mark.parametrize("name", NAMES)
def test_each_exercise_knows_two_mistakes(name):
    assert len(hints(name)) >= 2


@pytest.mark.parametrize(("name", "hint"), [(name, hint) for name in NAMES for hint in hints(name)])
def test_a_mistake_is_not_right_and_gets_its_own_hint(name, hint):
    verdict = check(name, mistaken(name, hint), seed=5)
    assert verdict.outcome == "not right"
    assert verdict.detail.endswith(f"hint: {hint}")


# The check itself, on an exercise of our own: the hypotenuse.


def right(a, b):
    return (a * a + b * b).sqrt()


@pytest.fixture(autouse=True)
def hypotenuse(monkeypatch):
    ours = Exercise(
        cases=lambda generator: dict(zip("ab", torch.rand(2, 3, generator=generator) + 1, strict=True)),
        reference=torch.hypot,
        mistakes=lambda a, b: {"the root of a sum is not the sum of the roots": a + b, "a is one side": lambda: a},
    )
    monkeypatch.setitem(EXERCISES, "hypotenuse", ours)


def stub(a, b):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [stub, lambda a, b: None, lambda a, b: ...])
def test_a_stub_is_not_attempted_yet(answer):
    assert repr(check("hypotenuse", answer)) == "not attempted yet"


@pytest.mark.parametrize("answer", [right, lambda a, b: right(a, b).double() * (1 + 1e-9)])
def test_a_right_answer_is_right_however_it_is_written(answer):
    assert repr(check("hypotenuse", answer)) == "right"


def test_a_known_mistake_gets_its_hint_and_a_case():
    verdict = check("hypotenuse", lambda a, b: b + a)
    assert verdict.outcome == "not right"
    assert "here is a case where yours differs" in verdict.detail
    assert "yours:" in verdict.detail
    assert "expected:" in verdict.detail
    assert verdict.detail.endswith("hint: the root of a sum is not the sum of the roots")


def test_a_mistake_may_be_computed_when_it_is_asked_for():
    assert check("hypotenuse", lambda a, b: a).detail.endswith("hint: a is one side")


def test_another_mistake_gets_a_case_alone():
    verdict = check("hypotenuse", lambda a, b: a - b)
    assert verdict.outcome == "not right"
    assert "hint" not in verdict.detail


def test_an_answer_right_only_sometimes_is_not_right():
    assert check("hypotenuse", lambda a, b: right(a, b) if a[0] < 1.8 else a).outcome == "not right"


def test_mistakes_that_cannot_be_computed_give_no_hint(monkeypatch):
    ours = Exercise(EXERCISES["hypotenuse"].cases, torch.hypot, lambda a, b: {"never": 1 / 0})
    monkeypatch.setitem(EXERCISES, "ours", ours)
    assert "hint" not in check("ours", lambda a, b: a).detail


@pytest.mark.parametrize("answer", [lambda a, b: right(a, b)[:2], lambda a, b: "5", lambda a, b: (a, b)])
def test_an_answer_of_another_kind_is_not_right(answer):
    assert check("hypotenuse", answer).outcome == "not right"


def test_an_answer_may_change_its_arguments():
    assert check("hypotenuse", lambda a, b: a.mul_(a).add_(b * b).sqrt_()).outcome == "right"


def test_an_unknown_exercise_is_met_with_the_one_that_was_meant():
    with pytest.raises(KeyError, match="exercise='hypotenus' is unknown; did you mean 'hypotenuse'"):
        check("hypotenus", right)


# What an answer raises.


def test_an_answer_that_raises_is_told_what():
    assert "it raises TypeError" in check("hypotenuse", lambda a: a).detail


def test_an_answer_that_ends_the_program_does_not_end_the_notebook():
    assert check("hypotenuse", lambda a, b: sys.exit("done")).detail == "it raises SystemExit: done"


def test_an_interrupt_is_the_readers_own():
    def interrupted(a, b):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("hypotenuse", interrupted)


def test_what_torch_has_not_implemented_is_no_stub():
    def attempted(a, b):
        raise NotImplementedError("not implemented for 'Half'")

    assert check("hypotenuse", attempted).detail == "it raises NotImplementedError: not implemented for 'Half'"


# What holds the numbers does not matter; which numbers they are does.

THREE = torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)
PLANE = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)


@pytest.fixture
def outcome(monkeypatch):
    """What is said of a value where another one is asked for."""

    def outcome(value, reference):
        monkeypatch.setitem(EXERCISES, "value", Exercise(lambda generator: {}, lambda: reference))
        verdict = check("value", lambda: value)
        repr(verdict)
        return verdict.outcome

    return outcome


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        (THREE.tolist(), THREE),
        (tuple(THREE.tolist()), THREE),
        (list(THREE), THREE),
        (list(PLANE), PLANE),
        (PLANE.tolist(), PLANE),
        ([row.requires_grad_() for row in PLANE.clone().unbind()], PLANE),
        ([PLANE[0].numpy(), [3, Fraction(4), np.float32(5)]], PLANE),
        (PLANE.clone().requires_grad_(), PLANE),
        (THREE.flip(0).numpy()[::-1], THREE),
        (PLANE.numpy().astype(">f8"), PLANE),
        (PLANE.numpy().astype(np.longdouble), PLANE),
        (PLANE.int(), PLANE),
        (PLANE.half(), PLANE),
        (PLANE.to_sparse(), PLANE),
        (np.float32(0.5), 0.5),
        (np.int64(2), 2.0),
        (Fraction(1, 3), 1 / 3),
        (Decimal("0.25"), 0.25),
        (2**70, 2.0**70),
        (10.0**200, 10.0**200),
        (THREE.tolist(), tuple(THREE.tolist())),
        (THREE, tuple(THREE.tolist())),
        (THREE.numpy()[:], tuple(THREE.tolist())),
        ([PLANE, [1, 2]], (PLANE, torch.tensor([1.0, 2.0]))),
        (float("nan"), torch.nan),
        (torch.tensor([torch.nan, -torch.inf, 1]), torch.tensor([torch.nan, -torch.inf, 1])),
        ([5.0, torch.inf], torch.tensor([5.0, torch.inf])),
        (THREE > 0.3, THREE > 0.3),
        (THREE + 1j, THREE + 1j),
    ],
)
def test_the_right_numbers_are_right_whatever_holds_them(value, reference, outcome):
    assert outcome(value, reference) == "right"


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        (THREE + 1j, THREE),
        (THREE + 0j, THREE),
        ((THREE + 1j).numpy(), THREE),
        (2 + 1j, 2.0),
        ([0.5, 0.25 + 1j, 1], THREE),
        ((0.5, 1j + 0.25), (0.5, 0.25)),
        (THREE.tolist(), THREE + 1j),
        (True, 1.0),
        (np.True_, 1),
        (torch.ones(3, dtype=torch.bool), torch.ones(3)),
        (1, True),
        (2.0e200, 1.0e200),
        (2.0e-11, 1.0e-11),
        (torch.tensor([torch.nan, 1]), torch.tensor([2.0, 1])),
        (torch.tensor([2.0, 1]), torch.tensor([torch.nan, 1])),
        ([1.0, torch.inf], torch.tensor([5.0, torch.inf])),
        ([5.0, 1.0], torch.tensor([5.0, torch.inf])),
        ([5.0, -torch.inf], torch.tensor([5.0, torch.inf])),
        (THREE[:, None], THREE),
        (THREE[:2], tuple(THREE.tolist())),
        (0.5, (0.5,)),
        (torch.empty(3, device="meta"), THREE),
        ("0.5", 0.5),
        (np.array("0.5"), 0.5),
        (["0.5"], torch.tensor([0.5])),
        ([[1, 2], [3]], PLANE),
        ([], THREE),
        ({0: 1}, THREE),
        (10**400, 1.0),
        (object(), 1.0),
    ],
)
def test_other_numbers_and_no_numbers_are_not_right(value, reference, outcome):
    assert outcome(value, reference) == "not right"


def test_a_value_that_cannot_be_shown_is_still_judged(outcome):
    class Silent:
        def __repr__(self):
            raise ValueError

    assert outcome(Silent(), 1.0) == "not right"
    assert outcome(10**5000, 1.0) == "not right"


def yours(value, reference, monkeypatch):
    monkeypatch.setitem(EXERCISES, "value", Exercise(lambda generator: {}, lambda: reference))
    return check("value", lambda: value).detail.splitlines()[1].removeprefix("  yours:    ")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (THREE + 1j, "[(0.5+1j), (0.25+1j), (1+1j)]"),
        ([1 / 3, 2.0], "[0.333333, 2.0]"),
        (np.array([1 / 3, 2.0]), "[0.333333, 2.0]"),
        (THREE[:, None], "[0.5, 0.25, 1.0] of shape (3, 1)"),
        (THREE > 0.3, "[True, False, True]"),
        (torch.tensor(True), "True"),
        (torch.arange(8), "[0, 1, 2, 3, …] of shape (8,)"),
        ((1 / 3, THREE), "(0.333333, [0.5, 0.25, 1.0])"),
        ("half", "half"),
    ],
)
def test_what_was_answered_is_shown_briefly_with_its_kind(value, shown, monkeypatch):
    assert yours(value, THREE + 1, monkeypatch) == shown


# The door: exercises from outside.


def test_exercises_are_put_in_from_outside(monkeypatch):
    monkeypatch.setitem(EXERCISES, "09_double", None)  # so that it is gone again afterwards

    @exercise("09_double", lambda generator: {"x": torch.rand(3, generator=generator)}, lambda x: x + x)
    def mistakes(x):
        return {"that is the square": x * x}

    assert check("09_double", lambda x: 2 * x).outcome == "right"
    assert check("09_double", lambda x: x**2).detail.endswith("hint: that is the square")


def test_a_new_file_of_the_package_is_found(tmp_path, monkeypatch):
    (tmp_path / "dropped_in.py").write_text(
        "from pdlib.exercises.common import exercise\n"
        "@exercise('10_half', lambda generator: {'x': 3.0}, lambda x: x / 2)\n"
        "def mistakes(x):\n    return {'that is a third': x / 3}\n"
    )
    code = (
        "import pdlib.exercises\n"
        f"pdlib.exercises.__path__.append({str(tmp_path)!r})\n"
        "from pdlib.exercises import EXERCISES, check\n"
        "print(len(EXERCISES), check('10_half', lambda x: x / 3))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith(f"{len(NAMES) + 1} not right")
    assert printed.endswith("hint: that is a third\n")


def test_the_face_is_the_same_whatever_is_asked_for_first():
    code = """
import importlib, sys, pdlib.exercises
assert "torch" not in sys.modules
for first in pdlib.exercises.__all__:
    for module in [name for name in sys.modules if name.startswith("pdlib.exercises")]:
        del sys.modules[module]
    face = importlib.import_module("pdlib.exercises")
    assert getattr(face, first) is not None
    from pdlib.exercises import EXERCISES, Exercise, Verdict, check, exercise
    assert isinstance(check("03_times", lambda i, steps: None), Verdict)
    print(len(EXERCISES))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(len(NAMES))] * len(pdlib.exercises.__all__)
