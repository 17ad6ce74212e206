"""Other libraries' models in and out: for all else here they are denoisers like any other."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pdlib.denoiser import Denoiser
from pdlib.files import is_hub_name

__all__ = ["InteropError", "is_foreign", "one_line", "open_denoiser", "prediction"]


class InteropError(ValueError):
    """A model of another library cannot be read, or ours cannot be written for it; the message says what can."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def is_foreign(place: str | Path) -> bool:
    """Whether a place is a folder that another library wrote, or a name on its hub (owner/name), and not ours."""
    folder = Path(place).expanduser()
    if not folder.exists():
        return is_hub_name(str(place))
    if (folder / "model_index.json").is_file():
        return True
    try:
        return "_class_name" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def prediction(place: str | Path) -> str:
    """What a foreign model predicts, by our name; raises as :func:`open_denoiser`."""
    from pdlib.interop.diffusers import PREDICTION_TYPES, read_folder

    return PREDICTION_TYPES[read_folder(place).prediction_type]


def open_denoiser(place: str | Path, device: torch.device | str = "cpu") -> Denoiser:
    """A denoiser of whoever's: of ours as :meth:`pdlib.denoiser.Denoiser.load` opens it, or a foreign one.

    Raises:
        InteropError: for a foreign one that cannot be read, or where the package that reads it is missing.
        FileNotFoundError, DamagedFileError: as in :meth:`pdlib.denoiser.Denoiser.load`.
    """
    if not is_foreign(place):
        return Denoiser.load(place, device)
    from pdlib.interop.diffusers import load

    return load(place, device=device)
