"""Training a prior: what it learns, what it leaves, what it goes on from, and what it is refused for."""

import shutil
import tarfile
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import TINY

from ldm.autoencoders.codes import decode_codes, encode_codes
from ldm.config import load
from ldm.data.loader import first_batches
from ldm.data.stream import StreamConfig
from ldm.files import BrokenFile, read_tensors
from ldm.folders import load_autoencoder, load_prior, save_autoencoder
from ldm.priors import CodePrior, PriorConfig
from ldm.run import Run
from ldm.stages import train_autoencoder, train_prior
from ldm.training.checkpoint import newest
from ldm.training.log import read
from ldm.training.optim import TrainConfig
from ldm.training.prior import CodeDataset, PriorTask, codes_of, entropy
from ldm.types import Key

CPU = torch.device("cpu")
CODED = {"vq": "bottleneck.codes=16", "vq2": "bottleneck.codes=16", "fsq": "bottleneck.levels=[2]"}


def configured(name, folder, *changes):
    return load(
        Run, None, [*TINY, f"bottleneck={name}", CODED[name], "autoencoder.channels=4", f"out={folder}", *changes]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes, once each, a run with an autoencoder of codes and a prior over them."""

    @cache
    def run_of(name):
        torch.set_num_threads(1)
        run = configured(name, tmp_path_factory.mktemp(name))
        train_autoencoder(run, CPU)
        assert train_prior(run, CPU) == Path(run.out, "prior")
        return run

    return run_of


@pytest.fixture(params=CODED)
def trained(request, made):
    return made(request.param)


@pytest.fixture
def vq(made):
    return made("vq")


def test_a_saved_prior_draws_pictures_that_do_not_depend_on_their_batch(trained):
    autoencoder, _ = load_autoencoder(Path(trained.out, "autoencoder"))
    prior = load_prior(Path(trained.out, "prior"), autoencoder)
    sizes = [(8, 8), (16, 16)][-len(prior.levels) :]
    drawn = decode_codes(autoencoder, prior.draw(sizes, [3, 4]))
    assert drawn.shape == (2, 3, 64, 64) and drawn.abs().max() <= 1
    alone = decode_codes(autoencoder, prior.draw(sizes, [4]))
    torch.testing.assert_close(alone, drawn[1:], atol=1e-5, rtol=0)


def test_training_logs_bits_a_code_and_draws(trained):
    folder = Path(trained.out, "training", "prior")
    (last,) = [line for line in read(folder / "log.jsonl") if line["step"] == 4 and "val_bits" in line]
    levels = [last[f"val_bits_{name}"] for name in ("top", "bottom") if f"val_bits_{name}" in last]
    assert len(levels) == (2 if trained.bottleneck.__class__.__name__ == "VQ2Config" else 0)
    if levels:  # 64 codes above, 256 below
        assert last["val_bits"] == pytest.approx((levels[0] + 4 * levels[1]) / 5)
    assert 0 < last["val_bits"] < 4.5 and 0 <= last["val_bits_blind"] <= 4
    assert (folder / "samples" / "00000004.png").stat().st_size > 0


def test_a_run_stopped_at_half_goes_on_to_the_same_state(vq, tmp_path):
    shutil.copytree(Path(vq.out, "autoencoder"), tmp_path / "autoencoder")
    for steps in (2, 4):
        changes = ("train_prior.decay=constant", f"train_prior.steps={steps}")
        train_prior(configured("vq", tmp_path, *changes), CPU)
    straight = tmp_path / "straight"
    shutil.copytree(Path(vq.out, "autoencoder"), straight / "autoencoder")
    train_prior(configured("vq", straight, "train_prior.decay=constant"), CPU)
    ends = [newest(Path(out, "training", "prior", "state")) for out in (tmp_path, straight)]
    for part in ("weights", "ema", "optimizer"):
        one, other = (read_tensors(path / f"{part}.safetensors") for path in ends)
        assert one.keys() == other.keys()
        assert [key for key, value in one.items() if not torch.equal(value, other[key])] == []


def test_a_prior_of_another_autoencoder_is_refused(vq):
    autoencoder, _ = load_autoencoder(Path(vq.out, "autoencoder"))
    with torch.no_grad():
        autoencoder.bottleneck.codebook[0] += 1
    with pytest.raises(ValueError, match=r"codes of another autoencoder; train one with train_prior.py"):
        load_prior(Path(vq.out, "prior"), autoencoder)


@pytest.mark.parametrize(("part", "known"), [("decoder", True), ("encoder", False)])
def test_a_prior_knows_the_codes_of_an_autoencoder_whose_decoder_was_trained_further(vq, tmp_path, part, known):
    for name in ("autoencoder", "prior", "training"):
        shutil.copytree(Path(vq.out, name), tmp_path / name)
    autoencoder, made_by = load_autoencoder(tmp_path / "autoencoder")
    with torch.no_grad():
        next(getattr(autoencoder, part).parameters()).mul_(2)
    save_autoencoder(autoencoder, made_by, tmp_path / "autoencoder")
    for goes_on in (
        lambda: load_prior(tmp_path / "prior", autoencoder),
        lambda: train_prior(configured("vq", tmp_path, "train_prior.steps=5"), CPU),
    ):
        with nullcontext() if known else pytest.raises(ValueError, match="another autoencoder"):
            goes_on()


def test_an_altered_prior_is_refused_and_the_file_is_named(vq, tmp_path):
    shutil.copytree(Path(vq.out, "prior"), tmp_path / "prior")
    path = tmp_path / "prior" / "prior.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BrokenFile, match="prior.safetensors"):
        load_prior(tmp_path / "prior", load_autoencoder(Path(vq.out, "autoencoder"))[0])


def test_a_run_does_not_go_on_with_the_codes_of_other_pictures(vq):
    run = configured("vq", vq.out, "prior.pictures=16", "train_prior.steps=6")
    with pytest.raises(ValueError, match=r"another number of pictures \(32, now 16\)"):
        train_prior(run, CPU)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("bottleneck=kl", "a Gaussian bottleneck has no codes, as vq, vq2, fsq have"),
        ("bottleneck=identity", "has no codes"),
        ("bottleneck=vq", "vq/autoencoder is not there, .* train it with scripts/train_autoencoder.py"),
    ],
)
def test_a_first_stage_without_codes_or_none_at_all_is_told(tmp_path, change, says):
    run = load(Run, None, [*TINY, change, f"out={tmp_path / 'vq'}"])
    with pytest.raises(ValueError, match=says):
        train_prior(run, CPU)


def test_pictures_that_the_first_stage_cannot_be_given_are_refused(vq):
    own = [option for option in TINY if not option.startswith("data.")]
    own += ["bottleneck=vq", CODED["vq"], "autoencoder.channels=4", f"out={vq.out}"]
    pictures = ["data.name=folder", "data.path=data/sample", "data.size=34"]
    with pytest.raises(ValueError, match=r"data.size 34 is not a multiple of 4, .*; try data.size=3[26]"):
        train_prior(load(Run, None, [*own, *pictures]), CPU)


def test_a_stream_is_refused_since_its_first_pictures_are_others_in_every_process(vq, tmp_path):
    for name in ("a", "b"):
        tarfile.open(tmp_path / f"{name}.tar", "w").close()
    urls = {"urls": str(tmp_path / "a.tar"), "val_urls": str(tmp_path / "b.tar")}
    run = replace(vq, data=StreamConfig(**urls, size=vq.data.size))
    with pytest.raises(ValueError, match=r"a stream has no first pictures, of which the codes could be kept; use"):
        train_prior(run, CPU)


def test_the_codes_are_those_of_the_pictures_in_their_order(vq):
    autoencoder, _ = load_autoencoder(Path(vq.out, "autoencoder"))
    data = vq.data.build("train")
    codes = codes_of(autoencoder, data, 20, TrainConfig(batch=8, workers=0))
    assert len(codes) == 20
    (batch,) = first_batches(data, 20, 20)
    (wanted,) = encode_codes(autoencoder, batch.image)
    (found,) = codes.collate([codes[Key(3, i)] for i in range(20)])
    assert found.dtype == torch.long and (found == wanted).float().mean() > 0.999  # a batch's size rounds differently


def learned(counts, maps, steps=40):
    """Bits a code before and after some steps on ``maps``."""
    config = TrainConfig(batch=16, warmup=1, validate_samples=32)
    prior = CodePrior(PriorConfig(width=16, layers=2), counts)
    data = CodeDataset(maps)
    task = PriorTask(prior, None, data, data, config, lambda net: None)
    opt, batches, bits = torch.optim.Adam(prior.parameters(), lr=1e-2), task.batches(0, 0, 1), []
    for step in range(steps + 1):
        if step in (0, steps):
            with torch.no_grad():
                bits.append(task.validate(prior))
        opt.zero_grad()
        task.loss(prior, next(batches), step, step)[0].backward()
        opt.step()
    return bits


def test_bits_fall_from_log2_k_to_what_the_codes_hold():
    """The first code of each row is one of 8 at random, and all else follows from it."""
    first = torch.randint(8, (64, 4, 1))
    before, after = learned((8,), [(first + torch.arange(4)) % 8])
    assert before["bits"] == pytest.approx(3, abs=0.2)
    assert 3 / 4 - 0.1 < after["bits"] < 1.2 and after["bits_blind"] == pytest.approx(3, abs=0.1)


def test_a_bottom_that_the_top_tells_costs_few_bits():
    top = torch.randint(4, (64, 2, 2))
    bottom = top.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    _, after = learned((4, 4), [top, bottom])
    assert after["bits_top"] > 1.6 and after["bits_bottom"] < 0.2
    assert after["bits"] == pytest.approx((after["bits_top"] + 4 * after["bits_bottom"]) / 5)


def test_bits_count_every_code_alike_whatever_its_level():
    """4 codes of the top at 1 bit each and 16 of the bottom at 2, for a prior that knows nothing else."""
    top, bottom = torch.arange(4).view(1, 2, 2) % 2, torch.arange(16).view(1, 4, 4) % 4
    config, data = TrainConfig(batch=1, validate_samples=1), CodeDataset([top, bottom])
    even = {2: torch.zeros(1, 2, 2, 2), 4: torch.zeros(1, 4, 4, 4)}  # logits of as many codes, all alike
    prior = CodePrior(PriorConfig(width=4, layers=1), (2, 4))
    prior.forward = lambda maps: [even[2], even[4]]
    found = PriorTask(prior, None, data, data, config, lambda net: None).validate(prior)
    wanted = {"bits": (4 * 1 + 16 * 2) / 20, "bits_blind": (4 * 1 + 16 * 2) / 20, "bits_top": 1, "bits_bottom": 2}
    assert found == pytest.approx(wanted)


def test_entropy_is_that_of_the_frequencies():
    assert entropy(torch.tensor([[3, 3], [5, 9]])) == pytest.approx(1.5)
