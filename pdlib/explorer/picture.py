"""The panels as a plain picture, for where no widget lives."""

from __future__ import annotations

from collections.abc import Collection

import matplotlib
from matplotlib.figure import Figure

from pdlib.explorer.figures import compute
from pdlib.explorer.state import ExplorerState
from pdlib.plots import COLORS, GREY, STYLE

__all__ = ["PANELS", "picture"]

PANELS = {
    "share": "each step's share of the weight, %",
    "weight": "the weight w(t)",
    "schedule": "data α and noise σ",
    "amplification": "an error of the network, in x̂",
    "sensitivity": "an error in z at t″, in the target x̃",
}
"""The panels in their order, and what they show."""


@matplotlib.rc_context(STYLE | {"font.size": 10, "axes.axisbelow": True})
def picture(state: ExplorerState, panels: Collection[str] = PANELS) -> Figure:
    """Panels of a state over time, a stair for each step; dead steps are bands of grey."""
    f, N, weighting = compute(state), state.N, state.weighting.removesuffix("_of_steps")
    drawn = {
        "share": {weighting: 100 * f.share},
        "weight": {weighting: f.steps.w},
        "schedule": {"alpha": f.steps.alpha, "sigma": f.steps.sigma},
        "amplification": {"eps": f.eps_amplification, state.prediction: f.own_amplification},
        "sensitivity": {"x": f.sensitivity},
    }
    figure = Figure(figsize=(8, 2.6 * -(-len(panels) // 2)))
    for k, name in enumerate(panels):
        axes = figure.add_subplot(-(-len(panels) // 2), 2, k + 1, title=PANELS[name], xlabel="time t", xlim=(0, 1))
        for what, y in drawn[name].items():
            y = y.where(y.isfinite(), float("nan"))
            axes.stairs(y, [i / N for i in range(N + 1)], color=COLORS[what], label=what, fill=name == "share")
        for i in f.dead.nonzero().flatten().tolist() if name == "share" else []:
            axes.axvspan(i / N, (i + 1) / N, color=GREY, alpha=0.3, linewidth=0)
        if state.scale == "log" and name not in ("share", "schedule"):
            axes.set_yscale("log", nonpositive="mask")
        axes.legend(fontsize=8)
    return figure
