"""The layout that is trained with a CLIP: what it draws where, what its error counts, and that it reaches the text."""

import pytest
import torch
from torch import Tensor, nn

from ldm.text.clip import ClipConfig, build_clip
from ldm.text.layout import PIXELS, PLACES, Layout, TrainedClip, layout_loss, tints
from ldm.text.vocabulary import Vocabulary

SIDE = PLACES * PIXELS
TINY = ClipConfig(
    width=16, layers=2, heads=2, context_length=16, embed_dim=8, vision_width=16, vision_layers=1, vision_heads=2
)
CAPTIONS = ["a red star left of a blue ring", "a heart"]


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.of(CAPTIONS)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (3, 3)])
def test_each_place_draws_its_own_part_of_the_picture(row: int, column: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(8, 2)

    class Straight(nn.Module):
        def forward(self, places: Tensor, tokens: Tensor, memory_key_padding_mask: Tensor) -> Tensor:
            return places

    monkeypatch.setattr(layout, "blocks", Straight())
    nn.init.zeros_(layout.out.bias)
    nn.init.zeros_(layout.places)
    with torch.no_grad():
        layout.places[row * PLACES + column] = 1
    drawn = layout(torch.zeros(1, 3, 8), torch.ones(1, 3, dtype=torch.bool))
    assert drawn.shape == (1, 3, SIDE, SIDE)
    rows, columns = (drawn[0].abs().sum(dim=0) > 0).nonzero(as_tuple=True)
    assert set((rows // PIXELS).tolist()) == {row}
    assert set((columns // PIXELS).tolist()) == {column}


def test_padding_says_nothing() -> None:
    torch.manual_seed(0)
    layout, tokens = Layout(8, 2).eval(), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    other = tokens.clone()
    other[1, 3:] = 9
    torch.testing.assert_close(layout(other, mask), layout(tokens, mask))


def test_tints_are_standardised_and_a_gray_picture_has_no_chroma() -> None:
    image = torch.rand(6, 3, 32, 32) * 2 - 1
    image[:3] = image[:3, :1]  # gray
    found = tints(image, 16)
    assert found.shape == (6, 3, 16, 16)
    torch.testing.assert_close(found.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var(dim=(0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)
    chroma = found[:3, 1:]
    assert chroma.std(dim=(0, 2, 3)).max() < 1e-3
    assert found[3:, 1:].std() > 0.5


def test_what_is_coloured_counts_as_much_as_what_is_bright() -> None:
    """Backgrounds of any brightness under a faint red or blue: the loss of missing the tint is a third, not little."""
    brightness = torch.linspace(-1, 1, 64)[:, None, None, None].expand(64, 3, 16, 16)
    tint = torch.zeros(64, 3, 16, 16)
    tint[::2, 0], tint[1::2, 2] = 0.05, 0.05
    wanted = tints(brightness + tint, 16)
    without = wanted.clone()
    without[:, 2] = 0
    assert torch.nn.functional.mse_loss(without, wanted).item() == pytest.approx(1 / 3, rel=0.01)


def test_knowing_nothing_costs_one_and_the_picture_itself_nothing() -> None:
    image = torch.rand(8, 3, 64, 64) * 2 - 1
    assert layout_loss(torch.zeros(8, 3, SIDE, SIDE), image).item() == pytest.approx(1, rel=0.01)
    assert layout_loss(tints(image, SIDE), image).item() == pytest.approx(0, abs=1e-10)


def test_the_features_are_those_of_the_clip_itself(vocabulary: Vocabulary) -> None:
    torch.manual_seed(0)
    trained = TrainedClip(TINY, 16, vocabulary).eval()
    rows, image = vocabulary.tokenize(CAPTIONS, 16)[0], torch.rand(2, 3, 16, 16)
    found, text, scale, drawn = trained(image, rows)
    expected = trained.clip(image, rows)
    torch.testing.assert_close(found, expected[0])
    torch.testing.assert_close(text, expected[1])
    torch.testing.assert_close(scale, expected[2])
    assert drawn is None
    assert trained.clip.state_dict().keys() == build_clip(TINY, 16, vocabulary).state_dict().keys()


def test_the_layout_trains_the_states_that_the_denoiser_reads(vocabulary: Vocabulary) -> None:
    """The last block is reached where the states are its own, and not where they are those of the block before."""
    rows, image = vocabulary.tokenize(CAPTIONS, 16)[0], torch.rand(2, 3, 16, 16)
    for states, reached in (("last", True), ("penultimate", False), ("words", True)):
        config = ClipConfig(**{**vars(TINY), "layout": 1.0, "states": states})
        trained = TrainedClip(config, 16, vocabulary)
        drawn = trained(image, rows)[3]
        layout_loss(drawn, image).backward()
        gradient = trained.clip.transformer.resblocks[-1].mlp.c_fc.weight.grad
        assert (gradient is not None and bool(gradient.any())) is reached
        assert trained.clip.token_embedding.weight.grad.any()


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layout -1.0 .* use 0"):
        ClipConfig(layout=-1.0)
