"""The latent cache on made-up latents and captions."""

import json
import pickle

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ldm.data import latents
from ldm.data.latents import DESCRIPTION, CacheConfig, LatentDataset, StaleCache, cache_bytes, check_cache, write_cache
from ldm.types import Batch, Condition, Key

PRINTS = {"autoencoder": "a1", "text encoder": "t1", "data set": "d1"}
CAPTIONS = ["one", "two words", "", "four words of text", "one", "two words", "one"]


def encode(images):
    return images[:, :2, ::2, ::2]


def text(captions):
    """As many tokens as words, and one more; each caption's states follow from its words alone."""
    lengths = torch.tensor([len(caption.split()) + 1 for caption in captions])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    phase = torch.tensor([float(len(caption)) for caption in captions])[:, None]
    tokens = torch.sin(phase[..., None] + torch.arange(mask.shape[1] * 3).view(-1, 3))
    return Condition(tokens, torch.cos(phase + torch.arange(5)), mask)


def samples(count):
    images = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)).half().float()
    return images, [CAPTIONS[i % len(CAPTIONS)] for i in range(count)]


def write(folder, count, shard=5, batch=4):
    images, captions = samples(count)
    loaded = (Batch(images[i : i + batch], captions[i : i + batch]) for i in range(0, count, batch))
    write_cache(folder, loaded, encode, text, PRINTS, CacheConfig(batch=2, shard=shard))
    return LatentDataset(folder)


@pytest.mark.parametrize(("shard", "held"), [(1, 1), (3, 3), (4, 2), (5, 4), (13, 4_096), (100, 3)])
def test_every_sample_is_found_again_across_the_boundaries_of_files(tmp_path, monkeypatch, shard, held):
    monkeypatch.setattr(latents, "CAPTIONS_A_FILE", held)
    cache = write(tmp_path, 13, shard)
    images, captions = samples(13)
    assert len(cache) == 13
    for i in reversed(range(13)):
        found = cache[Key(3, i)]
        states = text([captions[i]])
        assert torch.equal(found.latent.float(), encode(images[i : i + 1])[0])
        torch.testing.assert_close(found.tokens.float(), states.tokens[0], atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(found.pooled.float(), states.pooled[0], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(("shard", "counts"), [(5, [5, 5, 3]), (13, [13]), (4, [4, 4, 4, 1]), (100, [13])])
def test_shards_hold_as_many_latents_as_asked_for(tmp_path, shard, counts):
    write(tmp_path, 13, shard)
    assert json.loads((tmp_path / DESCRIPTION).read_text())["counts"] == counts
    assert len(list(tmp_path.glob("latents-*.safetensors"))) == len(counts)


def test_a_caption_is_stored_once(tmp_path):
    cache = write(tmp_path, 13)
    assert len(cache._part("captions-00000", "pooled")) == len(set(CAPTIONS))
    assert len(cache._part("captions-00000", "tokens")) == sum(len(caption.split()) + 1 for caption in set(CAPTIONS))


def test_captions_are_written_as_they_are_encoded(tmp_path, monkeypatch):
    """A million of them would not fit into memory."""
    monkeypatch.setattr(latents, "CAPTIONS_A_FILE", 2)
    seen = []

    def watched(captions):
        seen.append(len(list(tmp_path.glob("captions-*.safetensors"))))
        return text(captions)

    images, captions = samples(4)
    write_cache(tmp_path, iter([Batch(images, captions)]), encode, watched, PRINTS, CacheConfig(batch=1))
    assert seen == [0, 0, 1, 1]
    assert json.loads((tmp_path / DESCRIPTION).read_text())["captions"] == [2, 2]


@pytest.mark.parametrize("held", [2, 3, 100])
def test_the_bytes_are_told_beforehand(tmp_path, monkeypatch, held):
    monkeypatch.setattr(latents, "CAPTIONS_A_FILE", held)
    write(tmp_path, 13)
    found = [load_file(path) for path in tmp_path.glob("*.safetensors")]
    words = sum(len(caption.split()) + 1 for caption in set(CAPTIONS))
    assert sum(value.numel() * value.element_size() for part in found for value in part.values()) == cache_bytes(
        13, (2, 2, 2), len(set(CAPTIONS)), words, (3, 5)
    )


def test_latents_and_states_are_kept_in_half_precision(tmp_path):
    sample = write(tmp_path, 7)[Key(0, 4)]
    assert {part.dtype for part in sample} == {torch.float16}


@pytest.mark.parametrize("name", ["latents-00001", "captions-00000"])
def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch, name):
    """Safetensors has an error of its own for it, which no script would tell in one line."""

    def full(tensors, path):
        if path.stem == name:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    monkeypatch.setattr("ldm.files.save_file", full)
    with pytest.raises(OSError, match=f"{name}.safetensors cannot be written .*; free disk space"):
        write(tmp_path, 9)


def test_a_batch_pads_captions_and_masks_the_padding(tmp_path):
    cache = write(tmp_path, 7)
    latent, cond = cache.collate([cache[Key(0, i)] for i in (0, 3, 2)])
    assert latent.shape == (3, 2, 2, 2) and latent.dtype == torch.float32
    assert cond.mask.sum(dim=1).tolist() == [2, 5, 1]
    assert cond.tokens.shape == (3, 5, 3) and not cond.tokens[~cond.mask].any()


@pytest.mark.parametrize("name", PRINTS)
def test_a_cache_made_by_another_part_is_refused_by_name(tmp_path, name):
    write(tmp_path, 3)
    check_cache(tmp_path, PRINTS)
    with pytest.raises(StaleCache, match=f"another {name} .*{PRINTS[name]}, now other"):
        check_cache(tmp_path, {**PRINTS, name: "other"})


def test_a_cache_of_another_layout_is_refused(tmp_path):
    write(tmp_path, 3)
    path = tmp_path / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), "layout": 0}))
    with pytest.raises(StaleCache, match="another layout"):
        check_cache(tmp_path, PRINTS)


@pytest.mark.parametrize("content", [None, "", "{", "{}", "[]"])
def test_a_cache_without_a_whole_description_is_refused(tmp_path, content):
    write(tmp_path, 3)
    (tmp_path / DESCRIPTION).unlink()
    if content is not None:
        (tmp_path / DESCRIPTION).write_text(content)
    with pytest.raises(StaleCache, match="not a complete latent cache"):
        check_cache(tmp_path, PRINTS)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
@pytest.mark.parametrize("name", ["latents-00001.safetensors", "captions-00000.safetensors"])
def test_a_damaged_file_of_a_cache_is_named(tmp_path, name, damage):
    write(tmp_path, 9)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        LatentDataset(tmp_path)[Key(0, 7)]


def test_a_cache_may_be_sent_to_another_process(tmp_path):
    cache = write(tmp_path, 6)
    before = cache[Key(0, 5)]
    sent = pickle.dumps(cache)
    assert len(sent) < 1_000  # the files are opened there anew, not copied
    assert torch.equal(pickle.loads(sent)[Key(0, 5)].latent, before.latent)


@pytest.mark.parametrize("wrong", [{"use": "sometimes"}, {"batch": -1}, {"shard": 0}])
def test_settings_of_a_cache_are_checked(wrong):
    (value,) = wrong.values()
    with pytest.raises(ValueError, match=str(value)):
        CacheConfig(**wrong)


def test_as_many_images_are_encoded_at_once_as_have_so_many_pixels():
    assert [CacheConfig().at_once(size) for size in (64, 256, 512, 1024)] == [64, 4, 1, 1]
    assert CacheConfig(batch=3).at_once(64) == 3
