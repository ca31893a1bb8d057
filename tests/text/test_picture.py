"""CLIP's picture tower on its own."""

import json

import pytest
import torch

from ldm.text.clip import ClipConfig, build_clip
from ldm.text.picture import ClipPicture

SIZES = {"width": 32, "layers": 1, "heads": 2, "embed_dim": 16}
CONFIG = ClipConfig(**SIZES, vision_width=24, vision_layers=2, vision_heads=3, vision_patch=8)
IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return build_clip(CONFIG, 16).eval()


def test_it_says_what_the_whole_clip_says_of_a_picture(clip):
    said = ClipPicture.from_clip(clip, CONFIG, 16)(IMAGES)
    torch.testing.assert_close(said, clip.encode_image(IMAGES, normalize=True).detach())
    torch.testing.assert_close(said.norm(dim=1), torch.ones(3))


def test_it_is_frozen_and_a_copy(clip):
    picture = ClipPicture.from_clip(clip, CONFIG, 16)
    before = picture(IMAGES)
    assert not any(parameter.requires_grad for parameter in picture.parameters()) and not picture.training
    weight = next(clip.visual.parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1)
        assert torch.equal(picture(IMAGES), before)
        weight.copy_(kept)


def test_saved_and_loaded_it_says_the_same(clip, tmp_path):
    picture = ClipPicture.from_clip(clip, CONFIG, 16)
    picture.save(tmp_path)
    assert torch.equal(ClipPicture.load(tmp_path)(IMAGES), picture(IMAGES))


def test_a_picture_of_another_size_is_refused_with_both_sizes(clip):
    with pytest.raises(ValueError, match="knows pictures of 16 x 16 here; this one is 24 x 16: resize it"):
        ClipPicture.from_clip(clip, CONFIG, 16)(torch.zeros(1, 3, 24, 16))


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"width": 3})])
def test_a_description_that_is_none_is_refused_by_the_files_name(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json does not describe a picture tower"):
        ClipPicture.load(tmp_path)
