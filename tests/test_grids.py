import copy
import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import generator

from pdlib.grids import Grid

sizes = st.integers(1, 2048)
# As many are missing as there are times, at most.
grids = sizes.flatmap(lambda N: st.builds(Grid, st.just(N), st.integers(0, min(N, 5))))


@given(sizes)
def test_the_times_run_from_1_over_n_to_1_exactly(N):
    t = Grid(N).times
    assert t.dtype == torch.float64
    assert (len(t), t[0], t[-1]) == (N, 1 / N, 1)
    assert t[0] - 1 / N == 0  # t'' of the lowest time is 0 to the last bit
    torch.testing.assert_close(t.diff(), torch.full((N - 1,), 1 / N, dtype=torch.float64), rtol=1e-9, atol=0)


@given(grids)
def test_what_is_missing_is_missing_at_the_top_and_nothing_else_is(grid):
    assert grid.times.tolist() == [i / grid.N for i in range(1, grid.N - grid.missing + 1)]


@given(grids.filter(lambda grid: len(grid.times) > 0), st.integers(1, 20), st.integers(0, 99))
def test_the_draws_are_those_of_the_first_edition_to_the_bit(grid, count, seed):
    one, other = generator(seed), generator(seed)
    i = torch.randint(grid.N - grid.missing, (count,), generator=other)
    expected = torch.arange(1, grid.N + 1, dtype=torch.float64)[i] / grid.N
    assert torch.equal(grid.draw(count, one), expected)
    assert torch.equal(one.get_state(), other.get_state())  # and it took no more from the generator


@pytest.mark.parametrize("grid", [Grid(1), Grid(7), Grid(32), Grid(2, missing=1), Grid(8, missing=1)])
def test_each_time_is_drawn_as_often_as_the_others(grid):
    n = len(grid.times)
    values, counts = grid.draw(n * 1000, generator()).unique(return_counts=True)
    assert torch.equal(values, grid.times)
    chi_square = ((counts - 1000) ** 2 / 1000).sum().item()  # of mean n − 1 and variance 2 (n − 1)
    assert chi_square <= n - 1 + 4 * (2 * (n - 1)) ** 0.5


@given(grids, st.integers(1, 4))
def test_a_walk_goes_down_the_times_to_0(grid, count):
    pairs = list(grid.walk(count))
    assert len(pairs) == len(grid.times)
    for i, (t, s) in zip(range(grid.N - grid.missing, 0, -1), pairs, strict=True):
        assert t.shape == s.shape == (count,)
        assert t.dtype == s.dtype == torch.float64
        assert t.tolist() == [i / grid.N] * count
        assert s.tolist() == [(i - 1) / grid.N] * count


def test_a_walk_is_where_it_is_asked_to_be():
    ((t, s),) = Grid(1).walk(2, "meta")
    assert t.device.type == s.device.type == "meta"


@given(grids)
def test_halving_keeps_every_second_time_and_what_is_missing(grid):
    if grid.N % 2 or grid.missing > grid.N // 2:
        with pytest.raises(ValueError, match=rf"steps={grid.N} is odd" if grid.N % 2 else "missing="):
            grid.halved()
        return
    half = grid.halved()
    assert (half.N, half.missing) == (grid.N // 2, grid.missing)
    assert set(half.times.tolist()) <= set(Grid(grid.N).times.tolist())  # t, t' and t'' are all the teacher's


@given(st.integers(1, 64), st.integers(0, 6), st.integers(0, 1))
def test_the_students_grids_are_halves_of_halves_down_to_the_end(end, halvings, missing):
    start = Grid(end * 2**halvings, missing)
    chain = start.down_to(end)
    assert [grid.N for grid in chain] == [end * 2**power for power in range(halvings - 1, -1, -1)]
    assert all(grid == before.halved() for before, grid in zip([start, *chain], chain, strict=False))
    assert all(grid.missing == missing for grid in chain)


@given(st.integers(1, 300), st.integers(-2, 300))
def test_a_chain_that_halving_does_not_lead_down_is_refused(N, end):
    if end in {N // 2**power for power in range(10) if N % 2**power == 0}:
        assert len(Grid(N).down_to(end)) == (N // end).bit_length() - 1
    else:
        with pytest.raises(ValueError, match=f"steps={N} cannot be halved down to end_steps={end}: .*power of two"):
            Grid(N).down_to(end)


@given(grids)
def test_a_grid_survives_json_copies_and_pickles(grid):
    assert Grid(**json.loads(json.dumps(grid.config()))) == grid
    assert pickle.loads(pickle.dumps(grid)) == copy.deepcopy(grid) == grid
    assert len({grid, Grid(grid.N, grid.missing)}) == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Grid(0), "steps=0: a sampler needs at least 1 step"),
        (lambda: Grid(-4), "steps=-4"),
        (lambda: Grid(2.5), "steps=2.5"),
        (lambda: Grid(float("nan")), "steps=nan"),
        (lambda: Grid(4, missing=5), "missing=5: of 4 times between 0 and 4 can be left out"),
        (lambda: Grid(4, missing=-1), "missing=-1"),
        (lambda: Grid(1, missing=1).draw(3, generator()), "missing=1 leaves no step to train at N = 1"),
    ],
)
def test_a_wrong_argument_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
