import json
import random
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from jupyter_client.manager import start_new_kernel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pdlib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
README = (ROOT / "README.md").read_text()


def test_everything_that_is_declared_is_pinned_and_nowhere_else():
    for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]:
        needed = Requirement(line)
        assert not re.search("==|~=|<", str(needed.specifier)), line
        assert needed.specifier.contains(PINS[canonicalize_name(needed.name)]), line


def test_no_kernel_is_allowed_that_loses_requests():
    (kernel,) = (line for line in PROJECT["dependencies"] if line.startswith("ipykernel"))
    assert not any(Requirement(kernel).specifier.contains(f"7.{minor}.0") for minor in range(4))


def test_the_versions_that_run_here_are_the_pinned_ones():
    here = {canonicalize_name(found.name): found.version.partition("+")[0] for found in distributions()}
    assert {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]} <= here.keys()
    assert {name: here[name] for name in PINS.keys() & here.keys() if here[name] != PINS[name]} == {}


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
    makefile = (ROOT / "Makefile").read_text()
    python, pip, lines = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    constraint, editable = lines["pip"]
    assert pip == "pip"
    assert constraint in makefile
    assert editable == "--editable " + re.search(r"\.\[.*\]", makefile)[0]
    assert set(re.search(r"\[(.*)\]", editable)[1].split(",")) == EXTRAS.keys()
    assert PROJECT["requires-python"] == re.search(r">=3\.\d+", python)[0]
    low, high = re.search(r"\(3, (\d+)\) <= sys.version_info < \(3, (\d+)\)", makefile).groups()
    assert python == f"python>=3.{low},<3.{high}"


PRETENDER = """#!/bin/sh
case "$*" in *"$(cat fault)"*) exit 1;; esac
case "$*" in
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo made >> log;;
    "-m pip install "*) echo filled >> log;;
esac
"""


@pytest.mark.parametrize("fault", ["-c", "-m venv", "-m pip --version", "--editable .", "[data"])
def test_an_environment_that_was_cut_short_is_made_anew(fault, tmp_path):
    """Instead of Python, a script that fails where ``fault`` says."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(PRETENDER)
    python.chmod(0o755)

    def make(fault):
        (tmp_path / "fault").write_text(fault)
        command = ["make", "-f", ROOT / "Makefile", f"PYTHON={python}", ".venv/installed-all"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True)
        said = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return done.returncode == 0, said

    (tmp_path / ".venv" / "bin").mkdir(parents=True)  # as the first edition leaves it when it is cut short
    (tmp_path / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    assert not make(fault)[0]
    assert make("nothing") == (True, ["made", "filled", "filled"])
    assert make("nothing") == (True, [])


def test_a_wheel_holds_the_files_that_are_not_python(tmp_path):
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for name in ("report.ipynb", "compare.ipynb"):
            assert archive.read(f"pdlib/runs/{name}") == (ROOT / "notebooks" / name).read_bytes()
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "pdlib").rglob("*.*") if path.suffix != ".pyc"}
    assert {Path(name).suffix for name in package} >= {".py", ".js", ".css", ".typed"}
    assert package <= names


def test_the_citation_is_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == pdlib.__version__
    assert citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    paper = citation["preferred-citation"]
    assert paper["title"] == "Progressive Distillation for Fast Sampling of Diffusion Models"
    assert [author["family-names"] for author in paper["authors"]] == ["Salimans", "Ho"]
    assert paper["title"] in README


def test_every_place_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_ratios_the_readme_quotes_are_those_that_were_measured():
    found = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text())
    quoted = [float(number) for number in re.findall(r"([\d.]+) ×", README[README.index("## How long it takes") :])]
    measured = [found["update_over_floor"], found["ours_over_peer"], found["sampling"]["step_over_forward"]]
    assert quoted == [round(one["ratio"], 2) for one in measured] + [
        round(found["two_processes_over_one"]["throughput"], 2)
    ]


def test_every_target_the_readme_names_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make (\w+)", README + (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_readmes_example_draws_digits_in_one_step(smoke, tmp_path, monkeypatch):
    from matplotlib.image import imread

    code, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 12
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "default").symlink_to(smoke.folder)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code, namespace)
    assert namespace["digits"].shape == (16, 1, 8, 8)
    assert namespace["digits"].std() > 0.3
    assert imread("samples.png").shape[:2] == (8 * 35, 8 * 35)  # 4 × 4 images with gaps, 8 pixels for each of theirs


def test_the_readmes_second_example_distils_points_to_one_step(capsys):
    _, code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(re.sub(r"updates=\d+", "updates=20", code), {})
    assert re.findall(r"Grid\(N=(\d+)", capsys.readouterr().out) == ["8", "4", "2", "1"]


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
