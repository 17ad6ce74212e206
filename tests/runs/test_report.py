"""The report of a run: what is on its page, and what happens where it cannot be written."""

import re
from html.parser import HTMLParser

import nbformat
import pytest
import torch
from tiny_run import TINIEST, contents, copied

from pdlib.files import write_json
from pdlib.metrics import METRICS
from pdlib.objectives import Clean
from pdlib.runs import report
from pdlib.runs.cli import main
from pdlib.runs.cost import expected_cost
from pdlib.runs.report import ReportError, claim, from_notebook, write_report
from pdlib.runs.run import execute, load_run, new_run
from pdlib.runs.settings import SettingsError, make_settings
from pdlib.training import Trained

RING = TINIEST | {"data": "ring"}

# The page.


class Resources(HTMLParser):
    """What a browser would fetch for a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        name = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}.get(tag)
        if name in attributes:
            self.found.append(attributes[name])


def test_the_page_needs_nothing_but_itself(smoke):
    page = (smoke.folder / "report.html").read_text()
    resources = Resources()
    resources.feed(page)
    assert len(resources.found) >= 5  # the pictures
    assert {address.split(":")[0] for address in resources.found if address} == {"data"}
    assert re.findall(r"@import|url\(\s*['\"]?https?:", page) == []
    scripts = "".join(re.findall(r"<script.*?</script>", page, re.DOTALL))
    assert re.findall(r"import\(['\"][^'\"]|fetch\(|XMLHttpRequest|require\(", scripts) == []


def test_the_page_shows_every_figure(smoke):
    page = (smoke.folder / "report.html").read_text()
    for curve in smoke.metrics["curves"].values():
        for entry in curve.values():
            value, error = entry["frechet_distance"]
            assert f"{value:.3g} ± " in page
            assert float(re.search(rf"{re.escape(f'{value:.3g}')} ± ([\d.]+)", page)[1]) == float(f"{error:.1g}")
    for text in (torch.__version__, "truncated_snr", f"{smoke.metrics['peak_memory_mb']:.0f} MB", "real against real"):
        assert text in page
    assert str(smoke.folder.home()) not in page.replace(str(smoke.folder), "")
    assert page.count('class="tips"') == len(METRICS) + 1  # and the speed
    assert "Under way" not in page  # as it says while the run trains
    for steps, entry in smoke.metrics["curves"]["distilled"].items():
        assert f'data-tip="distilled at {steps}: {entry["frechet_distance"][0]:.3g}"' in page  # when pointed at


def test_it_is_an_executed_notebook_without_errors(smoke):
    notebook = nbformat.read(smoke.folder / "report.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert {output.output_type for cell in cells for output in cell.outputs} <= {"display_data", "execute_result"}


def test_the_words_follow_the_figures():
    entry = {"ratio": 2.0, "ratio_standard_error": 0.25, "seconds_per_image": 1e-3}
    teacher = {"ratio": 1.0, "ratio_standard_error": 0.0, "seconds_per_image": 0.05}
    metrics = {
        "curves": {"distilled": {"1": entry, "4": teacher}, "ddim": {"1": entry | {"ratio": 90.0}, "4": teacher}}
    }
    assert "**2.00 ± 0.25 times** the teacher's distance at 4 steps" in report.describe_quality(metrics)
    assert "is at 90.0 times" in report.describe_quality(metrics)
    assert "**50 times**" in report.describe_speed(metrics)
    rows = {"teacher": torch.zeros(2, 1, 2, 2), "one step": torch.full((2, 1, 2, 2), 0.5)}
    assert "one step: 0.500" in report.describe_same_noise(rows)
    alone = {"curves": {"distilled": {"4": teacher}}}
    assert "No student was made: 4 steps are the teacher's own" in report.describe_quality(alone)


def test_a_run_of_points_and_of_a_teacher_alone_get_a_report_too(tmp_path):
    page = report.run(folder=tmp_path / "run", progress=False, **RING | {"end_steps": 2})
    assert page == tmp_path / "run" / "report.html"
    assert "No student was made" in page.read_text()
    run = load_run(tmp_path / "run")
    assert run.denoiser(2)(torch.zeros(5, 2), torch.ones(5)).shape == (5, 2)


def test_a_run_of_an_earlier_version_is_shown_with_the_metrics_that_it_has(points, tmp_path, capsys):
    run = load_run(copied(points, tmp_path))
    metrics = run.metrics
    for entry in (metrics["floor"], *metrics["curves"]["distilled"].values()):
        del entry["precision"], entry["recall"]
    write_json(run.folder / "metrics.json", metrics)
    table, whole = (report.figures_table(some.metrics).splitlines() for some in (run, points))
    assert [line.count("|") for line in table] == [line.count("|") - 2 for line in whole]
    assert ("recall" in table[0], "recall" in whole[0]) == (False, True)
    assert write_report(run, progress=False).read_text().count('class="tips"') == 4  # three metrics, and the speed
    assert main(["evaluate", str(run.folder)]) == 0
    told = capsys.readouterr().out
    assert "sliced Wasserstein" in told
    assert "recall" not in told


def test_a_claim_that_fails_stops_only_where_it_is_required(capsys):
    claim("one is less than two", 1 < 2)
    claim("two is less than one", 2 < 1, required=False)
    assert capsys.readouterr().out == "✓\ndoes not hold in this run: two is less than one\n"
    with pytest.raises(AssertionError, match="does not show that two is less than one"):
        claim("two is less than one", 2 < 1)


# While it trains.


def no_report(run, progress):
    return run.folder / "report.html"


def test_the_page_shows_the_networks_that_are_there(tmp_path, monkeypatch):
    folder, seen = tmp_path / "run", {}
    write = report._write_preview

    def keep(run):
        write(run)
        if run.folder == folder:
            seen[tuple(run.missing)] = (folder / "report.html").read_text()

    monkeypatch.setattr(report, "_write_preview", keep)
    monkeypatch.setattr(report, "write_report", no_report)
    report.run(folder=folder, progress=False, **RING | {"steps": 4})
    assert list(seen) == [("student-2", "student-1"), ("student-1",), ()]
    assert all(page.count("<img") == 1 for page in seen.values())
    assert "Still to come: student-1, the figures." in seen["student-1",]


def test_a_picture_that_fails_on_the_way_stops_no_training(tmp_path, monkeypatch):
    def fail(run):
        if run.folder == tmp_path / "run":
            raise OSError("no room for a picture")

    monkeypatch.setattr(report, "_write_preview", fail)
    monkeypatch.setattr(report, "write_report", no_report)
    report.run(folder=tmp_path / "run", progress=False, **RING)
    assert load_run(tmp_path / "run").finished


def test_how_long_it_takes_is_what_an_update_takes_as_often_as_there_are_updates(tmp_path, monkeypatch):
    def fit(denoiser, objective, data, settings, session):
        seconds = 3 if isinstance(objective.target, Clean) else 6
        return Trained(denoiser, denoiser, torch.zeros(3), torch.zeros(3), seconds)

    monkeypatch.setattr("pdlib.runs.cost.fit", fit)
    settings = make_settings(**RING | {"steps": 4, "teacher_updates": 50, "stage_updates": "10,1:30"})
    expected = expected_cost(new_run(tmp_path, settings), None).seconds
    assert (expected["teacher"], expected["students"]) == (50, 2 * (10 + 30))
    assert 0 < expected["evaluation"] < 60


# What can go wrong.


def failing_template(folder, monkeypatch):
    """A report's notebook that ends with an error."""
    notebook = nbformat.read(report.template(), as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("raise RuntimeError('no ink')"))
    nbformat.write(notebook, folder / "template.ipynb")
    monkeypatch.setattr(report, "template", lambda *_: folder / "template.ipynb")


def test_a_report_that_cannot_be_written_is_found_before_the_training(tmp_path, monkeypatch):
    failing_template(tmp_path, monkeypatch)
    with pytest.raises(ReportError, match=r"so the run was not begun: RuntimeError: no ink$"):
        report.run(folder=tmp_path / "run", progress=False, **RING | {"teacher_updates": 10**8})
    assert not (tmp_path / "run").exists()


def test_a_report_that_fails_afterwards_leaves_the_run_and_says_so(points, tmp_path, monkeypatch):
    folder = copied(points, tmp_path)
    before, settings = contents(folder), TINIEST | {"data": points.settings.data}
    with monkeypatch.context() as patch:
        failing_template(tmp_path, patch)
        with pytest.raises(ReportError, match=r"is finished and kept .*: RuntimeError: no ink; when that is") as caught:
            report.run(folder=folder, progress=False, **settings)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before
    assert report.run(folder=folder, progress=False, **settings).is_file()
    assert {name: contents(folder)[name] for name in before} == before


def test_other_kernels_startup_files_and_modules_do_not_matter(points, tmp_path, monkeypatch):
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(
        '{"argv": ["false"], "display_name": "of another Python", "language": "python"}'
    )
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "mine.py").write_text("seed, colour, folder = 7, 'red', 'elsewhere'; raise SystemExit('out of luck')")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (tmp_path / "torch.py").write_text("raise RuntimeError('a file here is no module of ours')")
    monkeypatch.chdir(tmp_path)
    assert write_report(load_run(copied(points, tmp_path)), progress=False).is_file()


# From a notebook's parameters.


def test_parameters_make_the_run_that_they_ask_for(points, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters = {"preset": None, "folder": None} | TINIEST | {"data": "ring", "curves": ["distilled"]}
    run = from_notebook(parameters)
    again = execute(progress=False, **RING | {"curves": ["distilled"]})
    assert again.folder == run.folder
    assert run.folder.parent.name == "runs"
    assert from_notebook({"folder": str(points.folder), "seed": None}).metrics == points.metrics
    with pytest.raises(SettingsError, match="there is no setting 'sead'; did you mean 'seed'"):
        from_notebook({"sead": 1})
