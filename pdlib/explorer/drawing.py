"""The five panels as SVG, and all of them as one picture.

A picture is drawn here, as text, and the browser only puts it in its place. So what a test reads, what is saved and
what is on the screen are one thing, and every formula stays in Python. The other way that was tried, one matplotlib
figure sent as a PNG, takes about twice as long: benchmarks/explorer_latency.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from html import escape
from typing import NamedTuple

import numpy as np
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
    """One pair of axes, over time or λ: collects SVG, in the units above."""

    def __init__(self, title: str, axis: str):
        self.title, self.over_time = title, axis == "t"
        self.xlabel, self.xticks = "log-SNR λ (noise left, data right)", [-15, -10, -5, 0, 5, 10, 15]
        if self.over_time:
            self.xlabel, self.xticks = "time t", [0, 0.25, 0.5, 0.75, 1]
        self.xlim = self.xticks[0], self.xticks[-1]
        self.parts: list[str] = []
        self.legend: list[tuple[str, str]] = []
        self.log = False
        self.ylim = (0.0, 1.0)

    def set_y(self, values: list[Tensor], log: bool) -> None:
        """Choose the y axis so that it shows all finite values; on a log axis at most eight decades."""
        shown = np.concatenate([value.numpy().ravel() for value in values])
        shown = shown[np.isfinite(shown)]
        self.log = log
        if not log:
            top = shown.max(initial=0.0)
            self.ylim = (0.0, 1.08 * top if top > 0 else 1.0)
            return
        shown = shown[shown > 0]
        high = np.ceil(np.log10(shown.max(initial=1e-8)) + 0.02)
        low = np.floor(np.log10(shown.min(initial=10.0 ** (high - 1))) - 0.02)
        self.ylim = (float(max(low, high - 8)), float(high))

    def x(self, values: Tensor) -> np.ndarray:
        low, high = self.xlim
        return LEFT + (np.clip(values.numpy(), low, high) - low) / (high - low) * (RIGHT - LEFT)

    def y(self, values: Tensor) -> np.ndarray:
        """Heights of values; those off the axis lie on its edge."""
        with np.errstate(divide="ignore", invalid="ignore"):
            height = np.log10(values.numpy()) if self.log else values.numpy()
        low, high = self.ylim
        height = np.nan_to_num(height, nan=low, posinf=high, neginf=low)
        return BOTTOM - (np.clip(height, low, high) - low) / (high - low) * (BOTTOM - TOP)

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
        self._path("M" + drawn if drawn else "", f"pd-line {kind}", label)

    def stairs(self, f: Figures, y: Tensor, kind: str, label: str = "") -> None:
        """Step i of the N at height y_i."""
        x, height = self.edges(f), self.y(y)
        treads = [f"V{b:.1f}H{a:.1f}" for a, b in zip(x[1:], height, strict=True)]
        self._path(f"M{x[0]:.1f},{height[0]:.1f}" + "".join(treads), f"pd-line {kind}", label)

    def bars(self, f: Figures, y: Tensor, kind: str, where: Tensor, full: bool = False, label: str = "") -> None:
        x, height = self.edges(f), self.y(y)
        left, right = np.minimum(x[1:], x[:-1]), np.maximum(x[1:], x[:-1])
        gap = np.minimum(1.0, 0.15 * (right - left))
        rows = zip(left + gap, right - gap, height, where.tolist(), strict=True)
        top = [(a, b, TOP if full else h) for a, b, h, drawn in rows if drawn]
        self._path("".join(f"M{a:.1f},{BOTTOM}V{h:.1f}H{b:.1f}V{BOTTOM}Z" for a, b, h in top), kind, label)

    def dots(self, f: Figures, y: Tensor, kind: str = "pd-dot") -> None:
        """Dots where there is room for them; an arrow beyond the edge for what is infinite, or 0 on a log axis."""
        if f.state.N > 64:
            return
        parts = []
        x = self.x(f.step_t if self.over_time else f.step_log_snr)
        for a, b, value in zip(x, self.y(y), y.tolist(), strict=True):
            if np.isinf(value):
                parts.append(f"M{a - 6:.1f},{b + 3:.1f}l6,-11l6,11Z")
            elif self.log and value == 0:
                parts.append(f"M{a - 6:.1f},{b - 3:.1f}l6,11l6,-11Z")
            else:
                parts.append(f"M{a - 3:.1f},{b:.1f}a3,3 0 1,0 6,0a3,3 0 1,0 -6,0")
        self._path("".join(parts), kind)

    def crosses(self, x: np.ndarray, y: float, kind: str) -> None:
        arms = "".join(f"M{a - 4:.1f},{y - 4:.1f}l8,8m0,-8l-8,8" for a in x)
        self._path(arms, f"pd-line {kind}")

    def _path(self, d: str, kind: str, label: str = "") -> None:
        if d:
            self.parts.append(f'<path class="{kind}" d="{d}"/>')
        if label:
            self.legend.append((kind, label))

    def svg(self, description: str) -> str:
        """The panel as one <svg>, with its title, axes, legend and a description for those who cannot see it."""
        lines, texts = [], [_text(LEFT - 44, 15, self.title, "pd-ink", "start", 13, bold=True)]
        for tick, label in self._y_ticks():
            lines.append(f"M{LEFT},{tick:.1f}H{RIGHT}")
            texts.append(_text(LEFT - 5, tick + 4, label, "pd-soft", "end"))
        for tick in self.xticks:
            at = LEFT + (tick - self.xlim[0]) / (self.xlim[1] - self.xlim[0]) * (RIGHT - LEFT)
            lines.append(f"M{at:.1f},{TOP}V{BOTTOM}")
            texts.append(_text(at, BOTTOM + 15, f"{tick:g}".replace("-", "−"), "pd-soft", "middle"))
        texts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 5, self.xlabel, "pd-soft", "middle"))
        at = LEFT - 44
        for kind, label in self.legend:
            if "pd-line" in kind:
                self.parts.append(f'<path class="{kind}" d="M{at},33h18"/>')
            else:
                self.parts.append(f'<path class="{kind}" d="M{at},28h18v10h-18Z"/>')
            texts.append(_text(at + 22, 37, label, "pd-soft", "start"))
            at += 34 + 6.3 * len(label)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(self.title)}: {escape(description)}"><path class="pd-grid" d="{"".join(lines)}"/>'
            f'{"".join(self.parts)}<path class="pd-axis" d="M{LEFT},{TOP}V{BOTTOM}H{RIGHT}"/>{"".join(texts)}</svg>'
        )

    def _y_ticks(self) -> list[tuple[float, str]]:
        low, high = self.ylim
        if self.log:
            every = 1 if high - low <= 5 else 2
            ticks = np.arange(high, low - 0.5, -every)
            labels = [_power_of_ten(int(tick)) for tick in ticks]
        else:
            ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
            labels = [f"{tick:.6g}" for tick in ticks]
        heights = [BOTTOM - (tick - low) / (high - low) * (BOTTOM - TOP) for tick in ticks]
        return list(zip(heights, labels, strict=True))


def _text(x: float, y: float, text: str, kind: str, anchor: str, size: int = 12, bold: bool = False) -> str:
    look = f'class="{kind}" text-anchor="{anchor}" font-size="{size}"' + (' font-weight="600"' if bold else "")
    return f'<text {look} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _power_of_ten(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _draw_schedule(f: Figures, behind: list[Figures]) -> Axes:
    panel = Axes("1 · How much data, how much noise", f.state.axis)
    panel.set_y([f.alpha.new_ones(1)], log=False)
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
    panel = Axes("2 · The weight" + (" times density, w · p" if dense else ", w(t)"), f.state.axis)

    def shown(g: Figures) -> tuple[Tensor, Tensor, Tensor]:
        return (g.plain * g.density, g.w * g.density, g.step_w * g.step_density) if dense else (g.plain, g.w, g.step_w)

    plain, w, step_w = shown(f)
    unclipped = plain[f.t >= 1 / f.state.N]  # towards t = 0 the SNR has no bound
    others = [shown(other)[2] for other in behind]
    panel.set_y([w[f.t >= 0.5 / f.state.N], step_w, unclipped, *others], f.state.scale == "log")
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
    panel = Axes("3 · Each step's share of the weight, %", f.state.axis)
    panel.set_y([100 * g.share for g in (f, *behind)], log=False)
    panel.bars(f, f.share, "pd-band", f.dead, full=True)
    panel.bars(f, 100 * f.share, "pd-bar", ~f.dead, label="share")
    for other in behind:
        panel.stairs(other, 100 * other.share, "pd-frozen")
    x = panel.edges(f)
    middles = (x[1:] + x[:-1])[f.dead.numpy()] / 2
    panel.crosses(middles if len(middles) <= 64 else middles[:0], BOTTOM - 8, "pd-sigma")
    if bool(f.dead.any()):
        panel.legend.append(("pd-dead", f"dead: under {f.state.threshold * 100:.3g} % of the fair share"))
    return panel


def _draw_amplification(f: Figures, behind: list[Figures]) -> Axes:
    panel = Axes("4 · An error of the network, in x̂", f.state.axis)
    shown = [f.own_amplification, f.step_sigma.new_ones(1), *(g.eps_amplification for g in (f, *behind))]
    panel.set_y(shown, f.state.scale == "log")
    for other in behind:
        panel.stairs(other, other.eps_amplification, "pd-frozen")
    panel.stairs(f, f.eps_amplification, "pd-eps", "ε error times σ/α")
    if f.state.prediction != "eps":
        label = {"x": "x error", "v": "v error times σ", "both": "both, times σ"}[f.state.prediction]
        panel.stairs(f, f.own_amplification, "pd-own pd-dashed", label)
    panel.dots(f, f.eps_amplification)
    return panel


def _draw_sensitivity(f: Figures, behind: list[Figures]) -> Axes:
    panel = Axes("5 · An error in z at t″, in the target x̃", f.state.axis)
    panel.set_y([f.step_sigma.new_ones(1), *(g.sensitivity for g in (f, *behind))], f.state.scale == "log")
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


def sentences(figures: Figures) -> dict[str, str]:
    """One sentence for each panel."""
    return {name: panel.sentence(figures) for name, panel in PANELS.items()}


def draw(figures: Figures, frozen: Figures | None = None) -> dict[str, str]:
    """The panels, name -> SVG; with the curves of other figures in grey behind them."""
    said, behind = sentences(figures), [frozen] if frozen else []
    return {name: panel.draw(figures, behind).svg(said[name]) for name, panel in PANELS.items()}


def picture(state: ExplorerState, frozen: Figures | None = None, names: Iterable[str] = PANELS) -> str:
    """Panels with their sentences as one SVG on white, which needs no style sheet from outside.

    Args:
        state: the knobs.
        frozen: other figures, whose curves are drawn in grey.
        names: which of :data:`PANELS`.

    Raises:
        ValueError: for a state that :func:`pdlib.explorer.problems` finds fault with.
    """
    drawn, names = compute(state), list(names)
    said, panels = sentences(drawn), draw(drawn, frozen)
    row, parts = HEIGHT + 44, []
    places = [(10 + k % 2 * (WIDTH + 30), 10 + k // 2 * row) for k in range(len(names) + 1)]
    for name, (x, y) in zip(names, places, strict=False):
        svg = panels[name]
        parts.append(svg.replace("<svg ", f'<svg x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" ', 1))
        words, lines = said[name].split(), [""]
        for word in words:
            if len(lines[-1]) + len(word) > 62:
                lines.append("")
            lines[-1] += f"{word} "
        parts += [_text(x + 6, y + HEIGHT + 12 + 14 * n, line, "pd-ink", "start", 11) for n, line in enumerate(lines)]
    settings = (to_query(state) or "all knobs at their defaults").split("&")
    x, y = places[-1]
    parts.append(_text(x + 6, y + 20, "pdlib weighting explorer", "pd-ink", "start", 13, bold=True))
    parts += [_text(x + 6, y + 42 + 15 * n, part, "pd-soft", "start", 11) for n, part in enumerate(settings)]
    style = re.sub(r"var\(--[\w-]+, (#\w+)\)", r"\1", STYLE)
    width, height = 2 * WIDTH + 50, y + max(42 + 15 * len(settings), row if len(names) % 2 else 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui, sans-serif"><style>{style}</style><rect width="100%" height="100%" fill="#ffffff"/>'
        f"{''.join(parts)}</svg>"
    )
