"""Files that are whole or absent: tensors with a checksum, JSON, and one writer at a time.

Tensors go into safetensors files (data only: nothing in them can be executed) and settings into
JSON. Both are written beside their place, flushed to disk, and then moved into it, so that a
process killed at any moment leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["DamagedFileError", "lock_folder", "read_json", "read_tensors", "write_bytes", "write_json", "write_tensors"]


class DamagedFileError(ValueError):
    """A file of ours is truncated, was changed since it was written, or is not ours."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, making its folder where needed.

    Raises:
        OSError: where the disk is full or not writable; the file that was there is untouched.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"could not write ({error.strerror}); what was saved before is kept: free some space or "
            "choose another folder, and start again to go on from there",
            str(path),
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented; numbers that are not finite become null."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises :class:`DamagedFileError` where it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged: it is not valid JSON ({error}). {_ADVICE}") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any] | None = None) -> None:
    """Write named tensors and a little JSON-ready metadata to one safetensors file, with a checksum."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = metadata or {}
    # One entry: safetensors writes several in an order of chance, and equal tensors should give equal files.
    header = {"pdlib": json.dumps({"metadata": metadata, "sha256": _digest(tensors, metadata)})}
    write_bytes(path, save(tensors, metadata=header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote: the tensors, on the CPU, and the metadata.

    Raises:
        FileNotFoundError: where there is no such file.
        DamagedFileError: where the file is truncated, was changed, or is not a safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("pdlib", "null")) or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}. {_ADVICE}") from error
    metadata = header.get("metadata", {})
    if header.get("sha256") != _digest(tensors, metadata):
        raise DamagedFileError(f"{path} was changed since it was written: its checksum does not match. {_ADVICE}")
    return tensors, metadata


def lock_folder(folder: Path) -> FileLock:
    """Take a folder for this process alone; the lock is released when the process ends, however it ends.

    Raises:
        BlockingIOError: where another process has it.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder) / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            f"folder={folder} is in use by another run: wait until it ends, or choose another folder"
        ) from None
    return lock


_ADVICE = "Delete it to compute it again, or restore it from a copy."


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _digest(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, and over the metadata."""
    digest = hashlib.sha256(json.dumps(metadata).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
