import json
import sys

import onnx
import onnxruntime
import pytest
import torch
from interop.small_models import loaded
from tiny import PerClass
from torch import nn

from pdlib.denoiser import Confined, Denoiser
from pdlib.grids import Grid
from pdlib.interop import InteropError
from pdlib.interop.onnx import about, save_for_page, to_onnx
from pdlib.interop.packed import pack, unpack
from pdlib.networks import MLP, UNet
from pdlib.schedules import CosineSchedule, schedule_from_config

COSINE = CosineSchedule(log_snr_min=-20)


def made(network, shape, prediction="v", seed=0):
    """A denoiser whose weights, those that start at 0 too, say something."""
    draws = torch.Generator().manual_seed(seed)
    for weights in network.parameters():
        weights.data = weights.data + 0.2 * torch.randn(weights.shape, generator=draws)
    return Denoiser(network, prediction, COSINE, Grid(4), shape).eval().requires_grad_(False)


def unet(seed=0, **options):
    return made(UNet(width=8, **options), (1, 8, 8), seed=seed)


def inputs(denoiser, count):
    draws = torch.Generator().manual_seed(count)
    z, time = torch.randn(count, *denoiser.shape, generator=draws), torch.rand(count, generator=draws)
    labels = {} if denoiser.classes is None else {"labels": torch.arange(count) % denoiser.classes}
    end = {"end": torch.rand(count, generator=draws)} if denoiser.two_times else {}
    return {"z": z, "time": time, **labels, **end}


def answers(session, given):
    return torch.from_numpy(session.run(["output"], {name: value.numpy() for name, value in given.items()})[0])


KINDS = {
    "unet": lambda tmp_path: unet(attention=(0,)),
    "mlp": lambda tmp_path: made(MLP(2, 4, width=16, blocks=1), (2,), "both"),
    "flow map": lambda tmp_path: unet(two_times=True),
    "per class": lambda tmp_path: made(PerClass(), (2,)),
    "diffusers": lambda tmp_path: loaded(tmp_path / "theirs"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_answers_as_the_network_does_for_any_batch(kind, tmp_path):
    denoiser = KINDS[kind](tmp_path)
    path = to_onnx(denoiser, tmp_path / "out")
    assert path == tmp_path / "out" / "model.onnx"
    session = onnxruntime.InferenceSession(path)
    for count in (1, 5):
        given = inputs(denoiser, count)
        wanted = denoiser.network(*given.values())
        assert wanted.abs().max() > 0.01
        torch.testing.assert_close(answers(session, given), wanted, rtol=1e-4, atol=1e-4)


def test_the_file_says_what_it_is_and_nothing_of_the_machine(tmp_path):
    denoiser = made(MLP(width=16, blocks=1), (2,))
    path = to_onnx(denoiser, tmp_path / "network.onnx")
    assert path == tmp_path / "network.onnx"
    said = json.loads({entry.key: entry.value for entry in onnx.load(path).metadata_props}["pdlib"])
    assert said == about(denoiser)
    assert schedule_from_config(said["schedule"]) == COSINE and Grid(**said["grid"]) == Grid(4)
    content = path.read_bytes()
    assert not any(word.encode() in content for word in (sys.prefix, str(tmp_path), ".py", "site-packages"))
    again = to_onnx(denoiser, tmp_path / "again.onnx")
    assert again.read_bytes() == content


def test_one_graph_and_a_file_of_weights_in_sixteen_bits_for_each(tmp_path):
    denoisers = {name: unet(seed, multipliers=(1,), attention=None) for seed, name in enumerate("ab")}
    denoisers["b"].to(memory_format=torch.channels_last)
    manifest = json.loads(save_for_page(denoisers, tmp_path, run="some run").read_text(encoding="utf-8"))
    assert manifest["run"] == "some run" and list(manifest["networks"]) == ["a", "b"]
    graph = (tmp_path / "graph.onnx").read_bytes()
    assert len(graph) < 30_000
    for name, denoiser in denoisers.items():
        assert manifest["networks"][name] == about(denoiser) | {"network": denoiser.network.config}
        weights = torch.cat(unpack((tmp_path / f"{name}.q16").read_bytes())).numpy().tobytes()
        options = onnxruntime.SessionOptions()
        options.add_external_initializers_from_files_in_memory(["weights"], [weights], [len(weights)])
        given = inputs(denoiser, 3)
        found = answers(onnxruntime.InferenceSession(graph, options), given)
        torch.testing.assert_close(found, denoiser.network(*given.values()), rtol=1e-3, atol=1e-3)


def test_packed_tensors_are_half_as_large_and_off_by_half_a_step_at_most():
    draws = torch.Generator().manual_seed(0)
    tensors = [torch.randn(40, 30, generator=draws), torch.full((7,), 0.3), torch.zeros(2, 2), torch.tensor([5.0])]
    tensors += [torch.linspace(-1e-6, 3e4, 999), torch.empty(0)]
    content = pack(tensors)
    assert len(content) == sum(12 + 2 * tensor.numel() for tensor in tensors)
    for tensor, found in zip(tensors, unpack(content), strict=True):
        assert found.dtype == torch.float32 and found.shape == (tensor.numel(),)
        spread = (tensor.max() - tensor.min()).item() if len(tensor) else 0
        assert ((found - tensor.flatten()).abs() <= spread / 65535 * 0.51).all()


class Stubborn(nn.Module):
    """What it does depends on the numbers themselves."""

    def forward(self, z, time):
        return z if z.sum() > 0 else time[:, None] * z


def test_what_cannot_be_written_is_one_clear_line(tmp_path):
    small = made(MLP(width=16, blocks=1), (2,))
    stubborn = Denoiser(Stubborn(), "v", COSINE, Grid(1), (2,))
    cases = {
        "a Confined has no network of its own": lambda: to_onnx(Confined(small, 1), tmp_path),
        r"set denoiser\.shape": lambda: to_onnx(made(MLP(width=16), None), tmp_path),
        "torch cannot write this Stubborn as ONNX": lambda: to_onnx(stubborn, tmp_path),
        "one kind and size": lambda: save_for_page({"a": small, "b": made(MLP(width=32), (2,))}, tmp_path),
        "the Denoiser within": lambda: save_for_page({"a": Confined(small, 1)}, tmp_path),
    }
    for message, asked in cases.items():
        with pytest.raises(InteropError, match=message) as raised:
            asked()
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_package_is_said_with_its_cure(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "pdlib.interop.onnx")
    with pytest.raises(InteropError, match=r"pip install 'pdlib\[onnx\]'"):
        import pdlib.interop.onnx  # noqa: F401
