"""The notebooks' exercises, and the check that says at once whether an answer is right.

An answer is a function. It is compared, on random inputs, with a computation that does not share
its formula; the text of the answer is never looked at. Where it equals a mistake that people
make, the mistake's own hint is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["EXERCISES", "Exercise", "Verdict", "check"]


@dataclass(frozen=True)
class Exercise:
    """What an answer must compute.

    Args:
        cases: draws one random set of arguments, by the answer's argument names, from a generator.
        reference: the right value for them, computed another way than the learner is asked to.
        mistakes: plausible wrong answers, each with the hint that belongs to it.
        tolerance: largest difference, relative to the size of the right value, that counts as equal.
    """

    cases: Callable[[torch.Generator], dict[str, Any]]
    reference: Callable[..., Any]
    mistakes: tuple[tuple[Callable[..., Any], str], ...] = ()
    tolerance: float = 1e-6


@dataclass(frozen=True)
class Verdict:
    """What :func:`check` found; a notebook shows it as one or a few lines of text."""

    outcome: str
    """``"not attempted yet"``, ``"not right"`` or ``"right"``."""
    detail: str = ""

    def __repr__(self) -> str:
        return self.outcome + (f": {self.detail}" if self.detail else "")


EXERCISES: dict[str, Exercise] = {}
"""Every exercise by the name that its check cell uses."""


def check(name: str, answer: Callable[..., Any], cases: int = 20, seed: int = 0) -> Verdict:
    """Compare an answer with what it should compute.

    Args:
        name: one of :data:`EXERCISES`.
        answer: the learner's function.
        cases: how many random inputs to try.
        seed: of the inputs.

    Raises:
        KeyError: for an unknown name.
    """
    if name not in EXERCISES:
        raise KeyError(f"there is no exercise {name!r}; there are {', '.join(EXERCISES)}")
    exercise = EXERCISES[name]
    generator = torch.Generator().manual_seed(seed)
    inputs = [exercise.cases(generator) for _ in range(cases)]
    try:
        given = [answer(**_copied(case)) for case in inputs]
    except NotImplementedError:
        return Verdict("not attempted yet")
    except Exception as error:  # whatever the learner's code raises is part of the verdict
        return Verdict("not right", f"it raises {type(error).__name__}: {error}")
    if all(value is None or value is Ellipsis for value in given):
        return Verdict("not attempted yet")
    right = [exercise.reference(**_copied(case)) for case in inputs]
    wrong = [k for k in range(cases) if not _equal(given[k], right[k], exercise.tolerance)]
    if not wrong:
        return Verdict("right")
    detail = [f"here is a case where yours differs\n{_shown(inputs[wrong[0]], given[wrong[0]], right[wrong[0]])}"]
    for mistake, hint in exercise.mistakes:
        if all(_equal(given[k], _tried(mistake, inputs[k]), exercise.tolerance) for k in range(cases)):
            detail.append(f"hint: {hint}")
            break
    return Verdict("not right", "\n".join(detail))


def _copied(case: dict[str, Any]) -> dict[str, Any]:
    """So that an answer which changes its arguments in place changes nobody else's."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in case.items()}


def _tried(mistake: Callable[..., Any], case: dict[str, Any]) -> Any:
    try:
        return mistake(**_copied(case))
    except (ArithmeticError, ValueError):
        return None


def _equal(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, tuple) or isinstance(other, tuple):
        same_length = isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other)
        return same_length and all(_equal(a, b, tolerance) for a, b in zip(one, other, strict=True))
    try:
        one, other = torch.as_tensor(one).double(), torch.as_tensor(other).double()
    except (TypeError, ValueError, RuntimeError):
        return False
    if one.shape != other.shape:
        return False
    size = other.abs().max().clamp(min=1e-12) if other.numel() else 1
    return bool(((one == other) | ((one - other).abs() <= tolerance * size)).all())


def _shown(case: dict[str, Any], given: Any, right: Any) -> str:
    lines = [f"  {key} = {_short(value)}" for key, value in case.items()]
    return "\n".join([*lines, f"  yours:    {_short(given)}", f"  expected: {_short(right)}"])


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    if isinstance(value, Tensor):
        if value.numel() > 6:
            first = ", ".join(f"{number:.4g}" for number in value.flatten()[:4].tolist())
            return f"[{first}, …] of shape {tuple(value.shape)}"
        return str([float(f"{number:.6g}") for number in value.flatten().tolist()]) if value.ndim else f"{value:.6g}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
