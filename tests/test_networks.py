import math
import re

import pytest
import torch
from torch import nn

from pdlib.grids import Grid
from pdlib.networks import MLP, NETWORKS, Attention, Network, TimeEmbedding, UNet, network_from_config

# 16 wide, so that the 8 groups of a norm hold two channels each: a lone channel's norm would hide its bias.
BUILDERS = {
    "unet": lambda: UNet(1, width=16),
    "unet, attention": lambda: UNet(1, width=16, multipliers=(1, 2, 2), blocks=1, attention=(1, 2), heads=2),
    "unet, no attention": lambda: UNet(1, width=16, attention=None),
    "unet, two outputs": lambda: UNet(1, 2, width=16, blocks=1),
    "unet, colour, widths that 8 groups do not divide": lambda: UNet(3, width=6, multipliers=(1, 3), heads=2),
    "mlp": lambda: MLP(2, width=16),
    "mlp, two outputs": lambda: MLP(2, 4, width=16, blocks=1),
}


def stirred(name):
    """The network with random weights everywhere: as built, its last layers are 0 and hide all before them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BUILDERS[name]()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    return network


def inputs(network, batch=3):
    shape = (8, 8) if network.config["name"] == "unet" else ()
    z = torch.randn(batch, network.config["channels"], *shape, generator=torch.Generator().manual_seed(0))
    return z, torch.linspace(0, 1, batch)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_output_has_the_shape_of_z_with_the_channels_asked_for(name):
    network = stirred(name)
    z, time = inputs(network)
    channels = 2 * z.shape[1] if "two outputs" in name else z.shape[1]
    assert network(z, time).shape == (3, channels, *z.shape[2:])
    assert network.config["out_channels"] == channels


@pytest.mark.parametrize("name", BUILDERS)
def test_a_new_network_answers_0_so_that_training_starts_calm(name):
    network = BUILDERS[name]()
    assert (network(*inputs(network)) == 0).all()


@pytest.mark.parametrize("name", BUILDERS)
def test_every_weight_takes_part(name):
    network = stirred(name)
    network(*inputs(network)).square().sum().backward()
    for parameter_name, parameter in network.named_parameters():
        if not parameter_name.endswith("qkv.bias"):  # of its keys: a softmax does not see what all keys share
            rows = parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad[:, None]
            assert rows.abs().amax(1).min() > 1e-9, parameter_name


@pytest.mark.parametrize("name", BUILDERS)
def test_an_example_is_answered_the_same_in_any_company(name):
    network = stirred(name)
    z, time = inputs(network)
    together = network(z, time)
    for i in range(3):
        torch.testing.assert_close(network(z[i : i + 1], time[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_answer_depends_on_the_time(name):
    network = stirred(name)
    z, _ = inputs(network)
    one, other = (network(z, torch.full((3,), time)) for time in (0.3, 0.7))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", BUILDERS)
def test_a_network_is_rebuilt_from_its_config(name):
    network = stirred(name)
    again = network_from_config(network.config)
    assert again.config == network.config
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(*inputs(network)), network(*inputs(network)))


def test_double_precision_is_kept():
    network = stirred("unet").double()
    z, time = inputs(network)
    assert network(z.double(), time.double()).dtype == torch.float64


def test_the_embedding_tells_neighbours_of_a_1024_step_grid_apart():
    embed = TimeEmbedding(32, 32)
    embed.layers = nn.Identity()
    codes = embed(Grid(1024).times.float())
    distances = torch.cdist(codes, codes) + 9 * torch.eye(1024)
    assert distances.min() > 0.5  # of codes of length √16 = 4


def test_attention_is_a_softmax_over_all_positions():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = Attention(8, heads=2).double()
        nn.init.normal_(attention.out.weight)
    h = torch.randn(1, 8, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, k, v = attention.qkv(attention.norm(h)).reshape(3, 2, 4, 6)  # heads of 4 channels, 6 positions
    attended = [v[n] @ (q[n].mT @ k[n] / math.sqrt(4)).softmax(dim=1).mT for n in range(2)]
    expected = h + attention.out(torch.cat(attended).reshape(1, 8, 2, 3))
    torch.testing.assert_close(attention(h), expected)


def test_attention_is_where_it_was_asked_for():
    def count(attention):
        network = UNet(1, width=8, multipliers=(1, 2), blocks=1, attention=attention)
        return sum(isinstance(module, Attention) for module in network.modules())

    # None at all; the middle's alone; and one more in each block of a level, one down and one up.
    assert [count(None), count(()), count((1,)), count((0, 1))] == [0, 1, 3, 5]


def test_dropout_acts_in_training_only():
    network = UNet(1, width=8, dropout=0.5)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    z, time = inputs(network)
    assert not torch.equal(network.train()(z, time), network(z, time))
    assert torch.equal(network.eval()(z, time), network(z, time))


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (3, 1, 9, 8), (3, 1, 8, 7), (3, 64)])
def test_images_that_do_not_fit_the_unet_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"images of shape \(batch, 1, height, width\) .* divisible by 2; it was given"
    ):
        UNet(1, width=8)(torch.zeros(shape), torch.ones(3))


def test_points_that_do_not_fit_the_mlp_are_refused():
    with pytest.raises(ValueError, match=r"takes points \(batch, 2\); it was given \(3, 3\)"):
        MLP(2, width=8)(torch.zeros(3, 3), torch.ones(3))


@pytest.mark.parametrize("wrong", [{"width": 2}, {"multipliers": ()}, {"blocks": 0}])
def test_a_unet_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="a UNet needs a width of 4 or more"):
        UNet(1, **wrong)


@pytest.mark.parametrize("multipliers", [(1, 2), (1, 1), (3,), (1, 2, 5)])
@pytest.mark.parametrize("attention", [None, (), (0,), (0, 1)])
@pytest.mark.parametrize(("width", "heads"), [(6, 4), (7, 4), (8, 3), (9, 2), (16, 32), (16, 4)])
def test_heads_that_do_not_divide_what_attention_sees_are_refused_with_a_width_that_does(
    width, heads, multipliers, attention
):
    seen = [] if attention is None else [*(multipliers[level] for level in attention if level < len(multipliers))]
    seen += [] if attention is None else [multipliers[-1]]
    options = {"multipliers": multipliers, "attention": attention, "heads": heads}
    if all(width * multiplier % heads == 0 for multiplier in seen):
        UNet(1, width=width, **options)
        return
    with pytest.raises(
        ValueError, match=rf"width={width}, heads={heads}: .*take width=(\d+), or other heads"
    ) as caught:
        UNet(1, width=width, **options)
    (good,) = re.findall(r"take width=(\d+)", str(caught.value))
    assert width < int(good) < width + heads
    UNet(1, width=int(good), **options)


@pytest.mark.parametrize("heads", [0, -2])
def test_a_head_at_least_is_needed(heads):
    with pytest.raises(ValueError, match=f"heads={heads}: .* one head or more"):
        UNet(1, width=8, heads=heads)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "transformer"}, "network='transformer' is unknown; it must be one of unet, mlp, unet2d; add yours"),
        ({"name": "unett"}, "network='unett' is unknown; did you mean 'unet'"),
        ({"name": "mlp", "depth": 3}, "network='mlp': .*unexpected keyword argument 'depth'"),
        ({}, "network=None is unknown"),
    ],
)
def test_a_wrong_config_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        network_from_config(config)


class Scale(nn.Module):
    """A network from outside: one number."""

    def __init__(self, channels, out_channels=None, **more):
        super().__init__()
        self.config = {"name": "scale", "channels": channels, "out_channels": out_channels or channels, **more}
        self.by = nn.Parameter(torch.ones(()))

    def forward(self, z, time):
        return self.by * z


def test_a_network_from_outside_is_one_entry(monkeypatch):
    network = Scale(2, start="calm")
    assert isinstance(network, Network)
    assert not isinstance(nn.Linear(2, 2), Network)  # nothing says how it was built
    monkeypatch.setitem(NETWORKS, "scale", Scale)
    again = network_from_config(network.config)
    assert (type(again), again.config) == (Scale, network.config)
    with pytest.raises(ValueError, match="network='scale': missing a required argument: 'channels'"):
        network_from_config({"name": "scale"})
