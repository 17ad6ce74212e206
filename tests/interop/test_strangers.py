import pytest
import torch
from interop.small_models import write
from interop.strangers import DDIMScheduler, Folder, diagnosed, fill, folders, network, spoiled

from pdlib.interop.diagnosis import CULPRITS, diagnose_folder


def test_forty_folders_with_one_known_mistake_or_none():
    """The thresholds were set on networks of seeds 0: these are others."""
    wrong, all_of_them = {}, folders(seed=2)
    for name, folder in all_of_them.items():
        found = tuple(finding.culprit for finding in diagnosed(folder))
        if found != folder.expected:
            wrong[name] = found
    assert wrong == {}
    assert len(all_of_them) == 40
    assert {culprit for folder in all_of_them.values() for culprit in folder.expected} == {*CULPRITS}


def test_each_finding_gives_the_figure_and_the_line_that_mends_it(tmp_path):
    write(tmp_path, "v_prediction", timestep_spacing="leading", set_alpha_to_one=False)
    top, terminal, last = diagnose_folder(tmp_path, steps=4)
    assert (top.culprit, top.line) == ("wrong top time", '"timestep_spacing": "trailing"')
    assert "asks first at timestep 750, where α = 0.057, and not at 999" in str(top)
    assert str(top).endswith('In its config: "timestep_spacing": "trailing"')
    assert (terminal.figure, terminal.line) == (pytest.approx(0.00635, rel=1e-2), "")  # no line mends it: training does
    assert (last.figure, last.line) == (pytest.approx(0.01, rel=1e-2), '"set_alpha_to_one": true')


def test_mended_as_it_says_a_folder_is_healthy(tmp_path):
    write(
        tmp_path, "v_prediction", timestep_spacing="trailing", set_alpha_to_one=True, rescale_betas_zero_snr=True
    )  # fmt: skip
    assert diagnose_folder(tmp_path) == []


def test_weights_that_are_no_numbers_are_counted():
    folder = Folder(spoiled(network(), fill(torch.nan)), DDIMScheduler(), images=False)
    (finding,) = [found for found in diagnosed(folder) if found.culprit == "weights"]
    assert finding.figure == network().conv_out.weight.numel()
