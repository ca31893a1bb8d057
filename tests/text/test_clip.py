import json
import os
from pathlib import Path

import pytest
import torch
from open_clip import add_model_config, create_model
from safetensors import SafetensorError
from safetensors.torch import save_file

from ldm.text import TEXT_ENCODERS, clip
from ldm.text.clip import ClipConfig, ClipText, build_clip
from ldm.text.vocabulary import NUM_IDS, Vocabulary
from ldm.text.weights import NOT_TEXT

CAPTIONS = ["a red circle", "a small blue square to the left of a large green triangle", ""]
SIZES = {"width": 32, "layers": 3, "heads": 2, "context_length": 24, "embed_dim": 16}
VISION = {"vision_width": 32, "vision_layers": 1, "vision_heads": 2, "vision_patch": 8}
TINY = ClipConfig(**SIZES, **VISION)
NAMED = "Tiny-8"


def compact(states: str = "last", padding: str = "masked") -> ClipText:
    config, vocabulary = ClipConfig(**SIZES, **VISION, states=states, padding=padding), Vocabulary.of(CAPTIONS)
    torch.manual_seed(0)
    return ClipText.from_clip(build_clip(config, 16, vocabulary), config, vocabulary)


@pytest.fixture(scope="module")
def text() -> ClipText:
    return compact()


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    """A model that open_clip knows by name, smaller than those it ships with."""
    sizes = {key: value for key, value in SIZES.items() if key != "embed_dim"}
    vision = {"width": 32, "layers": 1, "head_width": 16, "patch_size": 8, "image_size": 16}
    described = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {**sizes, "vocab_size": NUM_IDS}}
    path = tmp_path_factory.mktemp("models") / f"{NAMED}.json"
    path.write_text(json.dumps(described))
    add_model_config(path)
    return create_model(NAMED).eval()


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_every_encoder_gives_conditions_of_the_widths_it_tells(name: str) -> None:
    encoder = TEXT_ENCODERS[name]().build(image_size=16)
    cond = encoder(CAPTIONS)
    assert cond.tokens.shape == (3, int(cond.mask.sum(dim=1).max()), encoder.width)
    assert cond.pooled.shape == (3, encoder.pooled_width)
    assert cond.mask.dtype == torch.bool
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_the_mask_covers_start_of_text_through_end_of_text(text: ClipText) -> None:
    cond = text(CAPTIONS)
    lengths = [len(text.vocabulary.encode(caption)) + 2 for caption in CAPTIONS]
    assert cond.mask.sum(dim=1).tolist() == lengths
    assert cond.mask[:, 0].all() and cond.mask.shape[1] == max(lengths)
    assert not (~cond.mask[:, :-1] & cond.mask[:, 1:]).any()


def test_trimming_does_not_change_the_states(text: ClipText) -> None:
    cond = text(CAPTIONS)
    text.tower.output_tokens = True
    pooled, tokens = text.tower(text.tokenize(CAPTIONS))
    assert cond.tokens.shape[1] < text.context_length
    torch.testing.assert_close(cond.tokens, tokens[:, : cond.tokens.shape[1]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cond.pooled, pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["zeros", "ends"])
def test_padding_that_is_not_masked_is_what_open_clips_tower_says_of_the_whole_row(padding: str) -> None:
    text, masked = compact(padding=padding), compact()
    cond, rows = text(CAPTIONS), text.tokenize(CAPTIONS)
    text.tower.output_tokens = True
    _, tokens = text.tower(rows)
    assert rows[0, -1] == (len(text.vocabulary) - 1 if padding == "ends" else 0)
    assert cond.tokens.shape[1] == text.context_length and cond.mask.all()
    torch.testing.assert_close(cond.tokens, tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cond.pooled, masked(CAPTIONS).pooled, rtol=1e-4, atol=1e-5)


def test_a_padding_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match=r"padding: no 'end' here; did you mean 'ends'\?"):
        ClipConfig(padding="end")


def test_a_caption_does_not_change_with_its_batch(text: ClipText) -> None:
    together, alone = text(CAPTIONS), text(CAPTIONS[:1])
    length = alone.tokens.shape[1]
    torch.testing.assert_close(together.tokens[:1, :length], alone.tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.pooled[:1], alone.pooled, rtol=1e-4, atol=1e-5)


def test_pooled_equals_the_full_models_own_encode_text() -> None:
    vocabulary = Vocabulary.of(CAPTIONS)
    full = build_clip(TINY, 16, vocabulary).eval()
    rows, _ = vocabulary.tokenize(CAPTIONS, TINY.context_length)
    with torch.no_grad():
        expected = full.encode_text(rows)
        image, caption, _ = full(torch.zeros(3, 3, 16, 16), rows)
    assert image.shape == caption.shape == (3, TINY.embed_dim)
    torch.testing.assert_close(ClipText.from_clip(full, TINY, vocabulary)(CAPTIONS).pooled, expected)


def test_penultimate_states_are_the_last_but_one_blocks_after_the_final_norm(text: ClipText) -> None:
    cond = compact("penultimate")(CAPTIONS)
    found = text.tower.forward_intermediates(
        text.tokenize(CAPTIONS), indices=2, normalize_intermediates=True, output_fmt="NLC"
    )
    expected = found["text_intermediates"][0][:, : cond.tokens.shape[1]]
    torch.testing.assert_close(cond.tokens, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(cond.tokens, text(CAPTIONS).tokens, atol=1e-3)
    torch.testing.assert_close(cond.pooled, text(CAPTIONS).pooled)


def test_states_with_words_are_the_last_ones_and_the_normed_embeddings(text: ClipText) -> None:
    cond, last = compact("words")(CAPTIONS), text(CAPTIONS)
    words = text.tower.token_embedding(text.tokenize(CAPTIONS))[:, : last.tokens.shape[1]]
    normed = (words - words.mean(dim=-1, keepdim=True)) / words.var(dim=-1, correction=0, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(cond.tokens, last.tokens + normed)
    assert torch.equal(cond.pooled, last.pooled) and torch.equal(cond.mask, last.mask)


def test_a_compact_vocabulary_gives_the_states_of_the_full_table(text: ClipText) -> None:
    full = ClipText.from_clip(build_clip(TINY, 16), TINY)
    weights = full.tower.state_dict()
    rows = torch.tensor(text.vocabulary.kept)
    weights["token_embedding.weight"][rows] = text.tower.token_embedding.weight
    rest = {key: value for key, value in text.tower.state_dict().items() if key != "token_embedding.weight"}
    full.tower.load_state_dict({**weights, **rest})
    assert torch.equal(full(CAPTIONS).tokens, text(CAPTIONS).tokens)
    assert torch.equal(full(CAPTIONS).pooled, text(CAPTIONS).pooled)


def test_captions_cut_to_the_context_length_are_counted() -> None:
    """Fault 27."""
    encoder = compact()
    cond = encoder(["red " * 60, "blue"])
    encoder(["green " * 60])
    assert encoder.truncated == 2
    assert cond.mask.shape == (2, encoder.context_length)


@pytest.mark.parametrize("states", clip.STATES)
def test_round_trip_through_a_folder_is_exact(tmp_path: Path, states: str) -> None:
    saved = compact(states)
    saved.save(tmp_path / "text")
    loaded = ClipText.load(tmp_path / "text")
    assert loaded.architecture == saved.architecture and loaded.vocabulary == saved.vocabulary
    unseen = [*CAPTIONS, "a zebra"]
    assert torch.equal(loaded(unseen).tokens, saved(unseen).tokens)
    assert torch.equal(loaded(unseen).pooled, saved(unseen).pooled)


def test_half_precision_halves_the_file_and_keeps_the_states(tmp_path: Path, text: ClipText) -> None:
    text.save(tmp_path / "whole")
    text.save(tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / "text.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = ClipText.load(tmp_path / "half")
    torch.testing.assert_close(loaded(CAPTIONS).tokens, text(CAPTIONS).tokens, rtol=0.01, atol=0.01)


def test_a_full_disk_is_told_as_such(tmp_path: Path, text: ClipText, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("ldm.files.save_file", full)
    with pytest.raises(OSError, match="text.safetensors cannot be written .*; free disk space"):
        text.save(tmp_path)


@pytest.mark.parametrize(
    ("prefix", "suffix"), [("", ".safetensors"), ("", ".pt"), ("text.", ".safetensors"), ("module.", ".ckpt")]
)
def test_a_local_file_of_a_named_model_gives_its_encode_text(
    tmp_path: Path, named: torch.nn.Module, prefix: str, suffix: str
) -> None:
    weights = {key: value.contiguous() for key, value in named.state_dict().items()}
    if prefix == "text.":  # the text tower alone
        weights = {prefix + key: value for key, value in weights.items() if not key.startswith(NOT_TEXT)}
    weights = {f"module.{key}": value for key, value in weights.items()} if prefix == "module." else weights
    path = tmp_path / f"open_clip_model{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"epoch": 1, "state_dict": weights} if suffix == ".ckpt" else weights, path)
    encoder = ClipConfig(model=NAMED, weights=str(path)).build()
    with torch.no_grad():
        expected = named.encode_text(encoder.tokenize(CAPTIONS))
    torch.testing.assert_close(encoder(CAPTIONS).pooled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion2b_s34b_b79k", False)])
def test_the_tag_settles_the_activation(monkeypatch: pytest.MonkeyPatch, tag: str, quick: bool) -> None:
    monkeypatch.setattr(clip, "read_weights", lambda path: {})
    monkeypatch.setattr(clip, "fill", lambda *given: None)
    with torch.device("meta"):
        encoder = ClipConfig(model="ViT-B-32", pretrained=tag, weights="file").build()
    assert encoder.architecture.quick_gelu is quick
    assert type(encoder.tower.transformer.resblocks[0].mlp.gelu).__name__ == ("QuickGELU" if quick else "GELU")


def test_weights_that_could_be_of_either_activation_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "read_weights", lambda path: {})
    monkeypatch.setattr(clip, "fill", lambda *given: None)
    with torch.device("meta"), pytest.warns(UserWarning, match="text.pretrained=openai"):
        ClipConfig(model="ViT-B-32", weights="file").build()


def test_missing_weights_of_a_tag_offline_name_the_tag_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 32."""
    asked = []

    def unreachable(url: str, timeout: float) -> None:
        asked.append(url)
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    with pytest.raises(ValueError, match=r"'openai' of ViT-L-14 .*no route to host.*text\.weights=") as caught:
        ClipConfig(model="ViT-L-14", pretrained="openai").build()
    assert "\n" not in str(caught.value)
    assert len(asked) == 1


def test_weights_in_the_local_cache_are_taken_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = {"open_clip_pytorch_model.bin": "/cache/open_clip_pytorch_model.bin"}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: cached.get(file))
    assert clip.fetch("ViT-L-14", "openai", "owner/repository/") == Path(cached["open_clip_pytorch_model.bin"])


class Intruder:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)

    def __init__(self, path: Path) -> None:
        self.path = str(path)


@pytest.mark.usefixtures("named")
def test_a_pickle_offered_as_weights_is_refused_and_not_run(tmp_path: Path) -> None:
    """Fault 5."""
    path, trace = tmp_path / "weights.pt", tmp_path / "ran"
    torch.save({"token_embedding.weight": Intruder(trace)}, path)
    with pytest.raises(ValueError, match=r"weights\.pt .*could run code"):
        ClipConfig(model=NAMED, weights=str(path)).build()
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("page.safetensors", b"\n<!DOCTYPE html><html></html>", "web page"),
        ("pointer.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        ("cut.safetensors", b"\xff\x00\x00\x00\x00\x00\x00\x00{", "cut short or damaged"),
        ("cut.pt", b"PK\x03\x04 the rest is missing", "cut short or damaged"),
        ("empty.ckpt", b"", "cut short or damaged"),
        ("absent.pt", None, "no such file"),
    ],
)
def test_a_bad_local_file_is_named(tmp_path: Path, name: str, content: bytes | None, told: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=told) as caught:
        clip.read_weights(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_told_by_key_and_shape(text: ClipText) -> None:
    weights = text.tower.state_dict()
    norm = weights.pop("ln_final.weight")
    with pytest.raises(ValueError, match=r"file .*1 missing \['ln_final\.weight'\], 1 unknown \['ln_last\.weight'\]"):
        clip.fill(text.tower, {**weights, "ln_last.weight": norm}, "file")
    with pytest.raises(ValueError, match=r"'ln_final\.weight' is \(31,\) in place of \(32,\)"):
        clip.fill(text.tower, {**weights, "ln_final.weight": norm[1:]}, "file")


@pytest.mark.parametrize("damage", [None, "{}", "[]", "not json", '{"width": 32, "vocabulary": [1, 2]}'])
def test_a_damaged_folder_is_named(tmp_path: Path, text: ClipText, damage: str | None) -> None:
    text.save(tmp_path)
    path = tmp_path / "config.json"
    path.unlink() if damage is None else path.write_text(damage)
    with pytest.raises(ValueError, match=r"config\.json does not describe a text encoder"):
        ClipText.load(tmp_path)


@pytest.mark.parametrize(
    ("model", "pretrained", "told"),
    [
        ("ViT-L14", "openai", "did you mean 'ViT-L-14'"),
        ("ViT-L-14", "opnai", "did you mean 'openai'"),
        ("ViT-B-16-SigLIP", "webli", "not CLIP's causal one"),
        ("coca_ViT-B-32", "laion2b_s13b_b90k", "not CLIP's causal one"),
    ],
)
def test_an_unknown_name_gives_the_nearest_and_an_unfit_one_the_reason(model: str, pretrained: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ClipConfig(model=model, pretrained=pretrained).build()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"states": "lost"}, "did you mean 'last'"),
        ({"model": "ViT-L-14"}, "has no weights"),
        ({"pretrained": "openai"}, "name it, e.g. model=ViT-L-14"),
        ({"width": 100}, "width 100 is not divisible by heads 3; try 102"),
        ({"vision_width": 100}, "vision_width 100 is not divisible"),
        ({"heads": 0}, "heads 0 is too small; at least 1"),
        ({"context_length": 2}, "at least 3"),
        ({"layers": 1, "states": "penultimate"}, "layers 1 is too small; at least 2"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_at_once(given: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ClipConfig(**given)


def test_contrastive_training_refuses_named_models_and_odd_image_sizes() -> None:
    with pytest.raises(ValueError, match="to train sizes of our own"):
        build_clip(ClipConfig(model="ViT-L-14", pretrained="openai"), 64)
    with pytest.raises(ValueError, match="image size 20 is not divisible"):
        build_clip(TINY, 20)
