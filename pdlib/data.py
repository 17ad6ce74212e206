"""Data sets: handwritten digits (the embedded default), toys in the plane, and files of your own.

Everything becomes one float32 tensor in [-1, 1] or thereabouts: images of shape
(n, channels, height, width), or points of shape (n, 2).
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn import datasets as sklearn_datasets
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DATASETS", "TOYS", "Data", "DataError", "load_data"]

TOYS = ("moons", "swiss_roll", "checkerboard", "ring")
HUB_NAMES = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
DATASETS = ("digits", *TOYS, *HUB_NAMES)


class DataError(ValueError):
    """The data cannot be used: not found, not finite, or of the wrong shape."""


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


def load_data(name_or_path: str | Path, split: str = "train", toy_points: int = 8192) -> Data:
    """Load a data set by name, or from a file or folder.

    Args:
        name_or_path: one of

            - ``"digits"``: scikit-learn's 1,797 handwritten digits of 8×8 pixels, no download;
            - ``"moons"``, ``"swiss_roll"``, ``"checkerboard"``, ``"ring"``: points in the plane;
            - ``"mnist"``, ``"cifar10"``, or any image data set's name on the Hugging Face hub;
            - a ``.npy`` file of images (n, height, width) or (n, channels, height, width), or of
              points (n, 2); integers are read as 0 … 255, floats as lying in [-1, 1];
            - a ``.npz`` file with such an array ``x`` and, if you have them, labels ``y``;
            - a folder that Hugging Face ``datasets`` reads: images (in one folder per class, or
              not), or parquet files.
        split: which part of a hub data set or folder.
        toy_points: how many points a toy has. Toys are drawn with a fixed seed.

    Raises:
        DataError: where it is not found, is empty, is not finite, or has the wrong shape.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name == "digits":
        digits = sklearn_datasets.load_digits()
        x, labels = digits.images[:, None] / 8 - 1, digits.target
    elif name in TOYS:
        x, labels = _toy(name, toy_points), None
    elif path.suffix in (".npy", ".npz"):
        x, labels = _from_numpy(path)
    elif path.is_dir() or name in HUB_NAMES or (name.count("/") == 1 and not name.startswith((".", "/"))):
        x, labels = _from_hugging_face(HUB_NAMES.get(name, name), split)
    else:
        raise DataError(
            f"data={name!r} was not found: give one of {', '.join(DATASETS)}, "
            "a .npy or .npz file, a folder of images, or a Hugging Face data set (owner/name)"
        )
    return _checked(name, x, labels)


def _toy(name: str, points: int) -> np.ndarray:
    """Points in the plane, within about [-1, 1] × [-1, 1]."""
    random = np.random.default_rng(0)
    if name == "moons":
        x, _ = sklearn_datasets.make_moons(points, noise=0.05, random_state=0)
        return (x - [0.5, 0.25]) / 1.5
    if name == "swiss_roll":
        x, _ = sklearn_datasets.make_swiss_roll(points, noise=0.3, random_state=0)
        return x[:, [0, 2]] / 14
    if name == "checkerboard":
        column = random.integers(0, 4, points)
        row = 2 * random.integers(0, 2, points) + column % 2
        return (np.stack([column, row], 1) + random.random((points, 2))) / 2 - 1
    angle = random.integers(0, 8, points) * math.pi / 4  # ring: eight Gaussians
    return 0.8 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * random.standard_normal((points, 2))


def _from_numpy(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        content = np.load(path, allow_pickle=False)
        named = {"x": content} if isinstance(content, np.ndarray) else content
        arrays = {name: named[name] for name in ("x", "y") if name in named}
    except FileNotFoundError:
        raise DataError(f"data={str(path)!r} was not found: check the path") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"data={str(path)!r} cannot be read as plain arrays (pickles are not opened): {error}"
        ) from None
    if "x" not in arrays:
        raise DataError(f"data={str(path)!r} holds {', '.join(named)}: name the examples x, and labels y")
    x, labels = arrays["x"], arrays.get("y")
    if x.dtype.kind not in "fiu":
        raise DataError(f"data={str(path)!r} holds values of type {x.dtype}: give floats or integers")
    if labels is not None and (labels.dtype.kind not in "biu" or labels.min(initial=0) < 0):
        raise DataError(
            f"data={str(path)!r} has labels y that are not integers from 0 up: number the classes 0, 1, 2, …"
        )
    if x.ndim == 3:
        x = x[:, None]
    return (x / 127.5 - 1 if np.issubdtype(x.dtype, np.integer) else x), labels


def _from_hugging_face(name: str, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        import datasets
    except ImportError:
        raise DataError(f"data={name!r} needs the package datasets: pip install 'pdlib[data]'") from None
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds, for a bad name, folder, split or network
        raise DataError(f"data={name!r}, split={split!r} could not be loaded: {error}") from error
    features = table.features
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise DataError(f"data={name!r} has no column of images, only {', '.join(features)}")
    arrays = [_pixels(image) for image in table[images[0]]]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        examples = ", ".join(map(str, sorted(shapes, key=str)[:3]))
        raise DataError(
            f"data={name!r} has images of {len(shapes)} different shapes ({examples} …): make them one size"
        )
    x = np.stack(arrays) / 127.5 - 1
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel) or key == "label"]
    return x, np.asarray(table[labels[0]]) if labels else None


def _pixels(image: Image) -> np.ndarray:
    """Grey or colour values of 0 … 255: black-and-white and palettes spelt out, transparency left out."""
    modes = {"1": "L", "LA": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB", "CMYK": "RGB"}
    return np.asarray(image.convert(modes[image.mode]) if image.mode in modes else image)


def _checked(name: str, x: np.ndarray, labels: np.ndarray | None) -> Data:
    tensor = torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float32)
    is_points = tensor.ndim == 2 and tensor.shape[1] == 2
    if not is_points and (tensor.ndim != 4 or tensor.shape[1] not in (1, 3)):
        raise DataError(
            f"data={name!r} has shape {tuple(tensor.shape)}: it must be images (n, channels, height, width) with "
            "1 or 3 channels, images (n, height, width), or points (n, 2)"
        )
    if len(tensor) < 2 or tensor.numel() == 0:
        raise DataError(
            f"data={name!r} has shape {tuple(tensor.shape)}: at least 2 examples are needed, none of them empty"
        )
    broken = ~tensor.flatten(1).isfinite().all(dim=1)
    if broken.any():
        first = int(broken.nonzero()[0])
        raise DataError(
            f"data={name!r} has NaN or infinite values in {int(broken.sum())} of {len(tensor)} examples, "
            f"the first at index {first}: remove or repair them"
        )
    if tensor.abs().max() > 5 or (not is_points and tensor.abs().max() > 1.01):
        raise DataError(
            f"data={name!r} runs from {tensor.min():.3g} to {tensor.max():.3g}: scale it to [-1, 1], "
            "or give integers from 0 to 255"
        )
    if labels is None:
        return Data(name, tensor)
    labels = torch.as_tensor(np.asarray(labels)).long().flatten()
    if len(labels) != len(tensor):
        raise DataError(f"data={name!r} has {len(tensor)} examples but {len(labels)} labels")
    return Data(name, tensor, labels)
