import pickle
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from pdlib.data import DATASETS, TOYS, Data, DataError, load_data

RANDOM = np.random.default_rng(0)


# By name.


def test_digits_are_scikit_learns_scaled_to_minus_1_to_1():
    data = load_data("digits")
    assert (data.name, data.shape, data.is_image, data.x.dtype) == ("digits", (1, 8, 8), True, torch.float32)
    assert (data.x.min(), data.x.max()) == (-1, 1)
    original = load_digits()
    assert torch.equal(data.x[:, 0], torch.from_numpy(original.images / 8 - 1).float())
    assert data.labels.tolist() == original.target.tolist()


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_points_in_the_plane_the_same_every_time(name):
    data = load_data(name, toy_points=1000)
    assert (data.x.shape, data.shape, data.is_image, data.labels) == ((1000, 2), (2,), False, None)
    assert data.x.dtype == torch.float32
    assert 0.5 < data.x.abs().max() < 1.3
    assert data.x.mean(0).abs().max() < 0.2
    assert torch.equal(load_data(name, toy_points=1000).x, data.x)


def test_the_checkerboard_has_points_on_fields_of_one_colour_only():
    x = load_data("checkerboard").x
    column, row = ((x + 1) * 2).floor().long().clamp(0, 3).unbind(1)
    assert ((column + row) % 2 == 0).all()
    assert len(torch.stack([column, row], 1).unique(dim=0)) == 8


def test_the_ring_is_eight_gaussians():
    x = load_data("ring").x
    angle = torch.atan2(x[:, 1], x[:, 0]) / (torch.pi / 4)
    assert (x.norm(dim=1) - 0.8).abs().max() < 0.3
    assert x.norm(dim=1).mean().item() == pytest.approx(0.8, abs=0.01)
    assert (angle - angle.round()).std() < 0.1  # 0.05/0.8 of a radian, in eighths of a turn
    assert len((angle.round() % 8).unique()) == 8


def refusal(name, **options):
    """What is said of data that cannot be used: one line that names them."""
    with pytest.raises(DataError) as caught:
        load_data(name, **options)
    message = str(caught.value)
    assert message.startswith(f"data={str(name)!r} ")
    assert "\n" not in message
    return message


def test_a_data_set_from_outside_is_one_entry(monkeypatch):
    assert list(DATASETS) == ["digits", "moons", "swiss_roll", "checkerboard", "ring", "mnist", "cifar10"]
    x = RANDOM.uniform(-1, 1, (4, 2))
    monkeypatch.setitem(DATASETS, "mine", lambda: (x, ["b", "a", "a", "b"]))
    data = load_data("mine")
    assert torch.equal(data.x, torch.from_numpy(x).float())
    assert data.labels.tolist() == [1, 0, 0, 1]
    monkeypatch.setitem(DATASETS, "mine", lambda: (x[:1], None))
    assert refusal("mine") == "data='mine' has shape (1, 2): at least 2 examples are needed, none of them empty"


@pytest.mark.parametrize("name", ["digit", "nowhere.txt", "", " ", "mnist "])
def test_an_unknown_name_is_met_with_the_known_ones(name):
    message = refusal(name)
    assert "it must be one of digits, moons, swiss_roll, checkerboard, ring, mnist, cifar10, a .npy" in message
    assert ("did you mean 'digits'?" in message) == (name == "digit")


@pytest.mark.parametrize(
    "name", ["./a/b", "a/b", "a/", "../nowhere", "/nowhere/at/all", "~/b", "~nobody/b", "a\0/b", "f.txt"]
)
def test_a_path_to_nothing_is_met_at_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("a").mkdir()
    Path("f.txt").touch()
    start = time.monotonic()
    nothing = "holds 0 images or parquet files and 0 others" if name == "a/" else "is no folder and no .npy or .npz"
    assert nothing in refusal(name)
    assert time.monotonic() - start < 1


def test_a_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    x = RANDOM.uniform(-1, 1, (4, 2))
    np.save(tmp_path / "points.npy", x)
    assert torch.equal(load_data("~/points.npy").x, torch.from_numpy(x).float())


@pytest.mark.parametrize("name", ["nobody/nothing", "mnist"])
def test_without_a_network_a_hub_name_is_met_within_seconds(name, hub_cache, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    start = time.monotonic()
    message = refusal(name)
    assert "there is no such file or folder here; " in message
    assert "Couldn't reach" in message
    assert message.endswith("check the path and the network")
    assert time.monotonic() - start < 5


# NumPy files.


def saved(tmp_path, x, **others):
    path = tmp_path / ("data.npz" if others else "data.npy")
    if others:
        np.savez(path, x=x, **others)
    else:
        np.save(path, x)
    return path


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 8, 6), (1, 8, 6)), ((5, 1, 8, 8), (1, 8, 8)), ((5, 3, 8, 8), (3, 8, 8)), ((5, 2), (2,))],
)
def test_arrays_of_images_and_points_are_read(tmp_path, shape, expected):
    x = RANDOM.uniform(-1, 1, shape)
    data = load_data(saved(tmp_path, x))
    assert (data.shape, data.x.dtype, data.labels) == (expected, torch.float32, None)
    assert np.allclose(data.x.numpy().reshape(shape), x)
    assert data.is_image == (len(expected) == 3)


@pytest.mark.parametrize("kind", ["uint8", "int64", ">i2"])
def test_integers_of_images_are_grey_values_from_0_to_255(tmp_path, kind):
    x = np.arange(256).reshape(4, 8, 8)
    found = load_data(saved(tmp_path, x.astype(kind))).x[:, 0]
    assert torch.equal(found, torch.from_numpy(x / 127.5 - 1).float())  # to the bit what float64 would give
    assert load_data(saved(tmp_path, np.minimum(x, 128).astype(kind))).x.max() == pytest.approx(128 / 127.5 - 1)


@pytest.mark.parametrize(
    ("x", "advice"),
    [
        (np.arange(128).reshape(2, 8, 8) % 17, r"integers from 0 to 16, .* such as \(x - 0\) / 8 - 1"),
        (np.arange(117, dtype="uint8").reshape(13, 3, 3) % 2, r"integers from 0 to 1, .* \(x - 0\) / 0.5 - 1"),
        (np.arange(128, dtype="uint8").reshape(2, 8, 8), r"integers from 0 to 127, .* read as 0 … 255"),
        (np.arange(512).reshape(2, 16, 16) % 257, "integers from 0 to 256,"),
        (np.arange(128).reshape(2, 8, 8).astype("int8") - 127, r"from -127 to 0, .* \(x - -127\) / 63.5 - 1"),
        (np.arange(22).reshape(11, 2) // 2 - 5, r"integers from -5 to 5, .* give floats"),
        (np.arange(200, dtype="uint8").reshape(100, 2), "integers from 0 to 199, .* give floats"),
    ],
)
def test_other_integers_could_mean_anything_and_are_refused(tmp_path, x, advice):
    with pytest.raises(DataError, match=advice):
        load_data(saved(tmp_path, x))


def test_loading_takes_little_more_memory_than_the_data(tmp_path):
    x = RANDOM.integers(0, 256, (500, 32, 32), dtype=np.uint8)
    path = saved(tmp_path, x)
    load_data(path)
    tracemalloc.start()
    load_data(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * x.nbytes  # one byte read, four kept


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", ">f4", ">f8"])
def test_floats_are_taken_as_they_are(tmp_path, kind):
    x = np.linspace(-1, 1, 64).reshape(4, 4, 4).astype(kind)
    assert torch.equal(load_data(saved(tmp_path, x)).x[:, 0], torch.from_numpy(x.astype("float32")))


def test_an_npz_brings_its_labels(tmp_path):
    x = RANDOM.uniform(-1, 1, (3, 4, 4))
    for labels in ([2, 0, 1], np.array([[2], [0], [1]], "uint8"), np.array([2, 0, 1], "uint64"), ["dog", "ant", "cat"]):
        data = load_data(saved(tmp_path, x, y=labels))
        assert data.labels.tolist() == [2, 0, 1]
        assert data.labels.dtype == torch.int64
    assert load_data(saved(tmp_path, x, other=np.zeros(7))).labels is None


def nan_at(*indices):
    x = np.zeros((6, 4, 4))
    x[list(indices), 1, 1] = np.nan, np.inf
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((5, 7)), r"shape \(5, 7\): it must be images"),
        (np.zeros((5, 2, 8, 8)), r"shape \(5, 2, 8, 8\).* 1 or 3 channels"),
        (np.zeros((5, 8, 8, 3)), r"shape \(5, 8, 8, 3\)"),
        (np.zeros(5), r"shape \(5,\)"),
        (np.zeros((1, 8, 8)), "at least 2 examples"),
        (np.zeros((0, 8, 8)), "at least 2 examples"),
        (np.zeros((5, 1, 0, 8)), "at least 2 examples are needed, none of them empty"),
        (nan_at(2, 4), "NaN or infinite values in 2 of 6 examples, the first at index 2"),
        (np.linspace(0, 255, 128).reshape(2, 8, 8), r"runs from 0 to 255: scale it to \[-1, 1\]"),
        (np.linspace(-100, 100, 10).reshape(5, 2), "runs from -100 to 100: scale it"),
        (np.array([[0, 0], [1e300, 0]]), r"runs from 0 to 1e\+300: scale it"),
        (np.full((5, 2), 0.5), "is 5 times the same example: there is nothing to learn"),
        (np.tile(np.linspace(-1, 1, 64).reshape(8, 8), (5, 1, 1)), "is 5 times the same example"),
        (np.full((5, 8, 8), 300), "is 5 times the same example"),
        (np.full((5, 2), "a"), "values of type <U1: give floats or integers"),
        (np.zeros((5, 8, 8), dtype=complex), "values of type complex128"),
        (np.zeros((5, 8, 8), dtype=bool), "values of type bool"),
    ],
)
def test_an_array_that_cannot_be_used_is_refused_with_the_reason(tmp_path, x, message):
    with pytest.raises(DataError, match=message):
        load_data(saved(tmp_path, x))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "3 examples but 2 labels"),
        ([0.5, 1.5, 2.5], "labels of type float64: number the classes 0, 1, 2, …"),
        ([np.nan, 1, 2], "labels of type float64"),
        ([-1, 0, 1], "labels below 0"),
        ([0, 1, 10**9], "labels up to 1000000000: number the classes 0, 1, 2, …, fewer than 32768"),
        (np.array([0, 1, 2**64 - 1], "uint64"), "labels up to 18446744073709551615: number"),
        ([0, 1, 32768], "labels up to 32768"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_with_the_reason(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        load_data(saved(tmp_path, RANDOM.uniform(-1, 1, (3, 4, 4)), y=np.array(labels)))


def test_a_points_range_may_be_wider_than_an_images(tmp_path):
    x = np.array([[3.0, -4.0], [0.0, 1.0]])
    assert load_data(saved(tmp_path, x)).x.max() == 3


def test_an_npz_without_x_says_what_it_holds(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.zeros((3, 4, 4)), labels=np.zeros(3))
    with pytest.raises(DataError, match="holds images, labels: name the examples x, and labels y"):
        load_data(tmp_path / "data.npz")


@pytest.mark.parametrize("name", ["nowhere.npy", "nowhere.npz"])
def test_a_missing_file_is_named(tmp_path, name):
    assert "cannot be read (there is no such file or folder here; " in refusal(tmp_path / name)


class Mischief:
    def __reduce__(self):
        return (open, ("mischief", "w"))


def test_pickles_are_refused_and_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = np.array([Mischief(), Mischief()], dtype=object)
    np.save("objects.npy", objects, allow_pickle=True)
    np.savez("objects.npz", x=objects)
    np.savez("labels.npz", x=np.zeros((2, 4, 4)), y=objects)
    Path("pickle.npy").write_bytes(pickle.dumps(Mischief()))
    for name in ("objects.npy", "objects.npz", "labels.npz", "pickle.npy"):
        assert "cannot be read (" in refusal(name)
    assert not Path("mischief").exists()


@pytest.mark.parametrize("name", ["data.npy", "data.npz"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.95])
def test_a_truncated_file_is_refused(tmp_path, name, keep):
    path = saved(tmp_path, RANDOM.uniform(-1, 1, (20, 8, 8)), **({"y": np.zeros(20, int)} if "z" in name else {}))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    assert refusal(path).endswith("check the path, or write it again")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999999, 2)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999, 2)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-3, 2)}",
        "{'descr': '<q9', 'fortran_order': False, 'shape': (3, 2)}",
        "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3, 2)}",
        "{'descr': '<f8', 'shape': (3, 2)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': ((3, 2)",
        "[" * 500,
        "1 + ",
        "",
    ],
)
def test_a_malformed_header_is_refused(tmp_path, header):
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    (tmp_path / "data.npy").write_bytes(start + header.encode() + bytes(48))
    refusal(tmp_path / "data.npy")


def test_a_flipped_bit_in_a_compressed_file_is_refused(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=RANDOM.uniform(-1, 1, (20, 8, 8)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert "cannot be read (" in refusal(path)


# Folders, through Hugging Face datasets.


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Keep what datasets makes of a folder out of the user's own cache."""
    datasets = pytest.importorskip("datasets", reason="reading folders needs the package datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_of_parquet_files_is_read(hub_cache, tmp_path, mode):
    # As the hub keeps MNIST and CIFAR-10: one file for each part, a column of images, a column of classes.
    import datasets

    columns = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=3)})
    folder = tmp_path / "parquet"
    folder.mkdir()
    pixels = {part: RANDOM.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8) for part in ("train", "test")}
    for part, values in pixels.items():
        images = [Image.fromarray(value).convert(mode) for value in values]
        table = datasets.Dataset.from_dict({"img": images, "label": [0, 1, 2] * 2}, columns)
        table.to_parquet(folder / f"{part}-00000-of-00001.parquet")
    data = load_data(folder, split="test")
    assert data.labels.tolist() == [0, 1, 2] * 2
    expected = np.stack([np.asarray(Image.fromarray(value).convert(mode)) for value in pixels["test"]])
    expected = expected[:, None] if mode == "L" else expected.transpose(0, 3, 1, 2)
    assert np.allclose((data.x + 1) * 127.5, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["dog", "ant", "dog"], [1, 0, 1]),
        ([2, 0, 1], [2, 0, 1]),
        ([0.5, 1.5, 2.5], "labels of type float64"),
        ([-1, -1, -1], "labels below 0"),
        ([0, None, 1], "labels of type object"),
        ([10**9, 0, 1], "labels up to 1000000000"),
        ([[0, 1], [1], []], None),  # several for each image: none of them is its class
    ],
)
def test_labels_of_a_table_are_classes_or_refused(hub_cache, tmp_path, labels, found):
    import datasets

    columns = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Dataset.from_dict({"x": labels}).features["x"]}
    )
    images = [Image.fromarray(value) for value in RANDOM.integers(0, 256, (3, 4, 4), dtype=np.uint8)]
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict({"image": images, "label": labels}, columns).to_parquet(tmp_path / "table/train.parquet")
    if isinstance(found, str):
        assert found in refusal(tmp_path / "table")
    else:
        loaded = load_data(tmp_path / "table").labels
        assert (loaded if loaded is None else loaded.tolist()) == found


def image_folder(tmp_path, **images):
    """A folder of PNGs, in one folder per class."""
    for name, image in images.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(2):
            image.save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path / "images"


def test_a_folder_of_images_is_read_with_its_classes(hub_cache, tmp_path):
    red, blue = (Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    data = load_data(image_folder(tmp_path, a=red, b=blue))
    assert data.x.shape == (4, 3, 4, 6)
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.x.mean((2, 3)).tolist() == [[1, -1, -1]] * 2 + [[-1, -1, 1]] * 2


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 255, [1]),
        ("1", 1, [1]),
        ("LA", (255, 9), [1]),
        ("RGBA", (255, 0, 0, 9), [1, -1, -1]),
        ("P", 1, [-1, 1, -1]),
    ],
)
def test_pixels_are_what_they_look_like_in_every_mode(hub_cache, tmp_path, mode, colour, expected):
    image = Image.new(mode, (4, 4), colour)
    if mode == "P":
        image.putpalette([255, 0, 0, 0, 255, 0])  # colour 1 is green
    data = load_data(image_folder(tmp_path, a=image, b=Image.new("L" if len(expected) == 1 else "RGB", (4, 4))))
    assert data.x[0].mean((1, 2)).tolist() == expected


def test_images_of_several_sizes_are_refused(hub_cache, tmp_path):
    folder = image_folder(tmp_path, a=Image.new("L", (4, 4)), b=Image.new("L", (6, 4)))
    with pytest.raises(DataError, match=r"2 different shapes \(\(1, 4, 4\), \(1, 4, 6\) …\): make them one size"):
        load_data(folder)


def test_images_that_cannot_be_read_are_refused(hub_cache, tmp_path):
    folder = image_folder(tmp_path, a=Image.new("L", (4, 4)))
    path = folder / "a" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    assert "has 1 of 2 images that cannot be opened (1.png): repair or remove them" in refusal(folder)
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(path)
    assert "has 1 of 2 images that cannot be opened (1.png: more than 8 bits a channel)" in refusal(folder)


def test_a_folder_without_images_or_of_another_split_is_refused(hub_cache, tmp_path):
    import datasets

    (tmp_path / "empty").mkdir()
    (tmp_path / "table").mkdir()
    assert "holds 0 images or parquet files and 0 others" in refusal(tmp_path / "empty")
    folder = image_folder(tmp_path, a=Image.new("L", (4, 4)))
    assert "has no part 'validation', only train: set split to one of them" in refusal(folder, split="validation")
    datasets.Dataset.from_dict({"one": [1, 2], "two": [3, 4]}).to_parquet(tmp_path / "table" / "train.parquet")
    assert "has no column of images, only one, two: give images" in refusal(tmp_path / "table")


def test_a_folder_of_foreign_files_is_refused_at_once(tmp_path):
    folder = image_folder(tmp_path, a=Image.new("L", (4, 4)))
    (folder / ".hidden").mkdir()
    for index in range(5):
        (folder / f"{index}.txt").touch()
        (folder / ".hidden" / f"{index}.png").touch()
    assert "holds 2 images or parquet files and 5 others: give a folder of the former" in refusal(folder)


def test_the_digest_is_of_what_is_computed_from():
    x, labels = torch.rand(6, 1, 2, 2), torch.arange(6)
    digest = Data("one", x, labels).digest
    assert digest == Data("other", x.clone(), labels.clone()).digest
    changed = x.clone()
    changed[5, 0, 1, 1] += 1e-6
    others = [(x, None), (x, labels.flip(0)), (changed, labels), (x.double(), labels), (x.reshape(6, 1, 4, 1), labels)]
    assert len({digest, *(Data("one", *other).digest for other in others)}) == 6


def test_data_know_the_shape_of_an_example():
    assert Data("points", torch.zeros(5, 2)).shape == (2,)
    assert not Data("points", torch.zeros(5, 2)).is_image
    assert Data("images", torch.zeros(5, 3, 8, 4)).shape == (3, 8, 4)
    assert Data("images", torch.zeros(5, 3, 8, 4)).is_image
