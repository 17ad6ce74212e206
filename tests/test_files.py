import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from pdlib.files import DamagedFileError, lock_folder, read_json, read_tensors, write_bytes, write_json, write_tensors

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


def test_json_comes_back(tmp_path):
    content = {"α": [1, 2.5, None], "name": "x̃"}
    write_json(tmp_path / "file.json", content)
    assert read_json(tmp_path / "file.json") == content
    assert "α" in (tmp_path / "file.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_json_that_is_none_is_named(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"file.json is damaged.*Delete it"):
        read_json(tmp_path / "file.json")


def test_not_a_number_is_written_as_null(tmp_path):
    write_json(tmp_path / "file.json", {"a": [float("nan"), 1.0], "b": float("inf")})
    assert json.loads((tmp_path / "file.json").read_text(), parse_constant=pytest.fail) == {"a": [None, 1.0], "b": None}


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


def test_the_content_is_on_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda one, other: (order.append("replace"), replace(one, other)))
    write_bytes(tmp_path / "file", b"new")
    assert order == ["fsync", "replace"]


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
