"""Every method's target where the flow is known: with an exact teacher its fixed point is that flow, untrained."""

import numpy as np
import pytest
import torch
from flows import COSINE, ExactMap, LineOfTwo, Towards, three_axes
from torch import nn

from pdlib.denoiser import Denoiser
from pdlib.exact import GaussianDenoiser
from pdlib.grids import Grid
from pdlib.methods import make_method
from pdlib.methods.tangents import tangent_target
from pdlib.networks import MLP
from pdlib.objectives import Update
from pdlib.sampling import ddim_step
from pdlib.schedules import diffuse, expand

FLOWS = {"a Gaussian": three_axes, "two Gaussians": LineOfTwo}
N = 16


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(objective, exact, student, count=500):
    """An update at the times and points that the objective draws, of data that need not be the flow's."""
    t, s = objective.pairs(count, generator(1))
    x = torch.randn(count, len(exact(torch.zeros(1, *size(exact)), torch.ones(1))[0]), generator=generator(2)).double()
    z, noise = diffuse(x, t, exact.schedule, generator(3))
    return Update(x, z, noise, t, s, student, student)


def size(exact):
    return (3,) if isinstance(exact, GaussianDenoiser) else (1,)


def one_step_of(exact, steps):
    """A teacher without error: each of its steps ends where the flow does."""
    return Towards(exact, lambda t: (t - 1 / steps).clamp(min=0), Grid(steps))


def error(objective, update, student):
    wanted = student(update.z, update.t) if update.s is None else student(update.z, update.t, update.s)
    return (objective.x_tilde(update) - wanted).abs().max().item()


@pytest.fixture(params=FLOWS.values(), ids=FLOWS)
def exact(request):
    return request.param()


@pytest.mark.parametrize("own", ["average", "student"])
@pytest.mark.parametrize("groups", [1, 4])
def test_tract_stays_at_the_exact_jump_to_the_end_of_the_group(exact, groups, own):
    objective = make_method(f"tract:target={own}").objective(one_step_of(exact, N), Grid(groups))
    student = Towards(exact, lambda t: ((t * groups).ceil() - 1).clamp(min=0) / groups)
    update = drawn(objective, exact, student)
    assert error(objective, update, lambda z, t, s: ExactMap(exact)(z, t, s)) < 1e-8


def test_distilled_consistency_stays_at_the_end_of_the_flow(exact):
    objective = make_method("consistency_distillation").objective(one_step_of(exact, N), Grid(1))
    student = Towards(exact, torch.zeros_like)
    assert error(objective, drawn(objective, exact, student), lambda z, t, s: student(z, t)) < 1e-8


def test_trained_consistency_is_right_in_the_limit_of_near_pairs():
    """The mean of x̂(z_r) over what z_t can be made of is one DDIM step on, where x̂ is affine; its error is O(gap²)."""
    exact = three_axes()
    student, errors = Towards(exact, torch.zeros_like), []
    for halvings in (7, 8, 16):
        objective = make_method(f"easy_consistency:finest={halvings}").objective(one_step_of(exact, N), Grid(1))
        near = objective.at_update(999, 1000)
        assert near.gap == 0.5**halvings
        update = drawn(near, exact, student)
        x = exact(update.z, update.t)
        alpha, sigma = (expand(value, x) for value in COSINE.alpha_sigma(update.t))
        mean = Update(x, update.z, (update.z - alpha * x) / sigma, update.t, update.s, student, student)
        errors.append(error(near, mean, lambda z, t, s: student(z, t)))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[2] < 1e-8


@pytest.mark.parametrize("method", ["continuous_consistency", "mean_flow"])
def test_the_derivative_forms_stay_at_the_exact_map(exact, method):
    objective = make_method(f"{method}:normalize=0").objective(exact, Grid(1))
    update = drawn(objective, exact, ExactMap(exact))
    assert (update.s > 0).any() == (method == "mean_flow")
    assert error(objective, update, ExactMap(exact)) < 1e-8


def test_both_halves_stay_at_the_exact_map(exact):
    objective = make_method("self_distillation").objective(one_step_of(exact, N), Grid(1))
    update = drawn(objective, exact, ExactMap(exact))
    assert sorted({round(1 / gap) for gap in (update.t - update.s).tolist()}) == [1, 2, 4, 8]
    assert error(objective, update, ExactMap(exact)) < 1e-8


def some_network(two_times):
    torch.manual_seed(0)
    network = MLP(3, width=16, blocks=1, two_times=two_times).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Denoiser(network, "v", COSINE)


@pytest.mark.parametrize("two_times", [False, True])
def test_the_tangent_is_what_finite_differences_say(two_times):
    """dF/dφ of a network that is far from any flow map: its jump's end, along the teacher's flow."""
    exact, student = three_axes(), some_network(two_times)
    t = torch.linspace(0.1, 1, 30, dtype=torch.float64)
    s = t * torch.linspace(0, 0.9, 30, dtype=torch.float64) if two_times else torch.zeros_like(t)
    z = torch.randn(30, 3, generator=generator(), dtype=torch.float64)
    alpha, sigma = (expand(value, z) for value in COSINE.alpha_sigma(t))
    x_hat = student(z, t, s=s).detach()
    g = (x_hat - tangent_target(exact, student, z, t, s, 1.0, 0.0)) / sigma

    def end(h):  # at φ + h, on a path with the flow's slope dz/dφ = v*
        x = exact(z, t)
        v, later = (alpha * z - x) / sigma, t + h / (torch.pi / 2)
        moved = z + h * v
        return ddim_step(moved, student(moved, later, s=s).detach(), later, s, COSINE)

    def slope_at(h):
        return (end(h) - end(-h)) / (2 * h)

    slope = (4 * slope_at(5e-7) - slope_at(1e-6)) / 3
    assert (g - slope).abs().max() < 1e-8 * slope.abs().max()


def test_a_warm_up_mixes_in_the_tangent_and_normalisation_divides_it_by_its_size():
    exact, student = three_axes(), some_network(False)
    t, z = torch.full((9,), 0.6, dtype=torch.float64), torch.randn(9, 3, generator=generator(), dtype=torch.float64)
    zero, sigma = torch.zeros_like(t), expand(COSINE.alpha_sigma(t)[1], z)
    x_hat = student(z, t).detach()

    def g(share, normalize):
        return (x_hat - tangent_target(exact, student, z, t, zero, share, normalize)) / sigma

    assert torch.allclose(g(0.5, 0), (g(0, 0) + g(1, 0)) / 2)
    cosine = torch.cos(torch.tensor(0.6 * torch.pi / 2))
    alpha = expand(COSINE.alpha_sigma(t)[0], z)
    plain = ((alpha * z - exact(z, t)) - (alpha * z - x_hat)) / sigma
    assert torch.allclose(g(0, 0), cosine * plain)
    size = g(1, 0).square().mean(1, keepdim=True).sqrt()
    assert torch.allclose(g(1, 0.1), g(1, 0) / (size + 0.1))


def test_moment_matching_comes_to_the_right_distribution_and_rests_there():
    """One step on a line, x̂ = m + a ε, its auxiliary known in closed form; expectations by quadrature, exactly."""
    mean, deviation = 0.75, 0.5
    teacher = GaussianDenoiser(torch.tensor([mean]).double(), torch.tensor([[deviation**2]]).double(), COSINE)
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    z, noise = (torch.tensor(axis.flatten())[:, None] for axis in np.meshgrid(nodes, nodes))
    w = torch.tensor(np.outer(weights, weights).flatten() / weights.sum() ** 2)
    m, a = torch.tensor([-0.5], dtype=torch.float64), torch.tensor([1.3], dtype=torch.float64)
    s = torch.full((len(z),), 0.4, dtype=torch.float64)
    alpha_s, sigma_s = COSINE.alpha_sigma(s)
    for _ in range(3000):
        x_hat = m + a * z
        auxiliary = GaussianDenoiser(m, a[:, None] ** 2, COSINE)
        z_s = expand(alpha_s, z) * x_hat + expand(sigma_s, z) * noise  # what q(z_s | z_1, x̂) is at α_1 = 0
        push = (auxiliary(z_s, s) - teacher(z_s, s))[:, 0]  # the gradient in x̂, over 2
        m, a = m - 0.5 * (w * push).sum(), a - 0.5 * (w * push * z[:, 0]).sum()
    assert abs(m.item() - mean) < 1e-8
    assert abs(a.item() - deviation) < 1e-8
    assert push.abs().max() < 1e-8


class Parts(nn.Module):
    """A student on a line and its auxiliary, as moment matching trains them."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.mean, self.deviation = nn.Parameter(torch.tensor([mean])), nn.Parameter(torch.tensor([deviation]))
        self.schedule, self.shift = COSINE, nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, z, t):
        return self.mean + self.deviation * z

    def auxiliary(self, z, s):
        own = GaussianDenoiser(self.mean.detach(), self.deviation.detach()[:, None] ** 2, COSINE)
        return own(z, s) + self.shift


def gradients(mean, deviation, turn, count=200_000):
    teacher = GaussianDenoiser(torch.tensor([0.7]), torch.tensor([[0.16]]), COSINE)
    objective = make_method("moment_matching").objective(teacher, Grid(1), "constant").at_update(turn, 100)
    student = Parts(mean, deviation)
    objective(student, student, torch.zeros(count, 1, dtype=torch.float64), generator()).backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()}


def test_moment_matching_trains_one_network_at_a_time_and_rests_where_it_should():
    of_student, of_auxiliary = gradients(0.7, 0.4, 1), gradients(0.7, 0.4, 0)
    assert of_student["shift"] is None
    assert of_auxiliary["mean"] is None
    assert of_auxiliary["deviation"] is None
    for gradient in (of_student["mean"], of_student["deviation"]):
        assert abs(gradient.item()) < 1e-7  # the same distribution: nothing to change, at no point
    assert abs(of_auxiliary["shift"].item()) < 0.01  # a mean over noise
    too_far = gradients(1.0, 0.6, 1)
    assert too_far["mean"] > 0.01
    assert too_far["deviation"] > 0.01
