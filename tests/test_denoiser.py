import json
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from strategies import ALL, column, schedules, tensors, times
from torch import nn

from pdlib.denoiser import Denoiser
from pdlib.files import DamagedFileError
from pdlib.predictions import PREDICTIONS, PredictionError, x_from_output
from pdlib.schedules import CosineSchedule, zero_terminal_snr
from pdlib.unet import MLP, UNet

COSINE = CosineSchedule()


class Echo(nn.Module):
    """Answers z plus its time, and remembers the time."""

    def __init__(self, copies=1):
        super().__init__()
        self.copies = copies

    def forward(self, z, time):
        self.time = time
        return torch.cat([z + column(time)] * self.copies, dim=1)


@given(schedules, times(3), tensors(3, 4), st.sampled_from(PREDICTIONS))
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
    Denoiser(stirred(MLP(2, width=8)), "v", COSINE).save(tmp_path)
    return tmp_path


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


def test_a_folder_that_holds_no_denoiser_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no saved denoiser: there is no config\.json"):
        Denoiser.load(tmp_path)


def test_missing_weights_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors does not exist"):
        Denoiser.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused_with_advice(folder, name, keep):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DamagedFileError, match=r"is damaged.*Delete it to compute it again"):
        Denoiser.load(folder)


@pytest.mark.parametrize("where", [0.1, 0.5, 0.999])
def test_a_flipped_bit_is_noticed(folder, where):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"damaged|was changed since it was written"):
        Denoiser.load(folder)


def test_weights_that_others_wrote_are_refused(folder):
    save_file(Denoiser.load(folder).network.state_dict(), folder / "model.safetensors")
    with pytest.raises(DamagedFileError, match="its checksum does not match"):
        Denoiser.load(folder)


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


def changed(config, *keys, value):
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return config


@pytest.mark.parametrize(
    "tamper",
    [
        lambda config: [],
        lambda config: None,
        lambda config: {},
        lambda config: "v",
        lambda config: changed(config, "prediction", value="score"),
        lambda config: changed(config, "prediction", value=["v"]),
        lambda config: changed(config, "network", value=None),
        lambda config: changed(config, "network", "name", value="resnet"),
        lambda config: changed(config, "network", "width", value=16),  # does not fit the weights
        lambda config: changed(config, "network", "width", value="wide"),
        lambda config: changed(config, "network", "width", value=-1),
        lambda config: changed(config, "network", "depth", value=3),
        lambda config: changed(config, "schedule", value=None),
        lambda config: changed(config, "schedule", "name", value="sine"),
        lambda config: changed(config, "schedule", "offset", value=-1),
        lambda config: changed(config, "schedule", "offset", value="0"),
        lambda config: changed(config, "schedule", "log_snr_min", value=1e9),
        lambda config: changed(config, "schedule", value={"name": "zero_terminal_snr"}),
        lambda config: changed(config, "schedule", value={"name": "discrete", "alpha_bar": "0.5"}),
        lambda config: changed(config, "schedule", value={"name": "discrete", "alpha_bar": [0.1, 0.5]}),
    ],
)
def test_a_tampered_config_is_refused(folder, tamper):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tamper(config)))
    with pytest.raises(DamagedFileError, match="does not hold a denoiser that this version can read"):
        Denoiser.load(folder)
