"""Images through Hugging Face datasets: what is large stays on the disk, and every failure is one line."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pdlib import images
from pdlib.data import DataError, load_data
from pdlib.files import digest
from pdlib.images import Images

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="reading folders needs the package datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("PDLIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def large(monkeypatch):
    """Whatever is read counts as large."""
    monkeypatch.setattr(images, "IN_MEMORY", 1)
    monkeypatch.setattr("pdlib.data.IN_MEMORY", 1)


def folder_of(tmp_path, pixels, name="images", part="train"):
    """A folder of PNGs in two classes, and which of the pixels each is, in the order in which they are read."""
    for index, image in enumerate(pixels):
        place = tmp_path / name / part / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index:03}.png")
    return tmp_path / name, [*range(0, len(pixels), 2), *range(1, len(pixels), 2)]


def grey(count, size=4):
    return RANDOM.integers(0, 256, (count, size, size), dtype=np.uint8)


def test_the_same_to_the_bit_from_memory_and_from_the_disk(tmp_path, monkeypatch):
    pixels = grey(8)
    folder, order = folder_of(tmp_path, pixels)
    small = load_data(folder)
    monkeypatch.setattr(images, "IN_MEMORY", 1)
    monkeypatch.setattr("pdlib.data.IN_MEMORY", 1)
    stored = load_data(folder)
    assert isinstance(small.x, torch.Tensor)
    assert isinstance(stored.x, Images)
    assert stored.shape == small.shape == (1, 4, 4)
    assert stored.is_image
    assert torch.equal(stored.x[:], small.x)
    assert torch.equal(small.x[:, 0], torch.from_numpy(pixels[order] / 127.5 - 1).float())
    assert torch.equal(stored.labels, small.labels)
    assert stored.largest == small.largest
    index = torch.tensor([7, 0, 0, 3])
    assert torch.equal(stored.x[index], small.x[index])
    assert torch.equal(stored.x[2], small.x[2])
    assert torch.equal(torch.cat([*stored.x.split(3)]), small.x)
    assert (len(stored.x), stored.x.size(0), stored.x.ndim) == (8, 8, 4)


def test_it_is_decoded_once_and_again_when_the_files_or_the_reading_change(tmp_path, large, monkeypatch):
    folder, _ = folder_of(tmp_path, grey(8))
    first, opened = load_data(folder), []
    pixels = images._pixels
    monkeypatch.setattr(images, "_pixels", lambda *args: opened.append(1) or pixels(*args))
    again = load_data(folder)
    assert (len(opened), again.digest) == (1, first.digest)  # one image tells of what size they are
    assert load_data(folder, size=8).digest != first.digest
    assert len(opened) == 1 + 8
    Image.fromarray(grey(1)[0]).save(folder / "train/a/000.png")
    os.utime(folder / "train/a/000.png", (1, 1))
    assert load_data(folder).digest != first.digest


def test_a_cache_that_was_cut_short_is_made_again(tmp_path, large):
    folder, _ = folder_of(tmp_path, grey(8))
    before = load_data(folder).digest
    for damage in ("pixels.bin", "about.json"):
        (path,) = (tmp_path / "cache").glob(f"images-*/{damage}")
        path.write_bytes(path.read_bytes()[:-3])
        data = load_data(folder)
        assert data.digest == before
        assert data.x[:].shape == (8, 1, 4, 4)


def test_what_cannot_be_kept_says_where(tmp_path, large, monkeypatch):
    folder, _ = folder_of(tmp_path, grey(8))
    (tmp_path / "file").touch()
    monkeypatch.setenv("PDLIB_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set PDLIB_CACHE to a folder that can be written"):
        load_data(folder)


def test_a_large_array_of_bytes_is_mapped_and_not_read(tmp_path, large):
    pixels = grey(10)
    np.save(tmp_path / "x.npy", pixels)
    data = load_data(tmp_path / "x.npy")
    assert isinstance(data.x, Images)
    assert torch.equal(data.x[:][:, 0], torch.from_numpy(pixels / 127.5 - 1).float())


def test_mirrored_images_follow_all_the_others(tmp_path, monkeypatch):
    folder, _ = folder_of(tmp_path, grey(8))
    plain, small = load_data(folder), load_data(folder, flip=True)
    monkeypatch.setattr("pdlib.data.IN_MEMORY", 1)
    stored = load_data(folder, flip=True)
    for data in (small, stored):
        assert len(data.x) == 16
        assert torch.equal(data.x[torch.arange(8)], plain.x)
        assert torch.equal(data.x[torch.arange(8, 16)], plain.x.flip(-1))
        assert torch.equal(data.labels, plain.labels.repeat(2))
    np.save(tmp_path / "points.npy", RANDOM.uniform(-1, 1, (9, 2)))
    with pytest.raises(DataError, match="is of points, which have no left and right: leave flip out"):
        load_data(tmp_path / "points.npy", flip=True)


@pytest.mark.parametrize("in_memory", [1, 10**9])
def test_a_test_part_is_held_back(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr("pdlib.data.IN_MEMORY", in_memory)
    train, tested = grey(8), grey(70)
    folder_of(tmp_path, train)
    folder, order = folder_of(tmp_path, tested, part="test")
    data = load_data(folder, test="auto")
    assert torch.equal(data.test[:][:, 0], torch.from_numpy(tested[order] / 127.5 - 1).float())
    assert len(data.x) == 8
    assert load_data(folder).test is None
    assert load_data(folder).digest != data.digest
    assert torch.equal(load_data(folder, test="test").test[:], data.test[:])
    alone, _ = folder_of(tmp_path, grey(140), name="alone")
    assert load_data(alone, test="auto").test is None
    shared, whole = load_data(alone, test="0.5"), load_data(alone)
    assert (len(shared.x), len(shared.test), len(shared.labels)) == (70, 70, 70)
    both = torch.cat([shared.x[:], shared.test[:]]).flatten(1)
    assert torch.equal(both.unique(dim=0), whole.x[:].flatten(1).unique(dim=0))
    found = [(whole.x[:] == x).flatten(1).all(1).int().argmax() for x in shared.x[:]]
    assert torch.equal(whole.labels[found], shared.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": 0.01}, "has 1 examples in its test part: at least 65 are needed; or test=none"),
        ({"test": 0.7}, "test=0.7: a share to hold back must be above 0, and 0.5 at most"),
        ({"test": "validation"}, "has no part 'validation', only train"),
        ({"split": "all_of_it"}, "has no part 'all_of_it', only train"),
        ({"column": "picture"}, "has columns image, label: no 'picture'; set column to one of image"),
        ({"column": "label"}, "has columns image, label: 'label' is no column of images; set column"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, options, message):
    folder, _ = folder_of(tmp_path, grey(80))
    with pytest.raises(DataError) as caught:
        load_data(folder, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_array_or_a_name_takes_no_options_of_a_folder(tmp_path):
    np.save(tmp_path / "x.npy", RANDOM.uniform(-1, 1, (9, 4, 4)))
    for name, options in (("digits", {"size": 16}), (tmp_path / "x.npy", {"column": "x"}), ("moons", {"split": "a"})):
        with pytest.raises(DataError, match="is no folder or hub data set: leave subset, split, column, size, crop an"):
            load_data(name, **options)
    assert load_data("digits", test="auto").test is None
    held = load_data("digits", test=0.1)
    assert (len(held.x), len(held.test)) == (1617, 180)


def test_images_of_any_size_and_mode_are_brought_to_one(tmp_path):
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6] = 255  # the middle square is white
    tall = RANDOM.integers(0, 256, (9, 6, 3), dtype=np.uint8)
    folder, _ = folder_of(tmp_path, [wide, tall])
    with pytest.raises(DataError, match=r"2 different shapes .* here with size=32 and channels=grey"):
        load_data(folder)
    data = load_data(folder, size=4, channels="grey")
    assert data.shape == (1, 4, 4)
    assert (data.x[0] == 1).all()
    squeezed = load_data(folder, size=4, channels="rgb", crop=False)
    assert squeezed.shape == (3, 4, 4)
    assert squeezed.x[0].min() < -0.8


def test_an_image_lies_as_its_camera_says(tmp_path):
    image, turned = Image.fromarray(grey(1, 6)[0]), Image.Exif()
    turned[0x0112] = 6  # to be turned by a right angle
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images/0.png")
    image.save(tmp_path / "images/1.png", exif=turned)
    upright, other = load_data(tmp_path / "images").x
    assert torch.equal(other, upright.rot90(-1, (1, 2)))


@pytest.mark.parametrize("in_memory", [1, 10**9])
def test_broken_images_are_named_and_counted_or_left_out(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(images, "IN_MEMORY", in_memory)
    monkeypatch.setattr("pdlib.data.IN_MEMORY", in_memory)
    pixels = grey(12)
    folder, order = folder_of(tmp_path, pixels)
    (folder / "train/a/002.png").write_bytes(b"no image")
    cut = folder / "train/b/005.png"
    cut.write_bytes(cut.read_bytes()[:50])
    with pytest.raises(DataError) as caught:
        load_data(folder)
    assert "has 2 of 12 images that cannot be opened (002.png, 005.png): repair or remove them" in str(caught.value)
    assert not list((tmp_path / "cache").glob("images-*/about.json"))
    data = load_data(folder, skip_broken=True)
    order = [index for index in order if index not in (2, 5)]
    assert torch.equal(data.x[:][:, 0], torch.from_numpy(pixels[order] / 127.5 - 1).float())
    assert data.labels.tolist() == [0] * 5 + [1] * 5


def test_of_several_sets_one_is_taken_by_its_name(tmp_path):
    for name in ("small", "other"):
        folder_of(tmp_path, grey(6), f"images/{name}")
    told = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in ("small", "other"))
    (tmp_path / "images" / "README.md").write_text(f"---\nconfigs:\n{told}---\n")
    for wrong in ({}, {"subset": "third"}):
        with pytest.raises(DataError, match="holds the sets small, other: set subset to one of them"):
            load_data(tmp_path / "images", **wrong)
    small, other = (load_data(tmp_path / "images", subset=name) for name in ("small", "other"))
    assert small.shape == other.shape
    assert small.digest != other.digest


def test_a_folder_of_nothing_but_broken_images_is_refused_all_the_same(tmp_path):
    folder, _ = folder_of(tmp_path, grey(2))
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="has 2 of 2 images that cannot be opened"):
        load_data(folder, skip_broken=True)


def test_what_they_are_is_in_their_digest_and_not_where_they_lie(tmp_path, large):
    """And a run that was made when all were read into memory is the same run."""
    folder, _ = folder_of(tmp_path, grey(8))
    x = load_data(folder).x
    assert digest(x) == digest(x[:])
    assert digest(x.mirrored()) == digest(x.mirrored()[:])
    assert digest(x) == digest(x.to("cpu"))
    assert digest(x) == digest(Images(x.pixels.clone()))
    assert len({digest(kind) for kind in (x, x.mirrored(), x.at(torch.arange(4)), x.at(torch.arange(5)))}) == 4


def test_a_set_is_read_with_little_memory(tmp_path):
    """What a process holds more at its peak for 96 MB of floats, read from a folder of 6 MB of pixels at a time."""
    import datasets

    pixels = RANDOM.integers(0, 256, (2000, 64, 64, 3), dtype=np.uint8)  # 24 MB of bytes, 98 MB of floats
    columns = datasets.Features({"image": datasets.Image()})
    (tmp_path / "table").mkdir()
    rows = {"image": [Image.fromarray(value) for value in pixels]}
    datasets.Dataset.from_dict(rows, columns).to_parquet(tmp_path / "table/train.parquet")
    program = f"""
import torch, datasets
datasets.config.HF_DATASETS_CACHE = {str(tmp_path / "datasets")!r}
from pdlib.data import load_data
from pdlib.runs.cost import peak_memory_mb as peak
load_data("digits")
datasets.load_dataset({str(tmp_path / "table")!r})  # what the library itself takes
before = peak()
data = load_data({str(tmp_path / "table")!r})
data.x[torch.arange(64)]
print(type(data.x).__name__, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kind, more = done.stdout.split()
    assert kind == "Images"
    assert float(more) < 98, "as much as all of it in floats"


@pytest.mark.skipif("PDLIB_TEST_DATA" not in os.environ, reason="PDLIB_TEST_DATA is not set")
@pytest.mark.parametrize(("name", "shape"), [("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_the_real_data_sets_are_read_from_a_folder(name, shape):
    data = load_data(Path(os.environ["PDLIB_TEST_DATA"]) / name, test="auto")
    assert (data.x.shape[1:], data.shape) == (shape, shape)
    assert len(data.x) >= 50_000
    assert len(data.test) == 10_000
    assert data.labels.bincount(minlength=10).min() > 800
    assert -1 <= data.test[:].min() < -0.99
    assert 0.99 < data.test[:].max() <= 1


def test_a_mask_takes_those_where_it_is_true(tmp_path, large):
    folder, _ = folder_of(tmp_path, grey(8))
    x = load_data(folder).x
    mask = torch.tensor([True, False] * 4)
    assert torch.equal(x[mask], x[:][mask])


def test_what_is_trained_on_is_not_held_back(tmp_path):
    folder_of(tmp_path, grey(70))
    folder, _ = folder_of(tmp_path, grey(70), part="test")
    both = load_data(folder, split="train+test", test="auto")
    assert (len(both.x), both.test) == (140, None)
    with pytest.raises(DataError, match="split and test are both 'test': hold back another part"):
        load_data(folder, split="test", test="test")


def test_parts_without_class_folders_have_no_labels(tmp_path):
    for part, count in (("train", 8), ("test", 70)):
        (tmp_path / "flat" / part).mkdir(parents=True)
        for index, image in enumerate(grey(count)):
            Image.fromarray(image).save(tmp_path / "flat" / part / f"{index:03}.png")
    data = load_data(tmp_path / "flat", test="auto")
    assert (len(data.x), len(data.test), data.labels) == (8, 70, None)


def test_labels_that_are_lost_are_made_again_and_a_failing_disk_is_no_broken_image(tmp_path, large, monkeypatch):
    folder, _ = folder_of(tmp_path, grey(8))
    labels = load_data(folder).labels
    (path,) = (tmp_path / "cache").glob("images-*/labels.npy")
    for content in (b"", path.read_bytes()[:-8]):
        path.write_bytes(content)
        assert torch.equal(load_data(folder).labels, labels)
    path.unlink()
    assert torch.equal(load_data(folder).labels, labels)

    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(images, "_pixels", failing)
    with pytest.raises(DataError, match="Input/output error"):
        load_data(folder, skip_broken=True, size=8)


def test_what_datasets_saved_and_arrow_files_are_read_too(tmp_path):
    import datasets

    columns = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)})
    tables = {}
    for part, count in (("train", 8), ("test", 70)):
        rows = {"image": [Image.fromarray(image) for image in grey(count)], "label": [0, 1] * (count // 2)}
        tables[part] = datasets.Dataset.from_dict(rows, columns)
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "both")
    tables["train"].save_to_disk(tmp_path / "one")
    (tmp_path / "arrow").mkdir()
    (file,) = (tmp_path / "one").glob("*.arrow")
    (tmp_path / "arrow" / "train.arrow").write_bytes(file.read_bytes())
    both, one, arrow = (load_data(tmp_path / name, test="auto") for name in ("both", "one", "arrow"))
    assert (len(both.x), len(both.test), both.labels.tolist()) == (8, 70, [0, 1] * 4)
    assert torch.equal(both.x, one.x)
    assert torch.equal(both.x, arrow.x)
    for split in ("validation", "train[:4]"):
        with pytest.raises(DataError, match=f"has no part {re.escape(repr(split))}, only train, test"):
            load_data(tmp_path / "both", split=split)
