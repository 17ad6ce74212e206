import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from nbclient import NotebookClient
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from pdlib.exercises import EXERCISES

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
NAMES = [str(path.relative_to(ROOT / "notebooks")) for path in NOTEBOOKS]


@pytest.fixture(params=NOTEBOOKS, ids=NAMES)
def stored(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_stored_executed_whole_and_without_errors(stored):
    nbformat.validate(stored)
    counts = [cell.execution_count for cell in code_cells(stored)]
    assert counts == list(range(1, len(counts) + 1))
    assert not any(output.output_type == "error" for cell in code_cells(stored) for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_is_small(path):
    assert path.stat().st_size < 500_000


def test_it_opens_with_words_and_then_its_parameters(stored):
    assert stored.cells[0].cell_type == "markdown"
    if "Solutions" in stored.cells[0].source:
        return
    assert "parameters" in code_cells(stored)[0].metadata.tags


def test_it_holds_no_path_of_the_machine_that_made_it(stored):
    assert re.findall(r"(?<![\w.])/(?:home|work|tmp|root|Users)/[\w.]+", nbformat.writes(stored)) == []


def test_no_cell_is_long(stored):
    assert max(len(cell.source.splitlines()) for cell in code_cells(stored)) <= 25


def prose(notebook):
    """How many words its text has, formulas left out."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return len(re.findall(r"[^\W\d_]\S*", re.sub(r"\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)", " ", text, flags=re.DOTALL)))


def test_the_main_road_is_short():
    words = {path.name: prose(nbformat.read(path, as_version=4)) for path in ROOT.glob("notebooks/[01]*_*.ipynb")}
    words = {name: count for name, count in words.items() if name[:2] not in ("00", "09")}  # a map, and a workshop
    assert len(words) == 9
    assert max(words.values()) <= 2000, words
    assert sum(words.values()) <= 16_000, words


# Exercises, as they are stored.


def verdicts(notebook):
    """What each check of an exercise says, by the exercise's name, in the order of the cells."""
    found = []
    for cell in code_cells(notebook):
        for name in re.findall(r'check\("([^"]+)"', cell.source):
            (output,) = (o for o in cell.outputs if o.output_type == "execute_result")
            found.append((name, output.data["text/plain"]))
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if re.match(r"(?!00)\d\d_", name)])
def test_exercises_are_stored_unsolved_and_their_twins_solved(name):
    number = name[:3]
    exercises = {exercise for exercise in EXERCISES if exercise.startswith(number)}
    assert 2 <= len(exercises) <= 6
    shipped = verdicts(nbformat.read(ROOT / "notebooks" / name, as_version=4))
    assert {exercise for exercise, _ in shipped} == exercises
    assert {verdict for _, verdict in shipped} == {"not attempted yet"}
    solved = verdicts(nbformat.read(ROOT / "notebooks" / "solutions" / name, as_version=4))
    for exercise in exercises:
        said = [verdict for other, verdict in solved if other == exercise]
        assert said[0] == "right"
        assert all(verdict.startswith("not right") and "hint: " in verdict for verdict in said[1:])


# The notebooks that train: here on their smallest preset.


def run_notebook(source, output, **parameters):
    papermill.execute_notebook(str(source), str(output), parameters, kernel_name="python3", progress_bar=False)


def assert_strict_nbval(notebook):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", str(notebook)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=notebook.parent)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout)


TURN_EVERY_KNOB = """
from ipywidgets.widgets.widget import _instances

for box in [widget for widget in _instances.values() if type(widget).__name__ == "Knobs"]:
    for knob in box.children[:-1]:
        was = knob.value
        if hasattr(knob, "options"):
            knob.index = (knob.index + 1) % len(knob.options)
        else:
            knob.value = not was if isinstance(was, bool) else knob.min if was > knob.min else knob.max
        knob.value = was
"""


def run_all_twice(notebook):
    """Every cell, and then every cell again in the same kernel: what was said each time, and the second's seconds.

    In the end every knob is turned: it must not matter what the cells below it have done.
    """
    client, said = NotebookClient(notebook, kernel_name="python3", timeout=None, coalesce_streams=True), []
    with client.setup_kernel():
        for _ in range(2):
            started = time.monotonic()
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
            took = time.monotonic() - started
            cells = (cell for cell in code_cells(notebook) if "nbval-ignore-output" not in cell.metadata.tags)
            said.append([output.get("data", output.get("text")) for cell in cells for output in cell.outputs])
        cells = [*notebook.cells, nbformat.v4.new_code_cell(TURN_EVERY_KNOB)]
        client.nb = nbformat.v4.new_notebook(cells=cells)
        client.execute_cell(cells[-1], len(cells) - 1)
    return said, took


@pytest.mark.parametrize("name", ["01_forward_process.ipynb", "03_x_tilde.ipynb"])
def test_run_all_a_second_time_says_the_same_again(name):
    (first, second), _ = run_all_twice(load_notebook_node(str(ROOT / "notebooks" / name)))
    assert len(first) > 20
    assert second == first


@pytest.mark.parametrize("number", ["00", "05", "06", "07", "08", "10"])
def test_a_notebook_that_trains_runs_on_smoke_twice_and_then_passes_strict_nbval(number, tmp_path):
    # A side road opens its road's runs. The second time all are finished: figures are read and no bar is shown.
    # The main road is then executed once more, in a kernel of its own; its side roads, for the time it takes, are not.
    for name in [name for name in NAMES if re.match(rf"(side_roads/)?{number}_", name)]:
        notebook = load_notebook_node(str(ROOT / "notebooks" / name))
        notebook = parameterize_notebook(notebook, {"preset": "smoke", "folder": str(tmp_path / "runs")})
        _, took = run_all_twice(notebook)
        assert took < 60, name
        if "/" not in name:
            nbformat.write(notebook, tmp_path / "again.ipynb")
            assert_strict_nbval(tmp_path / "again.ipynb")


@pytest.mark.parametrize("name", [name for name in NAMES if re.match(r"(side_roads/)?\d\d_", name)])
def test_a_bad_parameter_stops_a_notebook_with_one_line(name, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        run_notebook(ROOT / "notebooks" / name, tmp_path / "out.ipynb", sed=1)
    assert caught.value.traceback == [f"SettingsError: {caught.value.evalue}"]
    assert caught.value.evalue.startswith("sed=1: there is no parameter 'sed'")


# The report, as it is used without the command.

SMALL = {"teacher_updates": 20, "stage_updates": 10}


def papermill_report(output, **parameters):
    run_notebook(ROOT / "notebooks" / "report.ipynb", output, **parameters)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    papermill_report(folder / "out.ipynb", preset="smoke", prediction="x", folder=str(folder / "run"), **SMALL)
    return folder / "out.ipynb"


def test_papermill_runs_the_report_with_other_settings(executed):
    text = executed.read_text()
    assert "prediction = x" in text
    assert "teacher_updates = 20" in text
    (run,) = executed.parent.glob("run/student-1/config.json")
    assert '"prediction": "x"' in run.read_text()


def test_the_executed_report_passes_strict_nbval(executed):
    # Executed once more, with its run finished: every figure is read, none measured again, and no bar is shown.
    again = executed.with_name("again.ipynb")
    papermill_report(again, preset="smoke", prediction="x", folder=str(executed.parent / "run"), **SMALL)
    assert_strict_nbval(again)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"predicton": "x"}, "predicton='x': there is no setting 'predicton'; did you mean 'prediction'?"),
        (
            {"preset": "fast"},
            "preset='fast' is unknown; it must be one of default, smoke, study, mnist-cpu, cifar10-gpu",
        ),
        ({"steps": 48}, "steps=48"),
    ],
)
def test_a_bad_parameter_stops_the_report_with_one_line(parameters, message, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill_report(tmp_path / "out.ipynb", folder=str(tmp_path / "run"), **parameters)
    assert message in caught.value.evalue
    assert caught.value.traceback == [f"SettingsError: {caught.value.evalue}"]
    assert not (tmp_path / "run").exists()
