"""Data sets: handwritten digits (the embedded default), toys in the plane, and files of your own.

Everything becomes one float32 tensor in [-1, 1] or thereabouts: images of shape
(n, channels, height, width), or points of shape (n, 2).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn import datasets as sklearn_datasets
from torch import Tensor

from pdlib.files import digest, is_hub_name, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DATASETS", "TOYS", "Data", "DataError", "load_data"]

Examples = tuple[np.ndarray, np.ndarray | None]
_MAX_CLASSES = 2**15  # the classifier of the features has an output for each
_KINDS = (".parquet", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".zip")


class DataError(ValueError):
    """The data cannot be used: not found, not finite, nothing to learn from, or of the wrong shape."""


@dataclass(frozen=True)
class Data:
    """A data set in memory."""

    name: str
    """What :func:`load_data` was asked for."""
    x: Tensor
    """The examples, float32: (n, channels, height, width) in [-1, 1], or (n, 2)."""
    labels: Tensor | None = None
    """Class of each example, int64, shape (n,), where there is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.x.shape[1:])

    @property
    def is_image(self) -> bool:
        """Whether an example is an image rather than a point."""
        return self.x.ndim == 4

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the examples and labels: what is computed from, whatever its name."""
        return digest([self.x, self.labels])


def load_data(name_or_path: str | Path, split: str = "train", toy_points: int = 8192) -> Data:
    """Load a data set by name, or from a file or folder.

    Args:
        name_or_path: one of

            - a name in :data:`DATASETS`: ``"digits"``, scikit-learn's 1,797 handwritten digits of 8×8 pixels;
              ``"moons"``, ``"swiss_roll"``, ``"checkerboard"``, ``"ring"``, points in the plane; ``"mnist"``,
              ``"cifar10"``; or any image data set's name on the Hugging Face hub (owner/name);
            - a ``.npy`` file of images (n, height, width) or (n, channels, height, width), or of points (n, 2).
              Floats are taken as lying in [-1, 1]; integers as grey values of 0 … 255 where they are images whose
              largest value is one of 128 … 255. Other integers could mean anything, and are refused;
            - a ``.npz`` file with such an array ``x`` and, if you have them, labels ``y``: class numbers or names;
            - a folder that Hugging Face ``datasets`` reads: images (in one folder per class, or
              not), or parquet files.
        split: which part of a hub data set or folder.
        toy_points: how many points a toy has. Toys are drawn with a fixed seed.

    Raises:
        DataError: where it is not found or not readable, is empty, not finite, the same example throughout,
            or of the wrong shape or range.
    """
    name, path = str(name_or_path), os.path.expanduser(name_or_path)
    source, is_array = DATASETS.get(name), path.lower().endswith((".npy", ".npz"))
    if not (source or is_array or os.sep in path or os.path.exists(path)):
        others = "a .npy or .npz file, a folder of images, or a Hugging Face data set (owner/name)"
        raise DataError(f"{unknown('data', name, DATASETS)}, {others}")
    try:
        if callable(source):
            x, labels = source(toy_points) if name in TOYS else source()
        elif is_array:
            x, labels = _from_numpy(path)
        elif not source and os.path.isdir(path):
            x, labels = _from_hugging_face(_looked_through(os.path.abspath(path)), split)
        elif source or is_hub_name(path):
            x, labels = _from_hugging_face(source or path, split)
        else:
            raise DataError("is no folder and no .npy or .npz file: check the path")
        x = _examples(np.asarray(x))
        return Data(name, x, None if labels is None else _classes(np.asarray(labels), len(x)))
    except DataError as error:
        raise DataError(f"data={name!r} {error}") from None
    except Exception as error:  # the libraries raise many kinds, for a damaged file, a bad split, no network
        reason = error
        while reason.__cause__:
            reason = reason.__cause__
        text = " ".join(str(reason).split())[:200] or type(reason).__name__
        missing = "" if callable(source) or os.path.exists(path) else "there is no such file or folder here; "
        advice = "check the path and the network" if missing and not is_array else "check the path, or write it again"
        raise DataError(f"data={name!r} cannot be read ({missing}{text}): {advice}") from error


def _digits() -> Examples:
    digits = sklearn_datasets.load_digits()
    return digits.images / 8 - 1, digits.target


def _toy(name: str, points: int = 8192) -> Examples:
    """Points in the plane, within about [-1, 1] × [-1, 1]."""
    random = np.random.default_rng(0)
    if name == "moons":
        x, _ = sklearn_datasets.make_moons(points, noise=0.05, random_state=0)
        return (x - [0.5, 0.25]) / 1.5, None
    if name == "swiss_roll":
        x, _ = sklearn_datasets.make_swiss_roll(points, noise=0.3, random_state=0)
        return x[:, [0, 2]] / 14, None
    if name == "checkerboard":
        column = random.integers(0, 4, points)
        row = 2 * random.integers(0, 2, points) + column % 2
        return (np.stack([column, row], 1) + random.random((points, 2))) / 2 - 1, None
    angle = random.integers(0, 8, points) * math.pi / 4  # ring: eight Gaussians
    return 0.8 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * random.standard_normal((points, 2)), None


TOYS = ("moons", "swiss_roll", "checkerboard", "ring")
DATASETS: dict[str, str | Callable[..., Examples]] = {
    "digits": _digits,
    **{name: partial(_toy, name) for name in TOYS},
    "mnist": "ylecun/mnist",
    "cifar10": "uoft-cs/cifar10",
}
"""Name -> a function () -> (examples, labels or None), or a name on the hub. An entry more is a data set more."""


def _from_numpy(path: str) -> Examples:
    content = np.load(path, allow_pickle=False)
    named = {"x": content} if isinstance(content, np.ndarray) else content
    if "x" not in named:
        raise DataError(f"holds {', '.join(named) or 'nothing'}: name the examples x, and labels y")
    return named["x"], named.get("y")


def _looked_through(folder: str) -> str:
    """The folder, unless it is plainly not one of data: the library would read all that is in it, for minutes."""
    right = wrong = 0
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found = sum(name.lower().endswith(_KINDS) for name in files)
        right, wrong = right + found, wrong + len(files) - found
        if wrong > 2 * right + 5000:
            break
    if not right or wrong > 2 * right:
        raise DataError(f"holds {right} images or parquet files and {wrong} others: give a folder of the former alone")
    return folder


def _from_hugging_face(source: str, split: str) -> Examples:
    """Read a folder (an absolute path) or a data set on the hub (owner/name)."""
    try:
        import datasets
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise DataError("needs the package datasets: pip install 'pdlib[data]'") from None
    datasets.disable_progress_bars()
    offline = datasets.config.HF_HUB_OFFLINE
    try:
        if not os.path.isabs(source):
            HfApi().dataset_info(source, timeout=3)
    except (HfHubHTTPError, ValueError):
        pass  # it answers: the library below says what
    except Exception:  # it does not: the library looks into its cache alone, instead of asking again and again
        datasets.config.HF_HUB_OFFLINE = True
    try:
        table = datasets.load_dataset(source, split=split)
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    kinds = {key: type(feature) for key, feature in table.features.items()}
    images = [key for key, kind in kinds.items() if kind is datasets.Image]
    if not images:
        raise DataError(f"has no column of images, only {', '.join(kinds)}: give images, or points in a .npy file")
    pixels = [_pixels(image) for image in table[images[0]]]
    shapes = sorted({image.shape for image in pixels})
    if len(shapes) != 1:
        some = f"{len(shapes)} different shapes ({', '.join(map(str, shapes[:3]))} …)"
        raise DataError(f"has images of {some}: make them one size, all grey or all coloured")
    classes = [
        key for key, kind in kinds.items() if kind is datasets.ClassLabel or (key, kind) == ("label", datasets.Value)
    ]
    return _to_unit_range(np.stack(pixels, dtype=np.float32)), np.array(table[classes[0]][:]) if classes else None


def _pixels(image: Image | None) -> np.ndarray:
    """Values of 0 … 255, channels first: black-and-white and palettes spelt out, transparency left out."""
    if image is None or image.mode.startswith(("I", "F")):
        raise DataError("has an image that is missing or has more than 8 bits a channel: leave it out, or convert it")
    pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"))
    return np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), order="C")


def _to_unit_range(x: np.ndarray) -> np.ndarray:
    """Grey values of 0 … 255, float32, as [-1, 1], in place: one rounding, and nothing in float64."""
    x *= 2
    x -= 255
    x /= 255
    return x


def _examples(x: np.ndarray) -> Tensor:
    """Examples of any type as float32, checked."""
    if x.dtype.kind not in "fiu":
        raise DataError(f"holds values of type {x.dtype}: give floats or integers")
    x = x[:, None] if x.ndim == 3 else x
    is_points = x.ndim == 2 and x.shape[1] == 2
    if not is_points and (x.ndim != 4 or x.shape[1] not in (1, 3)):
        shapes = "images (n, channels, height, width) with 1 or 3 channels, images (n, height, width), or points (n, 2)"
        raise DataError(f"has shape {x.shape}: it must be {shapes}")
    if len(x) < 2 or x.size == 0:
        raise DataError(f"has shape {x.shape}: at least 2 examples are needed, none of them empty")
    low, high = x.min(), x.max()
    if (x.min(0) == x.max(0)).all():
        raise DataError(f"is {len(x)} times the same example: there is nothing to learn; give examples that differ")
    if x.dtype.kind in "iu":
        if is_points or low < 0 or not 128 <= high <= 255:
            raise DataError(
                f"holds integers from {low} to {high}, and only those of images that reach into 128 … 255 are read as "
                f"0 … 255: give floats in [-1, 1], such as (x - {low}) / {(int(high) - int(low)) / 2:g} - 1"
            )
        return torch.from_numpy(_to_unit_range(x.astype(np.float32, order="C")))
    if not np.isfinite([low, high]).all():
        broken = ~np.isfinite(x).reshape(len(x), -1).all(1)
        where = f"{broken.sum()} of {len(x)} examples, the first at index {broken.argmax()}"
        raise DataError(f"has NaN or infinite values in {where}: remove or repair them")
    if max(-low, high) > (5 if is_points else 1.01):
        raise DataError(f"runs from {low:.3g} to {high:.3g}: scale it to [-1, 1], or give integers from 0 to 255")
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _classes(labels: np.ndarray, count: int) -> Tensor:
    """The class of each example as a number: names in alphabetical order, numbers as they are."""
    if labels.size != count:
        raise DataError(f"has {count} examples but {labels.size} labels")
    if labels.dtype.kind in "US":
        labels = np.unique(labels, return_inverse=True)[1]
    if labels.dtype.kind not in "biu":
        raise DataError(f"has labels of type {labels.dtype}: number the classes 0, 1, 2, …, or leave the labels out")
    if labels.min() < 0:
        raise DataError("has labels below 0 (unlabelled?): leave out these examples, or all labels")
    if labels.max() >= _MAX_CLASSES:
        raise DataError(f"has labels up to {labels.max()}: number the classes 0, 1, 2, …, fewer than {_MAX_CLASSES}")
    return torch.from_numpy(labels.astype(np.int64).ravel())
