import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import example, given
from states import good_state

from pdlib.explorer import PANELS, PRESETS, ExplorerState, Panel, compute, draw, picture, sentences, to_query
from pdlib.explorer.drawing import BOTTOM, LEFT, RIGHT, TOP

NOTES = PRESETS["The notes"]["4 steps"]
SVG = "{http://www.w3.org/2000/svg}"


def shapes(svg, kind):
    """The shapes that are drawn as one kind of thing inside the axes, each as its points, in the order of drawing."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if set(kind.split()) <= set(path.get("class").split()):
            found += [shape for shape in outlines(path.get("d")) if min(y for _, y in shape) > TOP - 12]
    return found  # the legend is above


def outlines(d):
    """The points that an SVG path goes through, one list for each of its parts."""
    parts, x, y = [], 0.0, 0.0
    for command, numbers in re.findall(r"([A-Za-z])([^A-Za-z]*)", d):
        values = [float(number) for number in re.findall(r"-?[\d.]+", numbers)]
        per = {"h": 1, "v": 1, "a": 7, "z": 0}.get(command.lower(), 2)
        for i in range(0, len(values), per or 1):
            *_, second, first = [0.0, *values[i : i + per]]
            start = (x, y) if command.islower() else (0.0, 0.0)
            if command.lower() == "h":
                x = start[0] + first
            elif command.lower() == "v":
                y = start[1] + first
            else:
                x, y = start[0] + second, start[1] + first
            if command.lower() == "m":
                parts.append([])
            parts[-1].append((x, y))
    return parts


def box(shape):
    """left, top, right, bottom"""
    across, upwards = zip(*shape, strict=True)
    return min(across), min(upwards), max(across), max(upwards)


def words(svg):
    return [" ".join(text.text.split()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@given(good_state)
@example(ExplorerState(weighting="snr", T=64, N=64))  # the cross of a dead step is wider than the step
def test_any_state_is_drawn_inside_its_axes(state):
    for svg in draw(compute(state)).values():
        assert "nan" not in svg
        assert "inf" not in svg
        for shape in shapes(svg, "pd-line"):
            left, top, right, bottom = box(shape)
            assert LEFT - 0.1 <= left <= right <= RIGHT + 0.1
            assert TOP - 0.1 <= top <= bottom <= BOTTOM + 0.1


def test_the_bars_are_the_shares():
    figures = compute(ExplorerState(N=8))
    bars = [box(bar) for bar in shapes(draw(figures)["share"], "pd-bar")]
    heights = torch.tensor([bottom - top for _, top, _, bottom in bars], dtype=torch.float64)
    assert torch.allclose(heights / heights.sum(), figures.share, atol=2e-3)
    assert len({round(right - left) for left, _, right, _ in bars}) == 1


def test_the_dead_step_of_the_notes_is_marked_over_its_own_stretch():
    svg = draw(compute(NOTES))["share"]
    (band,) = shapes(svg, "pd-band")
    assert box(band) == pytest.approx((LEFT + 0.75 * (RIGHT - LEFT), TOP, RIGHT, BOTTOM), abs=1.5)
    assert "dead: under 1 % of the fair share" in words(svg)
    assert shapes(draw(compute(ExplorerState()))["share"], "pd-band") == []


@pytest.mark.parametrize(("threshold", "dead"), [(0.01, False), (0.5, True)])
def test_a_threshold_decides_what_is_dead(threshold, dead):
    svg = draw(compute(ExplorerState(N=16, threshold=threshold)))["share"]
    assert bool(shapes(svg, "pd-band")) == dead


def test_the_stairs_pass_through_the_values_at_the_steps():
    figures = compute(ExplorerState(weighting="snr_plus_one", N=4, scale="linear"))
    (stairs,) = shapes(draw(figures)["weight"], "pd-used pd-thin")
    middles = LEFT + (figures.step_t - 0.5 / 4) * (RIGHT - LEFT)
    treads = list(pairwise(stairs))
    for middle, value in zip(middles.tolist(), figures.step_w.tolist(), strict=True):
        (height,) = {a[1] for a, b in treads if a[1] == b[1] and min(a[0], b[0]) < middle < max(a[0], b[0])}
        assert (BOTTOM - height) / (BOTTOM - stairs[-1][1]) == pytest.approx(value / figures.step_w[-1].item(), abs=0.1)


def test_a_clip_shows_both_curves():
    plain, clipped = (draw(compute(ExplorerState(clip_max=high)))["weight"] for high in (None, 5.0))
    assert not {"w, not clipped", "clipped"} & set(words(plain))
    assert {"w, not clipped", "clipped"} <= set(words(clipped))
    assert (len(shapes(plain, "pd-dashed")), len(shapes(clipped, "pd-dashed"))) == (0, 1)


@pytest.mark.parametrize(
    ("panel", "changes", "beyond"),
    [
        ("weight", {"weighting": "snr"}, "below"),  # 0 at t = 1, on a logarithmic axis
        ("weight", {"weighting": "snr", "scale": "linear"}, None),
        ("amplification", {}, "above"),  # infinite at t = 1
        ("amplification", {"schedule": "linear"}, None),
    ],
)
def test_what_is_off_the_axis_is_an_arrow_and_not_a_dot(panel, changes, beyond):
    *dots, last = shapes(draw(compute(ExplorerState(N=4, **changes)))[panel], "pd-dot")
    _, top, _, bottom = box(last)
    assert (bottom > BOTTOM + 5) == (beyond == "below")
    assert (top < TOP - 5) == (beyond == "above")
    assert all(box(dot)[1] == box(dot)[3] for dot in dots)  # a dot is two arcs at one height


@pytest.mark.parametrize("axis", ["t", "log_snr", "density"])
def test_other_figures_stay_behind_in_grey(axis):
    figures = compute(ExplorerState(axis=axis))
    frozen = compute(ExplorerState(N=4, weighting="snr", schedule="linear"))
    for name, svg in draw(figures, frozen).items():
        assert shapes(svg, "pd-frozen"), name
    assert not any(shapes(svg, "pd-frozen") for svg in draw(figures).values())


def test_every_panel_is_described_for_those_who_cannot_see_it():
    figures = compute(NOTES)
    for name, svg in draw(figures).items():
        assert ElementTree.fromstring(svg).get("role") == "img"
        assert sentences(figures)[name] in ElementTree.fromstring(svg).get("aria-label")


def test_the_picture_needs_nothing_from_outside():
    svg = picture(NOTES, compute(ExplorerState()))
    assert len(list(ElementTree.fromstring(svg).iter(f"{SVG}svg"))) == 6
    assert "var(" not in svg
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", svg)
    text = " ".join(words(svg))
    assert "1 of 4 steps gets 0.0 %" in text
    for part in to_query(NOTES).split("&"):
        assert part in text


def test_a_panel_is_one_entry(monkeypatch):
    panel = Panel(PANELS["share"].draw, lambda figures: f"{figures.state.N} steps")
    monkeypatch.setitem(PANELS, "another", panel)
    figures = compute(NOTES)
    assert sentences(figures)["another"] == "4 steps"
    assert shapes(draw(figures)["another"], "pd-band")
    assert "4 steps" in words(picture(NOTES))
