import copy
import errno
import functools
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny import COSINE, FINITE, tiny
from torch import nn

from pdlib.denoiser import Confined, Denoiser
from pdlib.exact import GaussianDenoiser
from pdlib.files import (
    DamagedFileError,
    digest,
    lock_folder,
    read_json,
    read_tensors,
    tensors_digest,
    unknown,
    write_bytes,
    write_json,
    write_tensors,
)
from pdlib.grids import Grid
from pdlib.objectives import Answer, Clean, Objective, TwoSteps
from pdlib.weightings import Clipped, Density

TENSORS = {
    "weights": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "step": torch.tensor(7),
    "state": torch.arange(5, dtype=torch.uint8),
    "strided": torch.arange(6.0).reshape(2, 3).T,
    "half": torch.ones(2, dtype=torch.bfloat16),
}


def test_tensors_come_back_to_the_bit(tmp_path):
    write_tensors(tmp_path / "new" / "file.safetensors", TENSORS, {"update": 3, "label": "θ"})
    found, metadata = read_tensors(tmp_path / "new" / "file.safetensors")
    assert metadata == {"update": 3, "label": "θ"}
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_the_same_tensors_give_the_same_file(tmp_path):
    for name in "ab":
        write_tensors(tmp_path / name, TENSORS, {"update": 3})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(DamagedFileError, match=r"file.safetensors is damaged.*Delete it"):
        read_tensors(path)


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"weights": TENSORS["weights"]}, {"update": 3})
    content = bytearray(path.read_bytes())
    for k in range(len(content)):
        changed = content.copy()
        changed[k] ^= 4
        path.write_bytes(changed)
        with pytest.raises(DamagedFileError, match=r"file\.safetensors"):
            read_tensors(path)


def test_changed_metadata_is_noticed(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, {"update": 3})
    path.write_bytes(path.read_bytes().replace(b'\\"update\\": 3', b'\\"update\\": 9'))
    with pytest.raises(DamagedFileError, match="was changed since it was written"):
        read_tensors(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors does not exist"):
        read_tensors(tmp_path / "nothing.safetensors")


def test_a_file_of_other_tensors_is_not_taken_for_the_one_that_is_meant(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, {"update": 3})
    assert read_tensors(path, tensors_digest(TENSORS, {"update": 3}))[1] == {"update": 3}
    for other in (tensors_digest(TENSORS), tensors_digest({"step": TENSORS["step"]}, {"update": 3})):
        with pytest.raises(DamagedFileError, match=r"file\.safetensors belongs to another network"):
            read_tensors(path, other)


CONTENT = {"α": [1, 2.5, None], "name": "x̃", "nested": {"one": 1, "two": [True, "2"]}}


def test_json_comes_back(tmp_path):
    write_json(tmp_path / "file.json", CONTENT)
    assert read_json(tmp_path / "file.json") == CONTENT
    assert "α" in (tmp_path / "file.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b'"a"', b"1"])
def test_what_is_no_json_object_is_named(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"file.json is damaged.*Delete it") as caught:
        read_json(tmp_path / "file.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"x̃"', '"x̂"'), ("2.5", "2.6"), ("null", "0"), ('"one": 1', '"one": true'), ('"two"', '"three"'), ('"2"', "2")],
)
def test_json_that_was_edited_is_noticed(tmp_path, old, new):
    write_json(tmp_path / "file.json", CONTENT)
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "file.json").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(DamagedFileError, match=r"file\.json was changed since it was written.*Delete it"):
        read_json(tmp_path / "file.json")


def test_the_layout_of_json_is_free_and_files_without_a_seal_are_read(tmp_path):
    write_json(tmp_path / "file.json", CONTENT)
    sealed = json.loads((tmp_path / "file.json").read_text(encoding="utf-8"))
    (tmp_path / "file.json").write_text(json.dumps(dict(reversed(sealed.items()))))
    assert read_json(tmp_path / "file.json") == CONTENT
    (tmp_path / "file.json").write_text(json.dumps(CONTENT))  # as the first edition wrote it
    assert read_json(tmp_path / "file.json") == CONTENT


def test_what_json_cannot_hold_is_written_as_what_it_can(tmp_path):
    write_json(tmp_path / "file.json", {"a": [float("nan"), 1.0], "b": float("inf"), 3: (1, 2)})
    text = (tmp_path / "file.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail).keys() == {"a", "b", "3", "checksum"}
    assert read_json(tmp_path / "file.json") == {"a": [None, 1.0], "b": None, "3": [1, 2]}


# What happens between the old file and the new one.


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match=r"No space left on device.*what was saved before is kept: free some space") as e:
        write_bytes(path, b"new")
    assert (e.value.errno, e.value.filename) == (errno.ENOSPC, str(path))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"file": b"old"}


def test_a_power_cut_finds_the_old_file_or_the_new_one_on_disk(tmp_path, monkeypatch):
    # What is on disk for sure: what was flushed, under the name that it had then.
    path, flushed, fsync, replace = tmp_path / "file", set(), os.fsync, os.replace

    def flush(file):
        fsync(file)
        flushed.add(os.fstat(file).st_ino)

    def move(one, other):
        assert os.stat(one).st_ino in flushed
        replace(one, other)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", move)
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def keep_writing(path, byte):
    for size in range(1, 101):
        write_bytes(path, byte * size * 1000)


def test_two_processes_may_write_one_path(tmp_path):
    path = tmp_path / "file"
    writers = [
        multiprocessing.get_context("fork").Process(target=keep_writing, args=(path, byte)) for byte in (b"a", b"b")
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.is_file():
            content = path.read_bytes()
            assert content == content[:1] * len(content)
            assert len(content) % 1000 == 0 < len(content)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert path.read_bytes() in (b"a" * 100_000, b"b" * 100_000)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"no folder")
    with pytest.raises(OSError, match=r"could not write .*choose another folder") as caught:
        write_bytes(tmp_path / "file" / "inner", b"new")
    assert caught.value.filename == str(tmp_path / "file" / "inner")
    assert isinstance(caught.value, NotADirectoryError | FileExistsError)


# One writer at a time.

HOLD = """
import sys, time
from pdlib.files import lock_folder
lock = lock_folder(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_is_taken_by_one_process_and_free_again_when_it_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=r"is in use by another run: wait until it ends, or choose another"):
            lock_folder(tmp_path)
        holder.kill()
        holder.wait()
    with lock_folder(tmp_path):
        pass


# The one message for a name that is not known.


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        (
            "spiral",
            ["moons", "spirals"],
            "data='spiral' is unknown; did you mean 'spirals'? it must be one of moons, spirals",
        ),
        ("xyz", {"moons": 1, "spirals": 2}, "data='xyz' is unknown; it must be one of moons, spirals"),
        (None, ["moons"], "data=None is unknown; it must be one of moons"),
        (3, iter(["moons"]), "data=3 is unknown; it must be one of moons"),
    ],
)
def test_an_unknown_name_is_answered_with_what_was_meant_or_with_what_there_is(name, known, message):
    assert unknown("data", name, known) == message


# What decides a computation, in one digest.


def plus(number):
    return lambda x: x + number


def scaled(x):
    return x * FACTOR


def scaled_in_a_list(x):
    return [part * FACTOR for part in x]


FACTOR = 2


@dataclass(frozen=True)
class Setting:
    value: Any
    name: str = "a"


@dataclass
class Other:
    value: Any
    name: str = "a"


class Pair(NamedTuple):
    one: Any
    two: Any


class Plain:
    def __init__(self, **held):
        self.__dict__.update(held)

    def method(self, x):
        return x

    def another(self, x):
        return x


class Slotted:
    __slots__ = ()


def one_weight_changed():
    denoiser = tiny()
    with torch.no_grad():
        list(denoiser.parameters())[3].view(-1)[0] += 1e-6
    return denoiser


def frozen_statistics(mean):
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(mean)
    return norm


GAUSSIAN = GaussianDenoiser(torch.zeros(2), torch.eye(2), COSINE)

# Of each list no two compute the same. Builders, so that each can be built twice.
DIFFERENT = {
    "values": [
        lambda: None,
        lambda: 0,
        lambda: 1,
        lambda: True,
        lambda: 1.5,
        lambda: "1",
        lambda: b"1",
        lambda: float("nan"),
    ],
    "tensors": [
        lambda: torch.zeros(2, 3),
        lambda: torch.zeros(3, 2),
        lambda: torch.zeros(2, 3).double(),
        lambda: torch.zeros(2, 3).int(),
        lambda: torch.eye(3)[:2],
        lambda: torch.eye(3)[1:],
        lambda: torch.zeros(0),
        lambda: torch.zeros(()),
    ],
    "arrays": [lambda: np.zeros(3), lambda: np.ones(3), lambda: np.zeros(3, int), lambda: np.zeros((3, 1))],
    "collections": [
        lambda: [],
        lambda: {},
        lambda: [1, 2],
        lambda: [2, 1],
        lambda: [[1], 2],
        lambda: {"a": 1},
        lambda: {"a": 2},
        lambda: {"b": 1},
        lambda: {"a": {"a": 1}},
        lambda: {"a": [torch.zeros(1)]},
        lambda: {"a": [torch.ones(1)]},
    ],
    "sets": [lambda: {"a", "b"}, lambda: {"a", "c"}, lambda: frozenset({"a"})],
    "denoisers": [
        tiny,
        one_weight_changed,
        lambda: tiny(seed=1),
        lambda: tiny(width=9),
        lambda: tiny("x"),
        lambda: tiny(schedule=FINITE),
        lambda: tiny(grid=Grid(4)),
        lambda: tiny(grid=Grid(4, missing=1)),
        lambda: Denoiser(tiny().network, "v", COSINE, shape=(2,)),
        lambda: Confined(tiny(), 1.0),
        lambda: Confined(tiny(), 0.5),
        lambda: Confined(one_weight_changed(), 0.5),
        lambda: tiny().network,
        lambda: GAUSSIAN,
        lambda: GaussianDenoiser(torch.ones(2), torch.eye(2), COSINE),
        lambda: GaussianDenoiser(torch.zeros(2), torch.eye(2), FINITE),
        lambda: Confined(GAUSSIAN, 1.0),
    ],
    "modules": [
        lambda: nn.Dropout(0.1),
        lambda: nn.Dropout(0.2),
        lambda: nn.Identity(),
        lambda: nn.ReLU(),
        lambda: frozen_statistics(0.0),
        lambda: frozen_statistics(1.0),  # a buffer
        lambda: nn.Sequential(nn.ReLU(), nn.Identity()),
        lambda: nn.Sequential(nn.Identity(), nn.ReLU()),
    ],
    "functions": [
        lambda: lambda x: x + 1,
        lambda: lambda x: x + 2,
        lambda: lambda x: x - 1,
        lambda: lambda x, y=1: x + y,
        lambda: lambda x, y=2: x + y,
        lambda: lambda x, *, y=1: x + y,
        lambda: lambda x, *, y=2: x + y,
        lambda: lambda x: x.sin(),
        lambda: lambda x: x.cos(),
        lambda: lambda x: (lambda y: y + 1)(x),
        lambda: lambda x: (lambda y: y + 2)(x),
        lambda: plus(1),
        lambda: plus(2),
        lambda: plus(torch.ones(1)),
        lambda: scaled,
        lambda: torch.sin,
        lambda: torch.cos,
        lambda: np.sin,
        lambda: np.cos,
        lambda: nn.functional.relu,
        lambda: nn.functional.silu,
        lambda: Plain(a=1).method,
        lambda: Plain(a=2).method,
        lambda: Plain(a=1).another,
    ],
    "partials": [
        lambda: functools.partial(scaled),
        lambda: functools.partial(scaled, 1),
        lambda: functools.partial(scaled, 2),
        lambda: functools.partial(scaled, x=1),
        lambda: functools.partial(scaled, x=2),
        lambda: functools.partial(plus(1), 1),
        lambda: functools.partial(plus(2), 1),
    ],
    "objects": [
        lambda: Setting(1),
        lambda: Setting(2),
        lambda: Setting(1, "b"),
        lambda: Other(1),
        lambda: Setting(Setting(1)),
        lambda: Setting(Setting(2)),
        lambda: Setting([Other(plus(1))]),
        lambda: Setting([Other(plus(2))]),
        lambda: Plain(value=1),
        lambda: Plain(value=2),
        lambda: Plain(other=1),
        lambda: Plain(),
        lambda: Plain(func=1),
        lambda: Slotted(),
        lambda: Setting,
        lambda: Other,
        lambda: Pair(1, 2),
        lambda: Pair(2, 1),
    ],
    "objectives": [
        lambda: Objective(Clean()),
        lambda: Objective(Clean(), Grid(4)),
        lambda: Objective(Clean(), Grid(8)),
        lambda: Objective(Clean(), Grid(4, missing=1)),
        lambda: Objective(Clean(), Grid(4), "snr"),
        lambda: Objective(Clean(), Grid(4), "log_snr_density"),
        lambda: Objective(Clean(), Grid(4), Density(8)),
        lambda: Objective(Clean(), Grid(4), Clipped("snr", max=5)),
        lambda: Objective(Clean(), Grid(4), Clipped("snr", max=6)),
        lambda: Objective(Clean(), Grid(4), lambda schedule, t: t),
        lambda: Objective(Clean(), Grid(4), lambda schedule, t: t + 1),
        lambda: Objective(Answer(tiny()), Grid(4)),
        lambda: Objective(Answer(Confined(tiny(), 1.0)), Grid(4)),
        lambda: Objective(TwoSteps(tiny(), 4), Grid(4)),
        lambda: Objective(TwoSteps(one_weight_changed(), 4), Grid(4)),
        lambda: Objective(TwoSteps(tiny(), 8), Grid(4)),
    ],
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_computes_the_same_has_one_digest_and_what_differs_another(kind):
    digests = [digest(build()) for build in DIFFERENT[kind]]
    assert [digest(build()) for build in DIFFERENT[kind]] == digests
    assert [digests.index(found) for found in digests] == list(range(len(digests)))


@pytest.mark.parametrize("function", [scaled, scaled_in_a_list, Setting(scaled)])
def test_a_function_is_also_what_it_names(function, monkeypatch):
    before = digest(function)
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3)
    assert digest(function) != before


def test_a_function_that_was_used_is_still_the_same():
    function = plus(1)
    before = digest(function)
    for number in range(1000):  # often enough for the interpreter to write faster code in its place
        function(number)
    assert digest(function) == before


@pytest.mark.parametrize("change", [nn.Module.eval, nn.Module.train, lambda network: network.requires_grad_(False)])
def test_a_network_is_the_same_whatever_it_is_about_to_do(change):
    denoiser = tiny()
    before = digest(denoiser)
    assert digest(change(denoiser)) == before
    assert digest(copy.deepcopy(denoiser)) == before


def test_a_network_that_was_asked_and_has_gradients_is_the_same():
    denoiser = tiny()
    before = digest(denoiser)
    denoiser(torch.ones(2, 2), torch.full((2,), 0.5)).sum().backward()
    assert digest(denoiser) == before


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_where_it_computes_is_no_part_of_it(device):
    place = torch.device(device)
    on = Plain(network=tiny().to(place), points=torch.ones(3, device=place), place=place)
    here = Plain(network=tiny(), points=torch.ones(3), place=torch.device("meta"))
    assert digest(on) == digest(here)


@pytest.mark.parametrize("layout", [lambda x: x.mT.contiguous().mT, lambda x: x.repeat(2, 2)[:4, :4], nn.Parameter])
def test_how_a_tensor_lies_in_memory_is_no_part_of_it(layout):
    x = torch.arange(16.0).reshape(4, 4)
    assert digest(layout(x)) == digest(x) == digest(x.numpy())


def test_a_network_laid_out_for_images_is_the_same():
    convolution = nn.Conv2d(3, 4, 3)
    before = digest(convolution)
    assert digest(convolution.to(memory_format=torch.channels_last)) == before


def test_what_holds_itself_has_a_digest():
    one, other = Plain(value=1), Plain(value=1)
    one.me, other.me = one, other
    assert digest(one) == digest(other) != digest(Plain(value=1, me=None))


def test_another_process_finds_the_same_digest(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        "def wave(x, names=frozenset('abcdef')):\n    return x in {'u', 'v', 'w'}, names\n"
    )
    code = "import theirs; from pdlib.files import digest; print(digest([theirs.wave, {'x', 'y', 'z'}, object()]))"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(tmp_path)}
    theirs = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    monkeypatch.syspath_prepend(tmp_path)
    wave = importlib.import_module("theirs").wave
    assert digest([wave, {"x", "y", "z"}, object()]) == theirs.stdout.strip()
