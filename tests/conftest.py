"""Settings and small parts that many tests share."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would fetch something fails instead
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of what differs on a GPU tests know nothing: scripts would choose it

import pytest
import torch
from processes import preload

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in its background ignores Ctrl-C
preload()

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit statuses of a training that was asked to stop

PACE = (  # of a training of four steps
    "steps=4",
    "batch=8",
    "warmup=1",
    "workers=0",
    "validate_samples=8",
    "validate_every=2",
    "sample_every=4",
    "save_every=2",
    "log_every=1",
    "precision=fp32",
)

UNET = (  # a model of the shipped latents, whose denoiser a ControlNet may copy
    "data.length=64",
    "denoiser=unet",
    "denoiser.width=16",
    "denoiser.multipliers=[1,2]",
    "denoiser.blocks=1",
    "denoiser.heads=2",
    "sample.steps=2",
    "train_ldm.score_every=0",
    *(f"{stage}.{setting}" for stage in ("train_ldm", "train_control") for setting in (*PACE, "lr=1e-2", "ema=0")),
)

TINY = (
    "data.length=64",
    "autoencoder.width=16",
    "autoencoder.blocks=1",
    "text.width=32",
    "text.heads=2",
    "text.layers=2",
    "text.embed_dim=32",
    "text.vision_width=32",
    "text.vision_layers=1",
    "text.vision_heads=2",
    "denoiser=dit",
    "denoiser.patch=2",
    "denoiser.width=32",
    "denoiser.depth=1",
    "denoiser.heads=2",
    "guidance.interval=[0,1]",  # both steps
    "sample.steps=2",
    "cache.batch=16",
    "classifier.width=16",
    "classifier.blocks=1",
    "prior.width=16",
    "prior.layers=2",
    "prior.pictures=32",
    "unclip.width=32",
    "unclip.depth=1",
    "unclip.heads=2",
    "unclip.pictures=32",
    "unclip.steps=2",
    "train_ldm.score_every=0",
    *(
        f"train_{stage}.{setting}"
        for stage in ("autoencoder", "clip", "ldm", "classifier", "control", "prior", "unclip")
        for setting in PACE
    ),
)


@pytest.fixture(autouse=True)
def one_thread_and_a_seed():
    torch.set_num_threads(1)  # tests run side by side
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> list[str]:
    """Overrides that make every stage of the shapes run tiny."""
    return list(TINY)


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """A signal to the tests that a training in one of them answered ends them all, and is no failure of that one."""
    caught = call.excinfo.value if call.excinfo else None
    if isinstance(caught, SystemExit) and caught.code in STOPPED:
        pytest.exit(f"a signal ended the tests in {item.nodeid}", returncode=int(caught.code))
