"""Every method as it is used: learned, resumed, saved, sampled, refused."""

from dataclasses import replace

import pytest
import torch
from tiny import COSINE, Interrupted, PerClass, noise, same_weights, tiny
from torch.utils.flop_counter import FlopCounterMode

from pdlib import plots
from pdlib.denoiser import Denoiser, jump
from pdlib.grids import Grid
from pdlib.methods import METHODS, Method, learn, make_method
from pdlib.networks import UNet
from pdlib.runs import report
from pdlib.runs.run import execute, load_run
from pdlib.runs.settings import SettingsError, make_settings
from pdlib.sampling import sample, sample_batches
from pdlib.schedules import CosineSchedule, make_schedule
from pdlib.training import Session, TrainingSettings

QUIET, FEW = Session(progress=False), TrainingSettings(12, batch_size=16, warmup=2, ema=0.8)
AFTER = [name for name in METHODS if name not in ("progressive_distillation", "jump_to_clean")]


def teacher(**options):
    made = tiny(grid=Grid(8), **options)
    made.shape = (2,)
    return made


@pytest.mark.parametrize("name", METHODS)
def test_in_bfloat16_every_layer_learns(name):
    """Also where the student is asked for its own target, without gradients, in the same update."""
    method, settings = make_method(name), replace(FEW, precision="bf16")
    learned = learn(method, teacher(), Grid(1), noise(64, 2).float(), settings, session=QUIET)
    started = dict(method.student(teacher(), Grid(1)).named_parameters())
    for layer, parameter in learned.trained.raw.named_parameters():
        assert (parameter != started[layer]).any(), layer


class Stops:
    """An objective that is interrupted at one update; for a checkpoint it is the objective within."""

    def __init__(self, objective, at=None):
        self.objective, self.stop = objective, at

    def config(self):
        return {"objective": self.objective}

    def at_update(self, update, updates):
        if update == self.stop:
            raise Interrupted
        return self.objective.at_update(update, updates)


def learned(name, stop=None, folder=None, **options):
    method = make_method(name)
    grid = method.grids(Grid(8), 1)[-1]
    session = Session("student", folder, checkpoint_seconds=0, progress=False)
    whole = {"objective": lambda teacher, grid: Stops(method.objective(teacher, grid), stop), **options}
    return learn(method, teacher(), grid, noise(64, 2).float(), FEW, session=session, **whole)


@pytest.mark.parametrize("name", AFTER)
def test_a_training_goes_on_to_the_same_bits(name, tmp_path):
    whole = learned(name)
    with pytest.raises(Interrupted):
        learned(name, stop=7, folder=tmp_path)
    again = learned(name, folder=tmp_path)
    assert same_weights(again.student, whole.student)
    assert torch.equal(again.trained.losses, whole.trained.losses)
    assert not same_weights(whole.student, teacher())


@pytest.mark.parametrize("name", AFTER)
def test_a_student_is_saved_with_what_it_takes_to_sample_it(name, tmp_path):
    method, student = make_method(name), learned(name).student
    student.save(tmp_path)
    loaded = Denoiser.load(tmp_path)
    assert (loaded.sampler, loaded.two_times, loaded.grid) == (
        method.sampler,
        "two_times" in method.network,
        student.grid,
    )
    for steps in (None, 4):
        one, other = (
            sample_batches(d, 5, steps, generator=torch.Generator().manual_seed(1)) for d in (student, loaded)
        )
        assert torch.equal(one, other)
        assert one.isfinite().all()


@pytest.mark.parametrize("name", AFTER)
def test_the_same_seed_gives_the_same_bits_and_another_does_not(name):
    assert same_weights(learned(name).student, learned(name).student)
    other = learn(
        make_method(name), teacher(), Grid(1), noise(64, 2).float(), TrainingSettings(12, 16, seed=1), session=QUIET
    )
    assert not same_weights(other.student, learned(name).student)


@pytest.mark.parametrize("name", METHODS)
def test_the_evaluations_of_an_update_are_those_that_are_counted(name):
    """A network that is nearly nothing but one matrix product, forward and back; a derivative counts as two."""
    method, one = make_method(name), teacher(width=64)
    grid = method.grids(Grid(8), 1)[-1]
    x, generator = noise(64, 2).float(), torch.Generator().manual_seed(0)
    student = method.student(one, grid).requires_grad_(True)
    with FlopCounterMode(display=False) as forward:
        jump(getattr(student, "denoiser", student), x, torch.full((64,), 0.5), torch.zeros(64))
    with FlopCounterMode(display=False) as update:
        method.objective(one, grid).at_update(1, 4)(student, student, x, generator).backward()
    found = update.get_total_flops() / forward.get_total_flops()
    assert found == pytest.approx(method.evaluations, rel=0.15)


def test_a_flow_map_starts_as_its_teacher_for_every_end():
    one, z, t = teacher(), noise(6, 2).float(), torch.linspace(0.2, 1, 6)
    for student in (one.student(two_times=True), one.student(two_times=True).student()):
        assert torch.equal(student(z, t, s=t / 3), one(z, t))
        assert torch.equal(student(z, t), one(z, t))
        assert student.two_times
    with torch.no_grad():
        student.network.embed.end.layers[-1].bias.fill_(0.3)
    assert not torch.equal(student(z, t), one(z, t))


def test_images_too_can_have_a_second_time():
    network = UNet(1, width=8, multipliers=(1,), two_times=True)
    one = Denoiser(network, "v", COSINE, Grid(4), (1, 4, 4))
    z, t = torch.randn(3, 1, 4, 4), torch.full((3,), 0.7)
    torch.nn.init.normal_(network.last.weight)
    torch.nn.init.normal_(network.embed.end.layers[-1].weight)
    torch.nn.init.normal_(network.down[0][0].conv2.weight)
    assert not torch.equal(one(z, t, s=t * 0), one(z, t))
    *_, last = sample(one, 4, z=z)
    assert last.shape == z.shape


def test_consistency_takes_new_noise_at_every_step_but_the_last():
    student = learned("easy_consistency").student
    z = noise(9, 2).float()

    def walk(seed):
        return [*sample(student, 4, z=z, generator=torch.Generator().manual_seed(seed))]

    one, same, other = walk(0), walk(0), walk(1)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[1], other[1])
    t = torch.full((9,), 0.25)
    assert torch.equal(one[-1], student(one[-2], t))
    first = student(z, torch.ones(9))
    alpha, sigma = (value.item() for value in COSINE.alpha_sigma(torch.tensor(0.75)))
    new = (one[1] - alpha * first) / sigma
    assert torch.allclose(new, torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tracct", "did you mean 'tract'"),
        ("tract:phase=3", "did you mean 'phases'"),
        ("tract:phases=two", "phases must be a whole number"),
        ("tract:phases=0", "phases=0: must be 1 or more"),
        ("tract:target=teacher", "target must be average or student"),
        ("easy_consistency:near=maybe", "near must be true or false"),
        ("continuous_consistency:warmup=long", "warmup must be a number"),
        ("progressive_distillation:phases=2", "option='phases' is unknown"),
    ],
)
def test_what_a_method_cannot_be_is_one_line_before_anything_is_trained(text, said):
    with pytest.raises(SettingsError, match=said) as caught:
        make_settings(method=text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given", [{"method": "easy_consistency", "clip_x": 1}, {"method": "moment_matching", "clip_x": 1}]
)
def test_a_setting_that_a_method_cannot_heed_is_refused(given):
    with pytest.raises(SettingsError, match=r"clip_x=1\.0: method=.* cannot heed it: leave it out"):
        make_settings(**given)
    make_settings(**given | {"method": "tract"})


@pytest.mark.parametrize("name", ["mean_flow", "continuous_consistency"])
def test_a_class_conditional_teacher_is_tried_with_a_class(name):
    one = Denoiser(PerClass(), "v", COSINE, Grid(8), (2,))
    with pytest.raises(ValueError, match=r"two times|octaves"):  # its network cannot be built otherwise, and says so
        method = make_method(name)
        method.check(one)
        method.student(one, Grid(1))


@pytest.mark.parametrize(
    ("name", "one", "said"),
    [
        ("easy_consistency", teacher(prediction="x"), "prediction='x' does not give"),
        ("easy_consistency", teacher(schedule=CosineSchedule(log_snr_max=20)), "leave out log_snr_max"),
        ("mean_flow", teacher(schedule=make_schedule("discrete_cosine")), "use method=self_distillation"),
        ("continuous_consistency", teacher(schedule=make_schedule("discrete_cosine")), "use method=easy_consistency"),
    ],
)
def test_a_method_says_what_it_cannot_learn_from(name, one, said):
    with pytest.raises(ValueError, match=said) as caught:
        learn(make_method(name), one, Grid(1), noise(8, 2).float(), FEW, session=QUIET)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", AFTER)
def test_no_method_but_progressive_distillation_knows_a_grid_without_its_top(name):
    one = teacher()
    one.grid = Grid(8, missing=1)
    with pytest.raises(ValueError, match="missing=1"):
        learn(make_method(name), one, Grid(2), noise(8, 2).float(), FEW, session=QUIET)


def test_the_auxiliary_denoiser_starts_as_the_teacher_whatever_the_student_starts_as():
    one, other = teacher(), teacher(seed=1)
    both = make_method("moment_matching").student(other, Grid(1), teacher=one)
    assert same_weights(both.auxiliary, one)
    assert same_weights(both.denoiser, other)


def test_what_learns_from_itself_says_what_it_cannot():
    twelve = teacher()
    twelve.grid = Grid(12)
    flow_map = teacher().student(two_times=True)
    for name, one, said in (
        ("self_distillation", twelve, "no power of two"),
        ("tract", flow_map, "a teacher of one time"),
        ("consistency_distillation", flow_map, "a teacher of one time"),
    ):
        with pytest.raises(ValueError, match=said):
            learn(make_method(name), one, Grid(1), noise(8, 2).float(), FEW, session=QUIET)
    with pytest.raises(ValueError, match="prediction='x'"):
        learn(
            make_method("easy_consistency"), teacher(), Grid(1), noise(8, 2).float(), FEW, prediction="x", session=QUIET
        )


class NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize("name", ["mean_flow", "continuous_consistency"])
def test_a_network_without_forward_derivative_is_refused_before_any_training(name):
    one = teacher()
    inner = one.network.last
    one.network.last = torch.nn.Sequential(inner, Opaque())
    with pytest.raises(ValueError, match="no forward-mode derivative"):
        learn(make_method(name), one, Grid(1), noise(8, 2).float(), FEW, session=QUIET)


class Opaque(torch.nn.Module):
    def forward(self, value):
        return NoDerivative.apply(value)


def test_what_is_trained_is_as_much_as_progressive_distillation_at_the_same_settings():
    usual = make_settings()
    total = sum(usual.stage_training(grid).updates for grid in usual.student_grids) * Method.evaluations
    for name in AFTER:
        settings = make_settings(method=name)
        updates = sum(settings.stage_training(grid).updates for grid in settings.student_grids)
        assert updates * settings.student_method.evaluations == pytest.approx(total, rel=1e-3)


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A smoke run's teacher of points in the plane."""
    folder = tmp_path_factory.mktemp("moons")
    return execute("smoke", folder, data="moons", end_steps=8, progress=False).folder / "teacher"


@pytest.mark.parametrize("name", AFTER)
def test_a_run_of_every_method(name, moons, tmp_path):
    one = execute("smoke", tmp_path, data="moons", teacher=moons, method=name, images_per_seed=65, progress=False)
    run = load_run(one.folder)
    s = run.settings
    assert run.finished
    curve = run.metrics["curves"]["distilled"]
    assert [int(steps) for steps in curve] == s.evaluated_steps
    expected = {"tract": [8, 4, 1]}.get(name, [8, 4, 2, 1])
    assert s.evaluated_steps == expected
    parts = ["teacher"] + (["student"] if s.student_method.one_network else [f"student-{n}" for n in expected[1:]])
    assert run.parts == parts
    for steps in expected:
        walk = [*run.sample(steps, torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))]
        assert len(walk) == steps + 1
        assert walk[-1].isfinite().all()


def test_a_report_draws_progressive_distillation_beside_another_method(moons, tmp_path):
    few = {"data": "moons", "teacher": moons, "images_per_seed": 65, "stage_updates": 5, "curves": "distilled"}
    halving = execute("smoke", tmp_path / "halving", progress=False, **few)
    tract = execute("smoke", tmp_path / "tract", method="tract", progress=False, **few)
    other = execute("smoke", tmp_path / "other", method="tract", seed=1, progress=False, **few)
    for number, config in enumerate(
        ("", "[]", "7", "{}", '{"settings": {}, "data": {}}', '{"settings": {}, "data": 7}')
    ):
        stranger = tmp_path / f"a{number}"  # looked at before the others, and none of ours
        stranger.mkdir()
        (stranger / "config.json").write_text(config)
    beside = report.beside_halving(tract)
    assert beside["curves"]["halving"] == halving.metrics["curves"]["distilled"]
    assert beside["curves"]["distilled"] == tract.metrics["curves"]["distilled"]
    assert report.beside_halving(halving) == halving.metrics
    assert "halving" not in report.beside_halving(other)["curves"]  # another seed
    drawn = [line.get_label() for line in plots.plot_quality(beside).axes[0].containers]
    assert drawn == ["distilled", "progressive distillation"]
    assert "students by tract" in report.top(tract)
    assert "students by" not in report.top(halving)
