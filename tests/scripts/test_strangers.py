"""Model folders from a stranger: one that was altered, or would run code, is refused by txt2img.py in one line."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
from processes import Script

from ldm.folders import shipped_model

FILES = sorted(path.relative_to(shipped_model()).as_posix() for path in shipped_model().rglob("*") if path.is_file())
HASHED = [name for name in FILES if name in json.loads((shipped_model() / "manifest.json").read_text())]


@pytest.fixture
def model(tmp_path):
    return Path(shutil.copytree(shipped_model(), tmp_path / "model"))


def hash_again(model, name):
    """Make the manifest fit again, as whoever altered a file would."""
    manifest = json.loads((model / "manifest.json").read_text())
    manifest[name] = hashlib.sha256((model / name).read_bytes()).hexdigest()
    (model / "manifest.json").write_text(json.dumps(manifest))


def refused(model, tmp_path):
    """The one line with which txt2img.py refuses the model."""
    with Script(
        "txt2img.py", "--prompt", "a ring", "--ckpt", model, "--outdir", tmp_path / "out", output=tmp_path / "said"
    ) as script:
        status, said = script.ended()
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    assert not (tmp_path / "out").exists()
    return said


@pytest.mark.parametrize("name", HASHED)
def test_a_model_altered_in_one_byte_is_refused_and_the_file_named(model, tmp_path, name):
    """Fault 7."""
    data = bytearray((model / name).read_bytes())
    data[len(data) // 2] ^= 1
    (model / name).write_bytes(data)
    assert f"{name} does not have the hash" in refused(model, tmp_path)


class Touch:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_model_with_a_pickle_for_weights_is_refused_and_nothing_runs(model, tmp_path):
    """Fault 5."""
    (model / "denoiser.safetensors").write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    hash_again(model, "denoiser.safetensors")
    assert "denoiser.safetensors is not a readable safetensors file" in refused(model, tmp_path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["denoiser.pt", "text/pytorch_model.bin"])
def test_a_model_that_carries_a_pickle_beside_its_weights_is_refused(model, tmp_path, name):
    """Fault 5."""
    (model / name).write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    assert f"{name} may be a pickle" in refused(model, tmp_path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("  target: os.system", "denoiser.target: no such key"),
        ("  path: ${oc.env:HOME}", "interpolation"),
        ("  path: !!python/object/apply:os.system ['touch {touched}']", "config.yaml, line"),
    ],
)
def test_a_model_whose_configuration_would_run_code_is_refused_and_nothing_runs(model, tmp_path, line, says):
    """Fault 4."""
    text = (model / "config.yaml").read_text()
    line = line.format(touched=tmp_path / "touched") if "touched" in line else line
    (model / "config.yaml").write_text(text.replace("\ndenoiser:\n", f"\ndenoiser:\n{line}\n", 1))
    hash_again(model, "config.yaml")
    assert says in refused(model, tmp_path)
    assert not (tmp_path / "touched").exists()


def test_an_autoencoder_that_does_not_fit_the_denoiser_is_refused(model, tmp_path):
    """Fault 9: sizes that parts dictate to one another are read off the parts, and weights are loaded strictly."""
    config = model / "autoencoder" / "config.yaml"
    config.write_text(config.read_text().replace("  channels: 4\n", "  channels: 8\n", 1))
    hash_again(model / "autoencoder", "config.yaml")
    hash_again(model, "autoencoder/config.yaml")
    hash_again(model, "autoencoder/manifest.json")
    said = refused(model, tmp_path)
    assert "autoencoder.safetensors" in said and "in the file" in said and "in the network" in said


def test_a_full_or_read_only_output_folder_is_told_before_anything_is_drawn(model, tmp_path):
    """Fault 31."""
    full = {"output": tmp_path / "said", "file_size": 5_000}
    with Script("txt2img.py", "--prompt", "a ring", "--outdir", tmp_path / "out", **full) as script:
        status, said = script.ended()
    assert status == 2 and "out takes no file (File too large); free space there" in said and "drawing" not in said
    assert not list((tmp_path / "out").iterdir())
    if Path("/proc/sys").is_dir():  # which takes no folder from anybody
        with Script("txt2img.py", "--prompt", "a ring", "--outdir", "/proc/sys/x", output=tmp_path / "said") as script:
            status, said = script.ended()
        assert status == 2 and "/proc/sys/x takes no file" in said and "drawing" not in said
