import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from jupyter_client.manager import start_new_kernel

import pdlib

ROOT = Path(__file__).parents[1]

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # what pytest itself uses on Python 3.10

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
README = (ROOT / "README.md").read_text()


def test_everything_that_is_installed_is_pinned_and_nowhere_else():
    needed = [*PROJECT["dependencies"], *(name for extra in EXTRAS.values() for name in extra)]
    assert {name for name in needed if re.search(r"[<>=~!@;]", name)} == set()
    assert set(needed) <= PINS.keys()
    assert PINS["torch"] == "2.13.0"


def test_the_versions_that_run_here_are_the_pinned_ones():
    from importlib.metadata import version

    different = {name: version(name) for name in PROJECT["dependencies"] if version(name).split("+")[0] != PINS[name]}
    assert different == {}


def test_the_kernel_answers_requests_that_come_close_together():
    """ipykernel 7.0 to 7.3 now and then never sees the second one, and a page or a notebook waits for ever."""
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        wait = random.Random(0)
        for _ in range(800):
            sent = {client.execute("1")}
            time.sleep(wait.uniform(0, 0.01))
            sent.add(client.execute("2"))
            while sent:
                sent.discard(client.get_shell_msg(timeout=20)["parent_header"]["msg_id"])
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_conda_installs_what_the_makefile_installs():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, lines = environment["dependencies"]
    assert pip == "pip"
    command = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "[data," in line)
    constraint, editable = lines["pip"]
    assert f"{constraint} {editable}".replace("'", "") == re.search(r"--constraint.*", command)[0].replace("'", "")
    assert set(re.search(r"\[(.*)\]", editable)[1].split(",")) == set(EXTRAS)
    low, _ = re.findall(r"3\.\d+", python)
    assert PROJECT["requires-python"] == f">={low}"


def test_the_citation_is_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == pdlib.__version__
    assert citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    paper = citation["preferred-citation"]
    assert paper["title"] == "Progressive Distillation for Fast Sampling of Diffusion Models"
    assert [author["family-names"] for author in paper["authors"]] == ["Salimans", "Ho"]
    assert paper["title"] in README


def test_a_file_imports_only_from_floors_below():
    order = re.findall(r"\[(\w+)\.py\]\(pdlib/", README.partition("## The library")[2])
    files = {path.stem for path in (ROOT / "pdlib").glob("*.py")} - {"__init__", "__main__"}
    assert set(order) == files  # every file is in the README's map
    for name in files:
        source = (ROOT / "pdlib" / f"{name}.py").read_text()
        for other in re.findall(r"^(?:from pdlib\.| *from pdlib\.)(\w+) import|^from pdlib import (\w+)", source, re.M):
            imported = other[0] or other[1]
            assert order.index(imported) < order.index(name), f"{name} imports {imported}"


def test_every_place_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_target_the_readme_names_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make (\w+)", README + (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_readmes_example_draws_digits_in_one_step(smoke, tmp_path, monkeypatch):
    from matplotlib.image import imread

    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 12
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "default").symlink_to(smoke.folder)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code, namespace)
    assert namespace["digits"].shape == (16, 1, 8, 8)
    assert namespace["digits"].std() > 0.3
    assert imread("samples.png").shape[:2] == (8 * 35, 8 * 35)  # 4 × 4 images with gaps, 8 pixels for each of theirs


def test_the_package_is_typed():
    assert (ROOT / "pdlib" / "py.typed").is_file()


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_waiting_threads_spin_for_a_short_time_unless_told_otherwise(given, found, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    code = "import pdlib, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{found}\n"


def test_torch_is_the_version_that_is_pinned():
    assert torch.__version__.split("+")[0] == PINS["torch"]
