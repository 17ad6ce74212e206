import numpy as np
import pytest
from tiny_run import TINIEST, TINY

from pdlib.runs.run import execute


@pytest.fixture(scope="session")
def whole(tmp_path_factory, own_cache):
    """A tiny run of digits that was never interrupted, without a report."""
    return execute(folder=tmp_path_factory.mktemp("runs") / "whole", progress=False, **TINY)


@pytest.fixture(scope="session")
def points(tmp_path_factory):
    """The tiniest run, of labelled points in a file beside it, and with a student."""
    folder = tmp_path_factory.mktemp("points")
    random = np.random.default_rng(0)
    np.savez(folder / "x.npz", x=random.normal(size=(200, 2)).clip(-2, 2), y=random.integers(2, size=200))
    return execute(folder=folder / "run", progress=False, data=folder / "x.npz", **TINIEST)
