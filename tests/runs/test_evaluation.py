"""The figures of a run are those of its networks."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_run import copied, without_times

from pdlib.files import write_json
from pdlib.metrics import METRICS, feature_network, measure
from pdlib.runs.evaluation import evaluate
from pdlib.runs.run import load_run
from pdlib.runs.settings import CURVES
from pdlib.sampling import sample_batches


def test_every_documented_field_is_there(smoke):
    metrics = smoke.metrics
    documented = re.findall(r"^    - ((?:``\w+``(?:, )?)+):", evaluate.__doc__, re.MULTILINE)
    assert set(re.findall(r"\w+", " ".join(documented))) == metrics.keys() - {"sha256"}
    assert metrics["complete"] is True
    assert metrics["curves"].keys() == set(CURVES)
    for curve in metrics["curves"].values():
        assert list(curve) == ["8", "4", "2", "1"]
        for entry in curve.values():
            for name, metric in METRICS.items():
                value, error = entry[name]
                assert np.isfinite(value)
                assert 0 < error < max(5, 5 * abs(value)) or (metric.better == "higher" and 0 <= value <= 1)
            assert len(entry["frechet_distance_left_out"]) == 2
            assert entry["seconds_per_image"] > 0
    assert metrics["images"] == 2 * 128
    assert (metrics["real_images"], metrics["held_back"]) == (1797, False)
    updates = {part: summary["updates"] for part, summary in metrics["training"].items()}
    assert updates == {"teacher": 300, "student-4": 60, "student-2": 60, "student-1": 60}
    assert metrics["curves"]["ddim"]["8"]["ratio"] == 1
    assert 100 < metrics["peak_memory_mb"] < 2000
    assert metrics["versions"]["torch"] == torch.__version__


def test_the_figures_are_those_of_the_networks_in_the_folder(smoke):
    s = smoke.settings
    groups = []
    for k in range(s.noise_seeds):
        generator = torch.Generator().manual_seed(1_000_003 * (s.seed + 1) + k)
        groups.append(sample_batches(smoke.denoiser(2), s.images_per_seed, generator=generator))
    found = measure(feature_network(smoke.data, progress=False), smoke.data.x, groups)
    for name in METRICS:
        assert smoke.metrics["curves"]["distilled"]["2"][name] == pytest.approx(list(found[name][:2]), rel=1e-6)


def test_an_evaluation_that_an_earlier_version_began_gets_the_metrics_that_it_lacks(points, tmp_path):
    run = load_run(copied(points, tmp_path))
    metrics = run.metrics
    curve = metrics["curves"]["distilled"]
    del metrics["floor"], curve["2"]["precision"], curve["2"]["recall"], curve["1"]
    write_json(run.folder / "metrics.json", metrics | {"complete": False})
    evaluate(run, {part: run.open(part) for part in run.parts}, progress=False)
    assert without_times(run.metrics) == without_times(points.metrics)


def test_ratios_are_to_the_teachers_own_number_of_steps(smoke):
    curves = smoke.metrics["curves"]
    base = curves["distilled"]["8"]["frechet_distance"][0]
    for curve in curves.values():
        for entry in curve.values():
            assert entry["ratio"] == pytest.approx(entry["frechet_distance"][0] / base)


def test_distillation_helped_even_in_a_minute(smoke):
    one_step = {name: smoke.metrics["curves"][name]["1"]["frechet_distance"][0] for name in CURVES}
    assert one_step["distilled"] < 0.5 * one_step["ddim"]


def test_the_peak_of_memory_is_this_processes_and_not_its_parents():
    """A process that is started by a large one: Linux's getrusage hands down what that one held."""
    program = """
import subprocess, sys
large = bytearray(1_500_000_000)
ask = "from pdlib.runs.cost import peak_memory_mb; x = bytearray(100_000_000); print(peak_memory_mb())"
print(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 300 < float(done.stdout) < 1000
