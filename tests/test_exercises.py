import pytest
import torch

from pdlib.exercises import EXERCISES, Exercise, check

# The notebooks' exercises, each against its own reference and mistakes.

NAMES = sorted(EXERCISES)
MISTAKES = [(name, k) for name in NAMES for k in range(len(EXERCISES[name].mistakes))]


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_right(name):
    assert repr(check(name, EXERCISES[name].reference)) == "right"


@pytest.mark.parametrize("name", NAMES)
def test_each_exercise_knows_two_mistakes_with_hints_of_their_own(name):
    hints = [hint for _, hint in EXERCISES[name].mistakes]
    assert len(hints) == len(set(hints)) >= 2


@pytest.mark.parametrize(("name", "k"), MISTAKES)
def test_a_mistake_is_not_right_and_gets_its_own_hint(name, k):
    mistake, hint = EXERCISES[name].mistakes[k]
    verdict = check(name, mistake, seed=5)
    assert verdict.outcome == "not right"
    assert verdict.detail.endswith(f"hint: {hint}")


# The check itself, on an exercise of our own: the hypotenuse.


def right(a, b):
    return (a * a + b * b).sqrt()


@pytest.fixture(autouse=True)
def hypotenuse(monkeypatch):
    exercise = Exercise(
        cases=lambda generator: dict(zip("ab", torch.rand(2, 3, generator=generator) + 1, strict=True)),
        reference=lambda a, b: torch.hypot(a, b),
        mistakes=((lambda a, b: a + b, "the root of a sum is not the sum of the roots"),),
    )
    monkeypatch.setitem(EXERCISES, "hypotenuse", exercise)


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


def test_another_mistake_gets_a_case_alone():
    verdict = check("hypotenuse", lambda a, b: a - b)
    assert verdict.outcome == "not right"
    assert "hint" not in verdict.detail


def test_an_answer_right_only_sometimes_is_not_right():
    assert check("hypotenuse", lambda a, b: right(a, b) if a[0] < 1.8 else a).outcome == "not right"


def test_where_the_right_value_is_infinite_the_rest_still_counts(monkeypatch):
    infinite = Exercise(EXERCISES["hypotenuse"].cases, lambda a, b: torch.tensor([5.0, torch.inf]))
    monkeypatch.setitem(EXERCISES, "infinite", infinite)
    assert check("infinite", lambda a, b: [5.0, torch.inf]).outcome == "right"
    assert check("infinite", lambda a, b: [1.0, torch.inf]).outcome == "not right"
    assert check("infinite", lambda a, b: [5.0, 1.0]).outcome == "not right"


@pytest.mark.parametrize("answer", [lambda a, b: right(a, b)[:2], lambda a, b: "5", lambda a, b: (a, b)])
def test_an_answer_of_another_kind_is_not_right(answer):
    assert check("hypotenuse", answer).outcome == "not right"


def test_an_answer_that_raises_is_told_what():
    assert "it raises TypeError" in check("hypotenuse", lambda a: a).detail


def test_an_answer_may_change_its_arguments():
    assert check("hypotenuse", lambda a, b: a.mul_(a).add_(b * b).sqrt_()).outcome == "right"


def test_an_unknown_exercise_is_met_with_the_known_ones():
    with pytest.raises(KeyError, match="hypotenuse"):
        check("hypotenus", right)
