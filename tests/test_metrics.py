import math
import multiprocessing
import shutil
import warnings

import pytest
import torch
from torch import nn

from pdlib import plots
from pdlib.data import Data, load_data
from pdlib.files import read_tensors, write_tensors
from pdlib.metrics import (
    METRICS,
    Metric,
    feature_network,
    features,
    frechet_distance,
    jackknife_error,
    kernel_distance,
    measure,
    precision,
    recall,
    sampling_floor,
    sliced_wasserstein,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean, covariance, count=100, seed=0):
    """Points whose sample mean and sample covariance are exactly these."""
    x = noise(count, len(mean), seed=seed)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.mT.cov()), x.mT, upper=False)
    return mean + (torch.linalg.cholesky(covariance) @ white).mT


# Fréchet distance.


def test_the_frechet_distance_is_that_of_two_gaussians():
    # On common axes it is ‖Δμ‖² + Σ (√a − √b)²; both covariances are turned by the same 30°.
    turn = torch.tensor([[3**0.5, -1.0], [1.0, 3**0.5]], dtype=torch.float64) / 2
    one, other = (turn @ torch.diag(v) @ turn.mT for v in torch.tensor([[4.0, 1.0], [0.25, 9.0]]).double())
    shift = torch.tensor([0.6, -0.8], dtype=torch.float64)
    found = frechet_distance(with_moments(torch.zeros(2), one), with_moments(shift, other, count=70, seed=1))
    assert found == pytest.approx(1 + (2 - 0.5) ** 2 + (1 - 3) ** 2, rel=1e-10)


def test_the_frechet_distance_is_right_for_covariances_that_do_not_commute():
    # 2×2: tr (AB)^½ = √(tr AB + 2 √(det AB)), by Cayley and Hamilton.
    one = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    other = torch.tensor([[1.0, -0.7], [-0.7, 3.0]], dtype=torch.float64)
    product = one @ other
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = one.trace() + other.trace() - 2 * root
    zero = torch.zeros(2).double()
    found = frechet_distance(with_moments(zero, one), with_moments(zero, other, seed=1))
    assert found == pytest.approx(expected.item(), rel=1e-10)


def test_the_frechet_distance_of_a_set_to_itself_is_0_in_any_order():
    x = noise(50, 3).float()
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-5)


def test_the_frechet_distance_is_biased_upwards_and_less_with_more_examples():
    def mean_distance(count):
        return sum(frechet_distance(noise(count, 3, seed=i), noise(count, 3, seed=i + 100)) for i in range(20)) / 20

    few, many = mean_distance(50), mean_distance(400)
    assert few > many > 0
    assert few / many == pytest.approx(8, rel=0.3)  # as 1/n


# Kernel distance.


def kernel(a, b):
    return (a @ b.mT / a.shape[1] + 1) ** 3


def test_the_kernel_distance_of_one_whole_subset_is_the_unbiased_estimate():
    real, fake = noise(20, 4), noise(20, 4, seed=1) + 0.5
    within = sum(kernel(x, x).fill_diagonal_(0).sum() / (20 * 19) for x in (real, fake))
    expected = within - 2 * kernel(real, fake).mean()
    found = kernel_distance(real, fake, subsets=1, subset_size=20)
    assert found == pytest.approx(expected.item(), rel=1e-10)


def test_the_kernel_distance_of_shifted_normals_is_the_difference_of_their_first_three_moments():
    # In one dimension the kernel is 1 + 3ab + 3a²b² + a³b³, so MMD² = 3 (Δm₁)² + 3 (Δm₂)² + (Δm₃)².
    # N(δ, 1) has m₁ = δ, m₂ = 1 + δ², m₃ = δ³ + 3 δ.
    delta = 1.0
    expected = 3 * delta**2 + 3 * delta**4 + (delta**3 + 3 * delta) ** 2
    values = [
        kernel_distance(noise(1000, 1, seed=i), noise(1000, 1, seed=i + 50) + delta, subsets=1) for i in range(10)
    ]
    mean, error = torch.tensor(values).mean(), torch.tensor(values).std() / 10**0.5
    assert abs(mean - expected) < 3 * error
    assert error < 0.1 * expected


def test_the_kernel_distance_of_equal_distributions_is_0_on_average_and_negative_half_the_time():
    values = torch.tensor([kernel_distance(noise(100, 3, seed=i), noise(100, 3, seed=i + 500)) for i in range(100)])
    assert abs(values.mean()) < 3 * values.std() / 10
    assert 20 < (values < 0).sum() < 80


def test_the_kernel_distance_draws_its_subsets_from_its_seed_alone():
    real, fake = noise(300, 3), noise(200, 3, seed=1)
    torch.manual_seed(1)
    one = kernel_distance(real, fake, subsets=3, subset_size=50)
    assert torch.initial_seed() == 1
    torch.manual_seed(2)
    assert kernel_distance(real, fake, subsets=3, subset_size=50) == one
    assert kernel_distance(real, fake, subsets=3, subset_size=50, seed=1) != one


def test_both_distances_are_those_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Given(nn.Identity):  # features that are computed already
        num_features = 4

    real, fake = noise(300, 4), 0.5 * noise(200, 4, seed=1) + 0.3
    frechet = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    with warnings.catch_warnings(action="ignore"):
        kernel = KernelInceptionDistance(feature=Given(), subsets=5, subset_size=60)
    for metric in (frechet, kernel):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    assert frechet_distance(real, fake) == pytest.approx(frechet.compute().item(), rel=1e-6)  # they keep float32 sums
    torch.manual_seed(3)
    assert kernel_distance(real, fake, 5, 60, seed=3) == pytest.approx(kernel.compute()[0].item(), rel=1e-10)


# Sliced Wasserstein distance.


def test_the_sliced_wasserstein_distance_of_a_shift_in_one_dimension_is_the_shift():
    x = noise(500, 1)
    assert sliced_wasserstein(x, x + 0.7) == pytest.approx(0.7, rel=1e-12)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)])
def test_the_sliced_wasserstein_distance_of_a_shift_is_its_length_over_the_root_of_the_dimension(shape):
    x, shift = noise(20, *shape), noise(*shape, seed=1)
    expected = shift.norm().item() / math.prod(shape) ** 0.5  # the mean square of one coordinate of a direction is 1/d
    assert sliced_wasserstein(x, x + shift, projections=3000) == pytest.approx(expected, rel=0.03)
    assert sliced_wasserstein(x, x + 2 * shift) == pytest.approx(2 * sliced_wasserstein(x, x + shift), rel=1e-10)


def test_the_sliced_wasserstein_distance_of_a_stretch_is_the_growth_of_the_deviation():
    # Quantiles of 3x are 3 times those of x, so the distance is 2 √E[x²]: 2 for standard normal x.
    x = noise(20_000, 1)
    assert sliced_wasserstein(x, 3 * x) == pytest.approx(2, rel=0.02)


def test_the_sliced_wasserstein_distance_ignores_the_order_and_the_number_of_points():
    x = noise(200, 2)
    assert sliced_wasserstein(x, x.flip(0)) == 0
    assert sliced_wasserstein(x, x.repeat(3, 1)) < 0.05
    assert sliced_wasserstein(x, x + 1, seed=0) != sliced_wasserstein(x, x + 1, seed=1)


# Precision and recall.


def shares(real, fake, k=3):
    """Precision and recall by their definition, of features that are whole numbers: their squares are exact."""

    def share(points, examples):
        squares, others = [(x[:, None] - examples).square().sum(2) for x in (points, examples)]
        nearest = [row[torch.arange(len(row)) != i].sort().values for i, row in enumerate(others)]
        reach = torch.stack([row[k - 1] for row in nearest])
        return (squares <= reach).any(1).double().mean().item()

    return share(fake, real), share(real, fake)


@pytest.mark.parametrize(("count", "others", "k"), [(20, 20, 3), (9, 30, 1), (40, 41, 5), (700, 800, 3)])
def test_precision_and_recall_are_their_definition_also_where_distances_are_equal(count, others, k):
    for scale in (1, 3):  # many equal examples, and few
        real, fake = (noise(count, 3) * scale).round(), (noise(others, 3, seed=1) * scale + 2).round()
        expected = shares(real, fake, k)
        assert 0 < min(expected) < 1
        assert (precision(real, fake, k), recall(real, fake, k)) == expected


def test_equal_sets_have_precision_and_recall_1_and_sets_far_apart_0():
    x = noise(60, 64).float()
    assert (precision(x, x.flip(0)), recall(x, x.flip(0))) == (1, 1)
    assert (precision(x, x + 100), recall(x, x + 100)) == (0, 0)
    far, again = x + 100, (x + 100).repeat(4, 1)  # each reaches no farther than its three equals, that is 0
    assert (precision(far, again), recall(far, again)) == (1, 1)
    assert (precision(again, again), recall(again, again.repeat(20, 1))) == (1, 1)
    assert recall(again + 1e-5, again) == 0


def test_who_makes_half_of_the_data_has_full_precision_and_half_the_recall():
    def two_heaps(seed):
        return noise(1000, 2, seed=seed) + 100 * (torch.arange(1000) % 2)[:, None]

    real, half = two_heaps(0), two_heaps(1)[::2]
    assert precision(real, half) > 0.95
    assert 0.45 < recall(real, half) <= 0.5
    both_and_more = torch.cat([two_heaps(1), noise(1000, 2, seed=2) - 1000])
    assert 0.45 < precision(real, both_and_more) <= 0.5
    assert recall(real, both_and_more) > 0.95


def test_of_more_real_than_generated_examples_as_many_count():
    real, fake = noise(3000, 2), noise(100, 2, seed=1)
    pairs = [(noise(100, 2, seed=i), noise(100, 2, seed=i + 50)) for i in range(2, 40)]
    for share in (precision, recall):
        of_equal_numbers = torch.tensor([share(*pair) for pair in pairs])
        assert abs(share(real, fake) - of_equal_numbers.mean()) < 3 * of_equal_numbers.std()
        assert share(real, fake) == share(real, fake)
    assert precision(real, fake) < 1  # that of all 3,000


@pytest.mark.parametrize("count", [1, 2, 3])
def test_examples_without_three_others_reach_everywhere(count):
    few, many = noise(count, 2), noise(20, 2, seed=1) + 50
    assert (precision(few, many), recall(few, many), recall(few, few + 50)) == (1, 0, 1)


def test_precision_and_recall_are_the_same_bits_in_any_order_and_on_any_number_of_threads():
    real, groups = noise(300, 8).float(), list(noise(400, 8, seed=1).float().split(100))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            estimates = measure(nn.Flatten(), real.flip(0) if count == 2 else real, groups)
            found.append([estimates[name] for name in ("precision", "recall")])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


@pytest.mark.parametrize(("real", "used"), [(1500, 1500), (3000, 2000)])
def test_precision_and_recall_hold_few_distances_at_a_time_and_of_real_data_no_more_than_of_others(
    monkeypatch, real, used
):
    sizes, cdist = [], torch.cdist
    monkeypatch.setattr(
        torch, "cdist", lambda *x, **options: (sizes.append(len(x[0]) * len(x[1])), cdist(*x, **options))[1]
    )
    measure(nn.Flatten(), noise(real, 2), list(noise(2000, 2, seed=1).split(500)))
    assert max(sizes) <= 2**18
    assert sum(sizes) == used**2 + 2000**2 + 2 * used * 2000  # each once, with the groups that are left out


@pytest.mark.parametrize(("name", "too_large"), [("precision", 1.3), ("recall", 1.8)])
def test_the_jackknife_is_of_the_size_of_the_scatter_and_of_recall_on_the_safe_side(name, too_large):
    real, ratios = noise(400, 4), []
    for width in (0.8, 1.0):
        drawn = [list((width * noise(800, 4, seed=seed)).split(80)) for seed in range(1, 41)]
        found = torch.tensor([METRICS[name].of_groups(real, groups) for groups in drawn], dtype=torch.float64)
        scatter, errors = found[:, 0].std().item(), [jackknife_error(values[1:].tolist()) for values in found]
        ratios.append(sum(errors) / len(errors) / scatter)
    assert 0.75 < min(ratios) < max(ratios) < too_large


# All of them together.


def test_measuring_reports_the_value_of_all_groups_and_the_jackknife_over_them():
    real, groups = noise(150, 2), [noise(40, 2, seed=i) + 0.3 for i in range(1, 6)]
    found = measure(nn.Flatten(), real, groups)
    assert set(found) == {"frechet_distance", "kernel_distance", "sliced_wasserstein", "precision", "recall"}
    for name, estimate in found.items():
        distance = METRICS[name].distance
        left_out = [distance(real, torch.cat([g for g in groups if g is not left])) for left in groups]
        mean = sum(left_out) / 5
        assert estimate.value == distance(real, torch.cat(groups))
        assert estimate.left_out == left_out
        expected = math.sqrt(4 / 5 * sum((value - mean) ** 2 for value in left_out))
        assert estimate.standard_error == pytest.approx(expected)
        assert estimate.standard_error > 0


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = noise(20)
    left_out = [(x.sum() - value).item() / 19 for value in x]
    assert jackknife_error(left_out) == pytest.approx(x.std().item() / 20**0.5, rel=1e-10)


def test_sliced_wasserstein_compares_the_data_and_all_others_features():
    network, real, fake = nn.Linear(2, 3).double(), noise(200, 2), noise(100, 2, seed=1)
    found = {name: estimate.value for name, estimate in measure(network, real, list(fake.split(50))).items()}
    of_features = [features(network, x) for x in (real, fake)]
    assert found == {
        "frechet_distance": frechet_distance(*of_features),
        "kernel_distance": kernel_distance(*of_features),
        "sliced_wasserstein": sliced_wasserstein(real, fake),
        "precision": precision(*of_features),
        "recall": recall(*of_features),
    }


def test_features_are_the_same_in_batches_of_any_size():
    network, x = nn.Linear(2, 3).double(), noise(10, 2)
    assert features(network, x, batch_size=10).shape == (10, 3)
    torch.testing.assert_close(features(network, x, batch_size=3), network(x).detach())
    assert not features(network, x).requires_grad


def test_the_floor_is_what_draws_from_the_data_themselves_score():
    real = noise(500, 2)
    found = sampling_floor(nn.Flatten(), real, groups=4, size=100)
    again, other = (sampling_floor(nn.Flatten(), real, groups=4, size=100, seed=seed) for seed in (0, 1))
    assert found == again != other
    away = measure(nn.Flatten(), real, [noise(100, 2, seed=i) + 0.5 for i in range(4)])
    for name, estimate in found.items():
        assert len(estimate.left_out) == 4
        if METRICS[name].better == "lower":
            assert estimate.value < 0.3 * away[name].value
        else:
            assert 0.9 < estimate.value <= 1
    # More images, a lower floor: the Fréchet distance of n draws falls as 1/n.
    more = sampling_floor(nn.Flatten(), real, groups=4, size=2500)
    assert more["frechet_distance"].value < 0.2 * found["frechet_distance"].value


def test_the_floor_draws_nothing_but_the_data(monkeypatch):
    real = torch.arange(10.0)[:, None]
    probes = {
        "count": lambda real, fake: float(len(fake)),
        "foreign": lambda real, fake: float((~torch.isin(fake, real)).sum()),
        "missing": lambda real, fake: float((~torch.isin(real, fake)).sum()),
        "mean": lambda real, fake: fake.mean().item(),
    }
    for name, probe in probes.items():
        monkeypatch.setitem(METRICS, name, Metric(probe, False, name))
    found = sampling_floor(nn.Flatten(), real, groups=3, size=1000)
    assert (found["count"].value, found["count"].left_out) == (3000, [2000] * 3)
    assert (found["foreign"].value, found["missing"].value) == (0, 0)
    assert len(set(found["mean"].left_out)) == 3  # each group has draws of its own


def test_a_metric_from_outside_is_one_entry_and_is_measured_and_plotted(monkeypatch):
    monkeypatch.setitem(
        METRICS, "shift", Metric(lambda real, fake: (real.mean() - fake.mean()).abs().item(), True, "far")
    )
    real = noise(40, 2)
    found = measure(lambda x: 2 * x, real, [real[:20] + 1, real[20:] + 1])
    assert found["shift"].value == pytest.approx(2)
    stored = {"curves": {"ddim": {"1": {"shift": [2, 0.1]}, "2": {"shift": [1, 0.1]}}}, "floor": {"shift": [0.1, 0.01]}}
    assert plots.plot_quality(stored, "shift").axes[0].get_ylabel().startswith("far to real data")


# The network whose features are compared.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PDLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def digits():
    data = load_data("digits")
    return Data("digits", data.x[:256], data.labels[:256])


def quick(data, updates=3):
    return feature_network(data, updates=updates, progress=False)


def test_the_feature_network_is_trained_the_same_way_every_time_and_kept(cache, digits):
    torch.manual_seed(1)
    first = features(quick(digits), digits.x)
    (path,) = cache.iterdir()
    path.unlink()
    torch.manual_seed(2)
    assert torch.equal(features(quick(digits), digits.x), first)
    tensors, about = read_tensors(path)
    write_tensors(path, tensors | {"deviation": tensors["deviation"] * 2}, about)  # what is kept is what is used
    torch.testing.assert_close(features(quick(digits), digits.x), first / 2)


def test_a_damaged_cache_or_a_network_for_other_data_is_trained_again(cache, digits):
    first = features(quick(digits), digits.x)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    assert torch.equal(features(quick(digits), digits.x), first)
    quick(Data("other", digits.x, digits.labels.flip(0)))
    (other,) = set(cache.iterdir()) - {path}
    shutil.copy(other, path)
    assert torch.equal(features(quick(digits), digits.x), first)


def test_a_cache_that_cannot_be_written_is_told_once_and_done_without(tmp_path, monkeypatch, digits):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PDLIB_CACHE", str(tmp_path / "file" / "cache"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        first, again = (features(quick(digits), digits.x) for _ in range(2))
    assert torch.equal(first, again)
    (message,) = (str(warning.message) for warning in told)
    assert f"cannot be kept in {tmp_path / 'file' / 'cache'} (Not a directory)" in message
    assert "set PDLIB_CACHE" in message


def train_often(cache, digits):
    for _ in range(30):
        for path in cache.glob("*.safetensors"):
            path.unlink(missing_ok=True)
        quick(digits, updates=1)


def test_two_processes_may_write_one_cache(cache, digits):
    few = Data("digits", digits.x[:16], digits.labels[:16])
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train_often, args=(cache, few)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(cache.iterdir())) == 1


def test_other_data_labels_or_updates_have_a_network_of_their_own(cache, digits):
    quick(digits)
    quick(digits, updates=4)
    quick(Data("other", digits.x + 0.01, digits.labels))
    quick(Data("other", digits.x, (digits.labels + 1) % 10))
    assert len(list(cache.iterdir())) == 4


def test_features_are_centred_and_of_mean_variance_1_over_the_data(cache, digits):
    found = features(quick(digits, updates=20), digits.x)
    torch.testing.assert_close(found.mean(0), torch.zeros(64), atol=1e-4, rtol=0)
    assert found.var(0).mean().item() == pytest.approx(1, rel=1e-3)


def test_training_teaches_the_network_to_tell_the_classes(cache, digits):
    network = quick(digits, updates=150)
    right = network.classify(network.hidden(digits.x)).argmax(1) == digits.labels
    assert right.float().mean() > 0.8
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(("shape", "turns"), [((1, 8, 8), 4), ((3, 8, 4), 2)])
def test_without_labels_the_classes_are_the_turns_that_keep_the_shape(cache, shape, turns):
    data = Data("unlabelled", noise(40, *shape).float())
    network = quick(data)
    assert network(data.x).shape == (40, 64)
    assert network.classify.out_features == {4: 4, 2: 3}[turns]  # numbered by quarter turns: 0 … 3, or 0 and 2


def test_a_single_class_teaches_no_more_than_none(cache):
    x = noise(40, 1, 8, 8).float()
    one, none = quick(Data("one class", x, torch.zeros(40).long())), quick(Data("unlabelled", x))
    assert torch.equal(one(x), none(x))


def test_images_that_are_all_the_same_have_finite_distances(cache):
    x = torch.zeros(20, 1, 8, 8)
    found = measure(quick(Data("constant", x, torch.arange(20) % 2)), x, [x[:10], x[10:]])
    assert {name: estimate.value for name, estimate in found.items()} == {
        name: 1 if metric.better == "higher" else 0 for name, metric in METRICS.items()
    }


def test_the_features_of_points_are_the_points(cache):
    x = noise(5, 2).float()
    assert torch.equal(quick(Data("points", x))(x), x)
    assert not cache.exists()
