"""Names on the hub, in processes of their own: its library reads its address once, when it is imported."""

import json
import os
import subprocess
import sys

import pytest
from interop.hub import serving
from interop.small_models import loaded, write

from pdlib.grids import Grid
from pdlib.interop import InteropError
from pdlib.interop.diffusers import Hub, load
from pdlib.runs import cli


def run(code, address, cache, *arguments):
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


LOAD = """
import sys
from pdlib.interop.diffusers import Hub, load
try:
    print(load("someone/digits").prediction, Hub.from_pretrained("someone/digits").denoiser.shape)
except ValueError as error:
    print(error)
"""


def test_a_name_on_the_hub_is_downloaded_into_its_cache_and_opened(tmp_path):
    write(tmp_path / "digits", "v_prediction")
    (tmp_path / "digits" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    with serving({"someone/digits": tmp_path / "digits"}) as address:
        assert run(LOAD, address, tmp_path / "cache") == "v (1, 8, 8)\n"
    names = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink() or path.is_file()}
    assert "diffusion_pytorch_model.safetensors" in names
    assert "diffusion_pytorch_model.bin" not in names


def test_a_name_whose_weights_are_a_pickle_is_refused(tmp_path):
    write(tmp_path / "digits")
    weights = tmp_path / "digits" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with serving({"someone/digits": tmp_path / "digits"}) as address:
        said = run(LOAD, address, tmp_path / "cache")
    assert "someone/digits has no safetensors, and a pickle (.bin) can run code when opened: convert it once" in said


def test_a_name_that_is_not_there_or_without_a_network_is_a_line(tmp_path):
    with serving({}) as address:
        assert "as a name on the hub it could not be had" in run(LOAD, address, tmp_path / "cache")
    said = run(LOAD, "http://127.0.0.1:9", tmp_path / "cache")
    assert said.startswith("someone/digits is no folder here, and as a name on the hub it could not be had")
    assert "check the name and the network" in said
    assert said.count("\n") == 1


RUN = """
import sys
from pdlib.runs import execute
few = {"steps": 2, "batch_size": 16, "stage_updates": 2, "images_per_seed": 65, "noise_seeds": 2, "curves": "distilled"}
run = execute("smoke", sys.argv[1], progress=False, teacher="someone/digits", **few)
print(run.settings.teacher, run.settings.prediction, run.parts, run.finished)
"""


def test_a_run_is_made_from_a_name_and_opened_again_when_the_hub_is_gone(tmp_path):
    write(tmp_path / "digits", "v_prediction", rescale_betas_zero_snr=True)
    expected = "someone/digits v ['teacher', 'student-1'] True\n"
    with serving({"someone/digits": tmp_path / "digits"}) as address:
        assert run(RUN, address, tmp_path / "cache", tmp_path / "run") == expected
    assert run(RUN, "http://127.0.0.1:9", tmp_path / "nothing", tmp_path / "run") == expected


def test_the_command_takes_a_name_and_says_in_a_line_that_there_is_no_network(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)
    for command in (["diagnose"], ["sample"], ["run", "--set"]):
        place = "teacher=someone/digits" if command[0] == "run" else "someone/digits"
        assert cli.main([*command, place]) == 2
        assert "as a name on the hub it could not be had" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def refuse(*_, **__):
    raise OSError("no route to host")


def test_a_student_is_pushed_with_its_card(tmp_path, monkeypatch):
    student = loaded(tmp_path / "theirs", "v_prediction", rescale_betas_zero_snr=True)
    student.grid, pushed = Grid(4), {}

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **_):
            pushed[repo_id] = {str(p.relative_to(folder_path)): p.read_bytes() for p in folder_path.rglob("*.*")}
            (tmp_path / "pushed").mkdir()
            for name, content in pushed[repo_id].items():
                path = tmp_path / "pushed" / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    Hub(student, {"teacher": "someone/digits"}).push_to_hub("me/digits-4")
    files = pushed["me/digits-4"]
    assert json.loads(files["model_index.json"])["_class_name"] == "DDIMPipeline"
    assert b"base_model: someone/digits" in files["README.md"]
    assert b'from_pretrained("me/digits-4")' in files["README.md"]
    again = load(tmp_path / "pushed")
    assert (again.prediction, again.grid) == ("v", Grid(4))


def test_a_name_is_not_taken_for_one_where_there_is_such_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    with pytest.raises(InteropError, match="does not exist"):
        load("someone/digits/unet")
