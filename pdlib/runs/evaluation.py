"""The figures of a run: every curve at every number of steps, into ``metrics.json``."""

from __future__ import annotations

import datetime
import platform
import re
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm.auto import tqdm

import pdlib
from pdlib.denoiser import DenoiserLike
from pdlib.files import write_json
from pdlib.grids import Grid
from pdlib.metrics import METRICS, feature_network, jackknife_error, measure, sampling_floor
from pdlib.processes import processes
from pdlib.runs.cost import flops, matrix_rate, peak_memory_mb, release_memory
from pdlib.runs.settings import settings_to_json
from pdlib.sampling import sample_batches

if TYPE_CHECKING:
    from pdlib.runs.run import Run

__all__ = ["evaluate", "machine"]


def evaluate(run: Run, models: dict[str, DenoiserLike], progress: bool = True) -> dict[str, Any]:
    """Measure every curve at every number of steps, and write ``metrics.json`` as it goes. Its fields:

    - ``complete``: whether every figure below is there.
    - ``curves``: by name and N, as far as the settings ask for them: ``distilled`` (the student made for N steps; at
      the teacher's N the teacher, or what it was converted to), ``ddim`` (the undistilled teacher) and ``stochastic``
      (the teacher with ancestral steps). Each metric stands as ``[value, standard error over noise seeds]``;
      ``frechet_distance_left_out`` is that distance with one noise seed left out at a time; ``ratio`` the same
      distance over the teacher's by DDIM at its own N (over the first of ``distilled`` where ``ddim`` is not asked
      for), with ``ratio_standard_error``; and then ``seconds_per_image``, the median over noise seeds.
    - ``floor``: each metric of real against real, see :func:`pdlib.metrics.sampling_floor`, in the same form.
    - ``images``, ``real_images``, ``held_back``: how many generated and how many real images each is computed from, and
      whether the real ones are held back, seen by no network, or those that they were trained on.
    - ``training``: for each network ``seconds``, ``updates``, and the mean loss of the last tenth of them.
    - ``seconds``: of each part of the run.
    - ``flops``, ``matrix_flops_per_second``: floating-point operations of each part, and how many
      plain matrix products do here in a second, on all processes.
    - ``peak_memory_mb``: the most memory the process held.
    - ``settings``, ``run``, ``versions``, ``machine``, ``date``: what was run, the digest of that, with what, on what,
      and when.
    """
    settings, data, path = run.settings, run.data, run.folder / "metrics.json"
    here = processes()
    release_memory()
    network = feature_network(data, progress=progress) if here.first else None
    begun = {"complete": False, "curves": {}, "run": run.config.get("run")}
    metrics = here.agree(lambda: run.metrics if path.is_file() else begun)
    curves = metrics["curves"] = {name: metrics["curves"].get(name, {}) for name in settings.curves}
    jobs = [(name, steps) for name in settings.curves for steps in settings.evaluated_steps]
    missing = [(name, steps) for name, steps in jobs if not METRICS.keys() <= curves[name].get(str(steps), {}).keys()]
    shown = progress and here.first
    with tqdm(total=sum(steps for _, steps in missing), desc="evaluate", unit="step", disable=not shown) as bar:
        for name, steps in missing:
            own = run.part(steps).name
            if name == "ddim" and own == "teacher":  # the same sampler on the same network
                curves[name][str(steps)] = curves["distilled"][str(steps)] | {"seconds": 0.0}
            else:
                bar.set_postfix(curve=name, steps=steps)
                part = own if name == "distilled" else "teacher"
                model = run.as_sampled(part, models[part])
                variance = settings.sampler_variance if name == "stochastic" else None
                curves[name][str(steps)] = _evaluate_one(run, network, model, steps, variance)
            bar.update(steps)
            if here.first:
                write_json(path, metrics)
    if not here.first:
        return here.agree(dict)
    base = curves.get("ddim", curves["distilled"])[str(settings.steps)]
    for name, steps in jobs:
        _add_ratio(curves[name][str(steps)], base)
    real, drawn_from = (data.x, None) if data.test is None else (data.test, data.x)
    floor = sampling_floor(network, real, settings.noise_seeds, settings.images_per_seed, drawn_from=drawn_from)
    training = {}
    for part in run.parts:
        tensors, about = run.history(part)
        last = tensors["losses"][-max(1, about["updates"] // 10) :]
        training[part] = {"seconds": about["seconds"], "updates": about["updates"], "final_loss": last.mean().item()}
    metrics |= {
        "floor": {name: list(found[:2]) for name, found in floor.items()},
        "images": settings.noise_seeds * settings.images_per_seed,
        "real_images": len(real),
        "held_back": data.test is not None,
        "training": training,
        "seconds": {
            "teacher": training["teacher"]["seconds"],
            "students": sum(training[part]["seconds"] for part in run.parts[1:]),
            "evaluation": sum(entry.pop("seconds", 0.0) for curve in curves.values() for entry in curve.values()),
        },
        "flops": flops(run, None if run.settings.teacher is None else run.teacher),
        "matrix_flops_per_second": matrix_rate(settings.device) * here.count,
        "peak_memory_mb": peak_memory_mb(settings.device),
        "settings": settings_to_json(settings),
        "versions": {"python": platform.python_version(), "pdlib": pdlib.__version__}
        | {package: version(package) for package in ("torch", "scikit-learn", "papermill")},
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "complete": True,
    }
    write_json(path, metrics)
    return here.agree(lambda: metrics)


def _evaluate_one(
    run: Run, network: nn.Module | None, model: DenoiserLike, steps: int, variance: float | None
) -> dict[str, Any]:
    """Every metric at one number of steps, and how long an image takes; several processes share the noise seeds out."""
    settings, grid, here = run.settings, Grid(steps, run.settings.missing), processes()
    drawn, times, started = {}, [], time.monotonic()
    for k in range(here.rank, settings.noise_seeds, here.count):
        began = time.monotonic()
        generator = torch.Generator(settings.device).manual_seed(1_000_003 * (settings.seed + 1) + k)
        drawn[k] = sample_batches(model, settings.images_per_seed, grid, generator=generator, variance=variance)
        times.append(time.monotonic() - began)
    drawn = here.gather(drawn)
    if network is None:
        return {}
    groups = [drawn[k] for k in range(settings.noise_seeds)]
    release_memory()
    estimates = measure(network, run.data.x if run.data.test is None else run.data.test, groups)
    return {name: list(estimate[:2]) for name, estimate in estimates.items()} | {
        "frechet_distance_left_out": estimates["frechet_distance"].left_out,
        "seconds_per_image": statistics.median(times) / settings.images_per_seed,
        "seconds": time.monotonic() - started,
    }


def _add_ratio(entry: dict[str, Any], base: dict[str, Any]) -> None:
    """The Fréchet distance over another's; its standard error takes both from the same noise seeds."""
    pairs = zip(entry["frechet_distance_left_out"], base["frechet_distance_left_out"], strict=True)
    entry["ratio"] = entry["frechet_distance"][0] / base["frechet_distance"][0]
    entry["ratio_standard_error"] = jackknife_error([one / other for one, other in pairs])


def machine() -> dict[str, Any]:
    """The processor, its threads in use, and the system."""
    cpus = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.*)", cpus.read_text() if cpus.is_file() else "", re.MULTILINE)
    processor = named[1].strip() if named else platform.processor() or platform.machine()
    return {"system": platform.system(), "processor": processor, "threads": torch.get_num_threads()}
