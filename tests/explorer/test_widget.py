from dataclasses import asdict
from io import BytesIO

import pytest
from matplotlib.image import imread

from pdlib.explorer import KNOBS, PANELS, PRESETS, ExplorerState, WeightingExplorer, picture

NOTES = PRESETS["The notes"]["4 steps"]


def test_the_state_is_a_trait_that_the_browser_and_python_may_set():
    explorer = WeightingExplorer(NOTES)
    assert explorer.state == NOTES
    explorer.settings = {**explorer.settings, "N": 4, "weighting": "snr", "clip_min": 1}  # as JavaScript writes 1.0
    assert explorer.state == ExplorerState(**{**asdict(NOTES), "weighting": "snr", "clip_min": 1.0})
    assert type(explorer.state.clip_min) is float


def test_a_link_opens_in_its_state_and_a_bad_one_says_what_is_wrong():
    assert WeightingExplorer.from_link("N=4&weighting=snr").state == ExplorerState(N=4, weighting="snr")
    assert WeightingExplorer.from_link().state == ExplorerState()
    with pytest.raises(ValueError, match="steps N cannot be 'three'"):
        WeightingExplorer.from_link("N=three")


def test_a_notebook_without_widgets_shows_the_picture_of_the_state():
    explorer = WeightingExplorer(NOTES)
    data, _ = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    pixels = imread(BytesIO(data["image/png"]))
    assert pixels.shape[1] >= 600
    assert pixels[..., :3].std() > 0.05
    assert data["image/png"] != WeightingExplorer()._repr_mimebundle_()[0]["image/png"]


def test_the_picture_has_each_share_and_a_band_for_the_dead_step():
    axes = picture(NOTES).axes
    assert [axis.get_title() for axis in axes] == list(PANELS.values())
    (shares,) = [patch for patch in axes[0].patches if hasattr(patch, "get_data")]
    assert shares.get_data().values.sum() == pytest.approx(100)
    (band,) = [patch for patch in axes[0].patches if not hasattr(patch, "get_data")]
    assert (band.get_x(), band.get_width()) == pytest.approx((0.75, 0.25))


def test_a_simple_form_has_what_it_is_asked_for():
    simple = WeightingExplorer(NOTES, knobs=["N", "clip_min"], panels=iter(["weight", "share"]))
    assert (simple.knobs, simple.panels) == (["N", "clip_min"], ["weight", "share"])
    whole = WeightingExplorer(NOTES)
    assert (whole.knobs, whole.panels) == (list(KNOBS), list(PANELS))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"knobs": ["n"]}, "knob='n' is unknown"), ({"panels": ["weights"]}, "panel='weights' is unknown")],
)
def test_an_unknown_knob_or_panel_is_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        WeightingExplorer(NOTES, **wrong)


def test_a_state_that_the_library_refuses_is_refused():
    with pytest.raises(ValueError, match=r"clip_min=5\.0 is above clip_max=1\.0"):
        WeightingExplorer(ExplorerState(clip_min=5.0, clip_max=1.0))
