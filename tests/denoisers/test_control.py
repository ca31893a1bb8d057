"""A ControlNet: nothing at first, then what its picture makes of it; the frozen network stays as it is."""

import pytest
import torch

from ldm.denoisers.control import ControlInput, Controlled, ControlNet
from ldm.denoisers.unet import UNetConfig
from ldm.types import Condition

CONFIGS = {
    "two levels": UNetConfig(width=16, multipliers=[1, 2], blocks=1, attention_levels=[1], heads=2),
    "one level, two blocks": UNetConfig(
        width=8, multipliers=[1], blocks=2, attention_levels=[], heads=2, position=True
    ),
    "attention everywhere": UNetConfig(
        width=8, multipliers=[1, 1, 2], blocks=1, attention_levels=[0, 1, 2], heads=2, pooled=False, text_depth=1
    ),
}


def condition(rows=2):
    return Condition(torch.randn(rows, 3, 6), torch.randn(rows, 5), torch.ones(rows, 3, dtype=torch.bool))


def network(name="two levels"):
    """A frozen one that says something: all weights that begin with zeros are drawn."""
    torch.manual_seed(0)
    net = CONFIGS[name].build(channels=4, text_width=6, pooled_width=5)
    for weight in net.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return net.requires_grad_(False).eval()


def inputs(rows=2):
    return torch.randn(rows, 4, 8, 8), torch.rand(rows), condition(rows), torch.rand(rows, 3, 32, 32) * 2 - 1


def stirred(control):
    """With zeros no longer zero, as after some steps of training."""
    for weight in control.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return control


@pytest.mark.parametrize("name", CONFIGS)
def test_it_begins_as_the_frozen_network_bit_for_bit(name):
    net = network(name)
    x, t, cond, hint = inputs()
    controlled = Controlled(net, ControlNet(net, 4))
    assert torch.equal(controlled(x, t, ControlInput(cond, cond, hint)), net(x, t, cond))


@pytest.mark.parametrize("name", CONFIGS)
def test_only_the_copy_learns_and_all_of_it_does_once_its_zeros_are_gone(name):
    net = network(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    control = stirred(ControlNet(net, 4))
    x, t, cond, hint = inputs()
    Controlled(net, control)(x, t, ControlInput(cond, cond, hint)).square().mean().backward()
    assert all(weight.grad is None for weight in net.parameters())
    assert [key for key, weight in control.named_parameters() if weight.grad is None or not weight.grad.any()] == []
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_at_first_only_the_last_convolutions_learn():
    net = network()
    control = ControlNet(net, 4)
    x, t, cond, hint = inputs()
    Controlled(net, control)(x, t, ControlInput(cond, cond, hint)).square().mean().backward()
    learning = {key.split(".")[0] for key, weight in control.named_parameters() if weight.grad.any()}
    assert learning == {"zero_convs"}


def test_the_equation():
    """y = F(x) + scale Z2(F_copy(x + Z1(c))) at every skip and in the middle."""
    net = network()
    control = stirred(ControlNet(net, 4))
    x, t, cond, hint = inputs()
    told = ControlInput(net.prepare(cond), control.encoder.prepare(cond), hint)
    ours, theirs = (
        net.encode(x, t, told.network),
        control.encoder.encode(x, t, told.control, control.hint_encoder(hint)),
    )
    parts = (
        [ours.middle, *ours.skips],
        [theirs.middle, *theirs.skips],
        [control.zero_convs[-1], *control.zero_convs[:-1]],
    )
    middle, *skips = (a + 0.5 * conv(b) for a, b, conv in zip(*parts, strict=True))
    expected = net.decode(ours._replace(skips=skips, middle=middle))
    torch.testing.assert_close(Controlled(net, control, scale=0.5)(x, t, told), expected)
    assert torch.equal(Controlled(net, control, scale=0.0)(x, t, told), net(x, t, cond))


def test_the_copy_has_no_way_up():
    net = network()
    names = {key.split(".")[1] for key in ControlNet(net, 4).state_dict() if key.startswith("encoder.")}
    assert names == {"time", "conv_in", "down", "middle", "middle_end", "prepare"}
    assert len(ControlNet(net, 4).encoder.prepare.keys_values) == 2 < len(net.prepare.keys_values)


def test_one_picture_of_its_own_goes_with_every_row():
    net = network()
    control = stirred(ControlNet(net, 4))
    x, t, cond, hint = inputs(3)
    alone = Controlled(net, control, hint[:1])
    torch.testing.assert_close(
        alone(x, t, alone.prepare(cond)),
        Controlled(net, control)(x, t, ControlInput(cond, cond, hint[:1].expand(3, -1, -1, -1))),
    )
    assert not torch.allclose(alone(x, t, cond), Controlled(net, control, hint[1:2])(x, t, cond))
    with pytest.raises(ValueError, match="0 hints for 3 pictures"):
        Controlled(net, control).prepare(cond)


def test_hints_of_several_pictures_come_again_with_the_rows_of_guidance():
    """Rows are those of all pictures with one prompt, then of all with the next."""
    net = network()
    control = stirred(ControlNet(net, 4))
    x, t, cond, hint = inputs(4)
    own = Controlled(net, control, hint[:2])
    told = ControlInput(cond, cond, hint[[0, 1, 0, 1]])
    torch.testing.assert_close(own(x, t, own.prepare(cond)), Controlled(net, control)(x, t, told))
    with pytest.raises(ValueError, match="3 hints for 4 pictures"):
        Controlled(net, control, hint[:3]).prepare(cond)


def test_it_learns_what_the_frozen_network_cannot_know():
    """F that is to be the picture's brightness, of which the latent and the text tell nothing."""
    net = network()
    control = ControlNet(net, 4)
    optimizer = torch.optim.AdamW(control.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(150):
        x, t = torch.randn(16, 4, 8, 8, generator=generator), torch.rand(16, generator=generator)
        cond = condition(16)
        light = 2 * torch.rand(16, 1, 1, 1, generator=generator) - 1
        said = Controlled(net, control)(x, t, ControlInput(cond, cond, light.expand(16, 3, 32, 32)))
        loss = (said.mean(dim=(1, 2, 3)) - net(x, t, cond).mean(dim=(1, 2, 3)) - light.flatten()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10]) / 10


def test_a_copy_of_a_network_in_evaluation_learns_with_its_dropout():
    config = UNetConfig(width=8, multipliers=[1], blocks=1, attention_levels=[], heads=2, dropout=0.5)
    net = stirred(config.build(channels=4, text_width=6, pooled_width=5)).eval()
    control = stirred(ControlNet(net, 4))
    x, t, cond, hint = inputs()
    one, other = (Controlled(net, control)(x, t, ControlInput(cond, cond, hint)) for _ in range(2))
    assert not torch.equal(one, other)
