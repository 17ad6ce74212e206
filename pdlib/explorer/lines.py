"""Lines to train with what is on the screen: Python, and the command."""

from __future__ import annotations

from pdlib.explorer.state import ExplorerState
from pdlib.predictions import output_channels
from pdlib.schedules import SCHEDULES
from pdlib.weightings import Clipped, Weighting

__all__ = ["python_lines", "run_line"]


def python_lines(state: ExplorerState) -> str:
    """Python that trains a network with this schedule, prediction and weighting at the N times of the grid."""
    T = state.T if state.is_discrete else None
    ends = dict(zip(("log_snr_min", "log_snr_max"), state.ends, strict=True))
    weighting = _weighting_code(state.loss_weighting)
    names = {"Clean", "Denoiser", "Grid", "Objective", "TrainingSettings", "UNet", "fit", "load_data", "make_schedule"}
    names |= {name for name in ("Clipped", "Density") if f"{name}(" in weighting}
    return f"""from pdlib import {", ".join(sorted(names))}

schedule = {_call("make_schedule", f'"{state.schedule}"', **ends, zero_terminal=state.zero_terminal or None, T=T)}
objective = Objective(Clean(), Grid({state.N}), {weighting})
network = UNet(1, {output_channels(state.prediction, 1)})
denoiser = Denoiser(network, "{state.prediction}", schedule, grid=Grid({state.N}))
trained = fit(denoiser, objective, load_data("digits").x, TrainingSettings(updates=3000))"""


def _weighting_code(weighting: str | Weighting) -> str:
    if isinstance(weighting, Clipped):
        return _call("Clipped", _weighting_code(weighting.weighting), min=weighting.min, max=weighting.max)
    return f'"{weighting}"' if isinstance(weighting, str) else f"Density({weighting.steps})"


def _call(name: str, first: str, **options: object) -> str:
    given = [f"{key}={value!r}" for key, value in options.items() if value is not None]
    return f"{name}({', '.join([first, *given])})"


def run_line(state: ExplorerState) -> str:
    """The command that runs a chain down to N steps with these settings, or a comment on why no run has them."""
    if state.weighting == "log_snr_density":
        return "# no run: a run weights its N steps with the density as on N steps, not on T; use the Python lines"
    if state.is_discrete and state.T != 1000:
        return f"# no run: the discrete schedules of a run have T = 1000, not {state.T}; use the Python lines"
    low, high = state.ends
    if (low or 0) > 0 or (high or 0) < 0:
        return "# no run: a run has its λ_min at 0 or below, and its λ_max at 0 or above; use the Python lines"
    name = state.schedule
    if state.zero_terminal and f"{name}_zero_terminal" in SCHEDULES:
        name += "_zero_terminal"
    elif state.zero_terminal and low is not None:
        return "# no run: zero terminal SNR takes λ_min back; switch one of them off"
    chosen = {"schedule": name, "log_snr_min": low, "log_snr_max": high, "prediction": state.prediction}
    chosen |= {"weighting": state.weighting.removesuffix("_of_steps")}
    chosen |= {"clip_min": state.clip_min, "clip_max": state.clip_max}
    chosen |= {"steps": max(64, 2 * state.N), "end_steps": state.N}
    texts = {key: f"{value:.12g}" if isinstance(value, float) else value for key, value in chosen.items()}
    return "pdlib run " + " ".join(f"--set {key}={text}" for key, text in texts.items() if text is not None)
