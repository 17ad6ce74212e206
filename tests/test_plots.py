import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from ipywidgets import IntSlider

from pdlib import metrics, plots

METRIC = {"frechet_distance": [2.0, 0.1], "kernel_distance": [-0.001, 0.002], "sliced_wasserstein": [0.05, 0.01]}
METRIC |= {"precision": [0.1, 0.01], "recall": [0.0, 0.0]}


def entry(steps, scale=1.0):
    return {name: [value * scale, error] for name, (value, error) in METRIC.items()} | {
        "seconds_per_image": 1e-4 * steps
    }


METRICS = {
    "curves": {
        "distilled": {str(n): entry(n, 1 + 1 / n) for n in (1, 2, 4, 8)},
        "ddim": {str(n): entry(n, 9 / n) for n in (1, 2, 4, 8)},
        "stochastic": {str(n): entry(n, 8 / n) for n in (1, 2, 4, 8)},
    },
    "floor": METRIC,
}
NOISE = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(color)]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_the_quality_picture_holds_every_figure(metric):
    (axes,) = plots.plot_quality(METRICS, metric).axes
    drawn = {container.get_label(): container.lines[0] for container in axes.containers}
    for name in METRICS["curves"]:
        steps, label = [1, 2, 4, 8], plots.LABELS.get(name, name)
        values = [METRICS["curves"][name][str(n)][metric][0] for n in steps]
        assert np.allclose(drawn[label].get_xydata(), np.array([steps, values]).T)
    assert any(np.allclose(line.get_ydata(), METRIC[metric][0]) for line in axes.lines)  # the floor
    assert axes.get_xlabel() == "sampling steps N"
    better, scale = ("higher", "linear") if metric in ("precision", "recall") else ("lower", "log")
    assert f"({better} is better)" in axes.get_ylabel()
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "symlog" if metric == "kernel_distance" else scale)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4", "8"]


def test_the_same_noise_stands_above_what_every_network_makes_of_it():
    rows = {"8 steps": NOISE * 0.1, "one step": -NOISE * 0.1}
    (axes,) = plots.plot_same_noise(rows, NOISE).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["noise", "8 steps", "one step"]
    picture = axes.images[0].get_array()
    expected = plots.image_grid(torch.cat([NOISE / 2, *rows.values()]), columns=5)
    assert np.allclose(picture, expected)


def test_points_get_a_panel_for_each_network():
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    figure = plots.plot_same_noise({"4 steps": points, "one step": points / 2}, points)
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert titles == ["noise", "4 steps", "one step"]
    assert np.allclose(figure.axes[2].collections[0].get_offsets(), points / 2)


def test_the_losses_are_means_over_the_updates():
    (axes,) = plots.plot_losses({"teacher": torch.full((100,), 2.0), "student": torch.arange(1.0, 101)}).axes
    teacher, student = axes.lines
    assert np.allclose(teacher.get_ydata(), 2)
    assert np.allclose(student.get_ydata(), np.arange(50) * 2 + 1.5)
    assert np.allclose(student.get_xdata(), np.arange(50) * 2 + 1)
    assert teacher.get_linestyle() != student.get_linestyle()


def test_the_speed_picture_is_in_milliseconds():
    (axes,) = plots.plot_speed(METRICS).axes
    measured, even = axes.lines
    assert np.allclose(measured.get_xydata(), [[n, 0.1 * n] for n in (1, 2, 4, 8)])
    assert np.allclose(even.get_ydata(), measured.get_ydata())  # these times are proportional
    assert "ms" in axes.get_ylabel()


def test_the_image_grid_is_as_the_images_are():
    images = torch.stack([torch.full((1, 2, 3), value) for value in (-1.0, 0.0, 1.0, 7.0)])
    page = plots.image_grid(images, columns=3)
    assert page.shape == (2 * 3 - 1, 3 * 4 - 1, 3)
    assert [page[0, 0, 0], page[0, 4, 1], page[0, 8, 2], page[3, 0, 0]] == [0, 0.5, 1, 1]
    assert (page[:2, 3] == 1).all()  # the gap
    assert (page[3:, 4:] == 1).all()  # where there is no fifth image


@pytest.mark.parametrize("samples", [NOISE, torch.zeros(3, 3, 4, 4), torch.zeros(9, 2)])
def test_samples_become_a_png(samples, tmp_path):
    plots.save_image_grid(samples, tmp_path / "samples.png", columns=4)
    picture = matplotlib.image.imread(tmp_path / "samples.png")
    if samples.ndim == 4:
        columns = min(4, len(samples))
        rows = -(-len(samples) // columns)
        assert picture.shape[:2] == (8 * (5 * rows - 1), 8 * (5 * columns - 1))
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 1


def test_what_is_measured_is_drawn_with_what_a_student_has_left_to_learn():
    times = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    names = ("network", "zero", "mean", "eps = z", "eps = 0")
    errors = {name: times * (k + 1) for k, name in enumerate(names)}
    errors["eps = 0"][-1] = torch.inf
    (alone,) = plots.plot_diagnosis(times, errors).axes
    assert len(alone.lines) == 5
    beside, bars = plots.plot_diagnosis(times, errors, torch.tensor([0.1, 0.2, 0.3, 1.4])).axes
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([0.1, 0.2, 0.3, 1.4])
    assert [label.get_text() for label in bars.get_xticklabels()] == ["0.25", "0.5", "0.75", "1"]
    assert bars.get_ylim()[1] > 1.4
    assert beside.get_yscale() == "log"
    low, high = beside.get_ylim()
    assert low < errors["network"].min() < errors["zero"].max() < high < 10


def test_things_drawn_together_have_different_colours():
    groups = [
        ("distilled", "ddim", "stochastic", "real"),
        ("alpha", "sigma"),
        ("x", "eps", "v", "both"),
        ("cosine", "cosine_offset", "linear", "discrete_linear"),
        ("constant", "snr", "truncated_snr", "snr_plus_one", "log_snr_density", "min_snr"),
    ]
    assert {name for group in groups for name in group} <= plots.COLORS.keys()
    for group in groups:
        assert len({plots.COLORS[name] for name in group}) == len(group)
    for color in plots.COLORS.values():
        assert 1.05 / (luminance(color) + 0.05) > 2  # seen on white


def test_drawing_changes_no_global_style():
    before = matplotlib.rcParams.copy()
    plots.plot_quality(METRICS)
    assert matplotlib.rcParams == before
    with matplotlib.rc_context():
        plots.use_style()
        assert matplotlib.rcParams["axes.spines.top"] is False


def test_a_picture_follows_its_knobs():
    asked = []

    def draw(height):
        asked.append(height)
        figure = plots.canvas(1, height)
        figure.add_axes((0, 0, 1, 1))
        return figure

    slider = IntSlider(1, 1, 3)
    *_, picture = plots.knobs(draw, height=slider).children
    first = bytes(picture.value)
    slider.value = 2
    assert asked == [1, 2]
    assert first.startswith(b"\x89PNG")
    assert bytes(picture.value) != first
    assert not plt.get_fignums()


def test_tips_lie_where_the_points_are_drawn():
    """In the picture as a notebook cuts it: at each tip's place a pixel has its line's colour."""
    chains = {"distilled": {1: (2.0, 0.1), 4: (1.0, 0.1)}, "ddim": {1: (9.0, 0.1), 4: (1.5, 0.1)}}
    figure = plots.plot_chains(chains)
    found = plots.tips(figure)
    assert [told for *_, told in found] == ["distilled at 1: 2", "distilled at 4: 1", "ddim at 1: 9", "ddim at 4: 1.5"]
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    picture = matplotlib.image.imread(io.BytesIO(file.getvalue()), format="png")
    height, width = picture.shape[:2]
    for left, top, told in found:
        colour = matplotlib.colors.to_rgb(plots.COLORS[told.split()[0]])
        pixel = picture[round(height * top / 100), round(width * left / 100), :3]
        assert np.allclose(pixel, colour, atol=0.02), told
