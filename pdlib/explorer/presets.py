"""Settings worth a click."""

from __future__ import annotations

from dataclasses import replace

from pdlib.explorer.state import CHOICES, ExplorerState

__all__ = ["PRESETS"]

_NOTES = ExplorerState(schedule="notes_cosine", weighting="log_snr_density", N=4, scale="linear")
_BOOK = ExplorerState(N=4, clip_min=1.0, clip_max=5.0)
_PAPER = ExplorerState(weighting="truncated_snr", N=4)
_SHORT = {
    "constant": "constant",
    "snr": "SNR",
    "truncated_snr": "truncated SNR",
    "snr_plus_one": "SNR + 1",
    "log_snr_density": "density × T",
}

PRESETS: dict[str, dict[str, ExplorerState]] = {
    "The notes": {"4 steps": _NOTES, "4 steps, clipped at 1": replace(_NOTES, clip_min=1.0, scale="log")},
    "Notebook 04": {
        "SNR": ExplorerState(weighting="snr", N=4),
        "truncated SNR": ExplorerState(weighting="truncated_snr", N=4),
        "density over t": ExplorerState(weighting="log_snr_density", scale="linear"),
        "density over λ": ExplorerState(weighting="log_snr_density", scale="linear", axis="log_snr"),
        "SNR clipped at 1": ExplorerState(weighting="snr", N=4, clip_min=1.0),
        "density clipped at 1": ExplorerState(weighting="log_snr_density", N=4, clip_min=1.0),
        "min-SNR-5": ExplorerState(weighting="snr", N=4, clip_max=5.0),
    },
    "Notebook 04, clipped to [1, 5]": {_SHORT[name]: replace(_BOOK, weighting=name) for name in _SHORT},
    "the same over λ, as densities": {
        f"{_SHORT[name]}, λ": replace(_BOOK, weighting=name, axis="density") for name in _SHORT
    },
    "The paper": {
        **{
            f"{CHOICES['prediction'][p]}, {_SHORT[w]}": replace(_PAPER, prediction=p, weighting=w)
            for p in ("x", "v", "both")
            for w in ("snr", "truncated_snr", "snr_plus_one")
        },
        "ε, SNR, λ = ±20": replace(_PAPER, prediction="eps", weighting="snr", log_snr_min=-20.0, log_snr_max=20.0),
    },
}
"""Group -> label -> state: each picture of a weighting in notebook 04 (a curve at a time, and not its gradient
noise), and each setting of the paper's section 4."""
