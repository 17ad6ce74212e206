"""The smallest runs, and what the tests of runs compare of them."""

import shutil

import pytest

from pdlib.runs.run import execute

TINY = {
    "preset": "smoke",
    "steps": 4,
    "width": 8,
    "batch_size": 16,
    "teacher_updates": 30,
    "stage_updates": 20,
    "images_per_seed": 65,
}
TINIEST = {  # of points in the plane, in a second
    "preset": "smoke",
    "steps": 2,
    "mlp_width": 8,
    "batch_size": 16,
    "teacher_updates": 5,
    "stage_updates": 5,
    "images_per_seed": 65,
    "curves": ("distilled",),
}
WEIGHTS = ["teacher/model.safetensors", "student-2/model.safetensors", "student-1/model.safetensors"]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copied(run, folder):
    return shutil.copytree(run.folder, folder / "run")


def same_networks(one, other, names=WEIGHTS):
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def refused(error, match, folder, **settings):
    """The one line of a run that is refused, and leaves the folder as it was."""
    before = contents(folder) if folder.exists() else None
    with pytest.raises(error, match=match) as caught:
        execute(folder=folder, progress=False, **settings)
    assert (contents(folder) if folder.exists() else None) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without_times(metrics):
    """What a run measured, all but how long it took and what it held in memory."""
    metrics = {key: metrics[key] for key in ("complete", "curves", "floor", "images", "real_images", "settings")}
    for curve in metrics["curves"].values():
        for entry in curve.values():
            entry.pop("seconds", None)
            entry.pop("seconds_per_image")
    return metrics
