import json
import math
import pickle
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from strategies import ALL, column, relative_error, schedules, tensors, times
from tiny import COSINE, noise, same_weights, tiny
from torch import nn

from pdlib.denoiser import Confined, Denoiser, Guided, OfClasses
from pdlib.exact import GaussianDenoiser
from pdlib.files import DamagedFileError, write_tensors
from pdlib.grids import Grid
from pdlib.networks import MLP, NETWORKS, UNet
from pdlib.objectives import Objective, TwoSteps
from pdlib.predictions import (
    PREDICTIONS,
    Prediction,
    PredictionError,
    eps_from_x,
    v_from_x,
    x_from_eps,
    x_from_output,
    x_from_v,
)
from pdlib.sampling import sample
from pdlib.schedules import SCHEDULES, Schedule, zero_terminal_snr
from pdlib.training import Session, TrainingSettings, fit


class Echo(nn.Module):
    """Answers z plus its time, and remembers the time."""

    def __init__(self, copies=1):
        super().__init__()
        self.copies = copies

    def forward(self, z, time):
        self.time = time
        return torch.cat([z + column(time)] * self.copies, dim=1)


@given(schedules, times(3), tensors(3, 4), st.sampled_from(list(PREDICTIONS)))
def test_a_denoiser_reads_its_networks_output(schedule, t, z, prediction):
    network = Echo(2 if prediction == "both" else 1)
    denoiser = Denoiser(network, prediction, schedule)
    found = denoiser(z, t)
    expected = x_from_output(prediction, network(z, network.time), z, *schedule.alpha_sigma(t))
    assert torch.equal(found, expected)
    assert found.shape == z.shape
    assert torch.equal(denoiser.output(z, t), network(z, network.time))


@given(schedules, st.floats(0, 1))
def test_the_network_is_told_a_time_in_0_to_1_even_where_the_log_snr_is_infinite(schedule, t):
    network = Echo()
    t = torch.tensor([0, t, 1], dtype=torch.float64)
    Denoiser(network, "x", schedule)(torch.zeros(3, 2), t)
    expected = 2 / math.pi * torch.atan(torch.exp(-schedule.log_snr(t) / 2))
    torch.testing.assert_close(network.time, expected, rtol=1e-10, atol=1e-12)
    assert ((network.time >= 0) & (network.time <= 1)).all()


@given(times(3))
def test_on_the_cosine_schedule_the_networks_time_is_t(t):
    network = Echo()
    Denoiser(network, "x", COSINE)(torch.zeros(3, 2), t)
    torch.testing.assert_close(network.time, t)


def test_an_eps_network_is_refused_at_alpha_0_and_the_others_are_not():
    z, t = torch.zeros(3, 2), torch.tensor([0.5, 1.0, 0.2])
    with pytest.raises(PredictionError, match=r"α = 0.*pdlib\.distillation\.convert"):
        Denoiser(Echo(), "eps", COSINE)(z, t)
    assert Denoiser(Echo(), "eps", ALL["cosine_clipped"])(z, t).isfinite().all()
    for prediction in ("x", "v", "both"):
        assert Denoiser(Echo(2 if prediction == "both" else 1), prediction, COSINE)(z, t).isfinite().all()


def test_an_unknown_prediction_is_named():
    with pytest.raises(ValueError, match="prediction='score' is unknown; it must be one of x, eps, v, both"):
        Denoiser(Echo(), "score", COSINE)


# Saving and loading.


def stirred(network):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    return network


@pytest.fixture
def folder(tmp_path):
    """A saved denoiser."""
    Denoiser(stirred(MLP(2, width=8)), "v", COSINE, Grid(4, missing=1), (2,)).save(tmp_path / "student")
    return tmp_path / "student"


def refused(folder, match, error=DamagedFileError):
    """Opening the folder ends in one line that names it."""
    with pytest.raises(error, match=match) as caught:
        Denoiser.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(folder))


@pytest.mark.parametrize("name", ALL)
def test_a_saved_denoiser_comes_back_on_any_schedule(name, tmp_path):
    denoiser = Denoiser(stirred(MLP(2, width=8)), "x", ALL[name])
    denoiser.save(tmp_path)
    again = Denoiser.load(tmp_path)
    assert (again.prediction, again.schedule) == ("x", ALL[name])
    z, t = torch.randn(5, 2), torch.linspace(0, 1, 5)
    assert torch.equal(again(z, t), denoiser(z, t))


@pytest.mark.parametrize(
    ("network", "prediction"),
    [
        (UNet(1, width=8, attention=(1,), heads=2), "v"),
        (UNet(3, 6, width=8, multipliers=(1, 1, 2), blocks=1, attention=None, dropout=0.1), "both"),
        (MLP(2, width=8), "eps"),
    ],
)
def test_a_saved_denoiser_comes_back_whatever_its_network(network, prediction, tmp_path):
    schedule = zero_terminal_snr(ALL["cosine_clipped"]) if prediction != "eps" else ALL["cosine_clipped"]
    denoiser = Denoiser(stirred(network), prediction, schedule)
    denoiser.save(tmp_path / "new" / "folder")
    again = Denoiser.load(tmp_path / "new" / "folder")
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"config.json", "model.safetensors"}
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    shape = (2, 1, 8, 8) if network.config["channels"] == 1 else (2, 3, 8, 8)
    z, t = torch.randn(shape if network.config["name"] == "unet" else (2, 2)), torch.tensor([0.3, 0.9])
    torch.testing.assert_close(again(z, t), denoiser.eval()(z, t))
    saved, loaded = denoiser.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)


def test_saving_again_replaces_what_was_there(folder):
    other = Denoiser(MLP(2, width=16), "x", ALL["linear"])
    other.save(folder)
    assert (Denoiser.load(folder).prediction, Denoiser.load(folder).schedule) == ("x", ALL["linear"])


@pytest.mark.parametrize("grid", [None, Grid(8), Grid(4, missing=1)])
@pytest.mark.parametrize("shape", [None, (2,)])
def test_what_a_denoiser_was_made_for_comes_back_with_it(grid, shape, tmp_path):
    Denoiser(MLP(2, width=8), "v", COSINE, grid, shape).save(tmp_path, stage="the second", run=7)
    again = Denoiser.load(tmp_path)
    assert (again.grid, again.shape) == (grid, shape)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["stage"], config["run"]) == ("the second", 7)


def as_the_first_edition_wrote_it(denoiser, folder):
    """Without grid and shape, and with nothing that says which weights are its own or that it was changed."""
    config = {
        "network": denoiser.network.config,
        "prediction": denoiser.prediction,
        "schedule": denoiser.schedule.config(),
    }
    write_tensors(folder / "model.safetensors", denoiser.network.state_dict())
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def test_a_folder_of_the_first_edition_still_opens(tmp_path):
    denoiser = tiny("x", ALL["linear_zero_terminal"])
    again = Denoiser.load(as_the_first_edition_wrote_it(denoiser, tmp_path))
    assert (again.grid, again.shape, again.prediction, again.schedule) == (None, None, "x", denoiser.schedule)
    assert same_weights(again, denoiser)


def test_a_folder_that_holds_no_denoiser_is_named(tmp_path):
    refused(tmp_path, r"holds no saved denoiser: there is no config\.json", FileNotFoundError)


def test_missing_weights_are_named(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, r"holds only half a denoiser: .*model\.safetensors does not exist\. Delete the folder")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused_with_advice(folder, name, keep):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(keep * len(content))])
    refused(folder, r"is damaged.*Delete it to compute it again")


@pytest.mark.parametrize("where", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_is_noticed(folder, name, where):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    refused(folder, r"damaged|was changed since it was written")


def test_weights_that_others_wrote_are_refused(folder):
    save_file(Denoiser.load(folder).network.state_dict(), folder / "model.safetensors")
    refused(folder, "its checksum does not match")


def test_weights_of_another_network_of_the_same_shape_are_refused(folder):
    other = folder.with_name("teacher")
    Denoiser(MLP(2, width=8), "v", COSINE, Grid(8)).save(other)
    shutil.copy(other / "model.safetensors", folder)
    refused(folder, r"model\.safetensors belongs to another network")
    Denoiser.load(other)  # which was not touched


class Mischief:
    def __reduce__(self):
        return (open, ("mischief", "w"))


def test_a_pickle_is_never_opened(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for content in (pickle.dumps(Mischief()), pickle.dumps({"weights": Mischief()}, protocol=0)):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(DamagedFileError, match="is damaged"):
            Denoiser.load(folder)
    assert not (folder / "mischief").exists()


def changed(*keys, to):
    """What puts another value into a config."""

    def change(config):
        inner = config
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        return config

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed("prediction", to="x"),
        changed("schedule", to=ALL["linear"].config()),
        changed("schedule", "log_snr_min", to=-20),
        changed("grid", to={"N": 8, "missing": 0}),
        changed("grid", "missing", to=0),
        changed("grid", to=None),
        changed("shape", to=[3]),
        changed("network", "blocks", to=2),
        changed("weights", to=None),
        changed("note", to="mine"),
        lambda config: {key: value for key, value in config.items() if key != "grid"},
    ],
)
def test_a_config_that_was_edited_is_refused(folder, change):
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text())), indent=2))
    refused(folder, r"config\.json was changed since it was written: its checksum does not match\. Delete it")


@pytest.mark.parametrize("content", ["[]", "null", '"v"', "3", "[{}]"])
def test_json_that_is_no_object_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    refused(folder, r"config\.json is damaged: it holds no JSON object")


MLP_CONFIG = {"name": "mlp", "channels": 2, "out_channels": 2, "width": 8, "blocks": 3}


# What carries no seal, as the first edition's, is refused for what it says.
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda config: {}, "no entry 'network'"),
        (lambda config: {"network": MLP_CONFIG}, "no entry 'schedule'"),
        (lambda config: {"network": MLP_CONFIG, "schedule": {"name": "cosine"}}, "no entry 'prediction'"),
        (changed("prediction", to="score"), "prediction='score' is unknown"),
        (changed("prediction", to=["v"]), ""),
        (changed("prediction", to=None), "prediction=None is unknown"),
        (changed("network", to=None), ""),
        (changed("network", to=[]), "network=None is unknown"),
        (changed("network", to={}), "network=None is unknown"),
        (changed("network", "name", to="resnet"), "network='resnet' is unknown"),
        (changed("network", "name", to=["mlp"]), ""),
        (changed("network", "width", to=16), "size mismatch"),  # a message of many lines, made one
        (changed("network", "blocks", to=1), "Unexpected key"),
        (changed("network", "width", to="wide"), ""),
        (changed("network", "width", to=-1), ""),
        (changed("network", "width", to=None), ""),
        (changed("network", "depth", to=3), "network='mlp': .*'depth'"),
        (changed("schedule", to=None), ""),
        (changed("schedule", to=[]), "schedule name=None is unknown"),
        (changed("schedule", "name", to="sine"), "schedule name='sine' is unknown; did you mean 'cosine'"),
        (changed("schedule", "name", to=["cosine"]), "wrong arguments"),
        (changed("schedule", "offset", to=-1), "offset=-1"),
        (changed("schedule", "offset", to="0"), "wrong arguments"),
        (changed("schedule", "log_snr_min", to=1e9), "log_snr_min|math range error"),
        (changed("schedule", to={"name": "zero_terminal_snr"}), "wrong arguments"),
        (changed("schedule", to={"name": "discrete", "alpha_bar": "0.5"}), ""),
        (changed("schedule", to={"name": "discrete", "alpha_bar": [0.1, 0.5]}), "must fall strictly"),
        (changed("grid", to=[]), ""),
        (changed("grid", to=4), ""),
        (changed("grid", to={}), ""),
        (changed("grid", to={"N": 0}), "steps=0"),
        (changed("grid", to={"N": 2.5}), "steps=2.5"),
        (changed("grid", to={"N": "4"}), ""),
        (changed("grid", to={"N": 4, "missing": 5}), "missing=5"),
        (changed("shape", to=5), ""),
        (changed("weights", to="0"), "belongs to another network"),
    ],
)
def test_a_config_of_the_wrong_structure_is_refused(folder, change, why):
    as_the_first_edition_wrote_it(Denoiser.load(folder), folder)
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    refused(folder, f"(does not hold a denoiser that this version can read: |model.safetensors ).*{why}")


# A copy to train.


def test_a_student_starts_as_its_teacher_and_goes_its_own_way():
    teacher = tiny("v", grid=Grid(8))
    student = teacher.student()
    assert (student.prediction, student.schedule, student.grid) == ("v", COSINE, Grid(8))
    z, t = noise(5, 2).float(), torch.linspace(0.1, 1, 5)
    assert torch.equal(student(z, t), teacher(z, t))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert not torch.equal(student(z, t), teacher(z, t))
    assert same_weights(teacher, tiny("v"))


def test_a_student_is_made_for_what_is_asked():
    teacher = Denoiser(MLP(2, width=8), "v", ALL["linear"], Grid(8, missing=1), (2,))
    student = teacher.student("x", Grid(4, missing=1))
    assert (student.prediction, student.schedule, student.grid, student.shape) == (
        "x",
        teacher.schedule,
        Grid(4, missing=1),
        (2,),
    )
    assert same_weights(student.network, teacher.network)


class Doubled(nn.Module):
    """A network from outside, whose layers have names of its own."""

    def __init__(self, channels, out_channels=None, **more):
        super().__init__()
        self.config = {"name": "doubled", "channels": channels, "out_channels": out_channels or channels, **more}
        self.entrance, self.exit = nn.Linear(channels + 1, 5), nn.Linear(5, out_channels or channels)

    def forward(self, z, time):
        return self.exit(torch.cat([z, column(time.to(z))], dim=1).matmul(self.entrance.weight.T).sin())


@pytest.mark.parametrize("build", [lambda out: MLP(2, out, width=8), lambda out: UNet(1, out, width=8), None])
def test_another_number_of_outputs_makes_the_last_layer_new_and_keeps_the_rest(build, monkeypatch):
    monkeypatch.setitem(NETWORKS, "doubled", Doubled)
    build = build or (lambda out: Doubled(2, out, note="kept"))
    probe = build(None).config["channels"]
    teacher = Denoiser(stirred(build(probe)), "v", COSINE, Grid(8))
    both = teacher.student("both", seed=3)
    back = both.student("x")
    assert both.network.config == {**teacher.network.config, "out_channels": 2 * probe}
    assert back.network.config == teacher.network.config
    old, new, again = (denoiser.network.state_dict() for denoiser in (teacher, both, back))
    anew = {name for name in old if not (old[name].shape == new[name].shape and torch.equal(old[name], new[name]))}
    assert {name.rpartition(".")[0] for name in anew} == {"exit" if "exit.weight" in old else "last"}
    assert all(torch.equal(old[name], again[name]) for name in set(old) - anew)
    z = torch.randn(3, probe, *((8, 8) if "unet" in old or probe == 1 else ()))
    assert both(z, torch.tensor([0.2, 0.5, 1.0])).shape == back(z, torch.ones(3)).shape == z.shape


def test_new_layers_are_drawn_from_the_seed_alone(monkeypatch):
    monkeypatch.setitem(NETWORKS, "doubled", Doubled)
    teacher = Denoiser(Doubled(2), "v", COSINE)
    state = torch.get_rng_state()
    one = teacher.student("both", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert same_weights(one, teacher.student("both", seed=3))
    assert not same_weights(one, teacher.student("both", seed=4))


def test_a_student_of_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction='eps2' is unknown; did you mean 'eps'"):
        tiny().student("eps2")


# Networks, predictions and schedules from elsewhere.


def small(**settings):
    return TrainingSettings(20, 8, 0.01, warmup=1, **settings)


def foreign():
    """Of no class of ours, without a config."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)

        class Foreign(nn.Sequential):
            def forward(self, z, time):
                return super().forward(torch.cat([z, column(time.to(z))], dim=1))

        return Foreign(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def test_any_module_can_teach_and_learn():
    teacher = Denoiser(foreign(), "v", COSINE, Grid(8))
    student = teacher.student("x", Grid(4))
    assert same_weights(student, teacher)
    objective = Objective(TwoSteps(teacher, 4), Grid(4))
    data = noise(64, 2).float()
    before = objective(student, student, data, torch.Generator().manual_seed(1)).item()
    trained = fit(student, objective, data, small(ema=0.0), Session(progress=False))
    assert objective(trained.ema, trained.ema, data, torch.Generator().manual_seed(1)).item() < 0.9 * before
    assert same_weights(teacher, foreign_weights())
    assert len(list(sample(trained.ema, z=noise(3, 2).float()))) == 5


def foreign_weights():
    return {f"network.{name}": value for name, value in foreign().state_dict().items()}


@pytest.mark.parametrize("config", [None, {"sample_size": 8}, {"name": "theirs", "channels": 2}, "theirs"])
def test_what_cannot_be_built_again_is_not_saved_and_says_what_is_missing(config, tmp_path):
    network = foreign()
    if config is not None:
        network.config = config
    denoiser = Denoiser(network, "v", COSINE)
    with pytest.raises(ValueError, match=r"a Foreign cannot be saved: it has no config.*pdlib\.networks\.Network"):
        denoiser.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=r"a Foreign cannot predict 'both' instead of 'v': .*pdlib\.networks\.Network"):
        denoiser.student("both")


def test_a_network_from_outside_is_one_entry(monkeypatch, tmp_path):
    monkeypatch.setitem(NETWORKS, "doubled", Doubled)
    denoiser = Denoiser(Doubled(2, note="kept"), "v", COSINE)
    denoiser.save(tmp_path)
    again = Denoiser.load(tmp_path)
    assert again.network.config == denoiser.network.config
    assert same_weights(again, denoiser)
    monkeypatch.delitem(NETWORKS, "doubled")
    refused(tmp_path, r"network='doubled' is unknown.*add yours to pdlib\.networks\.NETWORKS")


def test_a_prediction_from_outside_is_one_entry(monkeypatch, tmp_path):
    monkeypatch.setitem(PREDICTIONS, "minus_x", Prediction(lambda z, output, alpha, sigma: -output))
    denoiser = tiny("x")
    minus = denoiser.student("minus_x")
    minus.save(tmp_path)
    z, t = noise(5, 2).float(), torch.linspace(0, 1, 5)
    assert torch.equal(Denoiser.load(tmp_path)(z, t), -denoiser(z, t))


class Quarter(Schedule):
    """From clean to half noise only."""

    def _alpha_sigma(self, t):
        angle = math.pi / 4 * t.double()
        return angle.cos(), angle.sin()

    def config(self):
        return {"name": "quarter"}


def test_a_schedule_from_outside_is_one_entry(monkeypatch, tmp_path):
    monkeypatch.setitem(SCHEDULES, "quarter", lambda T=1000: Quarter())
    denoiser = tiny("eps", Quarter())
    denoiser.save(tmp_path)
    again = Denoiser.load(tmp_path)
    assert isinstance(again.schedule, Quarter)
    z, t = noise(5, 2).float(), torch.linspace(0, 1, 5)
    assert torch.equal(again(z, t), denoiser(z, t))
    monkeypatch.delitem(SCHEDULES, "quarter")
    refused(tmp_path, "schedule name='quarter' is unknown")


# A denoiser that wraps one.


@given(schedules, times(3), tensors(3, 4), st.floats(0.1, 2))
def test_a_confined_denoiser_keeps_every_answer_within_its_limit(schedule, t, z, limit):
    plain = GaussianDenoiser(torch.full((4,), 0.5), torch.eye(4), schedule)
    found = Confined(plain, limit)(z, t)
    assert found.tolist() == [[min(max(value, -limit), limit) for value in row] for row in plain(z, t).tolist()]
    assert torch.equal(Confined(plain, None)(z, t), plain(z, t))


def test_a_confined_denoiser_is_made_for_what_its_own_is():
    within = Denoiser(MLP(2, width=8), "v", ALL["linear"], Grid(4, missing=1), (2,))
    confined = Confined(within, 1.0)
    assert (confined.schedule, confined.grid, confined.shape) == (within.schedule, within.grid, within.shape)
    plain = Confined(GaussianDenoiser(torch.zeros(2), torch.eye(2), COSINE), 1.0)
    assert (plain.schedule, plain.grid, plain.shape) == (COSINE, None, None)
    student = confined.student("x", Grid(2))
    assert (type(student), student.prediction, student.grid) == (Denoiser, "x", Grid(2))
    assert same_weights(student, within)


def test_a_confined_denoiser_passes_a_gradient_on_where_it_confines_nothing():
    denoiser = tiny("x")
    z, t = 3 * noise(50, 2).float(), torch.linspace(0.1, 1, 50)
    x_hat = denoiser(z, t)
    free = (x_hat.abs() < 0.5).float()
    assert 0 < free.mean() < 1
    expected = torch.autograd.grad((x_hat * free).sum(), list(denoiser.parameters()))
    found = torch.autograd.grad(Confined(denoiser, 0.5)(z, t).sum(), list(denoiser.parameters()))
    assert max(relative_error(one, other) for one, other in zip(found, expected, strict=True) if other.any()) < 1e-5


# Classes and guidance.


class OfThree:
    """A class-conditional denoiser in closed form: Gaussians with means of −1, 0, 1, and, for label 3, all together."""

    def __init__(self):
        self.schedule, self.grid, self.shape = COSINE, Grid(4), (2,)
        means = torch.tensor([-1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
        self.each = [GaussianDenoiser(mean.expand(2), torch.eye(2).double() * 0.1, COSINE) for mean in means]

    def __call__(self, z, t, labels):
        return torch.stack([self.each[label](z[k : k + 1], t[k : k + 1])[0] for k, label in enumerate(labels.tolist())])


def test_bound_to_classes_each_row_is_of_its_own_and_then_over_again():
    z, t = noise(5, 2), torch.linspace(0.1, 1, 5, dtype=torch.float64)
    three = OfThree()
    for classes, labels in (
        (2, [2] * 5),
        (range(3), [0, 1, 2, 0, 1]),
        (torch.tensor([1, 0, 2, 2, 1]), [1, 0, 2, 2, 1]),
    ):
        assert torch.equal(OfClasses(three, classes)(z, t), three(z, t, torch.tensor(labels)))
    bound = OfClasses(three, 0)
    assert (bound.schedule, bound.grid, bound.shape) == (COSINE, Grid(4), (2,))


@given(st.floats(0, 5), st.integers(0, 99))
def test_guidance_goes_from_no_class_through_the_class_and_on(weight, seed):
    z, t, three = noise(3, 2, seed=seed), torch.tensor([0.2, 0.7, 1.0], dtype=torch.float64), OfThree()
    labels = torch.tensor([0, 1, 2])
    with_class, without = three(z, t, labels), three(z, t, torch.full((3,), 3))
    found = Guided(three, weight, 3)(z, t, labels)
    torch.testing.assert_close(found, without + weight * (with_class - without))


def test_guidance_on_x_hat_is_guidance_on_eps_and_on_v():
    z, t, labels = noise(4, 2), torch.linspace(0.2, 0.9, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    three, (alpha, sigma) = OfThree(), COSINE.alpha_sigma(t)
    found = Guided(three, 2.5, 3)(z, t, labels)
    for to, back in ((eps_from_x, x_from_eps), (v_from_x, x_from_v)):
        one, other = (to(z, three(z, t, some), alpha, sigma) for some in (labels, torch.full((4,), 3)))
        torch.testing.assert_close(back(z, other + 2.5 * (one - other), alpha, sigma), found)


def test_wrappers_wrap_wrappers_and_are_sampled_like_any_denoiser():
    three, z = OfThree(), noise(6, 2)
    wrapped = OfClasses(Confined(Guided(three, 3.0, 3), 0.5), range(3))
    *_, samples = sample(wrapped, z=z)
    assert samples.shape == z.shape
    assert samples.abs().max() <= 0.5
    *_, weak = sample(OfClasses(three, range(3)), z=z)
    assert (samples.sign() == weak.sign()).float().mean() > 0.5


def test_how_many_classes_a_network_knows():
    plain = Denoiser(MLP(2, width=4), "v", COSINE)
    assert plain.classes is None
    plain.network.classes = 11
    assert plain.classes == 11


def test_a_network_may_be_named_by_where_it_is_found(monkeypatch, tmp_path):
    monkeypatch.setitem(NETWORKS, "elsewhere", "pdlib.networks:MLP")
    denoiser = tiny()
    denoiser.network.config["name"] = "elsewhere"
    denoiser.save(tmp_path)
    assert same_weights(Denoiser.load(tmp_path), denoiser)
