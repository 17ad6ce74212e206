import importlib
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
def test_each_exercise_knows_two_mistakes_with_hints(name):
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
def ours(monkeypatch):
    """The exercises as they are, and our own for one test."""
    monkeypatch.setattr(pdlib.exercises.common, "EXERCISES", EXERCISES)
    for name in EXERCISES:
        monkeypatch.setitem(EXERCISES, name, EXERCISES[name])
    before = dict(EXERCISES)

    @exercise("hypotenuse", lambda g: dict(zip("ab", torch.rand(2, 3, generator=g) + 1, strict=True)), torch.hypot)
    def _mistakes(a, b):
        return {
            "the root of a sum is not the sum of the roots": a + b,
            "only one side": lambda: a,
        }

    yield
    EXERCISES.clear()
    EXERCISES.update(before)
