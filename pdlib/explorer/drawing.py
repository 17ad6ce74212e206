"""The five panels as SVG, and all of them as one picture.

A picture is drawn here, as text, and the browser only puts it in its place. So what a test reads, what is saved and
what is on the screen are one thing, and every formula stays in Python. The other way that was tried, one matplotlib
figure sent as a PNG, takes about twice as long: benchmarks/results/explorer_latency.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from html import escape
from textwrap import wrap
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn.functional import pad

from pdlib.explorer import figures
from pdlib.explorer.figures import Figures, compute
from pdlib.explorer.state import ExplorerState, to_query
from pdlib.plots import COLORS, GREEN

__all__ = ["PANELS", "Axes", "Panel", "draw", "picture", "sentences"]

# One panel is drawn on so many units; on the narrowest screen a unit is a pixel.
WIDTH, HEIGHT = 380, 236
LEFT, RIGHT, TOP, BOTTOM = 50, WIDTH - 12, 50, HEIGHT - 38

# Colours that the page's theme may set, with those of a white page. Curves have the project's colours.
STYLE = f"""
.pd-ink {{ fill: var(--pd-ink, #222222); }}
.pd-soft {{ fill: var(--pd-soft, #555555); }}
.pd-axis {{ stroke: var(--pd-soft, #555555); stroke-width: 1; fill: none; }}
.pd-grid {{ stroke: var(--pd-grid, #dddddd); stroke-width: 1; fill: none; }}
.pd-line {{ fill: none; stroke-width: 2; stroke-linejoin: round; }}
.pd-thin {{ stroke-width: 1; }}
.pd-dashed {{ stroke-dasharray: 5 3; }}
.pd-alpha {{ stroke: {COLORS["alpha"]}; }}
.pd-sigma {{ stroke: {COLORS["sigma"]}; }}
.pd-plain {{ stroke: {COLORS["log_snr_density"]}; }}
.pd-used {{ stroke: var(--pd-ink, #222222); }}
.pd-eps {{ stroke: {COLORS["eps"]}; }}
.pd-own {{ stroke: {GREEN}; }}
.pd-frozen {{ stroke: var(--pd-frozen, #aaaaaa); stroke-width: 3; }}
.pd-dot {{ fill: var(--pd-ink, #222222); }}
.pd-bar {{ fill: {COLORS["alpha"]}; }}
.pd-dead {{ fill: {COLORS["sigma"]}; }}
.pd-band {{ fill: {COLORS["sigma"]}; opacity: 0.22; }}
"""


class Axes:
    """One pair of axes, over time or λ as the state says: collects SVG, in the units above.

    The y axis shows every finite one of the ``values``, on a log axis at most eight decades.
    """

    def __init__(self, title: str, state: ExplorerState, values: list[Tensor], log: bool = False):
        self.title, self.over_time, self.log = title, state.axis == "t", log
        self.xlabel, self.xticks = "log-SNR λ (noise left, data right)", [-15, -10, -5, 0, 5, 10, 15]
        if self.over_time:
            self.xlabel, self.xticks = "time t", [0, 0.25, 0.5, 0.75, 1]
        self.xlim = self.xticks[0], self.xticks[-1]
        shown = torch.cat(values).numpy()
        shown = shown[np.isfinite(shown) & (shown > 0)]
        self.ylim = 0.0, 1.08 * shown.max(initial=0.0) or 1.0
        if log:
            high = np.ceil(np.log10(shown.max(initial=1e-8)) + 0.02)
            low = np.floor(np.log10(shown.min(initial=10.0 ** (high - 1))) - 0.02)
            self.ylim = max(low, high - 8), high
        self.parts: list[str] = []
        self.legend: list[tuple[str, str]] = []

    def x(self, values: Tensor) -> np.ndarray:
        """Where values lie across, and with :meth:`y` upwards; those off the axis lie on its edge."""
        return np.interp(values, self.xlim, (LEFT, RIGHT))

    def y(self, values: Tensor) -> np.ndarray:
        return np.interp(values.log10() if self.log else values, self.ylim, (BOTTOM, TOP))

    def edges(self, f: Figures) -> np.ndarray:
        """Where the N steps begin and end on the x axis: t = 0, 1/N, …, 1, or λ there."""
        times = pad(f.step_t, (1, 0))
        return self.x(times if self.over_time else f.state.noise_schedule.log_snr(times))

    def curve(self, f: Figures, y: Tensor, kind: str, label: str = "") -> None:
        """A line through those points of the fine grid that the axes show; t = 1 may be at λ = −∞."""
        x, height = f.t if self.over_time else f.log_snr, y.log10() if self.log else y
        shown = (x >= self.xlim[0]) & (x <= self.xlim[1]) & (height >= self.ylim[0]) & (height <= self.ylim[1])
        x, y = x[shown], y[shown]
        every = max(1, len(x) // 500)  # finer than the screen
        points = zip(self.x(x)[::-1][::every], self.y(y)[::-1][::every], strict=True)
        drawn = "L".join([f"{a:.1f},{b:.1f}" for a, b in points])
        self.path("M" + drawn if drawn else "", f"pd-line {kind}", label)

    def stairs(self, f: Figures, y: Tensor, kind: str, label: str = "") -> None:
        """Step i of the N at height y_i."""
        x, height = self.edges(f), self.y(y)
        treads = [f"V{b:.1f}H{a:.1f}" for a, b in zip(x[1:], height, strict=True)]
        self.path(f"M{x[0]:.1f},{height[0]:.1f}" + "".join(treads), f"pd-line {kind}", label)

    def bars(self, f: Figures, y: Tensor, kind: str, where: Tensor, label: str = "") -> None:
        """Bars of the N heights y, for those of the steps that are True in ``where``."""
        x = self.edges(f)
        left, right = np.sort([x[1:], x[:-1]], axis=0)
        gap = np.minimum(1.0, 0.15 * (right - left))
        bars = np.stack([left + gap, right - gap, self.y(y)], axis=1)[where.numpy()]
        self.path("".join(f"M{a:.1f},{BOTTOM}V{h:.1f}H{b:.1f}V{BOTTOM}Z" for a, b, h in bars), kind, label)

    def dots(self, f: Figures, y: Tensor) -> None:
        """Dots where there is room for them; an arrow beyond the edge for what is infinite, or 0 on a log axis."""
        if f.state.N > 64:
            return
        parts, x = [], self.x(f.step_t if self.over_time else f.step_log_snr)
        for a, b, value in zip(x, self.y(y), y.tolist(), strict=True):
            if np.isinf(value):
                parts.append(f"M{a - 6:.1f},{b + 3:.1f}l6,-11l6,11Z")
            elif self.log and value == 0:
                parts.append(f"M{a - 6:.1f},{b - 3:.1f}l6,11l6,-11Z")
            else:
                parts.append(f"M{a - 3:.1f},{b:.1f}a3,3 0 1,0 6,0a3,3 0 1,0 -6,0")
        self.path("".join(parts), "pd-dot")

    def path(self, d: str, kind: str, label: str = "") -> None:
        """Any SVG path, and its line in the legend; without a path that line alone."""
        if d:
            self.parts.append(f'<path class="{kind}" d="{d}"/>')
        if label:
            self.legend.append((kind, label))

    def svg(self, description: str) -> str:
        """The panel as one <svg>, with its title, axes, legend and a description for those who cannot see it."""
        lines, texts = [], [_text(LEFT - 44, 15, self.title, "pd-ink", "start", 13, bold=True)]
        for tick, label in self._y_ticks():
            at = np.interp(tick, self.ylim, (BOTTOM, TOP))
            lines.append(f"M{LEFT},{at:.1f}H{RIGHT}")
            texts.append(_text(LEFT - 5, at + 4, label, "pd-soft", "end"))
        for tick in self.xticks:
            at = np.interp(tick, self.xlim, (LEFT, RIGHT))
            lines.append(f"M{at:.1f},{TOP}V{BOTTOM}")
            texts.append(_text(at, BOTTOM + 15, f"{tick:g}".replace("-", "−"), "pd-soft", "middle"))
        texts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 5, self.xlabel, "pd-soft", "middle"))
        at, parts = LEFT - 44, [*self.parts]
        for kind, label in self.legend:
            sample = f"M{at},33h18" if "pd-line" in kind else f"M{at},28h18v10h-18Z"
            parts.append(f'<path class="{kind}" d="{sample}"/>')
            texts.append(_text(at + 22, 37, label, "pd-soft", "start"))
            at += 34 + 6.3 * len(label)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(self.title)}: {escape(description)}"><path class="pd-grid" d="{"".join(lines)}"/>'
            f'{"".join(parts)}<path class="pd-axis" d="M{LEFT},{TOP}V{BOTTOM}H{RIGHT}"/>{"".join(texts)}</svg>'
        )

    def _y_ticks(self) -> list[tuple[float, str]]:
        low, high = self.ylim
        if not self.log:
            return [(tick, f"{tick:.6g}") for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
        raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
        ticks = np.arange(high, low - 0.5, -1 if high - low <= 5 else -2)
        return [(tick, "10" + str(int(tick)).translate(raised)) for tick in ticks]


def _text(x: float, y: float, text: str, kind: str, anchor: str, size: int = 12, bold: bool = False) -> str:
    look = f'class="{kind}" text-anchor="{anchor}" font-size="{size}"' + (' font-weight="600"' if bold else "")
    return f'<text {look} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _draw_schedule(f: Figures, behind: list[Figures]) -> Axes:
    panel = Axes("1 · How much data, how much noise", f.state, [torch.ones(1)])
    for other in behind:
        panel.curve(other, other.alpha, "pd-frozen")
        panel.curve(other, other.sigma, "pd-frozen")
    panel.curve(f, f.alpha, "pd-alpha", "α, data")
    panel.curve(f, f.sigma, "pd-sigma", "σ, noise")
    panel.stairs(f, f.step_alpha, "pd-alpha pd-thin", f"the {f.state.N} steps")
    panel.stairs(f, f.step_sigma, "pd-sigma pd-thin")
    return panel


def _draw_weight(f: Figures, behind: list[Figures]) -> Axes:
    dense = f.state.axis == "density"
    title = "2 · The weight" + (" times density, w · p" if dense else ", w(t)")

    def shown(g: Figures) -> tuple[Tensor, Tensor, Tensor]:
        return (g.plain * g.density, g.w * g.density, g.step_w * g.step_density) if dense else (g.plain, g.w, g.step_w)

    plain, w, step_w = shown(f)
    unclipped = plain[f.t >= 1 / f.state.N]  # towards t = 0 the SNR has no bound
    others = [shown(other)[2] for other in behind]
    panel = Axes(title, f.state, [w[f.t >= 0.5 / f.state.N], step_w, unclipped, *others], f.state.scale == "log")
    for other in behind:
        panel.curve(other, shown(other)[1], "pd-frozen")
    clip = f.state.clip_min is not None or f.state.clip_max is not None
    panel.curve(f, plain, "pd-plain", "w, not clipped" if clip else "w")
    if clip:
        panel.curve(f, w, "pd-used pd-dashed", "clipped")
    panel.stairs(f, step_w, "pd-used pd-thin", f"the {f.state.N} steps")
    panel.dots(f, step_w)
    return panel


def _draw_share(f: Figures, behind: list[Figures]) -> Axes:
    panel = Axes("3 · Each step's share of the weight, %", f.state, [100 * g.share for g in (f, *behind)])
    panel.bars(f, torch.full_like(f.share, torch.inf), "pd-band", f.dead)
    panel.bars(f, 100 * f.share, "pd-bar", ~f.dead, label="share")
    for other in behind:
        panel.stairs(other, 100 * other.share, "pd-frozen")
    x = panel.edges(f)
    dead = ((x[1:] + x[:-1])[f.dead.numpy()] / 2).clip(LEFT + 4, RIGHT - 4)  # its cross stays within the axes
    if len(dead) <= 64:
        panel.path("".join(f"M{a - 4:.1f},{BOTTOM - 12:.1f}l8,8m0,-8l-8,8" for a in dead), "pd-line pd-sigma")
    if len(dead):
        panel.path("", "pd-dead", f"dead: under {f.state.threshold * 100:.3g} % of the fair share")
    return panel


def _draw_amplification(f: Figures, behind: list[Figures]) -> Axes:
    shown = [f.own_amplification, torch.ones(1), *(g.eps_amplification for g in (f, *behind))]
    panel = Axes("4 · An error of the network, in x̂", f.state, shown, f.state.scale == "log")
    for other in behind:
        panel.stairs(other, other.eps_amplification, "pd-frozen")
    panel.stairs(f, f.eps_amplification, "pd-eps", "ε error times σ/α")
    if f.state.prediction != "eps":
        label = {"x": "x error", "v": "v error times σ", "both": "both, times σ"}[f.state.prediction]
        panel.stairs(f, f.own_amplification, "pd-own pd-dashed", label)
    panel.dots(f, f.eps_amplification)
    return panel


def _draw_sensitivity(f: Figures, behind: list[Figures]) -> Axes:
    shown = [torch.ones(1), *(g.sensitivity for g in (f, *behind))]
    panel = Axes("5 · An error in z at t″, in the target x̃", f.state, shown, f.state.scale == "log")
    for other in behind:
        panel.stairs(other, other.sensitivity, "pd-frozen")
    panel.stairs(f, f.sensitivity, "pd-alpha", "times 1/(α″ − (σ″/σ) α)")
    panel.dots(f, f.sensitivity)
    return panel


class Panel(NamedTuple):
    """One panel: what draws it, and the sentence below it."""

    draw: Callable[[Figures, list[Figures]], Axes]
    """(figures, other figures for the grey curves behind) -> what is drawn."""
    sentence: Callable[[Figures], str]


PANELS: dict[str, Panel] = {
    "schedule": Panel(_draw_schedule, figures.say_schedule),
    "weight": Panel(_draw_weight, figures.say_weight),
    "share": Panel(_draw_share, figures.say_share),
    "amplification": Panel(_draw_amplification, figures.say_amplification),
    "sensitivity": Panel(_draw_sensitivity, figures.say_sensitivity),
}
"""What can be shown, in this order. A new panel is one entry."""


def sentences(figures: Figures, names: Iterable[str] = PANELS) -> dict[str, str]:
    """One sentence for each of these panels."""
    return {name: PANELS[name].sentence(figures) for name in names}


def draw(figures: Figures, frozen: Figures | None = None, names: Iterable[str] = PANELS) -> dict[str, str]:
    """These panels, name -> SVG; with the curves of other figures in grey behind them."""
    behind = [frozen] if frozen else []
    return {name: PANELS[name].draw(figures, behind).svg(PANELS[name].sentence(figures)) for name in names}


def picture(state: ExplorerState, frozen: Figures | None = None, names: Iterable[str] = PANELS) -> str:
    """What :func:`draw` draws of a state, with its sentences, as one SVG on white that needs nothing from outside.

    Raises:
        ValueError: for a state that :func:`pdlib.explorer.problems` finds fault with.
    """
    drawn, names = compute(state), list(names)
    panels, said = draw(drawn, frozen, names), sentences(drawn, names)
    row, parts = HEIGHT + 44, []
    *places, (x, y) = [(10 + k % 2 * (WIDTH + 30), 10 + k // 2 * row) for k in range(len(names) + 1)]
    for name, (left, top) in zip(names, places, strict=True):
        place = f'<svg x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" '
        parts.append(panels[name].replace("<svg ", place, 1))
        for n, line in enumerate(wrap(said[name], 62, break_on_hyphens=False)):
            parts.append(_text(left + 6, top + HEIGHT + 12 + 14 * n, f"{line} ", "pd-ink", "start", 11))
    settings = (to_query(state) or "all knobs at their defaults").split("&")
    parts.append(_text(x + 6, y + 20, "pdlib weighting explorer", "pd-ink", "start", 13, bold=True))
    parts += [_text(x + 6, y + 42 + 15 * n, part, "pd-soft", "start", 11) for n, part in enumerate(settings)]
    style = re.sub(r"var\(--[\w-]+, (#\w+)\)", r"\1", STYLE)
    width, height = 2 * WIDTH + 50, y + max(42 + 15 * len(settings), row if len(names) % 2 else 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui, sans-serif"><style>{style}</style><rect width="100%" height="100%" fill="#ffffff"/>'
        f"{''.join(parts)}</svg>"
    )
