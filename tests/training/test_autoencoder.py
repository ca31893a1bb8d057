"""The first stage's loss: what the network is given, what it is compared with, what is added; and its going on."""

from dataclasses import replace
from math import log10
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributions import Bernoulli, Laplace, Normal, kl_divergence
from torchvision.models import squeezenet1_1

from ldm.autoencoders import (
    BOTTLENECKS,
    AdversarialConfig,
    AutoencoderConfig,
    Code,
    ReconstructionConfig,
    RobustnessConfig,
)
from ldm.config import load
from ldm.data.loader import first_batches
from ldm.data.shapes import ShapesConfig
from ldm.data.transforms import to_tensor
from ldm.evaluation.weights import MissingWeights
from ldm.files import read_tensors
from ldm.folders import load_autoencoder, save_autoencoder
from ldm.run import Run
from ldm.stages import train_autoencoder
from ldm.stages.autoencoder import start_autoencoder
from ldm.training.adversary import Adversary
from ldm.training.autoencoder import AutoencoderTask, perceptual, warmed
from ldm.training.checkpoint import newest
from ldm.training.loop import Trainer
from ldm.training.optim import TrainConfig
from ldm.types import Batch

CPU = torch.device("cpu")
DATA = ShapesConfig(size=16, length=8)


def task(bottleneck="identity", *, robustness=None, bounded=False, **options):
    config = AutoencoderConfig(channels=3, width=8, multipliers=[1], blocks=1, patch=4, bounded=bounded)
    network = config.build(BOTTLENECKS[bottleneck](**options).build(3))
    train = TrainConfig(batch=4, validate_samples=4, workers=0)
    robust, data = robustness or RobustnessConfig(), (DATA.build("train"), DATA.build("val"))
    return AutoencoderTask(network, ReconstructionConfig(), robust, *data, train, lambda net: None)


def batch():
    (one,) = first_batches(DATA.build("train"), 4, 4)
    return one


class Witness(nn.Module):
    """Remembers what it was given, and gives zero for it."""

    def forward(self, image):
        self.seen = image
        return torch.zeros_like(image), Code(image, torch.tensor(2.0), {})


def test_the_network_sees_the_corrupted_image_and_the_loss_the_clean_one():
    robust, image = RobustnessConfig(noise=0.5, mask=0.5), batch().image
    witness = Witness()
    _, terms = task(robustness=robust).loss(witness, batch(), 0, 0)
    torch.testing.assert_close(terms["l1"], image.abs().mean())
    assert (witness.seen == 0).float().mean() > 0.4 and not torch.equal(witness.seen, image)


def test_only_training_sees_corrupted_images():
    clean, corrupting = task(), task(robustness=RobustnessConfig(noise=1.0, mask=0.5, contractive=1.0))
    corrupting.network.load_state_dict(clean.network.state_dict())
    assert corrupting.validate(corrupting.network) == clean.validate(clean.network)


@pytest.mark.parametrize("size", [6, 4, 20])
def test_the_sample_grid_has_sixteen_pictures_and_what_comes_back_below_each(size, tmp_path):
    made = task()
    made.val, made.config = ShapesConfig(size=16, length=800).build("val"), replace(made.config, batch=size)
    made.config.validate_samples = 40
    made.sample(made.network, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as image:
        sheet = to_tensor(np.asarray(image))  # (3, H, W)
    assert sheet.shape == (3, 4 * 18 + 2, 8 * 18 + 2)
    shown = torch.cat([batch.image for batch in first_batches(made.val, size, 16)])[:16]
    for i, picture in enumerate(shown):
        row, column = divmod(i, 8)
        for below, wanted in ((0, picture), (1, made.network.decode(made.network.encode(picture[None]))[0])):
            top, left = 2 + 18 * (2 * row + below), 2 + 18 * column
            found = sheet[:, top : top + 16, left : left + 16]
            torch.testing.assert_close(found, wanted.detach().clamp(-1, 1), atol=0.02, rtol=0)


@pytest.fixture
def squeeze(tmp_path):
    """A file of random weights of SqueezeNet."""
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "squeeze.pth")
    return tmp_path / "squeeze.pth"


def perceived(made, squeeze, image):
    """The gradients of the autoencoder from LPIPS alone."""
    config = ReconstructionConfig(l1=0.0, lpips=1.0, lpips_backbone="squeeze", lpips_weights=str(squeeze))
    made.reconstruction = config.build(perceptual(config))
    total, terms = made.loss(made.network, Batch(image, []), 0, 0)
    total.backward()
    assert terms.keys() == {"lpips", "penalty"} and terms["penalty"] == 0
    return [p.grad for p in made.network.parameters()]


def test_the_perceptual_term_moves_the_whole_autoencoder_and_nothing_of_its_own_network(squeeze):
    made = task()
    gradients = perceived(made, squeeze, torch.rand(2, 3, 32, 32) * 2 - 1)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    held = list(made.reconstruction.parameters())
    assert len(held) > 50 and not any(p.requires_grad or p.grad is not None for p in held)
    assert not made.learned.state_dict()  # which is what checkpoints hold beside the network


def test_the_perceptual_gradient_is_finite_where_its_network_sees_nothing(squeeze):
    weights = torch.load(squeeze)
    dead = {name: value - 1e3 if name.endswith("bias") else value for name, value in weights.items()}
    torch.save(dead, squeeze)
    assert all(p.isfinite().all() for p in perceived(task(), squeeze, torch.rand(2, 3, 32, 32) * 2 - 1))


def test_the_perceptual_term_is_the_same_each_time(squeeze):
    config = ReconstructionConfig(lpips=1.0, lpips_backbone="squeeze", lpips_weights=str(squeeze))
    loss, (one, other) = config.build(perceptual(config)), torch.rand(2, 2, 3, 32, 32)
    assert loss(one, other)[0] == loss(one, other)[0]  # there is dropout in it, for those who train it


def test_missing_weights_of_the_perceptual_term_are_told_in_one_line_with_the_key_to_set(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        MissingWeights, match=r"vgg16-\w+.pth is not there; download .* with reconstruction.lpips_weights"
    ):
        perceptual(ReconstructionConfig(lpips=1.0))


def test_the_contractive_term_is_weighted_by_image_value_and_moves_the_encoder():
    made = task(robustness=RobustnessConfig(contractive=3.0))
    plain = task()
    plain.network.load_state_dict(made.network.state_dict())
    total, terms = made.loss(made.network, batch(), 0, 0)
    without, _ = plain.loss(plain.network, batch(), 0, 0)
    torch.testing.assert_close(total - without, 3.0 * terms["contraction"] / (3 * 16 * 16), atol=1e-5, rtol=1e-3)
    total.backward(), without.backward()
    (one, other) = (next(t.network.encoder.parameters()).grad for t in (made, plain))
    assert not torch.allclose(one, other)


class Free(nn.Module):
    """A reconstruction that costs nothing."""

    def forward(self, image, decoded):
        return decoded.new_zeros(()), {}


PRICES = {  # bottleneck and its options, robustness, and what is moved besides the encoder
    "kl": ("kl", {"weight": 1.0}, {}, set()),
    "commitment": ("vq", {"codes": 4}, {}, set()),
    "commitment and codebook": ("vq", {"codes": 4, "ema": False}, {}, {"bottleneck.codebook"}),
    "sparsity": ("sparse", {}, {}, set()),
    "contraction": ("identity", {}, {"contractive": 1.0}, set()),
}


@pytest.mark.parametrize("price", PRICES)
def test_a_price_on_the_latents_moves_the_encoder_and_not_the_decoder(price):
    bottleneck, options, robust, besides = PRICES[price]
    made = task(bottleneck, robustness=RobustnessConfig(**robust), **options)
    made.reconstruction = Free()
    made.loss(made.network, batch(), 0, 0)[0].backward()
    moved = {name for name, p in made.network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    encoder = {f"encoder.{name}" for name, _ in made.network.encoder.named_parameters()}
    last = f"encoder.{len(made.network.encoder) - 1}.bias"  # which no derivative of the latent knows
    assert moved == (encoder | besides) - ({last} if robust else set())


LIKELIHOODS = {
    "gaussian": lambda y: Normal(y, 0.2),
    "laplace": lambda y: Laplace(y, 0.2),
    "bernoulli": lambda y: Bernoulli((y + 1) / 2),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_with_a_likelihood_and_the_kl_at_weight_1_the_loss_is_minus_the_elbo_per_image_value(name):
    """E_q[log p(x | z)] - KL(q || p), the first by the one draw of z that the loss makes, the second exactly."""
    made, bits = task("kl", weight=1.0, bounded=True), Batch(batch().image.sign(), [])
    made.reconstruction = ReconstructionConfig(**{"l1": 0.0, name: 1.0, "scale": 0.2}).build()
    torch.manual_seed(1)
    total, _ = made.loss(made.network, bits, 0, 0)
    torch.manual_seed(1)
    mean, log_variance = made.network.bottleneck.moments(made.network.encoder(bits.image))
    posterior = Normal(mean, (log_variance / 2).exp())
    decoded = made.network.decoder(posterior.rsample())
    seen = (bits.image + 1) / 2 if name == "bernoulli" else bits.image
    evidence = LIKELIHOODS[name](decoded).log_prob(seen).sum(dim=(1, 2, 3))  # (B,)
    elbo = evidence - kl_divergence(posterior, Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(total, -elbo.mean() / (3 * 16 * 16))


def test_a_warmup_is_a_line_to_the_whole_weight():
    assert [warmed(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmed(0, 0) == 1


@pytest.mark.parametrize(("step", "share"), [(0, 1), (2, 3), (9, 10), (90, 10)])
def test_the_penalty_is_warmed_by_the_optimizer_step(step, share):
    total, _ = task("kl", weight=1.0, warmup=10).loss(Witness(), batch(), 0, step)
    torch.testing.assert_close(total, batch().image.abs().mean() + 2.0 * share / 10)


RUNS = {
    "warmed": ["train_autoencoder.accumulate=2", "bottleneck.warmup=4", "bottleneck.free_bits=0.1"],
    "robust": ["robustness.noise=0.1", "robustness.mask=0.2", "robustness.contractive=0.1"],
    "vq": ["bottleneck=vq", "bottleneck.codes=32", "bottleneck.decay=0.5", "bottleneck.revive=0.9"],
    "vq by gradient": ["bottleneck=vq", "bottleneck.codes=32", "bottleneck.ema=false", "bottleneck.cosine=true"],
}


def trained(folder, *overrides):
    """The last checkpoint's weights of a tiny run."""
    train_autoencoder(load(Run, None, [*overrides, f"out={folder}"]), CPU)
    return read_tensors(newest(Path(folder, "training", "autoencoder", "state")) / "weights.safetensors")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_at_half_goes_on_to_the_same_weights(name, tiny, tmp_path):
    common = [*tiny, "train_autoencoder.decay=constant", "train_autoencoder.batch=2", *RUNS[name]]
    trained(tmp_path / "stopped", *common, "train_autoencoder.steps=2")
    stopped = trained(tmp_path / "stopped", *common)
    straight = trained(tmp_path / "straight", *common)
    assert stopped.keys() == straight.keys()
    for key, value in straight.items():
        assert torch.equal(value, stopped[key]), key


@pytest.mark.parametrize("revive", [0.0, 0.999])
def test_a_code_that_was_replaced_is_not_averaged_with_what_it_was(revive, tmp_path):
    """Without any replaced in the last step the exported codebook is an average, as all weights are."""
    torch.manual_seed(0)
    made = task("vq", codes=8, decay=0.5, revive=revive, ema=False)
    given = {"described": "", "made_from": {}, "device": CPU}
    trainer = Trainer(made, replace(made.config, precision="fp32", warmup=0, lr=1e-2, ema=0.9), tmp_path, **given)
    for _ in range(3):
        before, image = made.network.bottleneck.codebook.detach().clone(), batch().image
        trainer.train_step(iter([Batch(image, [])]))
    now, mean = made.network.bottleneck.codebook, trainer.average.module.bottleneck.codebook
    moved = (now - before).abs().amax(dim=1) > 0.05  # by a replacement, not by a step
    same = (now == mean).all(dim=1)
    assert torch.equal(same, moved) and moved.any() == (revive > 0)


def skipping(folder, spoil, bad, **options):
    """The weights and codebooks after three steps, that of number ``bad`` spoilt in ``spoil`` and so skipped."""
    torch.manual_seed(0)
    made = task(codes=8, decay=0.5, revive=0.9, **options)
    train = replace(made.config, precision="fp32", warmup=0, decay="constant")
    given = {"described": "", "made_from": {}, "device": CPU}
    trainer, image, skipped = Trainer(made, train, folder, **given), batch().image, []
    for step in range(3):
        spoilt = spoil if step == bad else ""
        hook = made._last.register_hook(lambda grad, by=torch.nan if spoilt == "gradient" else 1.0: grad * by)
        before = {key: value.clone() for key, value in made.network.state_dict().items()}
        trainer.train_step(iter([Batch(image * (torch.nan if spoilt == "picture" else 1.0), [])]))
        hook.remove()
        skipped.append(trainer.skipped)
        moved = [key for key, value in made.network.state_dict().items() if not torch.equal(value, before[key])]
        assert not (trainer.skipped and moved)
    assert skipped == [step == bad for step in range(3)]
    return made.network.state_dict()


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("bottleneck", ["vq", "vq2"])
def test_a_step_that_is_skipped_for_its_gradient_leaves_no_trace_in_a_codebook(bottleneck, ema, bad, tmp_path):
    """Fault 19: as one whose picture is not finite, of which no codebook learns anything."""
    given = {"bottleneck": bottleneck, "ema": ema}
    found, wanted = (skipping(tmp_path / spoil, spoil, bad, **given) for spoil in ("gradient", "picture"))
    assert [name for name, value in found.items() if not torch.equal(value, wanted[name])] == []


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_what_was_trained_is_loaded_and_can_be_a_base(name, tiny, tmp_path):
    overrides = [*tiny, "train_autoencoder.steps=2", "train_autoencoder.batch=2", f"bottleneck={name}"]
    trained(tmp_path, *overrides)
    network, run = load_autoencoder(tmp_path / "autoencoder")
    image = batch().image
    assert network.decode(network.encode(image)).isfinite().all()
    other = run.autoencoder.build(run.bottleneck.build(run.autoencoder.channels)).eval()
    start_autoencoder(load(Run, None, [*overrides, f"base={tmp_path}"]), other)
    assert torch.equal(other.encode(image), network.encode(image))


def test_a_base_of_another_codebook_is_refused(tiny, tmp_path):
    overrides = [*tiny, "train_autoencoder.steps=1", "train_autoencoder.batch=2", "bottleneck=vq"]
    trained(tmp_path, *overrides, "bottleneck.codes=16")
    run = load(Run, None, [*overrides, "bottleneck.codes=8", f"base={tmp_path}"])
    with pytest.raises(ValueError, match="has an autoencoder of other settings"):
        start_autoencoder(run, run.autoencoder.build(run.bottleneck.build(8)))


def test_what_is_exported_has_the_mean_and_std_of_its_weights_in_half_precision(tmp_path):
    """A channel far from zero that hardly varies: in single precision its bias is another number than in half."""
    made = task()
    made.save = lambda net: save_autoencoder(net, Run(), tmp_path / "autoencoder")
    with torch.no_grad():
        made.network.encoder[-1].weight[0] *= 0.01
        made.network.encoder[-1].bias[0] = 3.00098
    made.export(made.network)
    tensors = read_tensors(tmp_path / "autoencoder" / "autoencoder.safetensors")
    assert tensors["mean"].dtype == tensors["std"].dtype == torch.float32
    assert tensors["encoder.1.weight"].dtype == torch.float16
    made.network.load_state_dict({key: value.float() for key, value in tensors.items()})
    with torch.no_grad():
        latent = made.network.encode(torch.cat([one.image for one in first_batches(DATA.build("train"), 4, 8)]))
    torch.testing.assert_close(latent.mean(dim=(0, 2, 3)), torch.zeros(3), atol=0.01, rtol=0)
    torch.testing.assert_close(latent.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=0.01, rtol=0)


def test_the_discriminator_sees_clean_pictures_and_the_contraction_is_taken_there(monkeypatch):
    robust = RobustnessConfig(noise=0.5, mask=0.5, contractive=1.0)
    made, image, seen = task(robustness=robust), batch().image, []
    monkeypatch.setattr("ldm.training.autoencoder.contraction", lambda mode, x: seen.append(x) or x.new_zeros(()))
    made.adversary = Adversary(AdversarialConfig(weight=0.5, width=8, layers=1), TrainConfig())
    made.loss(made.network, batch(), 0, 0)
    assert torch.equal(seen[0], image) and torch.equal(made.adversary._shown[1], image)


def test_the_penalty_is_logged_as_it_is_added():
    made = task("kl", weight=3.0, warmup=4)
    made.reconstruction = ReconstructionConfig(l1=1.0).build()
    for step, share in ((0, 0.25), (9, 1.0)):
        total, terms = made.loss(made.network, batch(), 0, step)
        torch.testing.assert_close(total, terms["l1"] + terms["penalty"])
        torch.testing.assert_close(terms["penalty"], share * 3.0 * terms["kl"].detach() / (3 * 16 * 16))


def test_the_logged_psnr_and_l1_are_those_of_all_held_out_pictures():
    made = task()
    made.held_out = [Batch(batch.image[:count], batch.captions[:count]) for batch in made.held_out for count in (1, 3)]
    images = torch.cat([batch.image for batch in made.held_out])
    with torch.no_grad():
        found, error = made.validate(made.network), made.network.decode(made.network.encode(images)) - images
    assert found["psnr"] == pytest.approx(10 * log10(4 / error.square().mean()), abs=1e-3)
    assert found["l1"] == pytest.approx(float(error.abs().mean()), rel=1e-4)
