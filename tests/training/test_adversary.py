"""The first stage against a discriminator: who moves whom, the same over two processes, and exact going on."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from processes import of_two

from ldm.autoencoders import BOTTLENECKS, AdversarialConfig, AutoencoderConfig, ReconstructionConfig, RobustnessConfig
from ldm.autoencoders.losses import hinge
from ldm.config import load
from ldm.data.loader import first_batches
from ldm.data.shapes import ShapesConfig
from ldm.files import read_tensors
from ldm.run import Run
from ldm.stages import train_autoencoder
from ldm.training.adversary import Adversary
from ldm.training.autoencoder import AutoencoderTask
from ldm.training.checkpoint import newest
from ldm.training.log import read
from ldm.training.loop import MAX_SKIPPED, Trainer
from ldm.training.optim import TrainConfig
from ldm.training.preflight import preflight
from ldm.training.start import Start
from ldm.training.task import MicroStep

CPU = torch.device("cpu")
DATA = ShapesConfig(size=16, length=16)
SMALL = ["data.size=16", "data.length=16", "train_autoencoder.decay=constant", "train_autoencoder.batch=2"]
ONE_STEP = "train_autoencoder.steps=1"
GAN = ["adversarial.weight=0.5", "adversarial.width=8", "adversarial.layers=1", "adversarial.r1=1.0"]


@pytest.fixture(autouse=True)
def one_accelerator_a_test():
    """Its state is the process's own, and its precision settled by the first."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def task(*, train=None, **options):
    """A tiny autoencoder without any draw, and its rival."""
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=3, width=8, multipliers=[1], blocks=1, patch=4)
    network = config.build(BOTTLENECKS["identity"]().build(3))
    train = train or TrainConfig(batch=4, validate_samples=4, workers=0)
    rival = Adversary(AdversarialConfig(**{"weight": 0.5, "width": 8, "layers": 1, **options}), train)
    data = DATA.build("train"), DATA.build("val")
    config = ReconstructionConfig(l1=1.0, ms_ssim=0.2)
    return AutoencoderTask(network, config, RobustnessConfig(), *data, train, lambda net: None, rival)


def batch():
    (one,) = first_batches(DATA.build("train"), 4, 4)
    return one


def copies(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before, network):
    return {name for name, value in network.state_dict().items() if not torch.equal(before[name], value)}


# Each loss by itself


def test_the_autoencoders_loss_gives_no_gradient_to_the_discriminator_and_the_discriminators_none_to_the_autoencoder():
    made = task(r1=1.0, r1_every=1)
    total, figures = made.loss(made.network, batch(), 0, 0)
    total.backward()
    assert {"adversarial", "adaptive_weight"} <= figures.keys()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.network.parameters())
    assert all(p.grad is None and p.requires_grad for p in made.adversary.network.parameters())
    before = [p.grad.clone() for p in made.network.parameters()]
    made.adversary.loss(made.adversary.network)[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.adversary.network.parameters())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(made.network.parameters(), before, strict=True))


def test_the_adversarial_term_alone_moves_encoder_and_decoder_and_nothing_of_the_discriminator():
    made, image = task(), batch().image
    alone = gradient_of(made, reconstructed(made, image)[1])
    both = gradient_of(made, made.adversary.joined(0, image, *reconstructed(made, image), made._last)[0])
    assert all((both[name] - alone[name]).norm() > 1e-3 * alone[name].norm() for name in alone)
    assert all(p.grad is None for p in made.adversary.network.parameters())


def gradient_of(made, loss):
    """The autoencoder's, by name, which then are gone from it."""
    loss.backward()
    found = {name: p.grad for name, p in made.network.named_parameters()}
    made.network.zero_grad(set_to_none=True)
    return found


def test_the_sum_of_both_losses_has_the_value_and_the_gradient_of_the_sum_as_it_is_written():
    """``joined`` goes back through each once, and the weight is what it says: the ratio of the gradients' norms."""
    made, image = task(), batch().image
    decoded, reconstruction = reconstructed(made, image)
    cost = -made.adversary.network(decoded).mean()
    norms = [torch.autograd.grad(x, made._last, retain_graph=True)[0].norm() for x in (reconstruction, cost)]
    wanted = reconstruction + 0.5 * norms[0] / norms[1] * cost
    total, figures = made.adversary.joined(0, image, *reconstructed(made, image), made._last)
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(figures["adaptive_weight"], norms[0] / norms[1], rtol=1e-3, atol=0)
    found, expected = gradient_of(made, total), gradient_of(made, wanted)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def reconstructed(made, image):
    """The pictures (B, 3, H, W) that come back, and their loss."""
    decoded, _ = made.network(image)
    return decoded, made.reconstruction(image, decoded)[0]


def test_the_adversarial_term_pulls_at_the_last_layer_as_hard_as_its_weight_says():
    gradients = []
    for weight in (0.5, 1e-12):
        made = task(weight=weight)
        made.loss(made.network, batch(), 0, 0)[0].backward()
        gradients.append(made._last.grad)
    torch.testing.assert_close((gradients[0] - gradients[1]).norm(), 0.5 * gradients[1].norm(), rtol=1e-3, atol=0)


def test_the_discriminators_loss_is_the_hinge_of_what_it_says_of_the_two_pictures():
    made = task()
    image = batch().image
    with torch.no_grad():
        real, decoded = (made.adversary.network(x) for x in (image, made.network(image)[0]))
    made.loss(made.network, batch(), 0, 0)
    total, figures = made.adversary.loss(made.adversary.network)
    torch.testing.assert_close(total, hinge(real, decoded))
    torch.testing.assert_close(figures["real"], real.mean())
    torch.testing.assert_close(figures["decoded"], decoded.mean())


def test_before_its_start_the_discriminator_neither_learns_nor_is_listened_to():
    made = task(start=2)
    costs = []
    for step in range(3):
        total, figures = made.loss(made.network, batch(), 0, step)
        costs.append(("adversarial" in figures, made.adversary.loss(made.adversary.network) is not None))
    assert costs == [(False, False), (False, False), (True, True)]
    without, _ = made.reconstruction(batch().image, made.network(batch().image)[0])
    assert total != without == task(start=2).loss(made.network, batch(), 0, 0)[0]


def test_it_may_learn_for_some_steps_before_it_is_listened_to():
    made = task(start=2, lead=1)
    heard = [
        ("adversarial" in made.loss(made.network, batch(), 0, step)[1], made.adversary.loss(made.adversary.network))
        for step in range(3)
    ]
    assert [(listened, loss is not None) for listened, loss in heard] == [(False, False), (False, True), (True, True)]
    with pytest.raises(ValueError, match="lead 3 is more than the 2 steps before start; try lead=2"):
        AdversarialConfig(start=2, lead=3)


def test_its_learning_rate_rises_from_its_own_first_step_and_ends_with_the_training(tmp_path):
    made = trainer(tmp_path, start=4, lead=2, steps=8, warmup=3, decay="linear")
    batches, rates = made.task.batches(0, 0, 1), []
    for _ in range(8):
        rates.append(made.learners[1].lr)
        made.train_step(batches)
    peak = made.rival.settings.lr
    assert rates == pytest.approx([peak * share for share in (1 / 3, 1 / 3, 1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3)])
    assert made.learners[1].lr == 0


def test_the_penalty_comes_every_so_many_steps_and_counts_for_all_of_them():
    made, plain = task(r1=2.0, r1_every=3), task()
    due = []
    for step in range(7):
        totals = []
        for each in (made, plain):
            each.loss(each.network, batch(), 0, step)
            totals.append(each.adversary.loss(each.adversary.network))
        (total, figures), (without, _) = totals
        due.append("r1" in figures)
        torch.testing.assert_close(total - without, 2.0 * 3 * figures.get("r1", torch.tensor(0.0)))
    assert due == [False, False, True, False, False, True, False]


@pytest.mark.parametrize(("setting", "value"), [("precision", "fp16"), ("compile", True)])
def test_what_knows_of_one_loss_only_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting} .*; try {setting}="):
        Adversary(AdversarialConfig(weight=1.0), TrainConfig(**{setting: value}))


# In the loop


def trainer(folder, *, weight=0.5, start=0, lead=0, **settings):
    usual = {"steps": 3, "batch": 4, "warmup": 1, "workers": 0, "precision": "fp32", "log_every": 1, "clip": 0.0}
    train = TrainConfig(**{**usual, "validate_samples": 4, **settings})
    made = task(train=train, weight=weight, start=start, lead=lead, r1=1.0, r1_every=1)
    return Trainer(made, train, folder, described="", made_from={}, device=CPU, rival=made.adversary)


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "fp32"), (2, "bf16")])
def test_both_networks_learn_and_both_log(tmp_path, accumulate, precision):
    made = trainer(tmp_path, accumulate=accumulate, precision=precision)
    before = [copies(learner.network) for learner in made.learners]
    made.run()
    for each, learner in zip(before, made.learners, strict=True):
        assert changed(each, learner.network) >= {name for name, _ in learner.network.named_parameters()}
    lines = [line for line in read(tmp_path / "log.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    logged = {"adversarial", "adaptive_weight", "discriminator", "r1", "gradient_norm", "rival_gradient_norm"}
    assert all(logged <= line.keys() for line in lines)


def test_a_micro_step_that_is_gone_through_again_has_the_same_losses_and_moves_no_step(tmp_path):
    made, image = trainer(tmp_path, start=1), batch()
    networks = [learner.network for learner in made.learners]
    for step in (0, 1):  # before and after the rival joins
        expected = [made.rerun(networks, MicroStep(image, 0, step)) for _ in range(3)]
        assert [len(losses) for losses in expected] == [1 + step] * 3 and made.step == step
        figures = made.train_step(iter([image]))
        assert all(losses[0] == figures["loss"] for losses in expected)
        assert ("discriminator" in figures) == (step == 1)


@pytest.mark.parametrize("bad", [0, 1], ids=["autoencoder", "discriminator"])
def test_a_gradient_that_is_not_finite_in_either_network_leaves_both_and_the_average_as_they_are(tmp_path, bad):
    made = trainer(tmp_path, ema=0.9)
    batches = made.task.batches(0, 0, 1)
    made.train_step(batches)
    before = [copies(network) for network in (*(learner.network for learner in made.learners), made.average)]
    parameter = next(made.learners[bad].network.parameters())
    hook = parameter.register_hook(lambda grad: grad * float("nan"))
    made.train_step(batches)
    assert made.skipped == 1 < MAX_SKIPPED
    networks = (*(learner.network for learner in made.learners), made.average)
    assert not any(changed(each, network) for each, network in zip(before, networks, strict=True))
    hook.remove()
    made.train_step(batches)
    assert made.skipped == 0 and all(changed(each, network) for each, network in zip(before, networks, strict=True))


def test_neither_learning_rate_counts_a_step_that_was_skipped(tmp_path):
    settings = {"decay": "linear", "steps": 10}
    made = trainer(tmp_path, **settings)
    batches = made.task.batches(0, 0, 1)
    made.train_step(batches)
    hook = next(made.rival.network.parameters()).register_hook(lambda grad: grad * float("nan"))
    made.train_step(batches)
    hook.remove()
    made.train_step(batches)
    made._save()
    state = json.loads((newest(tmp_path / "state") / "state.json").read_text())
    assert (state["step"], state["updates"], state["rival_updates"]) == (3, 2, 2)
    again = trainer(tmp_path, **settings)
    assert again.step == 3 and [each.schedule.last_epoch for each in again.learners] == [2, 2]
    assert [each.lr for each in again.learners] == [each.lr for each in made.learners]


@pytest.mark.parametrize(("bad", "module"), [(0, "encoder.1"), (1, "rival.0")], ids=["autoencoder", "discriminator"])
def test_a_run_stops_after_many_bad_steps_in_a_row_and_names_the_module_of_either_network(tmp_path, bad, module):
    """Fault 19."""
    made = trainer(tmp_path, steps=100)
    next(made.learners[bad].network.parameters()).data[0] = float("inf")
    told = rf"{MAX_SKIPPED} steps in a row .* '{module}' \(Conv2d\), whose weights are not finite"
    with pytest.raises(FloatingPointError, match=told):
        made.run()
    assert [line["skipped"] for line in read(tmp_path / "log.jsonl") if "skipped" in line] == [*range(1, 21)]


def test_a_dry_run_counts_a_penalty_of_every_few_steps_at_its_share_and_meets_it(tmp_path, monkeypatch):
    def flops(**options):
        made = task(start=0, **options)
        trainer = partial(Trainer, made, made.config, described="", made_from={}, device=CPU, rival=made.adversary)
        return preflight(trainer, tmp_path / str(options), tmp_path, CPU).flops

    penalised, loss = [], Adversary.loss

    def watched(self, network):
        found = loss(self, network)
        penalised.append("r1" in found[1])
        return found

    without, each = flops(r1=0.0), flops(r1=1.0, r1_every=1)
    monkeypatch.setattr(Adversary, "loss", watched)
    assert flops(r1=1.0, r1_every=4) == pytest.approx(without + (each - without) / 4, abs=1)
    # one is counted, one made before the clock, some usual ones by it; then one is counted and one made, the dearest
    assert penalised[:2] == [False, True] and penalised[-2:] == [True, True] and not any(penalised[2:-2])
    assert 2 <= len(penalised[2:-2]) <= 20


def test_a_dry_run_counts_both_networks_though_the_rival_joins_later(tmp_path):
    def plan(start):
        return preflight(lambda folder: trainer(folder, start=start, steps=9), tmp_path / "scratch", tmp_path, CPU)

    found, never = plan(5), plan(99)
    made = trainer(tmp_path / "real", steps=1)
    made.run()
    networks = [learner.network for learner in made.learners]
    assert found.parameters == sum(p.numel() for network in networks for p in network.parameters())
    assert found.flops > never.flops
    files = list((tmp_path / "real/state/step-00000001").glob("*.safetensors"))
    written = sum(path.stat().st_size for path in files)
    assert len(files) == 5 and found.checkpoint < written < found.checkpoint + 5 * 10_000  # a header for each
    exported = 2 * sum(value.numel() for value in networks[0].state_dict().values())  # but for mean and std
    exported += 2 * (networks[0].mean.numel() + networks[0].std.numel())
    assert found.disk == 3 * found.checkpoint + 2 * exported


def gradients(made):
    """Of both networks in the first step, by name, as lists; the optimizers are not stepped."""
    kept = []

    def keep(*_):
        for learner in made.learners:
            kept.append({name: p.grad.tolist() for name, p in learner.network.named_parameters()})

    made._update = keep
    made.train_step(made.task.batches(0, made.accelerator.process_index, made.accelerator.num_processes))
    return kept


def test_two_micro_steps_have_the_gradients_of_one_with_the_whole_batch(tmp_path):
    """But for the adaptive weight, which is each micro-step's own."""
    halves, whole = ({"accumulate": 2, "batch": 4}, {"accumulate": 1, "batch": 8})
    found, wanted = (gradients(trainer(tmp_path, weight=1e-12, **settings)) for settings in (halves, whole))
    same(found, wanted)


def same(found, wanted):
    """Gradients of both networks agree."""
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(torch.tensor(ours[name]), torch.tensor(value), atol=1e-6, rtol=1e-4, msg=name)


def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path):
    found = of_two(lambda rank: gradients(trainer(tmp_path / f"{rank}")))
    assert found[0] == found[1]
    same(found[0], gradients(trainer(tmp_path / "alone", batch=8)))


def changed_by_a_bad_step(made):
    """Steps skipped, and what a step changes whose gradients are finite, but not the rival's loss on the last rank."""
    rank, world = made.accelerator.process_index, made.accelerator.num_processes
    batches, right = made.task.batches(0, rank, world), made.rival.loss
    made.train_step(batches)
    before = [copies(learner.network) for learner in made.learners]

    def wrong(network):
        total, figures = right(network)
        return total + (float("inf") if rank == world - 1 else 0), figures

    made.rival.loss = wrong
    made.train_step(batches)
    networks = [learner.network for learner in made.learners]
    return made.skipped, [changed(each, network) for each, network in zip(before, networks, strict=True)]


def test_a_loss_of_the_rival_that_is_not_finite_on_one_rank_is_skipped_by_both_for_both_networks(tmp_path):
    """Fault 19."""
    found = of_two(lambda rank: changed_by_a_bad_step(trainer(tmp_path / f"{rank}")))
    assert found == ((1, [set(), set()]), (1, [set(), set()]))


# A whole run


def trained(folder, *overrides):
    """The last checkpoint's tensors of a tiny run, by file."""
    train_autoencoder(load(Run, None, [*overrides, f"out={folder}"]), CPU)
    state = newest(Path(folder, "training", "autoencoder", "state"))
    return {path.name: read_tensors(path) for path in state.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("workers", "more"),
    [(0, ["adversarial.start=1", "adversarial.r1_every=2"]), (2, ["train_autoencoder.accumulate=2"])],
    ids=str,
)
def test_a_run_stopped_at_half_goes_on_to_the_same_state_of_both_networks(workers, more, tiny, tmp_path):
    """Fault 15: with 0 and 2 loader workers, beside a run without any."""
    common = [*tiny, *SMALL, *GAN, *more]
    read_by = f"train_autoencoder.workers={workers}"
    trained(tmp_path / "stopped", *common, read_by, "train_autoencoder.steps=2")
    stopped, straight = trained(tmp_path / "stopped", *common, read_by), trained(tmp_path / "straight", *common)
    assert {"rival_weights.safetensors", "rival_optimizer.safetensors", "ema.safetensors"} < straight.keys()
    for file, tensors in straight.items():
        assert tensors.keys() == stopped[file].keys()
        assert all(torch.equal(value, stopped[file][key]) for key, value in tensors.items()), file


def test_the_exported_autoencoder_holds_no_discriminator_and_starts_a_run_without_one(tiny, tmp_path):
    common = [*tiny, *SMALL, ONE_STEP]
    state = trained(tmp_path / "with", *common, *GAN)
    exported = read_tensors(tmp_path / "with" / "autoencoder" / "autoencoder.safetensors")
    assert exported.keys() == state["weights.safetensors"].keys()
    without = trained(tmp_path / "without", *common, f"base={tmp_path / 'with'}")
    assert not any(file.startswith("rival") for file in without)


def test_a_run_does_not_go_on_with_a_discriminator_that_its_checkpoint_has_not(tiny, tmp_path):
    trained(tmp_path, *tiny, *SMALL, ONE_STEP)
    with pytest.raises(ValueError, match=r"another discriminator \(none, now width 8, layers 1\)"):
        trained(tmp_path, *tiny, *SMALL, *GAN)


def test_a_run_does_not_go_on_without_the_discriminator_that_its_checkpoint_has(tiny, tmp_path):
    trained(tmp_path, *tiny, *SMALL, *GAN, ONE_STEP)
    run = load(Run, None, [*tiny, *SMALL, f"out={tmp_path}"])
    with pytest.raises(ValueError, match=r"another discriminator \(width 8, layers 1, now none\)"):
        train_autoencoder(run, CPU, Start(resume_changed=True))
