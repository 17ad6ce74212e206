"""The weighting explorer's face: the panels as SVG, and the widget that shows them and turns the knobs.

The picture is drawn here, as text, and the browser only puts it in its place. So what a test reads, what
is saved and what is on the screen are one thing, and every formula stays in Python. The other way that was
tried, one matplotlib figure sent as a PNG, takes about twice as long: benchmarks/explorer_latency.json.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import anywidget
import numpy as np
import traitlets
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pdlib.explorer import (
    CHOICES,
    LABELS,
    PRESETS,
    RANGES,
    ExplorerState,
    Figures,
    KnobError,
    compute,
    from_dict,
    from_query,
    problems,
    python_lines,
    run_line,
    sentences,
    to_query,
)
from pdlib.plots import COLORS, GREEN

__all__ = ["PANELS", "WeightingExplorer", "draw", "picture"]

HERE = Path(__file__).parent
PANELS = ("schedule", "weight", "share", "amplification", "sensitivity")
"""What can be shown, in this order."""

# One panel is drawn on so many units; on the narrowest screen a unit is a pixel.
WIDTH, HEIGHT = 380, 236
LEFT, RIGHT, TOP, BOTTOM = 50, WIDTH - 12, 50, HEIGHT - 38
LOG_SNR_SHOWN = 15.0

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


# Drawing.


class _Panel:
    """One pair of axes: collects SVG, in the units above."""

    def __init__(self, title: str, xlabel: str, xlim: tuple[float, float], xticks: list[float]):
        self.title, self.xlabel, self.xlim, self.xticks = title, xlabel, xlim, xticks
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

    def curve(self, x: Tensor, y: Tensor, kind: str, label: str = "") -> None:
        """A line through those points that the axes show; t = 1 may be at λ = −∞."""
        height = y.log10() if self.log else y
        shown = (x >= self.xlim[0]) & (x <= self.xlim[1]) & (height >= self.ylim[0]) & (height <= self.ylim[1])
        x, y = x[shown], y[shown]
        every = max(1, len(x) // 500)  # finer than the screen
        points = zip(self.x(x)[::-1][::every], self.y(y)[::-1][::every], strict=True)
        drawn = "L".join([f"{a:.1f},{b:.1f}" for a, b in points])
        self._path("M" + drawn if drawn else "", f"pd-line {kind}", label)

    def stairs(self, edges: Tensor, y: Tensor, kind: str, label: str = "") -> None:
        """Step i at height y_i between edges i − 1 and i."""
        x, height = self.x(edges), self.y(y)
        treads = [f"V{b:.1f}H{a:.1f}" for a, b in zip(x[1:], height, strict=True)]
        self._path(f"M{x[0]:.1f},{height[0]:.1f}" + "".join(treads), f"pd-line {kind}", label)

    def bars(self, edges: Tensor, y: Tensor, kind: str, where: Tensor, full: bool = False, label: str = "") -> None:
        x, height = self.x(edges), self.y(y)
        left, right = np.minimum(x[1:], x[:-1]), np.maximum(x[1:], x[:-1])
        gap = np.minimum(1.0, 0.15 * (right - left))
        rows = zip(left + gap, right - gap, height, where.tolist(), strict=True)
        top = [(a, b, TOP if full else h) for a, b, h, drawn in rows if drawn]
        self._path("".join(f"M{a:.1f},{BOTTOM}V{h:.1f}H{b:.1f}V{BOTTOM}Z" for a, b, h in top), kind, label)

    def dots(self, x: Tensor, y: Tensor, kind: str) -> None:
        """Dots where there is room for them; an arrow beyond the edge for what is infinite, or 0 on a log axis."""
        if len(x) > 64:
            return
        parts = []
        for a, b, value in zip(self.x(x), self.y(y), y.tolist(), strict=True):
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


def draw(figures: Figures, frozen: Figures | None = None) -> dict[str, str]:
    """The five panels, name -> SVG; with the curves of other figures in grey behind them."""
    said = sentences(figures)
    panels = {
        "schedule": _draw_schedule(figures, frozen),
        "weight": _draw_weight(figures, frozen),
        "share": _draw_share(figures, frozen),
        "amplification": _draw_amplification(figures, frozen),
        "sensitivity": _draw_sensitivity(figures, frozen),
    }
    return {name: panel.svg(said[name]) for name, panel in panels.items()}


def _panel(title: str, figures: Figures) -> _Panel:
    if figures.state.axis == "t":
        return _Panel(title, "time t", (0, 1), [0, 0.25, 0.5, 0.75, 1])
    limits = (-LOG_SNR_SHOWN, LOG_SNR_SHOWN)
    return _Panel(title, "log-SNR λ (noise left, data right)", limits, [-15, -10, -5, 0, 5, 10, 15])


def _x(figures: Figures, axis: str) -> Tensor:
    """The fine grid on the x axis."""
    return figures.t if axis == "t" else figures.log_snr


def _step_x(figures: Figures, axis: str) -> Tensor:
    """The N steps on the x axis."""
    return figures.step_t if axis == "t" else figures.step_log_snr


def _edges(figures: Figures, axis: str) -> Tensor:
    """Where the steps begin and end on the x axis: t = 0, 1/N, …, 1, or λ there."""
    times = figures.step_t.new_tensor([0.0, *figures.step_t.tolist()])
    return times if axis == "t" else figures.state.noise_schedule.log_snr(times)


def _draw_schedule(f: Figures, frozen: Figures | None) -> _Panel:
    axis = f.state.axis
    panel = _panel("1 · How much data, how much noise", f)
    panel.set_y([f.alpha.new_ones(1)], log=False)
    if frozen:
        panel.curve(_x(frozen, axis), frozen.alpha, "pd-frozen")
        panel.curve(_x(frozen, axis), frozen.sigma, "pd-frozen")
    panel.curve(_x(f, axis), f.alpha, "pd-alpha", "α, data")
    panel.curve(_x(f, axis), f.sigma, "pd-sigma", "σ, noise")
    panel.stairs(_edges(f, axis), f.step_alpha, "pd-alpha pd-thin", f"the {f.state.N} steps")
    panel.stairs(_edges(f, axis), f.step_sigma, "pd-sigma pd-thin")
    return panel


def _draw_weight(f: Figures, frozen: Figures | None) -> _Panel:
    axis = f.state.axis
    dense = axis == "density"
    panel = _panel("2 · The weight" + (" times density, w · p" if dense else ", w(t)"), f)
    plain, w, step_w = f.plain, f.w, f.step_w
    if dense:
        plain, w, step_w = plain * f.density, w * f.density, step_w * f.step_density
    unclipped = plain[f.t >= 1 / f.state.N]  # towards t = 0 the SNR has no bound
    before = [frozen.step_w * (frozen.step_density if dense else 1)] if frozen else []
    panel.set_y([w[f.t >= 0.5 / f.state.N], step_w, unclipped, *before], f.state.scale == "log")
    if frozen:
        panel.curve(_x(frozen, axis), frozen.w * (frozen.density if dense else 1), "pd-frozen")
    clip = f.state.clip_min is not None or f.state.clip_max is not None
    panel.curve(_x(f, axis), plain, "pd-plain", "w, not clipped" if clip else "w")
    if clip:
        panel.curve(_x(f, axis), w, "pd-used pd-dashed", "clipped")
    panel.stairs(_edges(f, axis), step_w, "pd-used pd-thin", f"the {f.state.N} steps")
    panel.dots(_step_x(f, axis), step_w, "pd-dot")
    return panel


def _draw_share(f: Figures, frozen: Figures | None) -> _Panel:
    axis = f.state.axis
    panel = _panel("3 · Each step's share of the weight, %", f)
    edges = _edges(f, axis)
    panel.set_y([100 * f.share, *([100 * frozen.share] if frozen else [])], log=False)
    panel.bars(edges, f.share, "pd-band", f.dead, full=True)
    panel.bars(edges, 100 * f.share, "pd-bar", ~f.dead, label="share")
    if frozen:
        panel.stairs(_edges(frozen, axis), 100 * frozen.share, "pd-frozen")
    x = panel.x(edges)
    middles = (x[1:] + x[:-1])[f.dead.numpy()] / 2
    panel.crosses(middles if len(middles) <= 64 else middles[:0], BOTTOM - 8, "pd-sigma")
    if bool(f.dead.any()):
        panel.legend.append(("pd-dead", f"dead: under {f.state.threshold * 100:.3g} % of the fair share"))
    return panel


def _draw_amplification(f: Figures, frozen: Figures | None) -> _Panel:
    axis = f.state.axis
    panel = _panel("4 · An error of the network, in x̂", f)
    before = [frozen.eps_amplification] if frozen else []
    panel.set_y([f.eps_amplification, f.own_amplification, f.step_sigma.new_ones(1), *before], f.state.scale == "log")
    if frozen:
        panel.stairs(_edges(frozen, axis), frozen.eps_amplification, "pd-frozen")
    panel.stairs(_edges(f, axis), f.eps_amplification, "pd-eps", "ε error times σ/α")
    if f.state.prediction != "eps":
        label = {"x": "x error", "v": "v error times σ", "both": "both, times σ"}[f.state.prediction]
        panel.stairs(_edges(f, axis), f.own_amplification, "pd-own pd-dashed", label)
    panel.dots(_step_x(f, axis), f.eps_amplification, "pd-dot")
    return panel


def _draw_sensitivity(f: Figures, frozen: Figures | None) -> _Panel:
    axis = f.state.axis
    panel = _panel("5 · An error in z at t″, in the target x̃", f)
    before = [frozen.sensitivity] if frozen else []
    panel.set_y([f.sensitivity, f.step_sigma.new_ones(1), *before], f.state.scale == "log")
    if frozen:
        panel.stairs(_edges(frozen, axis), frozen.sensitivity, "pd-frozen")
    panel.stairs(_edges(f, axis), f.sensitivity, "pd-alpha", "times 1/(α″ − (σ″/σ) α)")
    panel.dots(_step_x(f, axis), f.sensitivity, "pd-dot")
    return panel


def picture(state: ExplorerState, frozen: Figures | None = None, names: Sequence[str] = PANELS) -> str:
    """Panels with their sentences as one SVG on white, which needs no style sheet from outside.

    Args:
        state: the knobs.
        frozen: other figures, whose curves are drawn in grey.
        names: which of :data:`PANELS`.

    Raises:
        ValueError: for a state that :func:`pdlib.explorer.problems` finds fault with.
    """
    figures = compute(state)
    said, panels = sentences(figures), draw(figures, frozen)
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


# The widget.


def _knobs() -> list[dict[str, Any]]:
    """What the browser needs to know to build the controls, in their order."""
    kinds = {  # and for a slider where it stands when it is switched on, and its stops (of the exponent, if it has one)
        "N": ("power", 16, 1),
        "clip_min": ("optional log", 1, 0.05),
        "clip_max": ("optional log", 5, 0.05),
        "zero_terminal": ("switch", 0, 0),
        "log_snr_min": ("optional", -20, 0.5),
        "log_snr_max": ("optional", 20, 0.5),
        "T": ("number", 1000, 1),
        "threshold": ("log", 0.01, 0.05),
    }
    knobs = []
    for name, label in LABELS.items():
        knob: dict[str, Any] = {"name": name, "label": label}
        if name in CHOICES:
            knob |= {"kind": "choice", "options": list(CHOICES[name].items())}
        else:
            low, high = RANGES.get(name, (0, 1))
            kind, start, step = kinds[name]
            knob |= {"kind": kind, "min": low, "max": high, "start": start, "step": step}
        knobs.append(knob)
    return knobs


def _as_dict(state: ExplorerState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ExplorerState.__dataclass_fields__}


class WeightingExplorer(anywidget.AnyWidget):
    """Knobs for a schedule, a weighting and a number of steps, and what they come to in five panels.

    Args:
        state: where the knobs stand at first.
        notice: a sentence to show above the panels.
        knobs: names of the knobs to show, fields of :class:`~pdlib.explorer.ExplorerState`; all of them, and the
            presets, if not given.
        panels: which of :data:`PANELS` to show; all if not given.

    Raises:
        ValueError: for a state that :func:`pdlib.explorer.problems` finds fault with, or an unknown knob or panel.
    """

    _esm = HERE / "widgets.js"
    _css = (HERE / "widgets.css").read_text() + STYLE
    knobs = traitlets.List(_knobs()).tag(sync=True)
    presets = traitlets.List(
        [[group, [[label, _as_dict(state)] for label, state in states.items()]] for group, states in PRESETS.items()]
    ).tag(sync=True)
    on_page = traitlets.Bool(False).tag(sync=True)
    """Whether the widget is a page of its own, whose address can carry a state."""
    controls = traitlets.Dict().tag(sync=True)
    """The knobs as the person set them, good or not."""
    compare = traitlets.Bool(False).tag(sync=True)
    """Whether the curves of a moment ago stay in grey."""
    problems = traitlets.Dict().tag(sync=True)
    notice = traitlets.Unicode("").tag(sync=True)
    panels = traitlets.Dict().tag(sync=True)
    said = traitlets.Dict().tag(sync=True)
    lines = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        state: ExplorerState | None = None,
        notice: str = "",
        knobs: Sequence[str] | None = None,
        panels: Sequence[str] = PANELS,
        **kwargs: Any,
    ):
        state = state or ExplorerState()
        unknown = [name for name in knobs or () if name not in _as_dict(state)]
        unknown += [name for name in panels if name not in PANELS]
        if unknown:
            known = f"the knobs are {', '.join(_as_dict(state))}; the panels are {', '.join(PANELS)}"
            raise ValueError(f"there is no {unknown[0]!r}: {known}")
        self._figures, self._frozen, self._shown = compute(state), None, tuple(panels)
        if knobs is not None:
            kwargs |= {"knobs": [knob for knob in _knobs() if knob["name"] in knobs], "presets": []}
        super().__init__(controls=_as_dict(state), notice=notice, **kwargs)
        self._show()
        self.observe(self._turned, "controls")
        self.observe(self._compared, "compare")
        self.on_msg(self._asked)

    @classmethod
    def from_link(cls, query: str | None = None) -> WeightingExplorer:
        """The explorer in the state of a link's query string; by default of the page that Voilà serves it on."""
        given = os.environ.get("QUERY_STRING", "") if query is None else query
        own = [(key, value) for key, value in parse_qsl(given, keep_blank_values=True) if key != "theme"]  # Voilà's
        state, complaint = from_query(urlencode(own))
        return cls(state, complaint, on_page=os.environ.get("SERVER_SOFTWARE", "").startswith("voila"))

    @property
    def state(self) -> ExplorerState:
        """The state that is drawn: the last good one."""
        return self._figures.state

    def picture(self) -> str:
        """What is drawn as one SVG, see :func:`picture`."""
        return picture(self.state, self._frozen, self._shown)

    def _turned(self, change: Any) -> None:
        try:
            state = from_dict(dict(change["new"]))
            wrong = problems(state)
        except KnobError as error:
            wrong = {error.knob: str(error)}
        with self.hold_sync():
            self.problems = wrong
            self.notice = ""
            if not wrong:
                self._figures = compute(state)
                self._show()

    def _compared(self, change: Any) -> None:
        self._frozen = self._figures if change["new"] else None
        self._show()

    def _show(self) -> None:
        with self.hold_sync():
            drawn, said = draw(self._figures, self._frozen), sentences(self._figures)
            self.panels = {name: drawn[name] for name in self._shown}
            self.said = {name: said[name] for name in self._shown}
            state = self._figures.state
            self.lines = {"python": python_lines(state), "command": run_line(state), "query": to_query(state)}

    def _asked(self, _: Any, content: Any, buffers: Any) -> None:
        if content == "picture":
            self.send({"picture": self.picture()})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.state})"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and its picture for where no widgets are shown."""
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "image/svg+xml": self.picture()}, metadata
