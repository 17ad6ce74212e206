import hypothesis
import pytest
import torch

# The same examples every time: a commit that passes here passes everywhere.
hypothesis.settings.register_profile("pdlib", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("pdlib")

# The tests' tensors are small: a second thread would only wait for the first, and for all else that runs here.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Feature networks are kept with the tests' files, not in the user's home; one thread for what is started here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PDLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def browser():
    """A headless browser. No longer than a module: while it runs, asyncio.run is not for anything else."""
    from browser import chromium

    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, own_cache):
    """A finished run of the smoke preset with its report, made by the command."""
    from pdlib.runs import cli, load_run

    folder = tmp_path_factory.mktemp("runs") / "smoke"
    assert cli.main(["run", "--preset", "smoke", "--folder", str(folder)]) == 0
    return load_run(folder)


def pytest_collection_modifyitems(items):
    """What takes minutes comes first, for each of two processes, so that neither waits for the other in the end."""
    slow = [item for item in items if "that_trains_runs_on_smoke" in item.name]
    others = [item for item in items if item not in slow]
    half = len(others) // 2
    items[:] = slow[::2] + others[:half] + slow[1::2] + others[half:]
