from dataclasses import replace

import pytest

from pdlib.explorer import PANELS, PRESETS, ExplorerState, WeightingExplorer, compute, draw, picture, to_query

NOTES = PRESETS["The notes"]["4 steps"]


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


def test_a_notebook_without_widgets_shows_the_picture():
    data, _ = WeightingExplorer(NOTES)._repr_mimebundle_()
    assert data["image/svg+xml"] == picture(NOTES)
    assert "application/vnd.jupyter.widget-view+json" in data


def test_a_simple_form_shows_what_it_is_asked_for():
    simple = WeightingExplorer(NOTES, knobs=["N", "clip_min"], panels=iter(["weight", "share"]))
    assert [knob["name"] for knob in simple.knobs] == ["N", "clip_min"]
    assert simple.presets == []
    assert list(simple.panels) == list(simple.said) == ["weight", "share"]
    simple.controls = {**simple.controls, "N": 8}
    assert simple.panels == {name: draw(compute(replace(NOTES, N=8)))[name] for name in ("weight", "share")}
    assert simple.picture() == picture(simple.state, names=["weight", "share"])
    whole = WeightingExplorer(NOTES)
    assert len(whole.knobs) == len(whole.controls)
    assert list(whole.panels) == list(PANELS)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"knobs": ["n"]}, "knob='n' is unknown"), ({"panels": ["weights"]}, "panel='weights' is unknown")],
)
def test_an_unknown_knob_or_panel_is_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        WeightingExplorer(NOTES, **wrong)


def test_a_state_without_a_picture_is_refused():
    with pytest.raises(ValueError, match=r"divides by α = 0"):
        WeightingExplorer(ExplorerState(prediction="eps"))
