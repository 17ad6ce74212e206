"""The mistakes that a stand-in sees while an answer draws or loops; those in what it returns are in test_check.py."""

import copy

import pytest
import torch

from pdlib.exercises import check
from pdlib.schedules import CosineSchedule


def denoising_loss(denoiser, x, t=None, z=None):
    """A right answer, but for the times or the inputs that are put in."""
    t = 1 - torch.rand(len(x)) if t is None else t
    alpha, sigma = (value[:, None] for value in CosineSchedule().alpha_sigma(t))
    z = alpha * x + sigma * torch.randn_like(x) if z is None else z(x, alpha, sigma)
    weight = (alpha**2 / sigma**2).clamp(min=1)
    return (weight * (denoiser(z, t) - x) ** 2).mean()


def test_a_right_answer_that_draws_is_right_whatever_it_draws():
    for seed in range(3):
        assert repr(check("09_denoising_loss", denoising_loss, seed=seed)) == "right"


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda n: {"t": torch.full((n,), 0.5)}, "all points have the same t"),
        (lambda n: {"t": 0.01 + torch.rand(n) / 2}, "uniformly from 0 to 1"),
        (lambda n: {"z": lambda x, alpha, sigma: x}, "shown the clean x"),
        (lambda n: {"z": lambda x, alpha, sigma: sigma * x + alpha * torch.randn_like(x)}, "α and σ are swapped"),
        (lambda n: {"z": lambda x, alpha, sigma: alpha * x + sigma * torch.rand_like(x)}, "with ε drawn by"),
        (lambda n: {"z": lambda x, alpha, sigma: alpha * x + sigma * torch.randn(2)}, "with ε drawn by"),
    ],
)
def test_what_a_teacher_is_wrongly_shown_is_named(change, hint):
    verdict = check("09_denoising_loss", lambda denoiser, x: denoising_loss(denoiser, x, **change(len(x))))
    assert hint in verdict.detail


@pytest.mark.parametrize(
    ("draw", "hint"),
    [
        (lambda n, N: torch.randint(0, N, (n,)) / N, "off by one: t = 0 is drawn"),
        (lambda n, N: torch.randint(1, N, (n,)) / N if N > 2 else torch.randint(0, 2, (n,)) / 2, "off by one"),
        (lambda n, N: torch.randint(1, 2 * N + 1, (n,)) / (2 * N), "between the student's times"),
        (lambda n, N: 1 - torch.rand(n), "between the student's times"),
    ],
)
def test_the_times_that_a_student_is_wrongly_taught_are_named(draw, hint):
    def loss(student, teacher, x, N):
        return denoising_loss(student, x, t=draw(len(x), N))

    assert hint in check("09_distillation_loss", loss).detail


def own_network(teacher, N, teach):
    return teach(torch.nn.Linear(3, 3), teacher, N // 2)


def no_copy(teacher, N, teach):
    return teach(teacher, teacher, N // 2)


@pytest.mark.parametrize(
    ("answer", "hint"), [(own_network, "not started from its teacher"), (no_copy, "one and the same")]
)
def test_a_student_that_is_no_copy_of_its_teacher_is_seen(answer, hint):
    assert hint in check("09_halve", answer).detail


def never_promoted(teacher, N, teach):
    while N > 1:
        N = N // 2
        student = teach(copy.deepcopy(teacher), teacher, N)
    return student


def test_a_student_that_is_never_promoted_is_seen():
    assert "never promoted" in check("09_halve", never_promoted).detail


def test_a_check_draws_the_same_each_time_and_leaves_the_readers_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    seen = []
    for _ in range(2):
        check("09_denoising_loss", lambda denoiser, x: seen.append(torch.rand(1).item()) or denoising_loss(denoiser, x))
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    assert torch.equal(torch.rand(2), expected)
