"""The diagnosis of a stranger: what is wrong with a folder of diffusers, and the line of its config that mends it.

What no config can tell is tried on noise, and on images if some are given: that weights and config fit each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdlib.denoiser import Denoiser
from pdlib.diagnosis import Finding, diagnose, labelled, x_errors
from pdlib.grids import Grid
from pdlib.interop.diffusers import PREDICTION_TYPES, alpha_bar, load, read_folder, scheduler_grid
from pdlib.predictions import x_from_output
from pdlib.schedules import DiscreteSchedule, diffuse

__all__ = ["CULPRITS", "diagnose_folder"]

CULPRITS = (
    "wrong top time",
    "terminal SNR",
    "unbounded targets",
    "clipping",
    "last step",
    "weights",
    "prediction type",
    "schedule",
    "range",
    "untrained",
)
"""The known mistakes, by the names that :func:`diagnose_folder` gives them."""

_RETRAIN = 'Mend it by training on, with "rescale_betas_zero_snr": true from then'
_BETTER = {"prediction type": 1.5, "range": 1.5, "schedule": 1.03}
"""So many times smaller must the error be with another line of config, for that line to be named. Another prediction or
range changes all, another schedule little: on healthy networks every other one is worse."""
_KNOWN_SCHEDULES: tuple[dict[str, Any], ...] = (
    {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid", "beta_start": 1e-4, "beta_end": 0.02},
)


def diagnose_folder(
    place: str | Path, x: Tensor | None = None, labels: Tensor | None = None, steps: int | None = None
) -> list[Finding]:
    """Name the known mistakes in a folder of diffusers: what ruins its samples in few steps, or its distillation.

    From its config: a sampler that does not start at the last timestep trained; a last SNR above 0; ε at a high σ/α;
    clipping that cuts images; a last step that leaves noise. From its weights, on noise: that they are numbers, that
    they predict what the config says, and that no clipping hides a blow-up. From images: that another prediction type,
    another noise schedule or another range of images fits the weights better, or that they beat no trivial answer.

    Args:
        place: as in :func:`pdlib.interop.diffusers.load`, which raises what cannot be read.
        x: a few hundred images such as it was trained on, in [−1, 1], shape (n, channels, height, width).
        labels: their classes, shape (n,), for a class-conditional model.
        steps: in how many it is to sample; by default as its card says, or in 50.

    Returns:
        The findings, in the order of :data:`CULPRITS`; none for a healthy folder.
    """
    contents, denoiser = read_folder(place), load(place)
    scheduler = contents.scheduler
    steps = steps or (denoiser.grid.N if denoiser.grid else 50)
    found = [*_of_config(denoiser, scheduler, steps)]
    if broken := sum(int((~weight.isfinite()).sum()) for weight in denoiser.state_dict().values()):
        text = f"{broken:,} of its weights are NaN or infinite: it was saved after its training had failed."
        return [*found, Finding("weights", broken, text)]
    found += _on_noise(denoiser, scheduler)
    if x is not None and not any(finding.culprit == "prediction type" for finding in found):
        found += _on_images(denoiser, scheduler, x, labels)
    return sorted(found, key=lambda finding: CULPRITS.index(finding.culprit))


def _of_config(denoiser: Denoiser, scheduler: Mapping[str, Any], steps: int) -> Iterator[Finding]:
    T, spacing = denoiser.schedule.T, scheduler.get("timestep_spacing", "leading")
    grid = scheduler_grid(scheduler, steps)
    top = grid.times.max()
    first, alpha = round(top.item() * T) - 1, denoiser.schedule.alpha_sigma(top[None])[0].item()
    if first < T - 1:
        yield Finding(
            "wrong top time",
            alpha,
            f"in {steps} steps its sampler asks first at timestep {first}, where α = {alpha:.2g}, and not at {T - 1}, "
            f"the last one trained; but it starts from noise alone, where α = 0 (timestep_spacing is {spacing!r}).",
            '"timestep_spacing": "trailing"',
        )
    is_eps = denoiser.prediction == "eps"
    for finding in diagnose(denoiser, Grid(min(steps, T))):
        if finding.culprit == "terminal SNR" and denoiser.grid is None:  # a student starts where it was made to start
            explanation = (
                f"its schedule ends at α = {finding.figure:.2g}: training never showed pure noise, and sampling starts "
                f"from it. {'Distil it on a schedule that is cut, to students that say v' if is_eps else _RETRAIN}."
            )
            yield replace(finding, explanation=explanation)
        elif finding.culprit == "unbounded targets":
            explanation = (
                f"it predicts ε, whose error reaches x̂ magnified by σ/α = {finding.figure:.3g} at the last timestep. "
                "Distil it with schedule=teacher, log_snr_min=-6 and student_prediction=v."
            )
            yield replace(finding, explanation=explanation)
    limit = scheduler.get("clip_sample_range", 1.0)
    if scheduler.get("clip_sample", True) and limit < 1:
        text = f"x̂ is clipped to ±{limit:g}, and images reach to ±1."
        yield Finding("clipping", limit, text, '"clip_sample_range": 1.0')
    noise_left = denoiser.schedule.alpha_sigma(torch.tensor([1 / T]))[1].item()
    if not scheduler.get("set_alpha_to_one", True):
        text = f"its last step ends at timestep 0 and not at the image: noise of σ = {noise_left:.2g} is left."
        yield Finding("last step", noise_left, text, '"set_alpha_to_one": true')


@torch.no_grad()
def _on_noise(denoiser: Denoiser, scheduler: Mapping[str, Any]) -> Iterator[Finding]:
    """What its answer to pure noise at the last timestep gives away, without any image."""
    generator = torch.Generator().manual_seed(0)
    shape = denoiser.shape or (denoiser.network.config["channels"], 32, 32)
    z = torch.randn(max(8, min(64, 2**18 // math.prod(shape))), *shape, generator=generator)
    t = torch.ones(len(z), dtype=torch.float64)
    labels = () if denoiser.classes is None else (torch.arange(len(z)) % denoiser.classes,)
    output, schedule = denoiser.output(z, t, *labels), denoiser.schedule
    likeness = torch.corrcoef(torch.stack([output.flatten(), z.flatten()]))[0, 1].nan_to_num().item()
    if denoiser.prediction != "eps" and likeness > 0.9:
        text = (
            f"at pure noise its output is the noise, to a correlation of {likeness:.2f}: it predicts ε, and its config "
            f"says {scheduler.get('prediction_type')!r}."
        )
        yield Finding("prediction type", likeness, text, '"prediction_type": "epsilon"')
        return
    if denoiser.prediction == "eps" and likeness < 0.5:
        text = (
            f"at pure noise its output is not the noise (a correlation of {likeness:.2f}): it does not predict ε, as "
            "its config says."
        )
        yield Finding("prediction type", likeness, text, '"prediction_type": "v_prediction" or "sample"')
        return
    clips = scheduler.get("clip_sample", True) or scheduler.get("thresholding", False)
    if clips and (denoiser.prediction != "eps" or schedule.alpha_bar[-1] > 0):
        x_hat = x_from_output(denoiser.prediction, output, z, *schedule.alpha_sigma(t))
        size = x_hat.square().mean().sqrt().item()
        if size > 2:
            text = (
                f"its first x̂ has a root mean square of {size:.3g}, where images have at most 1: clipping hides that "
                "it blows up. Start where it does not: on a schedule that is cut."
            )
            yield Finding("clipping", size, text, '"clip_sample": false')


def _on_images(denoiser: Denoiser, scheduler: Mapping[str, Any], x: Tensor, labels: Tensor | None) -> Iterator[Finding]:
    """Which line of its config, if it were another, would fit the weights better; or whether they know nothing."""
    own = _misfit(denoiser, denoiser.schedule, x, labels)
    mine = own[denoiser.prediction]
    names = {ours: theirs for theirs, ours in PREDICTION_TYPES.items()}
    tried = []  # culprit, the line of config, what it would mean, how many times smaller the error is
    for name in sorted(own.keys() - {denoiser.prediction}):
        line = f'"prediction_type": "{names[name]}"'
        tried.append(("prediction type", line, f"its output, taken as {names[name]!r}, fits", mine / own[name]))
    for low, shown in ((0.0, "[0, 1]"), (-0.5, "[−0.5, 0.5]")):
        found = _misfit(denoiser, denoiser.schedule, (x + 1) / 2 + low, labels)[denoiser.prediction] * 4
        tried.append(("range", "", f"images in {shown} fit", mine / found))
    for schedule, line in _others(scheduler):
        found = _misfit(denoiser, schedule, x, labels)[denoiser.prediction]
        tried.append(("schedule", line, "another noise schedule fits", mine / found))
    for culprit, line, what, ratio in sorted(tried, key=lambda found: found[-1], reverse=True):
        if ratio > _BETTER[culprit]:
            text = f"{what} its weights better: the error of x̂ is {ratio:.3g} times smaller. "
            text += {
                "prediction type": "That is what it predicts.",
                "range": "It was trained on those: scale your images so, and its samples back.",
                "schedule": "Its timesteps are not the noise levels that it was trained at: other betas were used, or "
                "another embedding of time (flip_sin_to_cos, freq_shift).",
            }[culprit]
            yield Finding(culprit, ratio, text, line)
            return
    times = _sound_times(denoiser.schedule)
    errors = x_errors(labelled(denoiser, labels), x, times)
    trivial = torch.stack([errors[name] for name in errors if name != "network"]).amin(0)
    worse = errors["network"] > trivial
    if worse.float().mean() > 0.5:
        ratio = (errors["network"] / trivial).median().item()
        text = (
            f"at {int(worse.sum())} of {len(times)} times its x̂ is no better than an answer that needs no network; "
            f"its error is {ratio:.3g} times that one's. It was not trained on such images, or not trained."
        )
        yield Finding("untrained", ratio, text)


def _others(scheduler: Mapping[str, Any]) -> Iterator[tuple[DiscreteSchedule, str]]:
    """The noise schedules that people use, but for its own, each with its lines of config."""
    own = alpha_bar(scheduler)
    T = len(own)
    for known in _KNOWN_SCHEDULES:
        for count in {T, 1000}:
            lines = {**known, "num_train_timesteps": count}
            values = alpha_bar({**lines, "rescale_betas_zero_snr": scheduler.get("rescale_betas_zero_snr", False)})[:T]
            if len(values) == T and (values - own).abs().max() > 1e-3:
                yield DiscreteSchedule(values), json.dumps(lines)[1:-1]


@torch.no_grad()
def _misfit(denoiser: Denoiser, schedule: DiscreteSchedule, x: Tensor, labels: Tensor | None) -> dict[str, float]:
    """The error (1 + SNR) ‖x − x̂‖², by what its output is taken for, with images noised as a schedule says.

    It is that of v̂, of one size at all times; the mean over the same few noise levels, where no conversion magnifies.
    """
    generator, found = torch.Generator(x.device).manual_seed(0), {name: [] for name in PREDICTION_TYPES.values()}
    bound = () if denoiser.classes is None else (labelled(denoiser, labels).labels.expand(len(x)),)
    for time in _sound_times(schedule):
        t = time.expand(len(x))
        z, _ = diffuse(x, t, schedule, generator)
        output, (alpha, sigma) = denoiser.output(z, t, *bound), schedule.alpha_sigma(t)
        for name, errors in found.items():
            x_hat = x_from_output(name, output, z, alpha, sigma)
            errors.append((x - x_hat).double().square().mean() * (1 + (alpha[0] / sigma[0]) ** 2))
    return {name: torch.stack(errors).mean().item() for name, errors in found.items()}


def _sound_times(schedule: DiscreteSchedule, count: int = 8) -> Tensor:
    """Times at so many noise levels, σ/α from 0.3 to 4, at which x̂ is sound whatever is predicted; shape (count,)."""
    ratio = (1 / schedule.alpha_bar - 1).sqrt()
    wanted = torch.logspace(math.log10(0.3), math.log10(4), count, dtype=torch.float64)
    return ((ratio - wanted[:, None]).abs().argmin(1) + 1).double() / schedule.T
