"""What a run came to, in a title, three numbers and a few sentences: the top of its report."""

from __future__ import annotations

import math
import shlex
from itertools import pairwise
from typing import Any

from pdlib.runs.run import Run
from pdlib.runs.settings import PRESETS, Settings, make_settings, settings_to_json

__all__ = ["command", "headline", "three_numbers", "verdict"]

FAR, NEAR = 10, 3  # times the distance of real against real: a teacher that is far from real data, or near
FEW_UPDATES = 1000
MUCH_LOST = 1.15  # times the distance before a stage: less than that is no matter


def headline(run: Run) -> str:
    """Title, date, data, and the command that makes the run again, as Markdown."""
    s, metrics = run.settings, run.metrics
    steps = f"from {s.steps} steps to {s.end_steps}" if s.end_steps < s.steps else f"{s.steps} steps, no student"
    shown = s.data.rstrip("/").rpartition("/")[2]
    kind = "images" if run.data.is_image else "points"
    measured = "held back from all training" if metrics.get("held_back") else "which the networks were trained on"
    about = [f"{len(run.data.x):,} {kind}", f"distances to {metrics['real_images']:,}, {measured}"]
    if s.method != Settings.model_fields["method"].default:
        about.insert(0, f"students by {s.method}, in place of progressive distillation")
    date = metrics.get("date")
    return "\n".join(
        [f"## {shown}: {steps}", "", " · ".join([*([date] if date else []), *about]), "", f"    {command(run)}"]
    )


def command(run: Run) -> str:
    """What to type to make the run again: the preset that it differs least from, and in what."""
    there = settings_to_json(run.settings)
    different: dict[str, dict[str, Any]] = {}
    for preset in PRESETS:
        usual = settings_to_json(make_settings(preset, data=run.settings.data, device="cpu"))
        different[preset] = {name: value for name, value in there.items() if usual.get(name) != value}
    preset = min(different, key=lambda name: len(different[name]))
    usual = make_settings(preset, device="cpu").data
    words = ["pdlib", "run", *(["--preset", preset] if preset != "default" else [])]
    words += ["--data", there["data"]] if there["data"] != usual else []
    opened, own = run.settings.device, PRESETS[preset].get("device", "cpu")
    device = "cuda" if there["precision"] == "bf16" and opened == "cpu" else opened
    words += ["--set", f"device={device}"] if device != own else []
    for name, value in different[preset].items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        words += ["--set", f"{name}={text}"]
    return shlex.join(words)


def three_numbers(run: Run) -> list[tuple[str, str]]:
    """A figure and what it is, three times: what distillation kept, what it gained, what there was to keep."""
    metrics, s = run.metrics, run.settings
    curve = metrics["curves"]["distilled"]
    last, first = curve[str(s.end_steps)], curve[str(s.steps)]
    faster = first["seconds_per_image"] / last["seconds_per_image"]
    few = "one step" if s.end_steps == 1 else f"{s.end_steps} steps"
    found = [
        (f"{_over_floor(run):.3g} ×", f"the teacher's distance to real data over that of real data, {s.steps} steps")
    ]
    if s.end_steps < s.steps:
        found = [
            (f"{last['ratio']:.2f} ×", f"the distance to real data in {few}, over the teacher's in {s.steps}"),
            (f"{faster:.0f} ×", f"as fast in {few} as in {s.steps}"),
            *found,
        ]
    return found


def _over_floor(run: Run) -> float:
    metrics = run.metrics
    base = metrics["curves"].get("ddim", metrics["curves"]["distilled"])[str(run.settings.steps)]
    return base["frechet_distance"][0] / metrics["floor"]["frechet_distance"][0]


def verdict(run: Run) -> list[str]:
    """What to know before the figures are believed, the worst first, in sentences."""
    return [*_of_the_teacher(run), *_of_the_machinery(run), *_of_the_chain(run)] or [
        "Nothing stands out: a teacher near real data, no stage that lost much, and no known mistake in the settings."
    ]


def _of_the_teacher(run: Run) -> list[str]:
    over = _over_floor(run)
    if over < NEAR:
        return []
    how = "far from real data" if over >= FAR else "some way from real data"
    advice = "give it more teacher_updates, or more width" if run.settings.teacher is None else "train it for longer"
    return [
        f"**The teacher is {how}**: at {over:.3g} times the distance of real data among themselves. Its students "
        f"can only be as good: {advice}."
    ]


def _of_the_machinery(run: Run) -> list[str]:
    found, metrics = [], run.metrics
    few = [part for part, about in metrics["training"].items() if 0 < about["updates"] < FEW_UPDATES // 10]
    if run.settings.teacher is None and metrics["training"]["teacher"]["updates"] < FEW_UPDATES:
        found.append(
            f"**This only tests the machinery**: the teacher has had {metrics['training']['teacher']['updates']:,} "
            "updates. The smoke preset is for seeing that everything works; the default is for figures."
        )
    elif few:
        found.append(f"**Few updates** in {', '.join(few)}: fewer than {FEW_UPDATES // 10}.")
    for part in run.parts:
        found += [f"**{part}: {finding.culprit}**: {finding.explanation}" for finding in run.diagnose(part)]
    return found


def _of_the_chain(run: Run) -> list[str]:
    """The stage in which most was lost, where much was."""
    curve, steps = run.metrics["curves"]["distilled"], run.settings.evaluated_steps
    values = [curve[str(n)]["frechet_distance"][0] for n in steps]
    lost = [math.log(after / before) for before, after in pairwise(values)]
    if not lost or max(lost) < math.log(MUCH_LOST):
        return []
    worst = lost.index(max(lost))
    share = max(lost) / sum(part for part in lost if part > 0)
    step = f"from {steps[worst]} steps to {steps[worst + 1]}**: × {math.exp(max(lost)):.2f}, {share:.0%}"
    if run.settings.student_method.one_network:
        return [f"**Most was lost {step} of what was lost in all."]
    last = "the last stage" if worst == len(lost) - 1 else "the stage"
    return [
        f"**Most was lost in {last} {step} of what the chain lost. More updates there: "
        f"`--set stage_updates={_more(run, steps[worst + 1])}`."
    ]


def _more(run: Run, steps: int) -> str:
    """The stages' updates, with twice as many for one of them."""
    usual, *others = run.settings.stage_updates.split(",")
    named = dict(other.split(":") for other in others)
    named[str(steps)] = str(2 * int(named.get(str(steps), usual)))
    return ",".join([usual, *(f"{stage}:{updates}" for stage, updates in named.items())])
