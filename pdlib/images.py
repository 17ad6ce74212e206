"""Images of others: read once through Hugging Face ``datasets``, kept as bytes, and floats a batch at a time.

A set that is too large to be decoded into memory is decoded once into a file of its bytes in the folder
``$PDLIB_CACHE``, or ``~/.cache/pdlib``, and mapped from there: memory holds what is asked for, not the set.
"""

from __future__ import annotations

import errno
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

from pdlib.files import cache_folder, digest, read_json, tensors_digest, write_bytes, write_json

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

__all__ = ["DataError", "Images", "Reading", "looked_through", "open_parts"]

IN_MEMORY = 2**24  # so many values are 64 MB of floats
_RECIPE = 1  # raise it when the bytes change that are kept of the same images
_KINDS = (".parquet", ".arrow", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
_UNIT = torch.from_numpy((2 * np.arange(256, dtype=np.float32) - 255) / 255)  # 0 … 255 -> [-1, 1], one rounding


class DataError(ValueError):
    """The data cannot be used: not found, not finite, nothing to learn from, or of the wrong shape."""


@dataclass(frozen=True)
class Reading:
    """How images are read from a folder or the hub; a ``.npy`` or ``.npz`` file holds them as they are to be."""

    subset: str | None = None
    """The one to take of several sets under one name on the hub."""
    column: str | None = None
    """The column of images; by default the first."""
    size: int | None = None
    """They are made squares of so many pixels: cut out in the middle, and scaled. By default they stay."""
    crop: bool = True
    """Whether to cut the square out; squeezed into it otherwise."""
    channels: str | None = None
    """``"grey"`` or ``"rgb"``; by default as they are."""
    skip_broken: bool = False
    """Whether to leave out images that cannot be opened, instead of stopping."""


class Images:
    """Images kept as bytes, 0 … 255; what is asked for, ``images[index]``, is float32 in [-1, 1].

    Stands where a tensor of the same shape does: ``len``, ``shape``, ``ndim``, ``split`` and an index, which is a
    number, a slice or a tensor, of numbers or of bools.

    Args:
        pixels: uint8, shape (n, channels, height, width), in memory or mapped from a file.
        digest: :attr:`tensor_digest`, where it is known.
        chosen: the indices of those that are meant, in their order; by default all.
        flipped: whether each is there a second time, in the mirror: after all the others.
        device: where the floats are made.
    """

    def __init__(
        self,
        pixels: Tensor,
        digest: str | None = None,
        chosen: Tensor | None = None,
        flipped: bool = False,
        device: torch.device | str = "cpu",
    ):
        self.pixels, self.chosen, self.flipped, self._digest = pixels, chosen, flipped, digest
        self.device = torch.device(device)
        self._unit = _UNIT.to(self.device)

    def __len__(self) -> int:
        return self._single * (1 + self.flipped)

    @property
    def _single(self) -> int:
        return len(self.pixels) if self.chosen is None else len(self.chosen)

    @property
    def shape(self) -> torch.Size:
        """(n, channels, height, width)."""
        return torch.Size((len(self), *self.pixels.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """Of the floats."""
        return self._unit.dtype

    @property
    def ndim(self) -> int:
        """4."""
        return self.pixels.ndim

    def size(self, dim: int) -> int:
        """One entry of the shape."""
        return self.shape[dim]

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        if not isinstance(index, Tensor) or index.dtype == torch.bool:
            index = torch.arange(len(self))[index]
        mirrored = (index >= self._single).to(self.device)
        single = (index % self._single).to(self.pixels.device)
        pixels = self.pixels[single if self.chosen is None else self.chosen.to(single.device)[single]].to(self.device)
        x = self._unit[pixels.int()]
        if self.flipped:
            x = torch.where(mirrored.view(*mirrored.shape, 1, 1, 1), x.flip(-1), x)
        return x

    def split(self, count: int) -> Iterator[Tensor]:
        """All of them, so many at a time."""
        return (self[start : start + count] for start in range(0, len(self), count))

    def to(self, device: torch.device | str) -> Images:
        """The same with floats on a device; the bytes too, where they take a quarter of its free memory at most."""
        device, pixels = torch.device(device), self.pixels
        if device.type == "cuda" and pixels.numel() <= torch.cuda.mem_get_info(device)[0] // 4:
            pixels = pixels.to(device)
        return Images(pixels, self._digest, self.chosen, self.flipped, device)

    def at(self, chosen: Tensor) -> Images:
        """Some of them, by their indices; not of flipped ones."""
        chosen = chosen if self.chosen is None else self.chosen[chosen]
        return Images(self.pixels, None, chosen, device=self.device)

    def mirrored(self) -> Images:
        """With each a second time, left and right exchanged."""
        return Images(self.pixels, None, self.chosen, True, self.device)

    @property
    def tensor_digest(self) -> str:
        """What :func:`pdlib.files.tensors_digest` gives for all of them as one tensor; they are the same data."""
        if self._digest is None:
            self._digest = tensors_digest({"": self})
        return self._digest


def open_parts(source: str, parts: list[str], reading: Reading) -> list[tuple[Images, np.ndarray | None]]:
    """Images and labels of parts of a folder (an absolute path) or of a data set on the hub (owner/name).

    Args:
        source: where they are.
        parts: names of splits, or what ``datasets`` makes one of, such as ``"train[:1000]"``; one that ends in ``?``
            is left out of the result where the source has no such split.
        reading: how to read them.

    Raises:
        DataError: for all that they lack.
    """
    return [_decoded(table, part, reading) for part, table in _tables(source, parts, reading.subset).items()]


def looked_through(folder: str) -> str:
    """The folder, unless it is plainly not one of data: the library would read all that is in it, for minutes."""
    if _is_saved(folder):
        return folder
    right = wrong = 0
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found = sum(name.lower().endswith((*_KINDS, ".zip")) for name in files)
        right, wrong = right + found, wrong + len(files) - found
        if wrong > 2 * right + 5000:
            break
    if not right or wrong > 2 * right:
        raise DataError(f"holds {right} images or parquet files and {wrong} others: give a folder of the former alone")
    return folder


def _is_saved(folder: str) -> bool:
    """Whether ``datasets`` wrote it, by ``save_to_disk``."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json"))


def _tables(source: str, parts: list[str], subset: str | None) -> dict[str, Dataset]:
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
        if _is_saved(source):
            if subset is not None:
                raise DataError("was saved as one set: leave subset out")
            saved = datasets.load_from_disk(source)
            saved = saved if isinstance(saved, dict) else {"train": saved}
            known, opened = list(saved), saved.get
        else:
            try:
                builder = datasets.load_dataset_builder(source, subset)
            except ValueError as error:
                if not re.match(r"Config name is missing|BuilderConfig .* not found", str(error)):
                    raise
                known = ", ".join(datasets.get_dataset_config_names(source))
                raise DataError(f"holds the sets {known}: set subset to one of them") from error
            builder.download_and_prepare()
            known, opened = list(builder.info.splits), lambda part: builder.as_dataset(split=part)
        whole = [part for part in parts if part.isidentifier() or (_is_saved(source) and not part.endswith("?"))]
        missing = [part for part in whole if part not in known]
        if missing:
            raise DataError(f"has no part {missing[0]!r}, only {', '.join(known)}: set split to one of them")
        wanted = [part.rstrip("?") for part in parts if not part.endswith("?") or part[:-1] in known]
        return {part: opened(part) for part in wanted}
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _decoded(table: Dataset, part: str, reading: Reading) -> tuple[Images, np.ndarray | None]:
    """The images of a table, in memory where they are few, and its labels."""
    import datasets

    kinds = {key: type(feature) for key, feature in table.features.items()}
    images = [key for key, kind in kinds.items() if kind is datasets.Image]
    if reading.column not in (None, *images):
        what = f"{reading.column!r} is no column of images" if reading.column in kinds else f"no {reading.column!r}"
        raise DataError(f"has columns {', '.join(kinds)}: {what}; set column to one of {', '.join(images) or 'none'}")
    if not images:
        raise DataError(f"has no column of images, only {', '.join(kinds)}: give images, or points in a .npy file")
    column = reading.column or images[0]
    classes = [
        key for key, kind in kinds.items() if kind is datasets.ClassLabel or (key, kind) == ("label", datasets.Value)
    ]
    undecoded = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    files = (item for batch in undecoded.iter(256) for item in batch[column])
    kept: list[int] = []
    stream = _pixels_of(tqdm(files, "images", len(table), leave=False, disable=len(table) < 5000), reading, kept)
    first = next(stream)

    def labels() -> np.ndarray | None:
        return np.array(table[classes[0]][:])[kept] if classes else None

    if first.size * len(table) > IN_MEMORY:
        key = digest([_RECIPE, table._fingerprint, part, asdict(reading)])
        return _cached(cache_folder() / f"images-{key[:16]}", chain([first], stream), labels)
    return Images(torch.from_numpy(np.stack([first, *stream]))), labels()


def _pixels_of(files: Iterable[dict[str, Any] | None], reading: Reading, kept: list[int]) -> Iterator[np.ndarray]:
    """The pixels of each image file, shape (channels, height, width), and its index into ``kept``.

    DataError after the last, for what was wrong with any of them; no pixels come after the first of another shape.
    """
    from PIL import Image

    shapes, broken = [], []
    for index, file in enumerate(files):
        held = file or {"bytes": None, "path": None}
        try:
            with Image.open(held["path"] if held["bytes"] is None else io.BytesIO(held["bytes"])) as image:
                pixels = _pixels(image, reading)
        except MemoryError:
            raise
        except Exception as error:  # Pillow has many, for a file that is cut, missing, too large, or no image
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
                raise  # the disk's fault and not the image's
            which = os.path.basename(held["path"] or "") or f"number {index}"
            broken.append(f"{which}: {error}" if isinstance(error, DataError) else which)
            continue
        kept.append(index)
        if pixels.shape not in shapes:
            shapes.append(pixels.shape)
        if len(shapes) == 1:
            yield pixels
    if broken and not (reading.skip_broken and kept):
        some = ", ".join(broken[:3]) + " …" * (len(broken) > 3)
        count = f"{len(broken)} of {len(broken) + len(kept)}"
        advice = "repair or remove them, or leave them out with skip_broken=true"
        raise DataError(f"has {count} images that cannot be opened ({some}): {advice}")
    if len(shapes) > 1:
        some = f"{len(shapes)} different shapes ({', '.join(map(str, sorted(shapes)[:3]))} …)"
        advice = "make them one size, all grey or all coloured, here with size=32 and channels=grey"
        raise DataError(f"has images of {some}: {advice}")


def _pixels(image: Image, reading: Reading) -> np.ndarray:
    """Values of 0 … 255, channels first: black-and-white and palettes spelt out, transparency left out."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    if image.mode.startswith(("I", "F")):
        raise DataError("more than 8 bits a channel")
    image, filtered = ImageOps.exif_transpose(image), Resampling.LANCZOS
    grey = image.mode in ("1", "L", "LA", "La") if reading.channels is None else reading.channels == "grey"
    image = image.convert("L" if grey else "RGB")
    if reading.size is not None and image.size != (size := (reading.size, reading.size)):
        image = ImageOps.fit(image, size, filtered) if reading.crop else image.resize(size, filtered)
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if grey else pixels.transpose(2, 0, 1))


def _cached(
    folder: Path, stream: Iterable[np.ndarray], labels: Callable[[], np.ndarray | None]
) -> tuple[Images, np.ndarray | None]:
    """Images from a folder of the cache; taken into it from the stream, once, where they are not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # another process may be at it: then wait for it
            if not _whole(folder):
                _keep(folder, stream, labels)
        about = read_json(folder / "about.json")
        images = _mapped(folder, tuple(about["shape"]), about["digest"])
        classes = np.load(folder / "labels.npy") if about["labelled"] else None
    except OSError as error:
        raise DataError(
            f"cannot be kept in {folder.parent} ({error.strerror}): set PDLIB_CACHE to a folder that can be written, "
            "with a byte of room for each value"
        ) from error
    return images, classes


def _whole(folder: Path) -> bool:
    """Whether all is there: about.json is written last."""
    try:
        about = read_json(folder / "about.json")
        right = not about["labelled"] or len(np.load(folder / "labels.npy")) == about["shape"][0]
        return right and (folder / "pixels.bin").stat().st_size == math.prod(about["shape"])
    except (OSError, ValueError, KeyError, EOFError):
        return False


def _keep(folder: Path, stream: Iterable[np.ndarray], labels: Callable[[], np.ndarray | None]) -> None:
    part, count = folder / "pixels.bin.part", 0
    try:
        with open(part, "wb") as file:
            for count, image in enumerate(stream, 1):  # noqa: B007
                file.write(image)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / "pixels.bin")
    finally:
        part.unlink(missing_ok=True)
    if (classes := labels()) is not None:
        content = io.BytesIO()
        np.save(content, classes)
        write_bytes(folder / "labels.npy", content.getvalue())
    shape = (count, *image.shape)
    about = {"shape": shape, "digest": _mapped(folder, shape).tensor_digest, "labelled": classes is not None}
    write_json(folder / "about.json", about)


def _mapped(folder: Path, shape: tuple[int, ...], digest: str | None = None) -> Images:
    return Images(torch.from_numpy(np.memmap(folder / "pixels.bin", np.uint8, "c", shape=shape)), digest)
