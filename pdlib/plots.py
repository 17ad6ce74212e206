"""Pictures: one colour for one thing throughout, told apart by the colour-blind too.

Every function returns the figure that it makes, but for :func:`draw_rows`, which draws into axes of yours, and
:func:`knobs`, which shows the one that you draw.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, ScalarFormatter
from torch import Tensor

from pdlib.files import write_bytes

if TYPE_CHECKING:
    from ipywidgets import ValueWidget, VBox

__all__ = [
    "COLORS",
    "STYLE",
    "canvas",
    "draw_rows",
    "image_grid",
    "knobs",
    "plot_chains",
    "plot_diagnosis",
    "plot_losses",
    "plot_quality",
    "plot_result",
    "plot_same_noise",
    "plot_speed",
    "save_image_grid",
    "tips",
    "use_style",
]

# The palette of Okabe and Ito, made to be told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
YELLOW, SKY, GREY = "#E69F00", "#56B4E9", "#555555"
COLORS = (
    {"distilled": BLUE, "ddim": ORANGE, "stochastic": GREEN, "halving": SKY, "real": GREY}  # the curves of a run
    | {"alpha": BLUE, "sigma": ORANGE}  # the two parts of z
    | {"x": BLUE, "eps": ORANGE, "v": GREEN, "both": PURPLE}  # predictions
    | {"cosine": BLUE, "cosine_offset": SKY, "linear": ORANGE, "discrete_linear": YELLOW}  # schedules
    | {"constant": GREY, "snr": ORANGE, "truncated_snr": BLUE, "snr_plus_one": GREEN}  # weightings
    | {"log_snr_density": PURPLE, "min_snr": YELLOW}
    | {"progressive distillation": BLUE, "TRACT": GREEN, "consistency, distilled": YELLOW}  # methods
    | {"consistency, trained (ECT)": ORANGE, "consistency, continuous (sCM)": GREY, "moment matching": "black"}
    | {"flow map, self-distilled": SKY, "flow map, MeanFlow": PURPLE}
    | {"swapped": PURPLE, "second_answer": YELLOW, "off_by_one": GREEN}  # mistaken targets
)
"""One colour for one thing, in every picture."""
MARKERS = {"distilled": "o", "ddim": "s", "stochastic": "^", "halving": "D"}
LABELS = {"ddim": "DDIM (undistilled teacher)", "stochastic": "stochastic (teacher, ancestral)"}
LABELS |= {"halving": "progressive distillation"}
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def use_style() -> None:
    """Give every picture that follows, in a notebook, the project's look."""
    plt.rcParams.update(STYLE)


def image_grid(images: Tensor, columns: int = 8, gap: int = 1) -> np.ndarray:
    """Images (n, channels, height, width) in [-1, 1] as one array (height, width, 3) in [0, 1]."""
    images = images.detach().cpu().float().clamp(-1, 1).expand(-1, 3, -1, -1) / 2 + 0.5
    count, _, height, width = images.shape
    rows = -(-count // columns)
    page = torch.ones(3, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for k, image in enumerate(images):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        page[:, top : top + height, left : left + width] = image
    return page.permute(1, 2, 0).numpy()


def draw_rows(axes: Axes, rows: dict[str, Tensor]) -> None:
    """A band of images for each label, one below the other, all of one size and as many in each."""
    images = torch.cat(list(rows.values()))
    height, count = images.shape[-2], len(images) // len(rows)
    axes.imshow(image_grid(images, count), interpolation="nearest")
    axes.set_yticks([k * (height + 1) + height / 2 - 0.5 for k in range(len(rows))], list(rows))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)


@matplotlib.rc_context(STYLE)
def save_image_grid(samples: Tensor, path: str | Path, columns: int = 8, scale: int = 8) -> None:
    """Write samples to a PNG, whole or not at all: images side by side, each pixel ``scale`` wide; points as a scatter.

    Raises:
        OSError: where it cannot be written.
    """
    if samples.ndim == 2:
        figure = _new_figure(figsize=(5, 5))
        _scatter(figure.add_subplot(), samples)
        content = png(figure)
    else:
        page, file = image_grid(samples, min(columns, len(samples))), BytesIO()
        matplotlib.image.imsave(file, page.repeat(scale, 0).repeat(scale, 1), format="png")
        content = file.getvalue()
    write_bytes(Path(path), content)


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


@matplotlib.rc_context(STYLE)
def plot_quality(metrics: dict[str, Any], metric: str = "frechet_distance") -> Figure:
    """The paper's figure 4 for this run: a distance against the sampling steps, on log axes.

    A metric of which higher values are better is on a plain axis.

    Args:
        metrics: what ``metrics.json`` holds, see :func:`pdlib.runs.evaluation.evaluate`.
        metric: which of its metrics.
    """
    figure = _new_figure(figsize=(7.5, 4.8))
    _draw_quality(figure.add_subplot(), metrics, metric)
    return figure


@matplotlib.rc_context(STYLE)
def plot_chains(
    chains: dict[str, dict[int, tuple[float, float]]],
    ylabel: str = "Fréchet distance to real data\n(lower is better)",
    levels: dict[str, float] | None = None,
) -> Figure:
    """A figure of several chains of students against the sampling steps, on log axes, with standard errors.

    Args:
        chains: label -> N -> mean and standard error, from :func:`pdlib.runs.sweep.mean_by_steps`. A label
            that is a name in :data:`COLORS` gets its colour.
        ylabel: what the figure is.
        levels: label -> what the chains are held against, such as their teacher's.
    """
    figure = _new_figure(figsize=(8.5, 4.4))
    axes = figure.add_subplot()
    named = {COLORS[label] for label in chains if label in COLORS}
    palette = [color for color in (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, "black") if color not in named] or [GREY]
    others = [label for label in chains if label not in COLORS]
    for k, (label, chain) in enumerate(chains.items()):
        steps = sorted(chain)
        values, errors = np.array([chain[n] for n in steps]).T
        turn = 0 if label in COLORS else others.index(label)
        color = COLORS.get(label, palette[turn % len(palette)])
        marker, line = "os^Dv<>P*X"[k % 10], "-" if turn < len(palette) else "--"
        axes.errorbar(steps, values, errors, capsize=3, label=label, color=color, marker=marker, linestyle=line)
    for label, level in (levels or {}).items():
        axes.axhline(level, color=COLORS["real"], linestyle="--", label=label)
    _log_steps(axes, sorted({n for chain in chains.values() for n in chain}))
    axes.set(yscale="log", ylabel=ylabel)
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter())
    axes.legend(fontsize=11, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@matplotlib.rc_context(STYLE)
def plot_same_noise(rows: dict[str, Tensor], noise: Tensor) -> Figure:
    """One row of samples for each network, all from the same noise, which is the first row.

    Args:
        rows: label of a network -> its samples, each (n, …) from the same n noises.
        noise: those noises.
    """
    if noise.ndim == 2:
        columns = min(4, len(rows) + 1)
        figure = _new_figure(figsize=(2.6 * columns, 2.7 * -(-(len(rows) + 1) // columns)))
    else:
        shape = (len(rows) + 1) * noise.shape[-2] / (len(noise) * noise.shape[-1])
        figure = _new_figure(figsize=(8, 8 * shape + 0.2))
    _draw_same_noise(figure, rows, noise)
    return figure


@matplotlib.rc_context(STYLE)
def plot_result(metrics: dict[str, Any], rows: dict[str, Tensor], noise: Tensor) -> Figure:
    """A run in one picture: :func:`plot_quality` on the left, :func:`plot_same_noise` on the right."""
    figure = _new_figure(figsize=(13, 4.8))
    left, right = figure.subfigures(1, 2)
    _draw_quality(left.add_subplot(), metrics, "frechet_distance")
    _draw_same_noise(right, rows, noise)
    return figure


@matplotlib.rc_context(STYLE)
def plot_diagnosis(times: Tensor, errors: dict[str, Tensor], left: Tensor | None = None) -> Figure:
    """x̂'s error by time beside trivial answers, and beside it, of a student, what is left to learn by time.

    Args:
        times, errors: as :func:`pdlib.diagnosis.x_errors` takes and returns them.
        left: what :func:`pdlib.diagnosis.residuals` returns.
    """
    figure = _new_figure((5.5 if left is None else 10, 3.6))
    axes, *others = np.atleast_1d(figure.subplots(1, 1 if left is None else 2))
    lines = {"zero": ":", "mean": "--", "eps = z": "-.", "eps = 0": (0, (1, 3))}
    labels = {"zero": "x̂ = 0", "mean": "x̂ = mean", "eps = z": "ε̂ = z", "eps = 0": "ε̂ = 0"}
    low, high = errors["network"].min().item() / 2, 2 * max(errors[name].max().item() for name in ("zero", "network"))
    for name, line in lines.items():
        axes.semilogy(times, errors[name].clamp(max=10 * high), linestyle=line, color=GREY, label=labels[name])
    axes.semilogy(times, errors["network"], "o-", color=BLUE, label="the network")
    axes.set(xlabel="time t", ylabel="mean square error of x̂", xlim=(0, 1.02), ylim=(low, high))
    axes.legend(fontsize=10)
    for beside in others:
        steps = len(left)
        where = torch.arange(1, steps + 1) / steps
        beside.bar(where, left, width=0.6 / steps, color=BLUE)
        beside.axhline(1, color=GREY, linestyle="--", label="as its teacher left it")
        beside.set(
            xlabel="the student's time t",
            ylabel="left to learn",
            xlim=(0, 1 + 0.5 / steps),
            ylim=(0, max(1.15, 1.1 * left.max().item())),
        )
        beside.set_xticks(where, [f"{time:.3g}" for time in where.tolist()])
        beside.legend(fontsize=10, loc="upper left")
    return figure


@matplotlib.rc_context(STYLE)
def plot_losses(histories: dict[str, Tensor]) -> Figure:
    """The loss of every training against the share of its updates that is done.

    Args:
        histories: label of a training -> its loss before each update. Shown as the mean over each
            fiftieth of the updates.
    """
    figure = _new_figure(figsize=(7.5, 4.4))
    axes = figure.add_subplot()
    shades = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, max(len(histories) - 1, 1)))
    for k, (label, losses) in enumerate(histories.items()):
        parts = losses.tensor_split(min(50, len(losses)))
        middle = (np.arange(len(parts)) + 0.5) / len(parts) * 100
        look = {"color": "black", "linestyle": "--"} if k == 0 else {"color": shades[k - 1]}
        axes.plot(middle, [part.mean().item() for part in parts], label=label, **look)
    axes.set(yscale="log", xlabel="updates done (%)", ylabel="training loss")
    axes.legend(fontsize=11, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@matplotlib.rc_context(STYLE)
def plot_speed(metrics: dict[str, Any]) -> Figure:
    """Time per image against the sampling steps, on log axes, beside a line of equal time per step."""
    figure = _new_figure(figsize=(7.5, 3.8))
    axes = figure.add_subplot()
    curve = metrics["curves"]["distilled"]
    steps = sorted(map(int, curve))
    times = np.array([curve[str(n)]["seconds_per_image"] for n in steps]) * 1e3
    axes.plot(steps, times, color=COLORS["distilled"], marker="o", label="measured")
    even = times[-1] / steps[-1] * np.array(steps)
    axes.plot(steps, even, color=COLORS["real"], linestyle="--", label=f"time per step as at {steps[-1]} steps")
    _log_steps(axes, steps)
    axes.set(yscale="log", ylabel="time per image (ms)")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=11)
    return figure


def tips(figure: Figure) -> list[tuple[float, float, str]]:
    """Where the points of a figure's lines are, in per cent from the left and from the top, and what each is.

    Of the picture as a notebook shows it: cut to what is drawn on it.
    """
    found = []
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])  # in inches
    for axes in figure.axes:
        labels = {container.lines[0]: container.get_label() for container in axes.containers}
        for line in axes.lines:
            if line.get_marker() in ("None", "|", "_"):
                continue
            label = labels.get(line, line.get_label())
            for x, y in zip(*line.get_data(), strict=True):
                left, bottom = axes.transData.transform((x, y)) / figure.dpi
                place = ((left - drawn.x0) / drawn.width, (drawn.y1 - bottom) / drawn.height)
                found.append((*(round(100 * part, 2) for part in place), f"{label} at {x:g}: {y:.3g}"))
    return found


def canvas(width: float, height: float) -> Figure:
    """A figure for :func:`knobs`, in inches: axes stand where you put them, without the slow search for a layout."""
    return _new_figure((width, height), layout="none")


def knobs(draw: Callable[..., Figure], **widgets: ValueWidget) -> VBox:
    """Widgets, and below them the picture that ``draw`` makes of their values, made again whenever one is turned.

    Args:
        draw: (name=value, …) -> a figure, best a :func:`canvas`.
        widgets: by the names of its arguments. In a stored notebook, where nothing turns, a line stands for them.
    """
    from ipywidgets import Image, VBox

    class Knobs(VBox):
        def __repr__(self) -> str:
            return "(knobs, in a running notebook)"

    picture = Image(format="png")

    def redraw(_: Any = None) -> None:
        picture.value = png(draw(**{name: widget.value for name, widget in widgets.items()}))

    for widget in widgets.values():
        widget.observe(redraw, "value")
    redraw()
    return Knobs([*widgets.values(), picture])


def _new_figure(figsize: tuple[float, float], **options: Any) -> Figure:
    """A figure that a notebook shows where it is a cell's value, and nowhere else."""
    figure = plt.figure(figsize=figsize, **options)
    plt.close(figure)
    return figure


def _draw_quality(axes: Axes, metrics: dict[str, Any], metric: str) -> None:
    from pdlib.metrics import METRICS  # slow to import

    for name, curve in metrics["curves"].items():
        steps = sorted(map(int, curve))
        values, errors = np.array([curve[str(n)][metric] for n in steps]).T
        look = {"label": LABELS.get(name, name), "color": COLORS[name], "marker": MARKERS[name]}
        axes.errorbar(steps, values, errors, capsize=3, **look)
    floor, error = metrics["floor"][metric]
    label, better = METRICS[metric].label, METRICS[metric].better
    axes.axhline(floor, color=COLORS["real"], linestyle="--", label="real against real")
    axes.axhspan(floor - error, floor + error, color=COLORS["real"], alpha=0.15, linewidth=0)
    _log_steps(axes, steps)
    if metric == "kernel_distance":  # unbiased, and so sometimes below 0
        near_zero = max(abs(floor) + error, 1e-4)
        axes.set_yscale("symlog", linthresh=near_zero)
        axes.set_ylim(bottom=-2 * near_zero)
    elif better == "lower":
        axes.set_yscale("log")
    axes.set_ylabel(f"{label}{' to real data' if better == 'lower' else ''}\n({better} is better)")
    axes.legend(fontsize=11, frameon=True, edgecolor="none", framealpha=0.85)  # the floor may run behind it


def _draw_same_noise(figure: Figure | SubFigure, rows: dict[str, Tensor], noise: Tensor) -> None:
    if noise.ndim == 2:
        panels = {"noise": noise, **rows}
        columns = min(4, len(panels))
        grid = list(figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat)
        for axes in grid:
            axes.set_axis_off()
        for axes, (label, points) in zip(grid, panels.items(), strict=False):
            axes.set_axis_on()
            _scatter(axes, points)
            axes.set_title(label)
        return
    draw_rows(figure.add_subplot(), {"noise": noise / 2, **rows})


def _log_steps(axes: Axes, steps: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set(major_locator=FixedLocator(steps), minor_locator=NullLocator(), major_formatter=ScalarFormatter())
    axes.set_xlabel("sampling steps N")


def _scatter(axes: Axes, points: Tensor) -> None:
    points = points.detach().cpu().numpy()
    axes.scatter(points[:, 0], points[:, 1], s=2, color=COLORS["distilled"], alpha=0.5, linewidths=0)
    axes.set(aspect="equal", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))
