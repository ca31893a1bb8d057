"""Two processes learn what one learns from their whole batch, whatever they train."""

from dataclasses import replace
from time import sleep

import pytest
import torch
from accelerate.state import AcceleratorState
from processes import of_two

from ldm.autoencoders import BOTTLENECKS, AdversarialConfig, AutoencoderConfig, ReconstructionConfig, RobustnessConfig
from ldm.data.shapes import ShapesConfig
from ldm.denoisers import DiTConfig
from ldm.diffusion.loss import DenoisingLoss
from ldm.diffusion.process import Process
from ldm.diffusion.schedules import CosineConfig
from ldm.diffusion.times import Times, TimeSampler
from ldm.pipeline import TextToImage
from ldm.priors import PriorConfig
from ldm.run import Run
from ldm.stages import train_clip
from ldm.text.clip import ClipConfig
from ldm.text.vocabulary import Vocabulary
from ldm.training.adversary import Adversary
from ldm.training.autoencoder import AutoencoderTask
from ldm.training.clip import ClipTask
from ldm.training.denoiser import DenoiserTask
from ldm.training.engine import processes
from ldm.training.loop import Trainer
from ldm.training.optim import TrainConfig
from ldm.training.prior import CodeDataset, PriorTask
from ldm.types import Condition

DATA = ShapesConfig(size=16, length=16)
TRAIN = TrainConfig(steps=3, warmup=0, decay="constant", workers=0, precision="fp32", validate_samples=4, clip=0.0)
LOSSES = ReconstructionConfig(l1=1.0, l2=1.0, ms_ssim=0.5, gaussian=0.1, laplace=0.1, bernoulli=0.1, scale=0.5)
RIVAL = AdversarialConfig(weight=0.5, width=8, layers=1, r1=1.0, r1_every=2)
SETTINGS = {  # under which the table's penalties count, and codes start, move, and come back
    "kl": {"weight": 0.1},
    "sparse": {"weight": 1.0, "rho": 0.3},
    "vq": {"codes": 64, "revive": 0.5, "decay": 0.5, "commitment": 1.0},
    "vq2": {"codes": 64, "revive": 0.5, "decay": 0.5, "commitment": 1.0},
}
CASES = {
    **{name: (name, SETTINGS.get(name, {})) for name in BOTTLENECKS},
    "kl with free bits": ("kl", {"weight": 1.0, "free_bits": 2.55}),  # between what halves of a batch have
    "vq by its gradient": ("vq", {**SETTINGS["vq"], "ema": False}),
    "vq on the sphere": ("vq", {**SETTINGS["vq"], "cosine": True}),
}


@pytest.fixture(autouse=True)
def one_accelerator_a_test():
    """Its state is the process's own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def plain_descent_without_draws(monkeypatch):
    """Draws are functions of the picture, as two processes draw others than one, and weights follow the gradients."""
    monkeypatch.setattr(torch, "randn_like", lambda x: (50 * x.detach()).cos())
    monkeypatch.setattr("ldm.training.learner.optimizer", lambda net, _: torch.optim.SGD(net.parameters(), lr=0.001))


def trainer(folder, batch, bottleneck, settings, *, contractive=0.0, adversary=False):
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=4, width=8, multipliers=[1], blocks=1, patch=4, bounded=True)
    network = config.build(BOTTLENECKS[bottleneck](**settings).build(4))
    train, data = replace(TRAIN, batch=batch), (DATA.build("train"), DATA.build("val"))
    rival = Adversary(RIVAL, train) if adversary else None
    robustness = RobustnessConfig(contractive=contractive)
    task = AutoencoderTask(network, LOSSES, robustness, *data, train, lambda net: None, rival)
    given = {"described": "", "made_from": {}, "device": torch.device("cpu"), "rival": rival}
    return Trainer(task, train, folder, **given)


def clip_trainer(folder, batch):
    torch.manual_seed(0)
    tower = {"width": 8, "layers": 1, "heads": 2, "embed_dim": 8}
    vision = {"vision_width": 8, "vision_layers": 1, "vision_heads": 2, "vision_patch": 8}
    train, data = replace(TRAIN, batch=batch), (DATA.build("train"), DATA.build("val"))
    text = ClipConfig(layout=1.0, **tower, **vision)
    task = ClipTask(text, Vocabulary.of(data[0].captions(16)), 16, *data, train, lambda net: None)
    return Trainer(task, train, folder, described="", made_from={}, device=torch.device("cpu"))


class OfTheSample(DenoisingLoss):
    """The loss whose draws are functions of the latents: these are what it draws from."""

    def __call__(self, network, x0, cond, generator, step=0):
        return super().__call__(network, x0, cond, x0, step)


class TimesOfTheSample(TimeSampler):
    def forward(self, count, x0):
        t = 0.5 + 0.4 * (50 * x0.mean(dim=(1, 2, 3))).cos()  # (B,)
        return Times(t, torch.ones_like(t))


def told(captions):
    """A condition (B, 4, 8) that holds the letters' number."""
    lengths = torch.tensor([float(len(caption)) for caption in captions]).view(-1, 1)
    states = (lengths + torch.arange(8)).sin()
    return Condition(states[:, None].repeat(1, 4, 1), states, torch.ones(len(captions), 4, dtype=torch.bool))


def denoiser_trainer(folder, batch):
    torch.manual_seed(0)
    first = AutoencoderConfig(channels=4, width=8, multipliers=[1], blocks=1, patch=4)
    autoencoder = first.build(BOTTLENECKS["identity"]().build(4))
    network = DiTConfig(width=16, depth=1, heads=2).build(channels=4, text_width=8, pooled_width=8)
    for parameter in network.parameters():  # the last layer begins at zero, and nothing before it would learn
        parameter.data += 0.02 * torch.arange(parameter.numel()).view_as(parameter).sin()
    process = Process(CosineConfig().build())
    train, data = replace(TRAIN, batch=batch), (DATA.build("train"), DATA.build("val"))
    objective = OfTheSample(process, TimesOfTheSample(torch.clone))
    model = TextToImage(network, autoencoder, told, process)
    task = DenoiserTask(model, objective, *data, train, lambda net, best: None, text_dropout=0.0)
    return Trainer(task, train, folder, described="", made_from={}, device=torch.device("cpu"))


def prior_trainer(folder, batch):
    torch.manual_seed(0)
    autoencoder = AutoencoderConfig(channels=4, width=8, multipliers=[1], blocks=1, patch=4)
    first = autoencoder.build(BOTTLENECKS["vq2"](codes=5).build(4))
    codes = CodeDataset([torch.randint(5, (16, side, side)) for side in (2, 4)])
    train = replace(TRAIN, batch=batch)
    task = PriorTask(PriorConfig(width=8, layers=2).build((5, 5)), first, codes, codes, train, lambda net: None)
    return Trainer(task, train, folder, described="", made_from={}, device=torch.device("cpu"))


def learned(made):
    """All weights and buffers of all networks after each of three steps, as lists."""
    batches = made.task.batches(0, made.accelerator.process_index, made.accelerator.num_processes)
    steps = []
    for _ in range(3):
        made.train_step(batches)
        states = {learner.prefix: learner.network.state_dict() for learner in made.learners}
        steps.append({f"{net}{key}": value.tolist() for net, state in states.items() for key, value in state.items()})
    return steps


def assert_two_are_one(folder, *given, make=trainer, **options):
    found = of_two(lambda rank: learned(make(folder / f"{rank}", 4, *given, **options)))
    assert found[0] == found[1]
    alone = learned(make(folder / "alone", 8, *given, **options))
    for ours, theirs in zip(found[0], alone, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(torch.tensor(ours[name]), torch.tensor(value), atol=1e-6, rtol=1e-5, msg=name)
    first, last = ({name: torch.tensor(value).double() for name, value in alone[step].items()} for step in (0, 2))
    assert max((last[name] - value).abs().max() for name, value in first.items()) > 1e-4  # far beyond the tolerance


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_learns_from_their_whole_batch(tmp_path, case):
    assert_two_are_one(tmp_path, *CASES[case])


@pytest.mark.parametrize("case", ["identity", "vq"])
def test_two_processes_learn_it_against_a_discriminator_too(tmp_path, case):
    assert_two_are_one(tmp_path, *CASES[case], adversary=True)


def test_two_processes_learn_it_with_a_price_on_the_encoders_sensitivity_too(tmp_path):
    assert_two_are_one(tmp_path, *CASES["identity"], contractive=0.1)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("case", ["vq", "vq2", "fsq"])
def test_the_use_of_codes_is_that_of_both_processes(case, frozen):
    def used(part):
        torch.manual_seed(0)  # of the codebook, and of its start
        network = BOTTLENECKS[case](**SETTINGS.get(case, {})).build(4)
        h = torch.randn(8, network.features, 8, 8)
        return {name: value.item() for name, value in network.train(not frozen)(h[part], 192).logs.items()}

    def half(rank):
        processes(torch.device("cpu"))  # joins them
        return used(slice(4 * rank, 4 * rank + 4))

    alone = used(slice(None))
    assert of_two(half) == (pytest.approx(alone),) * 2
    assert used(slice(4)) != pytest.approx(alone)


def test_two_processes_share_one_vocabulary_though_each_reads_other_captions(monkeypatch):
    """As of a stream, which deals its archives out."""

    class Caught(Exception):
        pass

    def vocabulary(rank):
        def caught(task, text, vocabulary, *_):
            raise Caught(vocabulary)

        monkeypatch.setattr("ldm.stages.clip.ClipTask.__init__", caught)
        monkeypatch.setattr(Vocabulary, "of", lambda captions: f"that of process {rank}")
        with pytest.raises(Caught) as found:
            train_clip(Run(data=DATA), torch.device("cpu"))
        return found.value.args[0]

    assert of_two(vocabulary) == ("that of process 0",) * 2


def test_a_process_waits_for_what_the_first_one_makes(tmp_path):
    def made(rank):
        with processes(torch.device("cpu")).main_process_first():
            if rank == 0:
                sleep(0.5)
                (tmp_path / "made").touch()
            return (tmp_path / "made").exists()

    assert of_two(made) == (True, True)


def test_two_processes_learn_it_of_a_text_encoder_too(tmp_path):
    """Each picture is compared with the captions of both."""
    assert_two_are_one(tmp_path, make=clip_trainer)


def test_two_processes_learn_it_of_a_denoiser_too(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda *_, generator: (70 * generator).sin())
    assert_two_are_one(tmp_path, make=denoiser_trainer)


def test_two_processes_learn_it_of_a_prior_too(tmp_path):
    assert_two_are_one(tmp_path, make=prior_trainer)
