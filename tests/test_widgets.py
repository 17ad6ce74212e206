import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from strategies import good_state

from pdlib.explorer import PRESETS, ExplorerState, compute, sentences, to_query
from pdlib.widgets import BOTTOM, LEFT, PANELS, RIGHT, TOP, WeightingExplorer, draw, picture

NOTES = PRESETS["The notes"]["4 steps"]
SVG = "{http://www.w3.org/2000/svg}"


def paths(svg, kind):
    """The d of the drawn paths of a class, the legend's samples left out."""
    found = [p.get("d") for p in ElementTree.fromstring(svg).iter(f"{SVG}path") if p.get("class") == kind]
    return [d for d in found if ",33h18" not in d and ",28h18" not in d]


def bars(svg, kind):
    """(left, top, right) of each bar."""
    (d,) = paths(svg, kind)
    return [tuple(map(float, bar)) for bar in re.findall(r"M([\d.]+),198V([\d.]+)H([\d.]+)V198Z", d)]


@given(good_state)
def test_any_state_is_drawn_inside_its_axes(state):
    for svg in draw(compute(state)).values():
        ElementTree.fromstring(svg)
        assert "nan" not in svg
        assert "inf" not in svg
        for d in re.findall(r'class="pd-line[^"]*" d="(M[^"]*)"', svg):
            if "l8,8" in d or "h18" in d:
                continue
            points = [part for part in re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", d)]
            across = [float(x) for x, _ in points] + [float(x) for x in re.findall(r"H(-?[\d.]+)", d)]
            upwards = [float(y) for _, y in points] + [float(y) for y in re.findall(r"V(-?[\d.]+)", d)]
            assert LEFT - 0.1 <= min(across) <= max(across) <= RIGHT + 0.1
            assert TOP - 0.1 <= min(upwards) <= max(upwards) <= BOTTOM + 0.1


def test_the_bars_are_the_shares():
    figures = compute(ExplorerState(N=8))
    found = bars(draw(figures)["share"], "pd-bar")
    heights = torch.tensor([BOTTOM - top for _, top, _ in found], dtype=torch.float64)
    assert torch.allclose(heights / heights.sum(), figures.share, atol=2e-3)
    widths = {round(right - left) for left, _, right in found}
    assert len(widths) == 1


def test_the_dead_step_of_the_notes_is_marked_over_its_own_stretch():
    svg = draw(compute(NOTES))["share"]
    ((left, top, right),) = bars(svg, "pd-band")
    assert left == pytest.approx(LEFT + 0.75 * (RIGHT - LEFT), abs=1.5)
    assert right == pytest.approx(RIGHT, abs=1.5)
    assert top == TOP
    assert "dead: under 1 % of the fair share" in svg
    assert "pd-band" not in draw(compute(ExplorerState()))["share"]


@pytest.mark.parametrize(("threshold", "bands"), [(0.01, 0), (0.5, 1)])
def test_a_threshold_decides_what_is_dead(threshold, bands):
    svg = draw(compute(ExplorerState(N=16, threshold=threshold)))["share"]
    assert len(paths(svg, "pd-band")) == bands


def test_the_stairs_pass_through_the_values_at_the_steps():
    figures = compute(ExplorerState(weighting="snr_plus_one", N=4, scale="linear"))
    (d,) = paths(draw(figures)["weight"], "pd-line pd-used pd-thin")
    treads = [float(height) for height in re.findall(r"V([\d.]+)H", d)]
    heights = torch.tensor([BOTTOM - height for height in treads], dtype=torch.float64)
    assert torch.allclose(heights / heights[-1], figures.step_w / figures.step_w[-1], atol=0.1)


def test_a_clip_shows_both_curves():
    plain, clipped = (draw(compute(ExplorerState(clip_max=high)))["weight"] for high in (None, 5.0))
    assert "pd-dashed" not in plain
    assert "w, not clipped" in clipped
    assert ">clipped<" in clipped


def test_a_weight_of_0_on_a_log_axis_is_an_arrow_and_not_a_dot():
    svg = draw(compute(ExplorerState(weighting="snr", N=4)))["weight"]
    assert (svg.count("l6,11l6,-11Z"), svg.count("a3,3 0 1,0 6,0")) == (1, 3)
    svg = draw(compute(ExplorerState(weighting="snr", N=4, scale="linear")))["weight"]
    assert (svg.count("l6,11l6,-11Z"), svg.count("a3,3 0 1,0 6,0")) == (0, 4)


def test_what_is_infinite_is_an_arrow_and_not_a_dot():
    finite, infinite = (
        draw(compute(ExplorerState(N=4, schedule=name)))["amplification"] for name in ("linear", "cosine")
    )
    assert [("l6,-11l6,11Z" in svg, svg.count("a3,3 0 1,0 6,0")) for svg in (finite, infinite)] == [
        (False, 4),
        (True, 3),
    ]


@pytest.mark.parametrize("axis", ["t", "log_snr", "density"])
def test_other_figures_stay_behind_in_grey(axis):
    figures = compute(ExplorerState(axis=axis))
    frozen = compute(ExplorerState(N=4, weighting="snr", schedule="linear"))
    for name, svg in draw(figures, frozen).items():
        assert svg.count("pd-frozen") >= 1, name
        assert svg.index("pd-frozen") < svg.index('class="pd-axis"')
    assert all("pd-frozen" not in svg for svg in draw(figures).values())


def test_every_panel_is_described_for_those_who_cannot_see_it():
    figures = compute(NOTES)
    for name, svg in draw(figures).items():
        assert ElementTree.fromstring(svg).get("role") == "img"
        assert sentences(figures)[name] in ElementTree.fromstring(svg).get("aria-label")


def test_the_picture_needs_nothing_from_outside():
    svg = picture(NOTES, compute(ExplorerState()))
    root = ElementTree.fromstring(svg)
    assert len(list(root.iter(f"{SVG}svg"))) == 6
    assert "var(" not in svg
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", svg)
    text = " ".join(t.text for t in root.iter(f"{SVG}text"))
    assert "1 of 4 steps gets 0.0 %" in " ".join(text.split())
    for part in to_query(NOTES).split("&"):
        assert part in text


# The widget, without a browser.


def test_a_knob_turned_changes_the_panels():
    explorer = WeightingExplorer()
    before = explorer.panels
    explorer.controls = {**explorer.controls, "N": 4, "weighting": "snr"}
    assert explorer.state == ExplorerState(N=4, weighting="snr")
    assert explorer.panels == draw(compute(explorer.state)) != before
    assert explorer.said["share"].startswith("at N = 4, 1 of 4 steps")
    assert "--set weighting=snr" in explorer.lines["command"]
    assert explorer.lines["query"] == to_query(explorer.state)


@pytest.mark.parametrize(
    ("knobs", "at"),
    [
        ({"clip_min": 5, "clip_max": 1}, ["clip_min", "clip_max"]),
        ({"prediction": "eps"}, ["prediction"]),
        ({"T": 3}, ["N", "T"]),
        ({"T": ""}, ["T"]),
        ({"N": 2.5}, ["N"]),
        ({"weighting": {"nested": []}}, ["weighting"]),
        ({"os.system": "ls"}, [""]),
    ],
)
def test_a_bad_knob_is_named_and_the_last_good_picture_stays(knobs, at):
    explorer = WeightingExplorer(NOTES)
    before = explorer.panels, explorer.said, explorer.lines
    explorer.controls = {**explorer.controls, **knobs}
    assert list(explorer.problems) == at
    assert (explorer.panels, explorer.said, explorer.lines) == before
    assert explorer.state == NOTES
    explorer.controls = {**WeightingExplorer().controls}
    assert explorer.problems == {}
    assert explorer.state == ExplorerState()


def test_compare_freezes_what_is_drawn_and_lets_it_go():
    explorer = WeightingExplorer()
    explorer.compare = True
    explorer.controls = {**explorer.controls, "N": 4}
    assert explorer.panels == draw(compute(ExplorerState(N=4)), compute(ExplorerState()))
    explorer.compare = False
    assert explorer.panels == draw(compute(ExplorerState(N=4)))


def test_a_link_opens_in_its_state_and_a_bad_one_says_so(monkeypatch):
    explorer = WeightingExplorer.from_link("N=4&weighting=snr")
    assert explorer.state == ExplorerState(N=4, weighting="snr")
    assert (explorer.notice, explorer.on_page) == ("", False)
    assert WeightingExplorer.from_link("theme=dark&N=4").state == ExplorerState(N=4)  # the page's own word
    monkeypatch.setenv("QUERY_STRING", "N=three")
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0")
    explorer = WeightingExplorer.from_link()
    assert explorer.state == ExplorerState()
    assert "steps N: 'three' is not a whole number" in explorer.notice
    assert explorer.on_page


def test_the_picture_is_sent_to_who_asks_for_it(monkeypatch):
    explorer, sent = WeightingExplorer(NOTES), []
    monkeypatch.setattr(explorer, "send", sent.append)
    explorer._handle_custom_msg("picture", [])
    explorer._handle_custom_msg({"code": "1 + 1"}, [])
    assert sent == [{"picture": picture(NOTES)}]


def test_a_notebook_without_widgets_shows_the_picture():
    data, _ = WeightingExplorer(NOTES)._repr_mimebundle_()
    assert data["image/svg+xml"] == picture(NOTES)
    assert "application/vnd.jupyter.widget-view+json" in data


def test_a_simple_form_shows_what_it_is_asked_for():
    simple = WeightingExplorer(NOTES, knobs=["N", "clip_min"], panels=["weight", "share"])
    assert [knob["name"] for knob in simple.knobs] == ["N", "clip_min"]
    assert simple.presets == []
    assert list(simple.panels) == list(simple.said) == ["weight", "share"]
    simple.controls = {**simple.controls, "N": 8}
    assert simple.panels == {name: draw(compute(replace(NOTES, N=8)))[name] for name in ("weight", "share")}
    assert len(list(ElementTree.fromstring(simple.picture()).iter(f"{SVG}svg"))) == 3
    whole = WeightingExplorer(NOTES)
    assert len(whole.knobs) == len(whole.controls)
    assert list(whole.panels) == list(PANELS)


@pytest.mark.parametrize("wrong", [{"knobs": ["n"]}, {"panels": ["weights"]}])
def test_an_unknown_knob_or_panel_is_named(wrong):
    ((name,),) = wrong.values()
    with pytest.raises(ValueError, match=f"there is no '{name}'"):
        WeightingExplorer(NOTES, **wrong)


def test_a_state_without_a_picture_is_refused():
    with pytest.raises(ValueError, match=r"divides by α = 0"):
        WeightingExplorer(ExplorerState(prediction="eps"))
