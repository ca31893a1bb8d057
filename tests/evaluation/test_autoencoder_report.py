"""The autoencoder's report on networks whose figures are known: by identities, by hand and by the bottleneck."""

import gc
import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldm.autoencoders import BOTTLENECKS, Autoencoder, AutoencoderConfig
from ldm.autoencoders.bottlenecks import Gaussian, gaussian_kl
from ldm.autoencoders.losses import ssim
from ldm.data.loader import first_batches
from ldm.data.shapes import ShapesConfig
from ldm.data.transforms import to_bytes, to_tensor
from ldm.evaluation.autoencoder import OWN_FIGURES, autoencoder_report
from ldm.evaluation.general import Found, Networks, in_words
from ldm.evaluation.reconstruction import psnr

CHANNELS = 3


def build(bottleneck: str = "kl") -> Autoencoder:
    config = AutoencoderConfig(channels=CHANNELS, width=8, multipliers=[1], blocks=1, patch=4, norm="channel")
    return config.build(BOTTLENECKS[bottleneck]().build(CHANNELS)).eval()


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    (batch,) = first_batches(ShapesConfig(size=32).build("val"), 12, 12)
    return to_bytes(batch.image)


def tensors(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.stack([to_tensor(picture) for picture in pictures])


class Pooled(nn.Module):
    """Features (B, 3) of pictures: their mean colours."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.float().mean(dim=(2, 3))


def set_moments(network: Autoencoder, channel: int, mean: float | None, log_variance: float) -> None:
    """Give a channel's posterior that variance everywhere and, unless ``mean`` is None, that mean."""
    last = network.encoder[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    for row, value in ((channel, mean), (CHANNELS + channel, log_variance)):
        if value is not None:
            last.weight.data[row], last.bias.data[row] = 0.0, value


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_losses_are_those_of_the_autoencoder_on_all_pictures_whatever_the_batch(
    bottleneck: str, pictures: NDArray[np.uint8]
) -> None:
    network, images = build(bottleneck), tensors(pictures)
    with torch.no_grad():
        decoded = network.decode(network.encode(images))
    found = autoencoder_report(network, pictures, batch=5)
    assert found.pictures == 12
    assert found.l1 == pytest.approx((decoded - images).abs().mean().item(), rel=1e-5)
    assert found.psnr == pytest.approx(psnr(decoded, images).mean().item(), rel=1e-5)
    assert found.ssim == pytest.approx(ssim(decoded, images).mean().item(), rel=1e-4)


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_means_and_spreads_are_those_of_all_latents_whatever_the_batch(
    bottleneck: str, pictures: NDArray[np.uint8]
) -> None:
    network = build(bottleneck)
    network.measure([tensors(pictures[:4])])
    with torch.no_grad():
        z = network.encode(tensors(pictures)).double()
    variance = z.var(dim=0, correction=0).mean(dim=(1, 2)) * network.std.flatten().square()
    for batch in (1, 5, 12):
        found = autoencoder_report(network, pictures, batch=batch)
        np.testing.assert_allclose(found.latent_mean, z.mean(dim=(0, 2, 3)), atol=1e-5)
        np.testing.assert_allclose(found.latent_std, z.std(dim=(0, 2, 3), correction=0), rtol=1e-5)
        np.testing.assert_allclose(found.variance, variance, rtol=1e-5)


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_what_is_held_does_not_grow_with_the_pictures(bottleneck: str, pictures: NDArray[np.uint8]) -> None:
    network, held = build(bottleneck), []

    def count(*_: object) -> None:
        gc.collect()
        held.append(sum(each.numel() for each in gc.get_objects() if issubclass(type(each), Tensor)))

    network.encoder[0].register_forward_pre_hook(count)
    autoencoder_report(network, np.concatenate([pictures] * 4), batch=6)
    measured, of_bottleneck = held[2:9], held[10:]  # from the second of eight batches on, the first has warmed up
    assert len(set(measured)) == 1 and len(set(of_bottleneck)) <= 1, held


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_a_measured_autoencoders_latents_have_mean_0_and_at_most_std_1(
    bottleneck: str, pictures: NDArray[np.uint8]
) -> None:
    network = build(bottleneck)
    network.measure([tensors(pictures)])
    found = autoencoder_report(network, pictures)
    with torch.no_grad():
        spread = network.bottleneck.variance(network.encoder(tensors(pictures))).mean(dim=(0, 2, 3))
    drawn = (spread / network.std.flatten().square()).numpy()
    np.testing.assert_allclose(found.latent_mean, np.zeros(CHANNELS), atol=1e-4)
    np.testing.assert_allclose(np.square(found.latent_std) + drawn, np.ones(CHANNELS), atol=1e-4)


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_variance_and_activity_do_not_change_with_the_normalisation(
    bottleneck: str, pictures: NDArray[np.uint8]
) -> None:
    network = build(bottleneck)
    before = autoencoder_report(network, pictures)
    with torch.no_grad():
        wanted = network.encode(tensors(pictures)).var(dim=0, correction=0).mean(dim=(1, 2))
    network.measure([tensors(pictures)])
    after = autoencoder_report(network, pictures)
    np.testing.assert_allclose(before.variance, wanted, rtol=1e-4)
    np.testing.assert_allclose(after.variance, before.variance, rtol=1e-3)
    assert after.active == before.active


def test_the_kl_of_the_channels_adds_up_to_the_bottlenecks_own(pictures: NDArray[np.uint8]) -> None:
    network = build()
    found = autoencoder_report(network, pictures, batch=5).bottleneck
    assert isinstance(network.bottleneck, Gaussian)
    with torch.no_grad():
        mean, log_variance = network.bottleneck.moments(network.encoder(tensors(pictures)))
        wanted = [gaussian_kl(mean[:, [c]], log_variance[:, [c]]).mean().item() for c in range(CHANNELS)]
        total = network(tensors(pictures))[1].logs["kl"].item()
    np.testing.assert_allclose(found["kl"], wanted, rtol=1e-4)
    assert found["kl_sum"] == pytest.approx(sum(found["kl"])) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("bottleneck", ["vq", "fsq"])
def test_the_use_of_the_codes_is_counted_over_all_pictures(bottleneck: str, pictures: NDArray[np.uint8]) -> None:
    network = build(bottleneck)
    found = autoencoder_report(network, pictures, batch=5).bottleneck
    with torch.no_grad():
        codes = network.bottleneck.codes(network.encoder(tensors(pictures)))
    _, counts = np.unique(codes.numpy(), return_counts=True)
    p = counts / counts.sum()
    assert found["usage"] == pytest.approx(len(counts) / network.bottleneck.num_codes)
    assert found["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)


def test_the_use_of_the_codes_of_two_levels_is_counted_level_by_level(pictures: NDArray[np.uint8]) -> None:
    network = build("vq2")
    found = autoencoder_report(network, pictures, batch=5).bottleneck
    with torch.no_grad():
        maps = network.bottleneck.codes(network.encoder(tensors(pictures)))
    for name, codes in zip(("top", "bottom"), maps, strict=True):
        used = len(codes.unique()) / getattr(network.bottleneck, name).num_codes
        assert found[f"usage_{name}"] == pytest.approx(used)


def test_a_channel_at_the_prior_costs_nothing_and_is_counted_inactive(pictures: NDArray[np.uint8]) -> None:
    network = build()
    last = network.encoder[-1]
    assert isinstance(last, nn.Conv2d)
    last.weight.data[:CHANNELS] *= 10  # so that the others vary
    assert autoencoder_report(network, pictures).active == CHANNELS
    set_moments(network, 1, mean=0.0, log_variance=0.0)
    found = autoencoder_report(network, pictures)
    assert (found.active, found.variance[1]) == (CHANNELS - 1, 0.0)
    assert found.bottleneck["kl"][1] == 0 < min(found.bottleneck["kl"][0], found.bottleneck["kl"][2])


def test_a_channel_that_is_the_same_in_every_picture_is_inactive_though_it_costs_nats(
    pictures: NDArray[np.uint8],
) -> None:
    network = build()
    set_moments(network, 2, mean=3.0, log_variance=-2.0)
    found = autoencoder_report(network, pictures)
    positions = (32 // network.factor) ** 2
    wanted = 0.5 * (9 + np.exp(-2.0) - 1 + 2) * positions  # KL of N(3, e^-2) from N(0, 1)
    assert found.bottleneck["kl"][2] == pytest.approx(wanted, rel=1e-5)
    assert found.variance[2] < 1e-10


def test_a_pattern_over_the_positions_that_no_picture_changes_is_no_activity(pictures: NDArray[np.uint8]) -> None:
    network = build("identity")
    found = autoencoder_report(network, np.stack([pictures[0]] * 3))
    assert max(found.variance) < 1e-9 and found.active == 0
    assert max(found.latent_std) > 0.01  # each does vary over the positions


def test_only_what_was_asked_for_and_what_the_bottleneck_has_is_reported(pictures: NDArray[np.uint8]) -> None:
    plain = autoencoder_report(build("identity"), pictures).figures()
    assert plain["bottleneck"] == {} and not {"lpips", "rfid"} & plain.keys()
    assert plain["encode_seconds"] > 0 and plain["decode_seconds"] > 0
    json.dumps(plain)


def test_lpips_and_rfid_compare_what_comes_back_with_the_pictures(pictures: NDArray[np.uint8]) -> None:
    class Error(nn.Module):
        def forward(self, images: Tensor, reference: Tensor) -> Tensor:
            return (images - reference).square().mean(dim=(1, 2, 3))

    network, images = build(), tensors(pictures)
    found = autoencoder_report(network, pictures, lpips=Error(), inception=Pooled(), batch=5)
    with torch.no_grad():
        decoded = network.decode(network.encode(images))
    assert found.lpips == pytest.approx((decoded - images).square().mean().item(), rel=1e-5)
    assert found.rfid is not None and found.rfid["fid"] > 1
    assert (found.rfid["generated"], found.rfid["reference"]) == (12, 12)
    json.dumps(found.figures())


def test_the_rfid_is_told_in_words(pictures: NDArray[np.uint8]) -> None:
    found = Found()
    networks = Networks(inception=Pooled(), missing={"lpips": "no weights"})
    found.leave_out(networks, inception="rFID", lpips="LPIPS")
    found.add_autoencoder(build(), pictures, networks)
    line, note = in_words(found.tables, found.notes)
    assert f"rfid {found.tables['Autoencoder']['rfid']['fid']:.4g}" in line
    assert note == "note: LPIPS left out: no weights"


def test_pictures_too_small_for_lpips_lose_that_alone(pictures: NDArray[np.uint8]) -> None:
    found = Found()
    found.add_autoencoder(build(), pictures[:, :16, :16], Networks(lpips=Pooled()))
    assert found.tables["Autoencoder"]["psnr"] > 0
    assert found.notes == ["LPIPS left out: pictures of 16 pixels, and it needs 32"]


def test_a_perfect_autoencoder_has_no_rfid(pictures: NDArray[np.uint8]) -> None:
    class Copy(Autoencoder):
        def encode(self, image: Tensor) -> Tensor:
            return image

        def decode(self, latent: Tensor) -> Tensor:
            return latent

    config = AutoencoderConfig(channels=CHANNELS, width=8, multipliers=[1], blocks=1)
    found = autoencoder_report(Copy(config, BOTTLENECKS["kl"]().build(CHANNELS)), pictures, inception=Pooled())
    assert (found.l1, found.psnr) == (0, float("inf")) and found.ssim == pytest.approx(1)
    json.dumps(found.figures(), allow_nan=False)  # JSON has no infinity
    assert found.rfid is not None and found.rfid["fid"] == pytest.approx(0, abs=1e-3)


def test_a_single_picture_and_sides_that_do_not_fit_are_refused(pictures: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="1 pictures are too few"):
        autoencoder_report(build(), pictures[:1])
    with pytest.raises(ValueError, match="30 x 30 pixels: sides must be multiples of 4"):
        autoencoder_report(build(), np.ascontiguousarray(pictures[:, :30, :30]))


def test_every_kind_that_has_figures_of_its_own_is_a_kind_of_bottleneck() -> None:
    kinds = {type(config().build(CHANNELS)) for config in BOTTLENECKS.values()}
    assert set(OWN_FIGURES) <= kinds
