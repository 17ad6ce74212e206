import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import COSINE, FINITE, Interrupted, Watched, interrupt, noise, same_weights, tiny
from torch import nn

from pdlib.denoiser import Confined, Denoiser
from pdlib.files import DamagedFileError
from pdlib.grids import Grid
from pdlib.networks import UNet
from pdlib.objectives import Answer, Clean, Objective, TwoSteps
from pdlib.training import NotFiniteError, Session, TrainingSettings, fit
from pdlib.weightings import Clipped

# The learning rate.


@given(st.sampled_from(["linear", "cosine", "constant"]), st.integers(1, 20), st.integers(30, 100))
def test_the_rate_rises_over_the_warmup_and_falls_to_0_unless_constant(anneal, warmup, updates):
    settings = TrainingSettings(updates, learning_rate=2.0, warmup=warmup, anneal=anneal)
    rates = [settings.rate(update) for update in range(updates + 1)]
    assert rates[0] == pytest.approx(2.0 / warmup)
    assert max(rates) <= 2.0
    assert all(before >= after for before, after in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    half = {"linear": 1.0, "cosine": 1.0, "constant": 2.0}[anneal]
    end = {"linear": 0.0, "cosine": 0.0, "constant": 2.0}[anneal]
    assert TrainingSettings(100, learning_rate=2.0, warmup=warmup, anneal=anneal).rate(50) == pytest.approx(half)
    assert rates[-1] == pytest.approx(end, abs=1e-9)


def test_the_cosine_falls_later_than_the_line():
    rates = {
        anneal: TrainingSettings(100, learning_rate=1.0, warmup=0, anneal=anneal).rate(25)
        for anneal in ("linear", "cosine")
    }
    assert rates == pytest.approx({"linear": 0.75, "cosine": 0.5 + 0.5 * 0.5**0.5})


def test_an_unknown_way_to_fall_is_named():
    with pytest.raises(ValueError, match="anneal='cosin' is unknown; did you mean 'cosine'"):
        train(anneal="cosin")


# The update loop.

DATA = 0.5 + 0.1 * noise(256, 2).float()
DENOISING = Objective(Clean())
QUICK = TrainingSettings(12, batch_size=16, learning_rate=0.01, warmup=3, ema=0.8)


def train(objective=DENOISING, denoiser=None, folder=None, every=-1, data=DATA, **options):
    """A quick training; with a folder, its checkpoint is saved at every update."""
    session = Session("teacher", folder, checkpoint_seconds=every, progress=False)
    settings = dataclasses.replace(QUICK, **options)
    return fit(tiny() if denoiser is None else denoiser, objective, data, settings, session)


def test_training_lowers_the_loss():
    losses = train(updates=150, batch_size=64).losses
    assert losses[-30:].mean() < 0.6 * losses[:10].mean()


def test_the_same_seed_gives_the_same_bits_whatever_the_global_generator():
    torch.manual_seed(1)
    one = train()
    torch.manual_seed(2)
    other = train()
    assert torch.initial_seed() == 2  # the caller's generator is as it was
    assert same_weights(one.raw, other.raw)
    assert same_weights(one.ema, other.ema)
    assert torch.equal(one.losses, other.losses)
    assert not same_weights(one.raw, train(seed=1).raw)


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_the_averaged_weights_are_the_moving_average_of_the_raw_ones(decay):
    watched = Watched(DENOISING)
    trained = train(watched, ema=decay)
    history = [*watched.weights[1:], trained.raw.state_dict()]  # after each update
    for name, found in trained.ema.state_dict().items():
        average = history[0][name]
        for after in history[1:]:
            average = decay * average + (1 - decay) * after[name]
        torch.testing.assert_close(found, average)
    assert same_weights(trained.ema, trained.raw) == (decay == 0)


def test_what_comes_back_is_ready_for_sampling():
    trained = train(denoiser=tiny(grid=Grid(4)))
    for denoiser in (trained.ema, trained.raw):
        assert not denoiser.network.training
        assert not any(parameter.requires_grad for parameter in denoiser.parameters())
        assert (denoiser.prediction, denoiser.schedule, denoiser.grid) == ("v", COSINE, Grid(4))
    assert trained.losses.shape == trained.gradient_norms.shape == (12,)
    assert (trained.gradient_norms > 0).all()


def test_a_network_that_was_frozen_is_trained():
    frozen = train().raw
    assert not same_weights(train(denoiser=copy.deepcopy(frozen)).raw, frozen)


class Foreign(nn.Module):
    """A model of somebody else's: all that it has is (z, t) -> x̂ and a schedule."""

    def __init__(self, dtype=torch.float32, scale=1.0):
        super().__init__()
        self.schedule, self._scale = COSINE, scale
        self.weight = nn.Parameter(torch.zeros(2, 3, dtype=dtype))

    def forward(self, z, t):
        return self._scale * torch.cat([z, t[:, None].to(z)], 1) @ self.weight.mT


@pytest.mark.parametrize("anneal", ["linear", "cosine", "constant"])
def test_an_update_is_adams_of_the_scaled_gradient_at_the_updates_rate(anneal):
    # Slopes 0.1 to 4, scaled down to 1 where they are steeper, and Adam by hand: first moment, second, step.
    slopes, limit = [0.1, 3.0, 0.5, 2.0, 4.0, 0.9, 1.1, 0.2], 1.0
    at = iter(slopes)

    def slope(student, average, x, generator):
        return next(at) * student.weight[0, 0]

    trained = train(slope, Foreign(torch.float64), updates=8, anneal=anneal, ema=0, max_gradient_norm=limit)
    settings = TrainingSettings(8, learning_rate=0.01, warmup=3, anneal=anneal)
    place = first = second = 0.0
    for update, gradient in enumerate(slopes):
        gradient = min(gradient, limit)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        mean, square = first / (1 - 0.9 ** (update + 1)), second / (1 - 0.999 ** (update + 1))
        place -= settings.rate(update) * mean / (square**0.5 + 1e-8)
    assert trained.raw.weight[0, 0].item() == pytest.approx(place, rel=1e-5)  # torch adds 1e-6 to a gradient's norm
    assert trained.gradient_norms.tolist() == pytest.approx(slopes)  # before they were scaled


def test_any_module_with_a_schedule_can_be_trained(tmp_path):
    whole = train(denoiser=Foreign(), updates=50)
    assert isinstance(whole.ema, Foreign)
    assert whole.losses[-10:].mean() < 0.7 * whole.losses[:10].mean()
    with pytest.raises(Interrupted):
        train(Watched(DENOISING, 30, interrupt), Foreign(), tmp_path, updates=50)
    assert same_weights(train(Watched(DENOISING), Foreign(), tmp_path, updates=50).ema, whole.ema)


def infinite_gradient(denoiser, value):
    return value + (0 * next(denoiser.parameters()).sum()).sqrt()  # √0 has no slope


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda denoiser, value: value * float("nan"), "at update 5 the loss is nan"),
        (lambda denoiser, value: value * float("inf"), "at update 5 the loss is inf"),
        (infinite_gradient, "at update 5 the loss is .* its gradient's norm nan"),
    ],
)
def test_a_loss_that_is_not_finite_stops_before_it_is_used(how, message):
    denoiser, watched = tiny(), Watched(DENOISING)
    with pytest.raises(NotFiniteError, match=message):
        train(Watched(DENOISING, 5, how), denoiser)
    train(watched)
    assert same_weights(denoiser, watched.weights[5])  # those after 5 updates


# Checkpoints.


def with_dropout():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(width=4, multipliers=(1,), attention=None, dropout=0.5)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    return Denoiser(network.to(memory_format=torch.channels_last), "x", COSINE)


IMAGES = noise(20, 1, 4, 4).float()


@pytest.mark.parametrize(
    ("at", "build", "data"), [(1, tiny, DATA), (7, tiny, DATA), (11, tiny, DATA), (7, with_dropout, IMAGES)]
)
def test_a_training_that_was_interrupted_ends_in_the_same_bits(at, build, data, tmp_path):
    torch.manual_seed(1)
    whole = train(denoiser=build(), data=data)
    with pytest.raises(Interrupted):
        train(Watched(DENOISING, at, interrupt), build(), tmp_path, data=data)
    torch.manual_seed(2)
    rest = Watched(DENOISING)
    resumed = train(rest, build(), tmp_path, data=data)
    assert len(rest.weights) == 12 - at  # no update twice
    assert same_weights(resumed.raw, whole.raw)
    assert same_weights(resumed.ema, whole.ema)
    assert torch.equal(resumed.losses, whole.losses)
    assert torch.equal(resumed.gradient_norms, whole.gradient_norms)


def test_dropout_drops():
    without = with_dropout()
    without.network.apply(lambda part: setattr(part, "p", 0.0) if isinstance(part, nn.Dropout) else None)
    assert not torch.equal(
        train(denoiser=with_dropout(), data=IMAGES).losses, train(denoiser=without, data=IMAGES).losses
    )


def test_a_finished_training_is_read_from_its_checkpoint(tmp_path):
    whole = train(Watched(DENOISING), folder=tmp_path)
    again = train(Watched(DENOISING, 0, interrupt), folder=tmp_path)
    assert same_weights(again.ema, whole.ema)
    assert again.seconds >= whole.seconds * 0.5


def test_after_a_broken_loss_the_last_good_checkpoint_is_kept(tmp_path):
    with pytest.raises(NotFiniteError, match=r"last good checkpoint is kept in .*teacher\.checkpoint"):
        train(Watched(DENOISING, 5, lambda denoiser, value: value * float("nan")), folder=tmp_path)
    assert same_weights(train(Watched(DENOISING), folder=tmp_path).raw, train().raw)


def test_without_a_folder_or_before_its_time_no_checkpoint_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train()
    train(folder=tmp_path, every=1000)
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_checkpoint_is_refused(tmp_path):
    train(folder=tmp_path)
    (checkpoint,) = tmp_path.iterdir()
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedFileError, match=r"teacher\.checkpoint is damaged"):
        train(folder=tmp_path)


def test_another_kind_of_file_is_not_taken_for_a_checkpoint(tmp_path):
    train().ema.save(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").rename(tmp_path / "teacher.checkpoint")
    with pytest.raises(DamagedFileError, match="belongs to a training with another"):
        train(folder=tmp_path)


# What a checkpoint belongs to.


class Everything:
    """A training of a student by another network, with all that can be chosen in it."""

    teacher: Denoiser = tiny(seed=1)
    target = TwoSteps
    limit = 1.0
    grid = Grid(4)
    weighting = "snr"
    minimum = 0.1
    maximum = 5.0
    normalize = 4
    student = dict(prediction="v", schedule=COSINE, grid=Grid(4), width=8, seed=0)  # noqa: RUF012
    data = DATA

    def __init__(self, **changes):
        self.settings = {}
        for name, value in changes.items():
            if name in {field.name for field in dataclasses.fields(TrainingSettings)}:
                self.settings[name] = value
            else:
                assert hasattr(self, name)
                setattr(self, name, value)

    def train(self, folder, at=None):
        teacher = Confined(self.teacher, self.limit)
        target = TwoSteps(teacher, self.grid.N) if self.target is TwoSteps else self.target(teacher)
        weighting = Clipped(self.weighting, self.minimum, self.maximum, self.normalize)
        watched = Watched(Objective(target, self.grid, weighting), at, interrupt)
        return train(watched, tiny(**self.student), folder, data=self.data, **self.settings)


def student(**change):
    return {"student": Everything.student | change}


SETTINGS = {
    "updates": 13,
    "batch_size": 17,
    "learning_rate": 0.02,
    "warmup": 4,
    "anneal": "cosine",
    "ema": 0.9,
    "max_gradient_norm": 2.0,
    "seed": 1,
    "precision": "bf16",
}
HOW = ("accumulate", "compile")  # how it is computed decides nothing
OTHER = {
    "the weighting": ({"weighting": "snr_plus_one"}, "objective"),
    "a weighting from outside": ({"weighting": lambda schedule, t: t}, "objective"),
    "the weights' lower limit": ({"minimum": 0.2}, "objective"),
    "the weights' upper limit": ({"maximum": 6.0}, "objective"),
    "the weights' mean": ({"normalize": None}, "objective"),
    "the limit of the teacher's answers": ({"limit": 0.5}, "objective"),
    "no limit": ({"limit": None}, "objective"),
    "the grid": ({"grid": Grid(8)}, "objective"),
    "the missing time": ({"grid": Grid(4, missing=1)}, "objective"),
    "the target": ({"target": Answer}, "objective"),
    "the teacher's weights": ({"teacher": tiny(seed=2)}, "objective"),
    "the teacher's schedule": ({"teacher": tiny(seed=1, schedule=FINITE)}, "objective"),
    "the teacher's prediction": ({"teacher": tiny("x", seed=1)}, "objective"),
    "the data": ({"data": DATA + 1e-7}, "data"),
    "the number of data": ({"data": DATA[:-1]}, "data"),
    "the prediction": (student(prediction="x"), "denoiser"),
    "the schedule": (student(schedule=FINITE), "denoiser"),
    "the student's grid": (student(grid=Grid(4, missing=1)), "denoiser"),
    "the width": (student(width=12), "denoiser"),
    "the initial weights": (student(seed=3), "denoiser"),
    "two things": ({"data": -DATA, "limit": 2.0}, "objective, data"),
} | {name: ({name: SETTINGS[name]}, name) for name in TrainingSettings.__dataclass_fields__ if name not in HOW}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Interrupted):
        Everything().train(folder, at=6)
    return folder


@pytest.mark.parametrize("what", OTHER)
def test_a_checkpoint_of_another_training_is_refused(what, interrupted):
    change, named = OTHER[what]
    before = (interrupted / "teacher.checkpoint").read_bytes()
    with pytest.raises(DamagedFileError, match=f"with another {named}: delete it to train anew, or choose"):
        Everything(**change).train(interrupted)
    assert (interrupted / "teacher.checkpoint").read_bytes() == before


def test_a_checkpoint_of_this_training_is_gone_on_with(tmp_path):
    with pytest.raises(Interrupted):
        Everything().train(tmp_path, at=6)
    # Other objects, which compute the same.
    resumed = Everything(teacher=tiny(seed=1), data=DATA.clone(), weighting="snr").train(tmp_path)
    assert same_weights(resumed.raw, Everything().train(None).raw)


def test_a_checkpoint_is_gone_on_with_in_parts_and_with_a_teacher_that_was_compiled(tmp_path):
    with pytest.raises(Interrupted):
        Everything().train(tmp_path, at=6)
    compiled = tiny(seed=1)
    compiled.network.compile(backend="eager")
    resumed = Everything(teacher=compiled, accumulate=2).train(tmp_path)
    for one, other in zip(resumed.raw.parameters(), Everything().train(None).raw.parameters(), strict=True):
        assert (one - other).abs().max() < 1e-5


STRENGTH = 1.0


def by_a_global(schedule, t):
    return STRENGTH * torch.ones_like(t)


def test_what_a_weighting_from_outside_reads_belongs_to_it_too(tmp_path, monkeypatch):
    def weighting(strength):
        return lambda schedule, t: strength * torch.ones_like(t)

    train(Objective(Clean(), None, weighting(1.0)), folder=tmp_path / "closure")
    train(Objective(Clean(), None, weighting(1.0)), folder=tmp_path / "closure")
    with pytest.raises(DamagedFileError, match="another objective"):
        train(Objective(Clean(), None, weighting(2.0)), folder=tmp_path / "closure")
    train(Objective(Clean(), None, by_a_global), folder=tmp_path / "global")
    monkeypatch.setitem(globals(), "STRENGTH", 2.0)
    with pytest.raises(DamagedFileError, match="another objective"):
        train(Objective(Clean(), None, by_a_global), folder=tmp_path / "global")


def test_what_a_foreign_model_hides_belongs_to_it_too(tmp_path):
    train(denoiser=Foreign(scale=1.0), folder=tmp_path)
    with pytest.raises(DamagedFileError, match="another denoiser"):
        train(denoiser=Foreign(scale=2.0), folder=tmp_path)


def test_an_objective_that_holds_itself_has_a_fingerprint(tmp_path):
    class Curious:
        def __init__(self, weight):
            self.weight, self.children = weight, [self]

        def __call__(self, student, average, x, generator):
            return self.weight * DENOISING(student, average, x, generator)

    train(Curious(1.0), folder=tmp_path)
    train(Curious(1.0), folder=tmp_path)
    with pytest.raises(DamagedFileError, match="another objective"):
        train(Curious(2.0), folder=tmp_path)


def test_the_session_decides_nothing(tmp_path):
    with pytest.raises(Interrupted):
        train(Watched(DENOISING, 6, interrupt), folder=tmp_path)
    resumed = fit(tiny(), Watched(DENOISING), DATA, QUICK, Session("teacher", str(tmp_path), 1000.0, progress=False))
    assert same_weights(resumed.raw, train().raw)
