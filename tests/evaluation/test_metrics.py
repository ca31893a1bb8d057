"""The general metrics against closed forms, other implementations and direct sums; no weights are downloaded."""

import json
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from numpy.typing import NDArray
from open_clip import add_model_config, create_model
from PIL import Image
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchvision.models import alexnet, squeezenet1_1, vgg16

from ldm.autoencoders.losses.reconstruction import BACKBONES
from ldm.config import load
from ldm.data.loader import first_batches
from ldm.data.transforms import to_bytes
from ldm.evaluation.clip_score import Clip, clip_score, load_open_clip, load_own_clip
from ldm.evaluation.distances import Features, Inception, distances, features
from ldm.evaluation.reconstruction import Lpips, psnr
from ldm.evaluation.weights import MissingWeights, find_weights
from ldm.files import read_tensors
from ldm.folders import load_text
from ldm.run import Run
from ldm.stages import train_clip
from ldm.text.vocabulary import NUM_IDS
from ldm.training.checkpoint import newest

INCEPTION = "torch_fidelity.feature_extractor_inceptionv3"
NAMED = "Tiny-16"
CAPTIONS = ["a red circle", "two blue squares", "a green ring above a star"]

Pictures = NDArray[np.uint8]


class Pooled(nn.Module):
    """Random features (B, 6) of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 4, 6)

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.layer(nn.functional.adaptive_avg_pool2d(pictures.float(), 4).flatten(1))
        return found


def drawn(count: int, size: int = 16, seed: int = 0) -> Pictures:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def images(count: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def gaussian(count: int, seed: int, *, mean: float = 0.0, width: int = 5) -> Features:
    """Correlated Gaussian features; the seed settles the covariance too."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return Features(torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + mean, "made up", "")


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch's hub cache keeps weights: nothing is there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def one_line(call: Callable[[], Any]) -> str:
    """What a MissingWeights of ``call`` says, which must be one line."""
    with pytest.raises(MissingWeights) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Where weights come from


@pytest.fixture
def published(tmp_path: Path) -> str:
    """The address of a file of weights whose name ends in its hash."""
    (tmp_path / "site").mkdir()
    path = tmp_path / "site" / f"net-{sha256(b'weights').hexdigest()[:8]}.pth"
    path.write_bytes(b"weights")
    return path.as_uri()


def test_weights_are_downloaded_once_where_that_is_asked(published: str, empty_hub: Path) -> None:
    assert published in one_line(lambda: find_weights(None, published, "--net"))
    path = find_weights(Path("download"), published, "--net")
    assert path.parent == empty_hub and path.read_bytes() == b"weights"
    Path(published.removeprefix("file://")).unlink()
    assert find_weights(Path("download"), published, "--net") == find_weights(None, published, "--net") == path


def test_a_download_that_fails_or_is_another_file_leaves_nothing(published: str, empty_hub: Path) -> None:
    Path(published.removeprefix("file://")).write_bytes(b"others")
    assert "--net" in one_line(lambda: find_weights(Path("download"), published, "--net"))
    assert "could not be downloaded" in one_line(lambda: find_weights(Path("download"), f"{published}x", "--net"))
    assert not list(empty_hub.iterdir())


# FID and KID


def test_a_set_has_no_fid_from_itself_and_no_kid_but_that_of_its_subsets() -> None:
    found = features(drawn(40), Pooled())
    figures = distances(found, found)
    assert figures["fid"] == pytest.approx(0, abs=1e-6 * float(found.values.square().sum(dim=1).mean()))
    assert abs(figures["kid"]) < 3 * figures["kid_std"]


def test_the_fid_is_the_frechet_distance_of_two_gaussians() -> None:
    a, b = gaussian(300, 1), gaussian(200, 2, mean=0.5)
    (m, c), (n, d) = ((each.values.numpy().mean(axis=0), np.cov(each.values.numpy().T)) for each in (a, b))
    wanted = np.square(m - n).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert distances(a, b)["fid"] == pytest.approx(wanted, rel=1e-6)


def test_the_kid_of_the_same_distribution_is_zero_on_average_and_of_another_is_not() -> None:
    reference = Features(torch.randn(400, 5, dtype=torch.float64), "made up", "")
    same, other = (Features(torch.randn(400, 5, dtype=torch.float64) + shift, "made up", "") for shift in (0, 0.5))
    alike, apart = distances(same, reference), distances(other, reference)
    assert abs(alike["kid"]) < alike["kid_std"]
    assert apart["kid"] > 10 * abs(alike["kid"])
    assert alike["kid_subset"] == 200


def test_the_kid_of_all_pictures_is_the_unbiased_estimate() -> None:
    """Two pictures a set, so that every subset is the whole set: the sum can be written out."""
    a, b = gaussian(2, 1), gaussian(2, 2)
    x, y = a.values.numpy(), b.values.numpy()

    def kernel(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
        return (left @ right.T / x.shape[1] + 1) ** 3

    within = (kernel(x, x)[0, 1] + kernel(y, y)[0, 1]) * 2 / (2 * 1)
    figures = distances(a, b)
    assert figures["kid"] == pytest.approx(within - 2 * kernel(x, y).mean(), rel=1e-9)
    assert figures["kid_std"] == pytest.approx(0, abs=1e-9)


def test_distances_are_the_same_each_time_and_leave_the_global_generator_alone() -> None:
    a, b = gaussian(50, 1), gaussian(60, 2)
    before = torch.get_rng_state()
    assert distances(a, b) == distances(a, b) != distances(a, b, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_figures_say_what_they_were_made_from() -> None:
    extractor = Pooled()
    a, b, c = (features(drawn(count, seed=seed), extractor) for count, seed in ((9, 1), (8, 2), (8, 3)))
    figures = distances(a, b)
    assert (figures["generated"], figures["reference"], figures["extractor"]) == (9, 8, "Pooled")
    assert figures["reference_sha256"] == distances(c, b)["reference_sha256"] != distances(a, c)["reference_sha256"]
    json.dumps(figures)


def test_features_do_not_depend_on_the_batch_and_progress_counts_every_picture() -> None:
    extractor, seen = Pooled(), list[int]()
    whole = features(drawn(10), extractor)
    parts = features(drawn(10), extractor, batch=3, progress=seen.append)
    torch.testing.assert_close(parts.values, whole.values, atol=1e-4, rtol=1e-5)
    assert (seen, parts.sha256) == ([3, 3, 3, 1], whole.sha256)


def test_features_of_different_extractors_and_single_pictures_are_refused() -> None:
    other = Features(gaussian(9, 1).values, "another", "")
    with pytest.raises(ValueError, match="of made up cannot be compared with those of another"):
        distances(gaussian(9, 1), other)
    with pytest.raises(ValueError, match="of 1 pictures: at least 2"):
        distances(gaussian(1, 1), gaussian(9, 1))


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the shape of torch-fidelity's file."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = theirs.FeatureExtractorInceptionV3("random", ["2048"])
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # else nothing is left of the picture after so many layers
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_the_inception_is_torch_fidelitys_its_resizing_included(inception_file: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    ours = Inception(inception_file)
    theirs = FeatureExtractorInceptionV3("the same", ["2048"], str(inception_file))
    pictures = drawn(2, size=24)
    found = features(pictures, ours)
    wanted = theirs(torch.from_numpy(pictures).permute(0, 3, 1, 2))[0]
    assert wanted.std() > 0.01
    torch.testing.assert_close(found.values, wanted.double())
    assert found.extractor.startswith("Inception v3 (") and "299 x 299" in found.extractor


def test_missing_inception_weights_are_named_in_one_line(tmp_path: Path, empty_hub: Path) -> None:
    said = one_line(Inception)
    for part in (str(empty_hub / "weights-inception-2015-12-05-6726825d.pth"), "https://github.com/", "--inception"):
        assert part in said
    assert str(tmp_path / "none.pth") in one_line(lambda: Inception(tmp_path / "none.pth"))


def test_a_file_that_is_no_inception_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.zeros(3)}, path)
    with pytest.raises(
        ValueError, match=r"other.pth does not hold the weights of torch-fidelity's Inception"
    ) as caught:
        Inception(path)
    assert "\n" not in str(caught.value)


class Payload:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("load_network", [Inception, Lpips])
def test_code_in_a_weights_file_is_not_run(load_network: Callable[[Path], Any], tmp_path: Path) -> None:
    path, ran = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"weight": Payload(ran)}, path)
    with pytest.raises(ValueError, match=r"evil.pth .* could run code"):
        load_network(path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("torchmetrics", lambda: distances(gaussian(9, 1), gaussian(9, 2))),
        ("torch_fidelity", Inception),
        ("lpips", Lpips),
    ],
)
def test_a_package_that_is_not_installed_is_told_in_one_line(
    package: str, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"^{package} is not installed; pip install -e '\.\[eval\]'$"):
        call()


# CLIP score


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which a tiny CLIP was trained."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    train_clip(load(Run, None, [*TINY, f"out={folder}"]), torch.device("cpu"))
    return folder


@pytest.fixture(scope="module")
def open_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a model that open_clip knows by the name ``NAMED``."""
    folder = tmp_path_factory.mktemp("open")
    text = {"width": 32, "layers": 1, "heads": 2, "context_length": 24, "vocab_size": NUM_IDS}
    vision = {"width": 32, "layers": 1, "head_width": 16, "patch_size": 8, "image_size": 16}
    (folder / f"{NAMED}.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    add_model_config(folder / f"{NAMED}.json")
    path = folder / "weights.safetensors"
    save_file(create_model(NAMED).state_dict(), path)
    return path


class Angles(nn.Module):
    """Embeds a picture at the angle that its first pixel's red is, in degrees, and a caption at the angle it names."""

    def __init__(self) -> None:
        super().__init__()
        self.length = nn.Parameter(torch.tensor(3.0))

    def _at(self, degrees: Tensor) -> Tensor:
        return self.length * torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=-1)

    def encode_image(self, pictures: Tensor) -> Tensor:
        return self._at(pictures[:, 0, 0, 0])

    def encode_text(self, rows: Tensor) -> Tensor:
        return self._at(rows[:, 0].float())


def angles() -> Clip:
    model: Any = Angles()
    return Clip(
        model,
        lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1).float(),
        lambda captions: torch.tensor([[int(caption)] for caption in captions]),
        "angles",
    )


def test_the_clip_score_is_a_hundred_times_the_mean_cosine_with_negative_ones_as_zero() -> None:
    pictures = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    pictures[:, 0, 0, 0] = [0, 60, 180, 30]
    found = clip_score(angles(), pictures, ["0", "0", "0", "30"], batch=3)
    assert found["clip_score"] == pytest.approx(100 * (1 + 0.5 + 0 + 1) / 4, rel=1e-6)
    assert (found["clip"], found["pictures"]) == ("angles", 4)
    json.dumps(found)


def test_pictures_without_a_caption_each_are_refused() -> None:
    with pytest.raises(ValueError, match="2 captions for 3 pictures"):
        clip_score(angles(), drawn(3), ["1", "2"])


def test_an_open_clip_model_from_a_file_scores_as_computed_directly(open_file: Path) -> None:
    clip, pictures = load_open_clip(NAMED, weights=open_file), drawn(3, size=20)
    found = clip_score(clip, pictures, CAPTIONS, batch=2)
    model = create_model(NAMED, pretrained=str(open_file))
    pixels = [
        torch.from_numpy(np.array(Image.fromarray(p).resize((16, 16), Image.Resampling.BICUBIC))) for p in pictures
    ]
    mean, std = (torch.tensor(model.visual.preprocess_cfg[name]) for name in ("mean", "std"))
    prepared = ((torch.stack(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        image, text = model.encode_image(prepared), model.encode_text(clip.tokenize(CAPTIONS))
    cosines = torch.cosine_similarity(image, text).clamp(min=0)
    assert found["clip_score"] == pytest.approx(100 * cosines.mean().item(), rel=1e-3, abs=1e-3)
    assert found["clip"] == f"{NAMED} (weights.safetensors)"


def test_what_open_clip_cannot_load_is_told_in_one_line(open_file: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(open_file.read_bytes()[:999])
    for arguments, says in (
        ({"name": "ViT-B-33"}, "did you mean 'ViT-B-32'"),
        ({"name": "ViT-B-32"}, "needs weights: name a tag"),
        ({"name": "ViT-B-32", "pretrained": "opnai"}, "did you mean 'openai'"),
        ({"name": "ViT-B-16-SigLIP", "pretrained": "webli"}, "tokenizer from the Hub"),
        ({"name": NAMED, "weights": torn}, "torn.safetensors does not hold the weights of"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            load_open_clip(**arguments)
        assert "\n" not in str(caught.value)


def test_missing_clip_weights_are_named_in_one_line(
    open_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"{tmp_path}/none.bin is not there" in one_line(lambda: load_open_clip(NAMED, weights=tmp_path / "none.bin"))

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", offline)
    said = one_line(lambda: load_open_clip("ViT-B-32", "openai"))
    for part in ("'openai' of ViT-B-32", "https://huggingface.co/", "no network here", "--clip-weights"):
        assert part in said


def test_the_runs_own_clip_is_the_averaged_one_that_it_exported(run_folder: Path) -> None:
    clip = load_own_clip(run_folder)
    with torch.no_grad():
        embedded = clip.model.encode_text(clip.tokenize(CAPTIONS))
    torch.testing.assert_close(embedded, load_text(run_folder / "text")(CAPTIONS).pooled, atol=5e-3, rtol=5e-3)
    averaged = read_tensors(Path(newest(run_folder / "training/clip/state") or "", "ema.safetensors"))
    for name, value in clip.model.state_dict().items():
        assert torch.equal(value, averaged[f"module.clip.{name}"]), name
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


def test_the_runs_own_clip_sees_the_pictures_that_it_was_trained_on(run_folder: Path) -> None:
    clip = load_own_clip(run_folder)
    (batch,) = first_batches(load(Run, None, list(TINY)).data.build("val"), 6, 6)
    pictures = to_bytes(batch.image)
    prepared = torch.stack([clip.preprocess(Image.fromarray(picture)) for picture in pictures])
    torch.testing.assert_close(prepared, batch.image, atol=1e-6, rtol=0)
    with torch.no_grad():
        image, text = clip.model(prepared, clip.tokenize(batch.captions))[:2]
    wanted = 100 * (image * text).sum(dim=1).clamp(min=0).mean().item()
    assert clip_score(clip, pictures, batch.captions)["clip_score"] == pytest.approx(wanted, rel=1e-4)


def test_a_folder_without_a_trained_clip_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no whole checkpoint; .*scripts/train_clip.py out=") as caught:
        load_own_clip(tmp_path)
    assert "\n" not in str(caught.value)


# PSNR, LPIPS


def test_the_psnr_is_that_of_numpy() -> None:
    a, b = images(seed=1), images(seed=2)
    error = np.square(a.numpy() - b.numpy()).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(psnr(a, b).numpy(), 10 * np.log10(4 / error), rtol=1e-5)


def test_pictures_too_small_for_a_metric_are_refused(squeeze: tuple[Path, nn.Module]) -> None:
    with pytest.raises(ValueError, match="16 x 16 pixels: LPIPS needs"):
        Lpips(squeeze[0], "squeeze")(images(size=16), images(size=16))


@pytest.fixture(scope="module")
def squeeze(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A file of random weights of SqueezeNet, and the network that has them."""
    path, network = tmp_path_factory.mktemp("weights") / "squeeze.pth", squeezenet1_1(weights=None)
    torch.save(network.state_dict(), path)
    return path, network


def test_lpips_is_torchmetrics_own_with_the_same_backbone(squeeze: tuple[Path, nn.Module], empty_hub: Path) -> None:
    a, b = images(seed=1, size=64), images(seed=2, size=64)
    found = Lpips(squeeze[0], "squeeze")(a, b)
    (empty_hub / "squeezenet1_1-b8a52dc0.pth").write_bytes(squeeze[0].read_bytes())
    theirs = learned_perceptual_image_patch_similarity(a, b, net_type="squeeze", reduction="none")
    assert found.shape == (3,) and (found > 0).all()
    torch.testing.assert_close(found, theirs)
    torch.testing.assert_close(Lpips(backbone="squeeze")(a, a), torch.zeros(3))  # from the cache this time


@pytest.mark.parametrize("backbone", BACKBONES)
def test_missing_lpips_weights_are_named_in_one_line(backbone: str, empty_hub: Path) -> None:
    said = one_line(lambda: Lpips(backbone=backbone))
    for part in (str(empty_hub / BACKBONES[backbone]), "https://download.pytorch.org/models/", "--lpips"):
        assert part in said


def test_a_wrong_backbone_is_refused(squeeze: tuple[Path, nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"squeeze.pth does not hold the weights of alexnet \(KeyError"):
        Lpips(squeeze[0])
    with pytest.raises(ValueError, match="did you mean 'squeeze'"):
        Lpips(squeeze[0], "squeze")


@pytest.mark.parametrize(("backbone", "build"), [("alex", alexnet), ("vgg", vgg16)])
def test_every_layer_of_a_backbone_comes_from_the_file(
    backbone: str, build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    with torch.device("meta"):
        shapes = build().state_dict()
    kept = {key: torch.randn(value.shape) for key, value in shapes.items() if key.startswith("features")}
    torch.save(kept, tmp_path / "backbone.pth")  # without the classifier's hundreds of MB, which LPIPS does not read
    loaded = Lpips(tmp_path / "backbone.pth", backbone).network.net.state_dict()
    for (name, value), (key, wanted) in zip(loaded.items(), kept.items(), strict=True):
        assert torch.equal(value, wanted), (name, key)
