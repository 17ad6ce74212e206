"""Files that are whole or absent: sealed JSON, tensors with a checksum, and one writer at a time.

Tensors go into safetensors files (data only: nothing in them can be executed) and settings into
JSON. Both are written beside their place, flushed to disk, and then moved into it, so that a
process killed at any moment leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

__all__ = [
    "DamagedFileError",
    "cache_folder",
    "digest",
    "is_hub_name",
    "lock_folder",
    "named",
    "read_json",
    "read_tensors",
    "tensors_digest",
    "unknown",
    "write_bytes",
    "write_json",
    "write_tensors",
]

Entry = TypeVar("Entry")
_ADVICE = "Delete it to compute it again, or restore it from a copy."


class DamagedFileError(ValueError):
    """A file of ours is truncated, was changed, belongs to something else, or is not ours."""


def unknown(what: str, name: Any, known: Iterable[str]) -> str:
    """The one message for a name that is not known: what it was meant to be, or what there is."""
    known = list(known)
    close = get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{what}={name!r} is unknown; {hint}it must be one of {', '.join(known)}"


def named(what: str, name: str, known: Mapping[str, Entry]) -> Entry:
    """What a registry holds under a name; ValueError, as one line, for one that is :func:`unknown`."""
    if name not in known:
        raise ValueError(unknown(what, name, known))
    return known[name]


def is_hub_name(text: str) -> bool:
    """Whether a text is a name on the Hugging Face hub, owner/name, and not a path whose first folder is here."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) is not None and not os.path.isdir(text.split("/")[0])


def cache_folder() -> Path:
    """Where what is costly to make is kept from one run to the next: ``$PDLIB_CACHE``, or ``~/.cache/pdlib``."""
    return Path(os.environ.get("PDLIB_CACHE") or "~/.cache/pdlib").expanduser()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, making its folder where needed.

    Raises:
        OSError: where the disk is full or not writable; the file that was there is untouched.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # of this process alone
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        advice = "free some space or choose another folder, and start again to go on from there"
        kept = f"could not write ({error.strerror}); what was saved before is kept: {advice}"
        raise OSError(error.errno, kept, str(path)) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, indented, sealed with a checksum; numbers that are not finite become null."""
    content = _finite(content)
    sealed = content | {"checksum": _seal(content)}
    write_bytes(path, f"{json.dumps(sealed, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode())


def read_json(path: Path, advice: str = _ADVICE) -> dict[str, Any]:
    """Read a JSON object; one without a seal, as older versions wrote it, is taken as it is.

    Raises:
        DamagedFileError: where it is not a JSON object, or was changed since it was written.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: it is not valid JSON ({error}). {advice}") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} is damaged: it holds no JSON object. {advice}")
    checksum = content.pop("checksum", None)
    if checksum is not None and checksum != _seal(content):
        raise DamagedFileError(f"{path} was changed since it was written: its checksum does not match. {advice}")
    return content


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any] | None = None) -> None:
    """Write named tensors and a little JSON-ready metadata to one safetensors file, with a checksum."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = metadata or {}
    # One entry: safetensors writes several in an order of chance, and equal tensors should give equal files.
    header = {"pdlib": json.dumps({"metadata": metadata, "sha256": tensors_digest(tensors, metadata)})}
    write_bytes(path, save(tensors, metadata=header))


def read_tensors(path: Path, checksum: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote: the tensors, on the CPU, and the metadata.

    Args:
        path: the file.
        checksum: what :func:`tensors_digest` must give, where it is known which file this must be.

    Raises:
        FileNotFoundError: where there is no such file.
        DamagedFileError: where the file is truncated, was changed, is another one, or is not a safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("pdlib", "null")) or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata, stated = header.get("metadata", {}), header.get("sha256")
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}. {_ADVICE}") from error
    found = tensors_digest(tensors, metadata)
    if stated != found:
        raise DamagedFileError(f"{path} was changed since it was written: its checksum does not match. {_ADVICE}")
    if checksum not in (None, found):
        raise DamagedFileError(f"{path} belongs to another network: restore the right one, or delete its folder")
    return tensors, metadata


def tensors_digest(tensors: dict[str, Tensor], metadata: dict[str, Any] | None = None) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, and over their metadata."""
    found = hashlib.sha256(json.dumps(metadata or {}).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in [tensor] if isinstance(tensor, Tensor) else tensor.split(64):  # what is not in memory as a whole
            found.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def digest(content: Any) -> str:
    """SHA-256 of anything that decides a computation: values, tensors, networks, functions, and objects of them.

    Two things have one digest if they compute the same, as far as that can be seen: an object is its class and what it
    holds, a function its name, its code and what that names. Where it computes (device) is no part of it.
    """
    return hashlib.sha256(json.dumps(_described(content), sort_keys=True).encode()).hexdigest()


def _described(content: Any, above: tuple[int, ...] = ()) -> Any:
    """What :func:`digest` sees, as JSON; what lies around it, by id, is in ``above``."""
    if content is None or isinstance(content, bool | int | float | str):
        return content
    if isinstance(content, torch.device):
        return "device"
    if isinstance(content, bytes | Path | torch.dtype):
        return str(content)
    if isinstance(content, np.ndarray | np.generic):
        content = torch.as_tensor(content)
    if isinstance(content, Tensor):
        return ["tensor", tensors_digest({"": content})]
    if hasattr(content, "tensor_digest"):  # of images that stand for a tensor
        return ["tensor", content.tensor_digest]
    if id(content) in above:
        return ["around it", above.index(id(content))]

    def within(part: Any) -> Any:
        return _described(part, (*above, id(content)))

    if isinstance(content, dict):
        return {str(key): within(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [within(value) for value in content]
    if isinstance(content, set | frozenset):
        return sorted((within(value) for value in content), key=json.dumps)
    if isinstance(content, type):
        return f"{content.__module__}.{content.__qualname__}"
    kind = within(type(content))
    if inspect.isfunction(content):
        code, home = content.__code__, content.__module__
        closed = [cell.cell_contents for cell in content.__closure__ or ()]
        named = {name: content.__globals__[name] for name in _names(code) if name in content.__globals__}
        named = {n: v for n, v in named.items() if not inspect.isfunction(v) or v.__module__ == home}
        return [home, content.__qualname__, within([code, content.__defaults__, content.__kwdefaults__, closed, named])]
    if inspect.iscode(content):
        return within([content.co_code, content.co_consts, content.co_names])
    if inspect.ismethod(content):
        return [content.__name__, within(content.__self__)]
    if inspect.isbuiltin(content) or inspect.ismodule(content):
        return content.__name__
    if isinstance(content, nn.Module):
        usual = vars(nn.Module())  # hooks, the training flag, and parts, parameters and buffers, which are seen below
        usual |= {"_compiled_call_impl": None}  # compiled it computes the same
        own = {key: value for key, value in vars(content).items() if key not in usual}
        parts = {name: within(part) for name, part in content.named_children()}
        tensors = dict(content.named_parameters(recurse=False)) | dict(content.named_buffers(recurse=False))
        return [kind, parts, tensors_digest(tensors), within(own)]
    if callable(getattr(content, "config", None)):
        return [kind, within(content.config())]
    if dataclasses.is_dataclass(content):
        return [kind, within({field.name: getattr(content, field.name) for field in dataclasses.fields(content)})]
    if isinstance(content, functools.partial):
        return [kind, within([content.func, content.args, content.keywords])]
    # What holds nothing that can be seen is what it prints, but for its place in memory.
    held = getattr(content, "__dict__", None)
    return [kind, within(held) if held else re.sub(r" at 0x\w+", "", repr(content))]


def _names(code: CodeType) -> set[str]:
    """The names that a function's code uses, that of the functions and comprehensions within it too."""
    return {*code.co_names}.union(*(_names(part) for part in code.co_consts if inspect.iscode(part)))


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
        message = f"folder={folder} is in use by another run: wait until it ends, or choose another folder"
        raise BlockingIOError(message) from None
    return lock


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
