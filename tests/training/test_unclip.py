"""unCLIP as stages: the prior that learns, the denoiser told what it draws, and what is refused."""

import re
import shutil

import pytest
import torch
from calls import SCRIPTS, assert_one_line, call
from conftest import TINY

from ldm.config import load
from ldm.folders import load_model, load_picture, load_text
from ldm.run import Run
from ldm.stages import train_autoencoder, train_clip, train_ldm, train_unclip
from ldm.text.picture import ClipPicture
from ldm.training.optim import TrainConfig
from ldm.training.unclip import EmbeddingDataset, UnclipTask, embeddings_of
from ldm.types import Batch, Key, Sample
from ldm.unclip import Unclip, UnclipConfig

CPU = torch.device("cpu")
GUIDED = ["objective=guided", "guidance.scale=1", "process.text_dropout=0", "train_ldm.steps=1"]
CAPTIONS = ["a red star", "two blue rings", "a green heart", "four yellow crosses"]


def run(out, *changes):
    return load(Run, None, [*TINY, f"out={out}", *changes])


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("unclip")
    train_autoencoder(run(out, "train_autoencoder.steps=1"), CPU)
    train_clip(run(out, "train_clip.steps=1"), CPU)
    return out


@pytest.fixture
def own(parts, tmp_path):
    """A folder with links to ``parts``, to train further stages in."""
    for part in ("autoencoder", "text", "picture"):
        (tmp_path / part).symlink_to(parts / part)
    return tmp_path


class Pictures:
    """One picture of each caption, over and over."""

    def __init__(self, count):
        self.count = count
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(len(CAPTIONS), 3, 64, 64, generator=generator) * 2 - 1

    def __len__(self):
        return self.count

    def __getitem__(self, key: Key):
        return Sample(self.images[key.index % len(CAPTIONS)], CAPTIONS[key.index % len(CAPTIONS)])


def test_the_prior_learns_whose_embedding_a_caption_calls_for(parts):
    torch.manual_seed(0)
    text = load_text(parts / "text")
    picture = load_picture(parts / "picture", text)
    prior = UnclipConfig(width=32, depth=1, heads=2).build(32, text)
    config = TrainConfig(steps=1, batch=16, validate_samples=16, workers=0)
    train = embeddings_of(picture, Pictures(64), 64, config)
    prior.measure(train.embeddings)
    unclip = Unclip(picture, prior, 10, 1.0)
    task = UnclipTask(unclip, text, train, Pictures(16), config, lambda net: None, text_dropout=0.1)
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    before = task.validate(prior)
    batches = task.batches(0, 0, 1)
    for step in range(200):
        loss, _ = task.loss(prior, next(batches), step, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = task.validate(prior)
    assert abs(before["cosine"]) < 0.5 and after["cosine"] > 0.95
    assert after["loss"] < 0.1 < 1 < after["loss_shuffled"]


def test_embeddings_are_those_of_the_first_pictures_with_their_captions(parts):
    picture = ClipPicture.load(parts / "picture")
    data, config = Pictures(10), TrainConfig(steps=1, batch=3, workers=0)
    found = embeddings_of(picture, data, 7, config)
    assert len(found) == 7 and found.texts == [CAPTIONS[i % 4] for i in range(7)]
    torch.testing.assert_close(found.embeddings, picture(torch.stack([data[Key(0, i)].image for i in range(7)])))
    assert len(embeddings_of(picture, data, 99, config)) == 10
    batch = EmbeddingDataset.collate([found[Key(0, 2)], found[Key(3, 5)]])
    assert torch.equal(batch.embedding, found.embeddings[[2, 5]]) and batch.captions == [CAPTIONS[2], CAPTIONS[1]]


def test_three_stages_make_a_model_that_draws_by_way_of_an_embedding(own):
    train_unclip(run(own, "unclip.steps=3"), CPU)
    assert {path.suffix for path in (own / "training/unclip/samples").iterdir()} == {".png", ".txt"}
    model = load_model(train_ldm(run(own, "unclip.decoder=true", "unclip.steps=4", "unclip.scale=2"), CPU))
    assert model.unclip is not None and (model.unclip.steps, model.unclip.scale) == (4, 2.0)
    [(image, seed)] = model(["a red star"], seed=3)
    assert image.shape == (1, 3, 64, 64) and seed == 3
    assert not (own / "cache").exists()
    picture, made = SCRIPTS.parent / "data/sample/000002.png", own / "alike.png"
    options = ["--image", picture, "--prompt", "", "--n_samples", 2, "--ckpt", own / "model", "--out", made]
    status, said, _ = call("edit.py", "resemble", *options)
    assert status == 0 and made.exists()
    assert re.search(r"CLIP's embedding of it differs in the results by [\d.]+, [\d.]+ \(root mean square\)", said)
    plain = load_model(train_ldm(run(own, "out=" + str(own / "plain"), f"base={own / 'model'}"), CPU))
    assert plain.unclip is None
    told = model.encode(Batch(image, ["a red star"])).cond.pooled
    torch.testing.assert_close(told, model.unclip.of_pictures(image))


@pytest.mark.parametrize(
    ("stage", "changes", "says"),
    [
        (train_ldm, ["unclip.decoder=true"], r"unclip is not there; train it with scripts/train_unclip\.py"),
        (
            train_unclip,
            ["text.model=ViT-B-32", "text.pretrained=openai"],
            "text.model ViT-B-32: .* leave text.model out",
        ),
        (train_unclip, ["out={empty}"], r"both towers .* train them with scripts/train_clip\.py"),
    ],
)
def test_a_stage_that_lacks_what_it_builds_on_says_how_to_get_it(own, stage, changes, says):
    changes = [change.format(empty=own / "empty") for change in changes]
    with pytest.raises(ValueError, match=says):
        stage(run(own, *changes), CPU)
    assert not (own / "training").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["denoiser.pooled=false"], "denoiser.pooled=false: .* set it to true"),
        (["cache.use=always"], "no cache holds the embeddings of unclip.decoder; set it to never"),
        (["data.size=32", "guidance.scale=1"], r"data.size 32: .* trained on pictures of 64; set data.size=64"),
        (["unclip.width=16"], "was trained with unclip.width=32, and this run asks for unclip.width=16"),
    ],
)
def test_settings_under_which_the_embedding_would_not_be_told_are_refused(own, changes, says):
    train_unclip(run(own, "train_unclip.steps=1"), CPU)
    with pytest.raises(ValueError, match=says):
        train_ldm(run(own, "unclip.decoder=true", *changes), CPU)
    assert not (own / "training" / "denoiser").exists()


def test_a_denoiser_goes_on_with_a_better_prior_but_not_with_another_embedding(own):
    train_unclip(run(own, "train_unclip.steps=1"), CPU)
    train_ldm(run(own, "unclip.decoder=true", "train_ldm.steps=1"), CPU)
    train_unclip(run(own, "train_unclip.steps=2"), CPU)  # more of the same says the same of a picture
    train_ldm(run(own, "unclip.decoder=true", "train_ldm.steps=2"), CPU)
    shutil.rmtree(own / "training" / "unclip")
    train_unclip(run(own, "train_unclip.steps=1", "data.seed=1"), CPU)
    with pytest.raises(ValueError, match="another embedding of the picture"):
        train_ldm(run(own, "unclip.decoder=true", "train_ldm.steps=3"), CPU)
    with pytest.raises(ValueError, match="unclip.decoder was True and is now False"):
        train_ldm(run(own, "train_ldm.steps=2"), CPU)


def test_a_prior_is_taken_from_the_base_in_its_own_size(own, tmp_path):
    train_unclip(run(own, "train_unclip.steps=1"), CPU)
    base = train_ldm(run(own, "unclip.decoder=true", "train_ldm.steps=1"), CPU)
    more = [f"out={tmp_path / 'on'}", f"base={base}", "unclip.decoder=true", "unclip.width=256", "train_ldm.steps=1"]
    model = load_model(train_ldm(run(own, *more), CPU))
    assert model.unclip is not None and len(list(model(["a red star"]))) == 1
    with pytest.raises(ValueError, match="told another embedding of pictures"):
        train_ldm(run(own, *GUIDED, f"base={base}", f"out={tmp_path / 'other'}"), CPU)
    taught = train_ldm(run(own, *GUIDED, *more, f"out={tmp_path / 'taught'}"), CPU)
    assert load_model(taught).unclip is not None


def test_towers_that_were_not_trained_together_are_refused(own, parts, tmp_path):
    (own / "text").unlink()
    (own / "picture").unlink()
    shutil.copytree(parts / "picture", own / "picture")
    train_clip(run(tmp_path / "other", "train_clip.steps=1", "train_clip.seed=1"), CPU)
    (own / "text").symlink_to(tmp_path / "other" / "text")
    with pytest.raises(ValueError, match=r"trained beside another text encoder; train both with train_clip\.py"):
        train_unclip(run(own), CPU)


def test_an_evaluation_refuses_a_likelihood_that_would_tell_the_picture(own):
    train_unclip(run(own, "train_unclip.steps=1"), CPU)
    model = train_ldm(run(own, "unclip.decoder=true", "train_ldm.steps=1"), CPU)
    options = ["--likelihood", "--prompts-per-category", 1, "--out", own / "report"]
    assert_one_line(call("evaluate.py", model, *options), "told CLIP's embedding of the very picture; leave it out")
