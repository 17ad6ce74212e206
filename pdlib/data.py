"""Data sets: handwritten digits (the embedded default), toys in the plane, and files of your own.

Everything becomes one float32 tensor in [-1, 1] or thereabouts: images of shape
(n, channels, height, width), or points of shape (n, 2).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdlib.files import digest, is_hub_name, unknown
from pdlib.images import IN_MEMORY, DataError, Images, Reading, looked_through, open_parts

__all__ = ["DATASETS", "TOYS", "Data", "DataError", "load_data"]

Examples = tuple[np.ndarray, np.ndarray | None]
_MAX_CLASSES = 2**15  # the classifier of the features has an output for each
_FEWEST = 65  # test examples: with fewer a distance between features says little


@dataclass(frozen=True)
class Data:
    """A data set."""

    name: str
    """What :func:`load_data` was asked for."""
    x: Tensor | Images
    """The examples, float32: (n, channels, height, width) in [-1, 1], or (n, 2). What is large stays on the disk."""
    labels: Tensor | None = None
    """Class of each example, int64, shape (n,), where there is one."""
    test: Tensor | Images | None = None
    """Examples that are held back from all training, for distances to be measured to; as ``x``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.x.shape[1:])

    @property
    def is_image(self) -> bool:
        """Whether an example is an image rather than a point."""
        return self.x.ndim == 4

    @property
    def largest(self) -> float:
        """The largest ``|x|`` of any entry of the examples."""
        return max(part.abs().max().item() for part in self.x.split(64))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the examples and labels: what is computed from, whatever its name."""
        return digest([self.x, self.labels, *([] if self.test is None else [self.test])])


def load_data(
    name_or_path: str | Path,
    split: str = "train",
    toy_points: int = 8192,
    *,
    test: str | float | None = None,
    flip: bool = False,
    **reading: Any,
) -> Data:
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
              not), or parquet or arrow files.
        split: which part of a hub data set or folder.
        toy_points: how many points a toy has. Toys are drawn with a fixed seed.
        test: what is held back: the name of another split; a share of the examples, up to 0.5; ``"auto"`` for the
            split ``test`` where there is one; or nothing.
        flip: whether each image is there a second time, in the mirror.
        **reading: how images are read from a folder or the hub: see :class:`pdlib.images.Reading`.

    Raises:
        DataError: where it is not found or not readable, is empty, not finite, the same example throughout,
            or of the wrong shape or range.
    """
    name, path = str(name_or_path), os.path.expanduser(name_or_path)
    source, is_array = DATASETS.get(name), path.lower().endswith((".npy", ".npz"))
    if not (source or is_array or os.sep in path or os.path.exists(path)):
        others = "a .npy or .npz file, a folder of images, or a Hugging Face data set (owner/name)"
        raise DataError(f"{unknown('data', name, DATASETS)}, {others}")
    share = _share(test)
    another = None if share is not None or test in (None, "none") else "test?" if test == "auto" else str(test)
    if another == split:
        raise DataError(f"data={name!r}: split and test are both {split!r}: hold back another part")
    if another == "test?" and "test" in re.split(r"\W+", split):
        another = None  # it is trained on
    how, held = Reading(**reading), []
    try:
        if callable(source):
            x, labels = source(toy_points) if name in TOYS else source()
        elif is_array:
            x, labels = _from_numpy(path)
        elif source or os.path.isdir(path) or is_hub_name(path):
            where = source or (looked_through(os.path.abspath(path)) if os.path.isdir(path) else path)
            (x, labels), *held = open_parts(where, [split, *([another] if another else [])], how)
        else:
            raise DataError("is no folder and no .npy or .npz file: check the path")
        if (callable(source) or is_array) and (how != Reading() or another not in (None, "test?") or split != "train"):
            raise DataError("is no folder or hub data set: leave subset, split, column, size, crop and channels out")
        x, labels = _examples(x), None if labels is None else _classes(np.asarray(labels), len(x))
        tested = _examples(held[0][0]) if held else None
        if tested is not None and tested.shape[1:] != x.shape[1:]:
            raise DataError(f"has images of {tuple(x.shape[1:])}, its test part of {tuple(tested.shape[1:])}")
        if share:
            x, labels, tested = _held_back(x, labels, share)
        if tested is not None and len(tested) < _FEWEST:
            raise DataError(f"has {len(tested)} examples in its test part: at least {_FEWEST} are needed; or test=none")
        if flip:
            x, labels = _mirrored(x), None if labels is None else labels.repeat(2)
        return Data(name, x, labels, tested)
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


def _share(test: str | float | None) -> float | None:
    """The part to hold back, where it is a number; DataError where it is one that cannot be."""
    try:
        share = float(test)
    except (TypeError, ValueError):
        return None
    if not 0 < share <= 0.5:
        raise DataError(f"test={test}: a share to hold back must be above 0, and 0.5 at most")
    return share


def _held_back(x: Tensor | Images, labels: Tensor | None, share: float) -> tuple[Any, ...]:
    """Examples, their labels, and the share of them that is held back, drawn with a fixed seed."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    some, others = order[: round(share * len(x))], order[round(share * len(x)) :].sort().values
    tested, kept = (x.at(part) if isinstance(x, Images) else x[part] for part in (some, others))
    return kept, None if labels is None else labels[others], tested


def _mirrored(x: Tensor | Images) -> Tensor | Images:
    if x.ndim != 4:
        raise DataError("is of points, which have no left and right: leave flip out")
    return x.mirrored() if isinstance(x, Images) else torch.cat([x, x.flip(-1)])


def _digits() -> Examples:
    """From scikit-learn's own file: to import it would take a third of the memory of a run."""
    place = Path(find_spec("sklearn").origin).with_name("datasets") / "data" / "digits.csv.gz"
    table = np.loadtxt(place, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8) / 8 - 1, table[:, -1].astype(int)


def _toy(name: str, points: int = 8192) -> Examples:
    """Points in the plane, within about [-1, 1] × [-1, 1]."""
    from sklearn import datasets as sklearn_datasets

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
    content = np.load(path, allow_pickle=False, mmap_mode=None if path.lower().endswith(".npz") else "c")
    named = {"x": content} if isinstance(content, np.ndarray) else content
    if "x" not in named:
        raise DataError(f"holds {', '.join(named) or 'nothing'}: name the examples x, and labels y")
    return named["x"], named.get("y")


def _examples(x: Any) -> Tensor | Images:
    """Examples of any type as float32, checked; what is large and of bytes as it is."""
    if isinstance(x, Images):
        return _of_bytes(x)
    x = np.asarray(x)
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
        pixels = torch.from_numpy(np.ascontiguousarray(x, np.uint8))
        return _of_bytes(Images(pixels))
    if not np.isfinite([low, high]).all():
        broken = ~np.isfinite(x).reshape(len(x), -1).all(1)
        where = f"{broken.sum()} of {len(x)} examples, the first at index {broken.argmax()}"
        raise DataError(f"has NaN or infinite values in {where}: remove or repair them")
    if max(-low, high) > (5 if is_points else 1.01):
        raise DataError(f"runs from {low:.3g} to {high:.3g}: scale it to [-1, 1], or give integers from 0 to 255")
    return torch.from_numpy(np.array(x, np.float32, order="C"))


def _of_bytes(images: Images) -> Tensor | Images:
    """Images that differ: as floats where they are few."""
    if len(images) < 2:
        raise DataError(f"has shape {tuple(images.shape)}: at least 2 examples are needed, none of them empty")
    if not any((part != images.pixels[0]).any() for part in images.pixels.split(64)):
        raise DataError(f"is {len(images)} times the same image: there is nothing to learn; give images that differ")
    return images[:] if math.prod(images.shape) <= IN_MEMORY else images


def _classes(labels: np.ndarray, count: int) -> Tensor | None:
    """The class of each example as a number: names in alphabetical order, numbers as they are; none, if all are."""
    if all(label is None for label in labels.flat):
        return None
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
