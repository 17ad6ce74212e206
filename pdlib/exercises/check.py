"""The check: says at once whether an answer is right.

An answer is a function. It is compared, on random inputs, with a computation that does not share its formula; the text
of the answer is never looked at. Where it equals a mistake that people make, the mistake's own hint is given.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pdlib.exercises
from pdlib.exercises.common import EXERCISES, Exercise, Mistake
from pdlib.files import unknown

__all__ = ["EXERCISES", "Verdict", "check"]

for _file in pkgutil.iter_modules(pdlib.exercises.__path__, "pdlib.exercises."):
    importlib.import_module(_file.name)


@dataclass(frozen=True)
class Verdict:
    """What :func:`check` found; a notebook shows it as one or a few lines of text."""

    outcome: str
    """``"not attempted yet"``, ``"not right"`` or ``"right"``."""
    detail: str = ""

    def __repr__(self) -> str:
        return self.outcome + (f": {self.detail}" if self.detail else "")


def check(name: str, answer: Callable[..., Any], cases: int = 20, seed: int = 0) -> Verdict:
    """Compare an answer with what it should compute.

    Args:
        name: one of :data:`EXERCISES`.
        answer: the learner's function. Lists, arrays and tensors of any real type do where they hold the right
            numbers; a truth value is not a number, nor is a complex number a real one.
        cases, seed: how many random inputs to try, and of which seed.

    Raises:
        KeyError: for an unknown name.
    """
    if name not in EXERCISES:
        raise KeyError(unknown("exercise", name, EXERCISES))
    exercise = EXERCISES[name]
    generator = torch.Generator().manual_seed(seed)
    inputs = [exercise.cases(generator) for _ in range(cases)]
    with torch.random.fork_rng(devices=[]):  # an answer may draw: the same, each time that it is checked
        torch.manual_seed(seed)
        try:
            return _judged(exercise, answer, inputs)
        except Mistake as mistake:
            return Verdict("not right", f"hint: {mistake}")


def _judged(exercise: Exercise, answer: Callable[..., Any], inputs: list[dict[str, Any]]) -> Verdict:
    """The verdict of an answer on these inputs; Mistake where what it was given saw one."""
    try:
        given = [answer(**deepcopy(case)) for case in inputs]
    except Mistake:
        raise
    except (Exception, SystemExit) as error:  # whatever the learner's code raises is part of the verdict
        if isinstance(error, NotImplementedError) and not error.args:
            return Verdict("not attempted yet")
        return Verdict("not right", f"it raises {type(error).__name__}: {error}")
    if all(value is None or value is Ellipsis for value in given):
        return Verdict("not attempted yet")
    right = [exercise.reference(*deepcopy(case).values()) for case in inputs]
    wrong = [k for k in range(len(inputs)) if not _equal(given[k], right[k], exercise.tolerance)]
    if not wrong:
        return Verdict("right")
    k, hint = wrong[0], _hint(exercise, inputs, given)
    lines = ["here is a case where yours differs", *(f"  {key} = {_short(value)}" for key, value in inputs[k].items())]
    lines += [f"  yours:    {_short(given[k])}", f"  expected: {_short(right[k])}"]
    if hint:
        lines.append(f"hint: {hint}")
    return Verdict("not right", "\n".join(lines))


def _hint(exercise: Exercise, inputs: list[dict[str, Any]], given: list[Any]) -> str | None:
    """The hint of the first mistake that equals the answer on every input; none where a mistake cannot be computed."""
    with suppress(ArithmeticError, ValueError):
        mistakes = [exercise.mistakes(*deepcopy(case).values()) for case in inputs]
        for hint in mistakes[0]:
            if all(_equal(value, made[hint], exercise.tolerance) for value, made in zip(given, mistakes, strict=True)):
                return hint
    return None


def _equal(given: Any, right: Any, tolerance: float) -> bool:
    """Whether both are the same numbers, whatever holds them."""
    try:
        right = right() if callable(right) else right
        if isinstance(right, tuple):
            return all(_equal(one, other, tolerance) for one, other in zip(given, right, strict=True))
        one, other = _numbers(given), _numbers(right)
    except Exception:  # given is no numbers, or not so many
        return False
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    one, other = one.to(torch.complex128), other.to(torch.complex128)
    finite = other[other.isfinite()].abs()
    size = finite.max().clamp(min=1e-12).item() if finite.numel() else 1
    return torch.allclose(one, other, rtol=0, atol=tolerance * size, equal_nan=True)


def _numbers(value: Any) -> Tensor:
    """What is given as bool, complex128 or else float64, on the CPU; some exception where it is no numbers."""
    if isinstance(value, list | tuple):
        return torch.stack([_numbers(part) for part in value])
    if not isinstance(value, Tensor):
        value = np.asarray(value)
        if value.dtype.kind == "O":  # a fraction, or a number beyond 64 bits
            value = np.asarray(float(value))
        kinds = {"b": bool, "c": complex} | dict.fromkeys("iuf", float)
        value = torch.from_numpy(value.astype(kinds[value.dtype.kind], order="C"))
    value = value.detach().cpu().to_dense()
    return value if value.dtype == torch.bool else value.to(torch.complex128 if value.is_complex() else torch.float64)


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    if isinstance(value, list | np.ndarray | Tensor):
        with suppress(Exception):
            return _rounded(_numbers(value))
    with suppress(Exception):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"a {type(value).__name__} that cannot be shown"


def _rounded(value: Tensor) -> str:
    if value.ndim == 0:
        return _short(value.item())
    numbers, shape = value.flatten().tolist(), f" of shape {tuple(value.shape)}"
    if len(numbers) > 6:
        return f"[{', '.join(f'{number:.4g}' for number in numbers[:4])}, …]{shape}"
    rounded = [n if isinstance(n, bool) else type(n)(f"{n:.6g}") for n in numbers]
    return f"{rounded}{shape if value.ndim > 1 else ''}"
