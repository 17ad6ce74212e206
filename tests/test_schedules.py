import copy
import math
import pickle
import weakref

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given
from hypothesis import strategies as st
from strategies import ALL, CLEAN_START, TOLERANCE, ZERO_TERMINAL, clean_start, relative_error, schedules, times
from tiny import generator, noise, tiny

from pdlib.grids import Grid
from pdlib.objectives import Objective, TwoSteps
from pdlib.schedules import (
    SCHEDULES,
    CosineSchedule,
    DiscreteSchedule,
    LinearSchedule,
    Schedule,
    ZeroTerminalSNR,
    diffuse,
    expand,
    make_schedule,
    schedule_from_config,
    zero_terminal_snr,
)

ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


@given(schedules, times(5))
def test_variance_is_preserved_and_every_quantity_is_one_function_of_the_log_snr(schedule, t):
    alpha, sigma = schedule.alpha_sigma(t)
    log_snr = schedule.log_snr(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=0, atol=1e-14)
    assert relative_error(alpha, log_snr.sigmoid().sqrt()) <= TOLERANCE  # α² = sigmoid(λ)
    assert relative_error(schedule.angle(t), torch.atan(torch.exp(-log_snr / 2))) <= TOLERANCE


@given(schedules, st.integers(10, 989), st.floats(0.1, 0.9))
def test_dlog_snr_is_the_derivative_of_log_snr(schedule, index, fraction):
    # Between two grid points of the discrete schedules: at a grid point they have a kink.
    t = torch.tensor([(index + fraction) / 1000], dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(schedule.log_snr(t).sum(), t)
    assert ((schedule.dlog_snr(t) / derivative - 1).abs() <= TOLERANCE).all()


@given(schedules, st.floats(0, 1), st.floats(0, 1))
def test_more_time_is_more_noise(schedule, one, other):
    early, late = sorted((one, other))
    alpha, sigma = schedule.alpha_sigma(torch.tensor([early, late], dtype=torch.float64))
    assert alpha[0] >= alpha[1]
    assert sigma[0] <= sigma[1]


@pytest.mark.parametrize("name", ZERO_TERMINAL)
def test_a_zero_terminal_schedule_ends_in_pure_noise_exactly(name):
    schedule = ZERO_TERMINAL[name]
    alpha, sigma = schedule.alpha_sigma(ENDS)
    assert (alpha[1], sigma[1]) == (0, 1)
    assert schedule.log_snr(ENDS)[1] == schedule.dlog_snr(ENDS)[1] == -math.inf
    assert schedule.angle(ENDS)[1] == math.pi / 2


@given(clean_start)
def test_a_schedule_that_starts_clean_has_no_noise_at_0_exactly(schedule):
    alpha, sigma = schedule.alpha_sigma(ENDS)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert schedule.log_snr(ENDS)[0] == math.inf
    assert schedule.dlog_snr(ENDS)[0] == -math.inf


def test_only_the_schedules_said_to_do_so_have_noise_left_at_the_start_or_signal_left_at_the_end():
    ends = {name: schedule.alpha_sigma(ENDS) for name, schedule in ALL.items()}
    assert {name for name, (alpha, _) in ends.items() if alpha[1] > 0} == set(ALL) - set(ZERO_TERMINAL)
    assert {name for name, (_, sigma) in ends.items() if sigma[0] > 0} == set(ALL) - set(CLEAN_START)


@given(times(5))
def test_the_cosine_schedule_is_a_cosine(t):
    alpha, sigma = CosineSchedule().alpha_sigma(t)
    assert relative_error(alpha, torch.cos(math.pi / 2 * t)) <= TOLERANCE
    assert relative_error(sigma, torch.sin(math.pi / 2 * t)) <= TOLERANCE
    assert relative_error(CosineSchedule().angle(t), math.pi / 2 * t) <= TOLERANCE


@given(st.floats(0, 0.1), times(5))
def test_the_cosine_offset_is_that_of_nichol_and_dhariwal(offset, t):
    def f(t):  # their equation 17: ᾱ = f(t)/f(0)
        return torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2

    alpha, sigma = CosineSchedule(offset).alpha_sigma(t)
    expected = f(t) / f(torch.zeros(1).double())
    assert relative_error(alpha**2, expected) <= TOLERANCE
    assert relative_error(sigma**2, 1 - expected) <= TOLERANCE


@given(st.floats(-25, -5), st.floats(5, 25), times(5))
def test_a_range_for_the_log_snr_is_kept_and_its_ends_are_reached(low, high, t):
    schedule = CosineSchedule(log_snr_min=low, log_snr_max=high)
    assert relative_error(schedule.log_snr(ENDS), torch.tensor([high, low], dtype=torch.float64)) <= TOLERANCE
    # The official code: λ = −2 log tan(a t + b), with a and b such that the ends are λ_max and λ_min.
    b = math.atan(math.exp(-high / 2))
    a = math.atan(math.exp(-low / 2)) - b
    assert ((torch.exp(-schedule.log_snr(t) / 2) / torch.tan(a * t + b) - 1).abs() <= TOLERANCE).all()


@given(st.floats(0.01, 1), st.floats(1, 30), times(3))
def test_the_linear_schedule_solves_its_differential_equation(low, high, t):
    t = t.requires_grad_()
    alpha, _ = LinearSchedule(low, high).alpha_sigma(t)
    (slope,) = torch.autograd.grad(alpha.log().sum(), t)  # d log α/dt = −β/2
    assert relative_error(slope, -(low + t * (high - low)) / 2) <= TOLERANCE


def test_the_linear_schedule_is_the_limit_of_the_discrete_one():
    # β_i = β(i/T)/T: the betas of 1e-4 … 0.02 at T = 1000, spread ever finer.
    t = Grid(10).times
    alpha, _ = LinearSchedule().alpha_sigma(t)
    errors = [
        relative_error(DiscreteSchedule.linear_beta(T, 0.1 / T, 20 / T).alpha_sigma(t)[0], alpha)
        for T in (1000, 10_000)
    ]
    assert errors[0] < 0.06
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)


@pytest.mark.parametrize("name", ["discrete_cosine", "discrete_linear", "discrete_linear_zero_terminal"])
def test_a_discrete_schedule_returns_its_values_on_the_grid(name):
    schedule = ALL[name]
    alpha, sigma = schedule.alpha_sigma(Grid(schedule.T).times)
    assert relative_error(alpha**2, schedule.alpha_bar) <= TOLERANCE
    assert ((sigma**2 / (1 - schedule.alpha_bar) - 1).abs() <= TOLERANCE).all()


@pytest.mark.parametrize("T", [3, 7, 49, 1000, 4000])
def test_a_time_reached_by_subtraction_is_still_on_the_grid(T):
    values = torch.linspace(0.9, 0, T, dtype=torch.float64)
    schedule = DiscreteSchedule(values)
    t = Grid(T).times[1:] - 1 / T  # (i + 1)/T − 1/T is not i/T to the last bit
    assert relative_error(schedule.alpha_sigma(t)[0] ** 2, values[:-1]) <= 1e-15 * T
    # The slope jumps at a grid point: from the left, it is that of the segment below.
    torch.testing.assert_close(schedule.dlog_snr(t), schedule.dlog_snr(Grid(T).times[:-1]))


@given(st.floats(0, 1))
def test_between_grid_points_a_discrete_schedule_interpolates_the_angle(fraction):
    schedule = DiscreteSchedule([0.75, 0.25, 0.0])  # angles 30°, 60° and 90°
    for index, (low, high) in enumerate([(0, 30), (30, 60), (60, 90)]):
        t = torch.tensor([(index + fraction) / 3], dtype=torch.float64)
        assert schedule.angle(t).item() == pytest.approx(math.radians(low + fraction * (high - low)), abs=1e-7)


@given(st.floats(0.05, 0.5), st.floats(5, 30), times(5))
def test_rescaling_makes_the_terminal_snr_0_and_is_affine_in_alpha(low, high, t):
    original = LinearSchedule(low, high)
    schedule = zero_terminal_snr(original)
    assert isinstance(schedule, ZeroTerminalSNR)
    alpha, sigma = schedule.alpha_sigma(torch.cat([ENDS, t]))
    before, _ = original.alpha_sigma(torch.cat([ENDS, t]))
    assert (alpha[1], alpha[0], sigma[0]) == (0, 1, 0)
    assert relative_error(alpha, (before - before[1]) / (1 - before[1])) <= TOLERANCE


def test_rescaling_leaves_a_zero_terminal_schedule_alone_and_keeps_the_noise_at_0():
    schedule = CosineSchedule()
    assert zero_terminal_snr(schedule) is schedule
    noisy = DiscreteSchedule([0.9, 0.5, 0.1], alpha_bar_0=0.95)
    rescaled = zero_terminal_snr(noisy)
    assert rescaled.alpha_bar[-1] == 0
    assert rescaled.alpha_bar[0] == pytest.approx(0.9)
    assert rescaled.alpha_sigma(ENDS)[0][0] ** 2 == pytest.approx(0.95)


# The reference: diffusers, whose schedulers hold ᾱ_1 … ᾱ_T in float32.


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (DiscreteSchedule.linear_beta(), {"beta_schedule": "linear"}),
        (
            DiscreteSchedule.scaled_linear_beta(),
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (DiscreteSchedule.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_the_discrete_schedules_are_those_of_diffusers(ours, theirs):
    theirs = DDPMScheduler(num_train_timesteps=1000, **theirs).alphas_cumprod.double()
    # Its cosine clips the last beta at 0.999, where ours goes down to ᾱ_T = 0.
    assert relative_error(ours.alpha_bar[:-1], theirs[:-1]) < 1e-6
    assert ((ours.alpha_bar / theirs - 1).abs()[:-1] < 1e-4).all()


def test_the_rescaling_is_that_of_diffusers():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    theirs = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    ours = zero_terminal_snr(DiscreteSchedule.linear_beta()).alpha_bar
    assert ours[-1] == theirs[-1] == 0
    assert ((ours / theirs - 1).abs()[:-1] <= TOLERANCE).all()


def test_the_notes_values_of_the_cosine_schedule_of_1000_steps():
    # cos²((π/2)(i/1000 + 0.008)/1.008) at i = 250, 500, 750, 1000: not divided by its value at 0.
    alpha_bar = DiscreteSchedule.cosine(1000, start_clean=False).alpha_bar
    assert alpha_bar[[249, 499, 749, 999]].tolist() == pytest.approx([0.8469, 0.4938, 0.1442, 0], abs=5e-5)
    assert alpha_bar[-1] == 0


@given(st.integers(1, 2048))
def test_the_wrong_grids_top_time_keeps_signal(steps):
    # Trained on i = 0 … N − 1, a network never sees t = 1; its noisiest input still holds α = sin(π/2N) of the data.
    wrong_top = torch.tensor([1 - 1 / steps], dtype=torch.float64)
    alpha, _ = CosineSchedule().alpha_sigma(wrong_top)
    assert alpha.item() == pytest.approx(math.sin(math.pi / (2 * steps)), rel=1e-10)
    assert CosineSchedule().alpha_sigma(Grid(steps).times)[0][-1] == 0


@pytest.mark.parametrize("name", ALL)
def test_a_schedule_is_rebuilt_from_its_config(name):
    schedule = ALL[name]
    again = schedule_from_config(schedule.config())
    t = torch.linspace(0, 1, 33)
    assert again == schedule
    assert hash(again) == hash(schedule)
    for found, expected in zip(again.alpha_sigma(t), schedule.alpha_sigma(t), strict=True):
        assert torch.equal(found, expected)
    assert [other for other in ALL if ALL[other] == schedule] == [name]


@given(schedules)
def test_results_have_the_shape_of_t_and_are_float64(schedule):
    t = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    found = [*schedule.alpha_sigma(t), schedule.log_snr(t), schedule.dlog_snr(t), schedule.angle(t)]
    assert {(value.shape, value.dtype) for value in found} == {(t.shape, torch.float64)}


def test_expand_shapes_and_casts_to_multiply_z():
    z = torch.zeros(2, 1, 3, 3, dtype=torch.float32)
    value = expand(torch.tensor([2.0, 3.0], dtype=torch.float64), z)
    assert (value.shape, value.dtype) == ((2, 1, 1, 1), torch.float32)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CosineSchedule(offset=-0.1), "offset=-0.1"),
        (lambda: CosineSchedule(log_snr_min=5, log_snr_max=-5), "log_snr_min=5 is not below log_snr_max=-5"),
        (lambda: LinearSchedule(beta_min=0), "0 < beta_min"),
        (lambda: LinearSchedule(beta_min=3, beta_max=2), "0 < beta_min <= beta_max"),
        (lambda: DiscreteSchedule([]), "at least one value"),
        (lambda: DiscreteSchedule([0.5, math.nan]), "finite"),
        (lambda: DiscreteSchedule([0.5, 0.5]), "must fall strictly"),
        (lambda: DiscreteSchedule([0.5, -0.1]), "must fall strictly"),
        (lambda: DiscreteSchedule([1.0, 0.5]), "must fall strictly"),
        (lambda: DiscreteSchedule([0.5], alpha_bar_0=1.5), "at most 1"),
        (lambda: schedule_from_config({"name": "sine"}), "'sine' is unknown; did you mean 'cosine'"),
        (lambda: schedule_from_config({"name": "cosine", "s": 1}), "wrong arguments"),
    ],
)
def test_a_wrong_argument_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# A part of a schedule on which a chain's grids lie.


@pytest.mark.parametrize(("T", "steps", "end"), [(1000, 64, None), (1000, 8, None), (1000, 16, -6.0), (50, 4, -3.0)])
def test_a_part_for_steps_keeps_values_and_holds_every_halved_grid(T, steps, end):
    schedule = DiscreteSchedule.linear_beta(T, 0.1 / T, 20 / T)
    part = schedule.for_steps(steps, end)
    assert part.T % steps == 0
    assert 0 <= T - part.T < steps or end is not None
    grid = Grid(steps)
    while True:
        found = part.alpha_sigma(grid.times)[0] ** 2
        assert torch.isin(found.float(), schedule.alpha_bar.float()).all()
        if grid.N % 2:
            break
        grid = grid.halved()
    if end is None:
        assert part.alpha_bar[-1] == schedule.alpha_bar[-1]  # the end stays: it may be what matters
    else:
        assert part.alpha_bar[0] == schedule.alpha_bar[0]
        assert part.log_snr(torch.ones(1)).item() >= end
        longer = schedule.alpha_bar[part.T + steps - 1] if part.T + steps <= T else 0.0
        assert torch.logit(torch.as_tensor(longer, dtype=torch.float64)) < end


def test_a_part_for_more_steps_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"steps=64: the schedule has 50 values, \d+ of them with λ ≥ -3: take fewer"):
        DiscreteSchedule.linear_beta(50, 0.002, 0.4).for_steps(64, -3)


# One evaluation for each tensor of times.


class Counted(CosineSchedule):
    """Counts how often it computes; an answer is right if it is that of a schedule that is asked for the first time."""

    def __init__(self):
        super().__init__()
        self.computed = 0

    def _alpha_sigma(self, t):
        self.computed += 1
        return super()._alpha_sigma(t)

    def right(self, t):
        found, expected = self.alpha_sigma(t), CosineSchedule().alpha_sigma(t.clone())
        return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


T = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)


def test_whoever_asks_for_the_same_tensor_of_times_is_given_the_same_answer():
    schedule, t, equal = Counted(), T.clone(), T.clone()
    first = schedule.alpha_sigma(t)
    for ask in (schedule.alpha_sigma, schedule.log_snr, schedule.dlog_snr, schedule.angle):
        ask(t)
    assert schedule.computed == 1
    assert schedule.alpha_sigma(t)[0] is first[0]
    schedule.alpha_sigma(equal)  # another tensor, if an equal one
    assert schedule.computed == 2
    assert not torch.equal(LinearSchedule().alpha_sigma(t)[0], first[0])  # another schedule


def test_an_update_of_algorithm_2_asks_for_three_times_and_computes_three():
    schedule = Counted()
    teacher = tiny(schedule=schedule, grid=Grid(8))
    student = teacher.student(grid=Grid(4))
    average = copy.deepcopy(student)  # as the update loop makes it
    objective = Objective(TwoSteps(teacher, 4), Grid(4))
    for update in range(2):
        schedule.computed = 0
        objective(student, average, noise(6, 2, seed=update).float(), generator(update)).backward()
        assert schedule.computed == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.mul_(0.5),
        lambda t: t.__setitem__(2, 0.05),
        lambda t: t[1:3].fill_(0.3),  # through a view
        lambda t: torch.sqrt(T, out=t),
        lambda t: t.copy_(T.flip(0)),
        torch.inference_mode()(lambda t: t.mul_(0.5)),
    ],
)
def test_times_that_were_changed_in_place_are_computed_again(change):
    schedule, t = Counted(), T.clone()
    schedule.alpha_sigma(t)
    change(t)
    assert not torch.equal(t, T)
    assert schedule.right(t)


def test_a_view_is_computed_again_when_what_it_looks_at_changes():
    schedule, base = Counted(), T.clone()
    view = base[1:]
    schedule.alpha_sigma(view)
    base.mul_(0.5)
    assert schedule.right(view)


def test_an_answer_that_was_changed_in_place_is_not_given_to_the_next():
    schedule, t = Counted(), T.clone()
    for part in schedule.alpha_sigma(t):
        part.zero_()
    assert schedule.right(t)


def test_times_made_for_inference_may_change_unseen():
    schedule = Counted()
    with torch.inference_mode():
        t = T.clone()
        schedule.alpha_sigma(t)
        t.mul_(0.5)
        assert schedule.right(t)


def test_an_answer_made_for_inference_is_not_kept_for_training():
    schedule, t, scale = Counted(), T.clone(), torch.ones(5, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        schedule.alpha_sigma(t)
    alpha, _ = schedule.alpha_sigma(t)
    (alpha * scale).sum().backward()
    assert torch.equal(scale.grad, alpha)


def test_times_with_a_gradient_take_it_along_every_time():
    schedule, t = Counted(), T.clone()
    schedule.alpha_sigma(t)
    t.requires_grad_()
    with torch.no_grad():
        schedule.alpha_sigma(t)
    for _ in range(2):  # each backward through a graph of its own
        (slope,) = torch.autograd.grad(schedule.angle(t).sum(), t)
        torch.testing.assert_close(slope, torch.full_like(T, math.pi / 2))


def test_transforms_of_functions_see_through():
    schedule, t = Counted(), T.clone()
    schedule.alpha_sigma(t)
    slope = torch.full_like(t, math.pi / 2)
    for _ in range(2):
        torch.testing.assert_close(torch.func.jvp(schedule.angle, (t,), (torch.ones_like(t),))[1], slope)
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(schedule.angle))(t), slope)
        torch.testing.assert_close(torch.func.vmap(schedule.angle)(t), schedule.angle(t))
        torch.testing.assert_close(torch.func.jacrev(schedule.angle)(t), slope.diag())
    again = T.clone()  # first asked for within a transform that does not concern it
    found, moved = torch.func.jvp(lambda x: x * schedule.alpha_sigma(again)[0], (t,), (torch.ones_like(t),))
    assert schedule.right(again)
    assert torch.equal(moved, schedule.alpha_sigma(t)[0])
    assert torch.equal(found, t * moved)


class Straight(Schedule):
    """σ = t, itself."""

    def _alpha_sigma(self, t):
        return (1 - t.double() ** 2).sqrt(), t.double()


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule(), ALL["discrete_linear"], Straight()])
def test_an_answer_lives_no_longer_than_its_times(schedule):
    t = T.clone()
    alive = [weakref.ref(t), *map(weakref.ref, schedule.alpha_sigma(t))]
    del t
    assert [reference() for reference in alive] == [None] * 3


class Learned(CosineSchedule):
    def __init__(self):
        super().__init__()
        self.rate = torch.ones((), dtype=torch.float64, requires_grad=True)

    def _alpha_sigma(self, t):
        angle = math.pi / 2 * t.double() ** self.rate
        return angle.cos(), angle.sin()


def test_a_schedule_that_learns_is_asked_anew():
    schedule, t = Learned(), T.clone()
    for _ in range(2):
        schedule.angle(t).sum().backward()
    with torch.no_grad():
        schedule.rate += 1
    torch.testing.assert_close(schedule.angle(t).detach(), math.pi / 2 * t**2)


@pytest.mark.parametrize("name", ALL)
def test_a_schedule_that_was_asked_survives_copies_and_pickles(name):
    schedule, t = ALL[name], T.clone()
    expected = schedule.alpha_sigma(t)
    for again in (copy.deepcopy(schedule), copy.copy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert again == schedule
        assert all(torch.equal(one, other) for one, other in zip(again.alpha_sigma(t), expected, strict=True))
    assert "_known" not in vars(pickle.loads(pickle.dumps(schedule)))  # no answers with it


# By name.


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_name_makes_its_schedule(name):
    assert make_schedule(name) == ALL[name]
    few = make_schedule(name, T=50)
    assert few.T == 50 if name.startswith(("discrete", "notes")) else few == ALL[name]


@pytest.mark.parametrize("name", SCHEDULES)
def test_any_schedule_is_made_to_end_in_noise_alone(name):
    schedule = make_schedule(name, zero_terminal=True)
    assert schedule == zero_terminal_snr(ALL[name])
    assert schedule.alpha_sigma(ENDS)[0][1] == 0


def test_the_ends_of_lambda_are_a_cosines():
    assert make_schedule("cosine", -20, 20) == ALL["cosine_clipped"]
    assert make_schedule("cosine", log_snr_min=-9.0) == CosineSchedule(log_snr_min=-9.0)
    assert make_schedule("cosine_offset", log_snr_max=9.0) == CosineSchedule(0.008, log_snr_max=9.0)
    clipped = make_schedule("cosine", -5, 5, zero_terminal=True)
    assert clipped.log_snr(ENDS).tolist() == [pytest.approx(5), -math.inf]


@pytest.mark.parametrize("T", [100, 1000])
def test_fewer_betas_add_as_much_noise_as_the_published_1000(T):
    for name, build in (
        ("discrete_linear", DiscreteSchedule.linear_beta),
        ("discrete_scaled_linear", DiscreteSchedule.scaled_linear_beta),
    ):
        published = build()
        assert make_schedule(name, T=T).log_snr(ENDS)[1].item() == pytest.approx(published.log_snr(ENDS)[1], abs=2)
    assert make_schedule("discrete_linear") == DiscreteSchedule.linear_beta(1000, 0.0001, 0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cosin"}, "schedule='cosin' is unknown; did you mean 'cosine'?"),
        (
            {"name": "linear", "log_snr_min": -20},
            "log_snr_min=-20.* with schedule='linear': only cosine and cosine_off",
        ),
        ({"name": "cosine_clipped", "log_snr_max": 5}, "with schedule='cosine_clipped': only cosine and cosine_offset"),
        ({"name": "discrete_cosine", "log_snr_max": 5}, "only cosine and cosine_offset"),
        ({"name": "cosine", "log_snr_min": 5, "log_snr_max": -5}, "log_snr_min=5 is not below log_snr_max=-5"),
        ({"name": "discrete_linear", "T": 0}, "T=0: a schedule needs at least 1 grid point"),
        ({"name": "discrete_linear", "T": 5}, "must fall strictly"),
    ],
)
def test_what_cannot_be_made_is_named(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_schedule(**arguments)
    assert "\n" not in str(caught.value)


class Power(Schedule):
    """A schedule from elsewhere: the angle grows as a power of t."""

    def __init__(self, power=2.0):
        self.power = power

    def _alpha_sigma(self, t):
        angle = math.pi / 2 * t.double() ** self.power
        return angle.cos(), angle.sin()

    def config(self):
        return {"name": "power", "power": self.power}


def test_a_schedule_from_outside_is_one_entry(monkeypatch):
    monkeypatch.setitem(SCHEDULES, "power", lambda T=1000, power=2.0: Power(power))
    schedule = make_schedule("power")
    torch.testing.assert_close(schedule.angle(T), math.pi / 2 * T**2)
    assert schedule_from_config(Power(3.0).config()) == Power(3.0) != schedule
    assert repr(Power(3.0)) == "Power(power=3.0)"
    z, eps = diffuse(noise(1, 3), torch.full((1,), 0.5), schedule, generator(1))
    torch.testing.assert_close(z, math.cos(math.pi / 8) * noise(1, 3) + math.sin(math.pi / 8) * eps)
