"""encode.py as a user calls it: pictures to codes or latents and back."""

import json
import re

import numpy as np
import pytest
import torch
from calls import SCRIPTS, assert_one_line, call
from conftest import TINY
from PIL import Image

from ldm.autoencoders.codes import decode_codes, encode_codes
from ldm.data.transforms import Transform, read_picture, to_images
from ldm.files import read_tensors, save_tensors, whole_folder
from ldm.folders import load_autoencoder, shipped_model

SIZES = ((32, 32), (48, 32), (32, 40))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of seven pictures, one of them in a sub-folder and one that cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deep").mkdir()
    names = [*(f"{i}.png" for i in range(5)), "deep/5.jpg"]
    for i, name in enumerate(names):
        Image.effect_noise(SIZES[i % 3], 80).convert("RGB").save(folder / name)
    (folder / "6.png").write_bytes(b"none")
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A trained first stage of each kind, by name."""
    made = {}
    for kind in ("vq", "vq2", "kl"):
        folder = tmp_path_factory.mktemp(kind)
        own = [] if kind == "kl" else ["bottleneck.codes=8"]
        status, _, errors = call(
            "train_autoencoder.py", *TINY, f"bottleneck={kind}", *own, "autoencoder.channels=4", f"out={folder}"
        )
        assert status == 0, errors
        made[kind] = folder
    return made


def encoded(stage, pictures, out, *more, script="encode.py"):
    status, printed, errors = call(
        script, stage, "--images", pictures, "--size", 32, "--max-broken", 0.2, "--out", out, *more
    )
    assert status == 0, errors
    assert printed == f"broken and left out: 1\n6 pictures: {out}\n"
    return json.loads((out / "pictures.json").read_text()), [
        read_tensors(path) for path in sorted(out.glob("*.safetensors"))
    ]


def after_its_bar(status, printed, errors):
    """What a script ended with, and of its errors what stands after the bar that it took back."""
    return status, printed, errors.rpartition("\r")[2]


def images(pictures, names):
    rng = np.random.default_rng(0)
    return torch.stack([Transform(32)(read_picture(pictures / name), rng) for name in names])


@pytest.mark.parametrize("kind", ["vq", "vq2", "kl"])
def test_what_is_written_is_what_the_first_stage_says_and_comes_back_by_name(stage, pictures, tmp_path, kind):
    described, (held,) = encoded(stage[kind], pictures, tmp_path / "codes", "--batch", 4)
    (names,) = described["files"]
    assert sorted(names) == ["0.png", "1.png", "2.png", "3.png", "4.png", "deep/5.jpg"] and described["size"] == 32
    network, _ = load_autoencoder(stage[kind] / "autoencoder")
    image = images(pictures, names)
    with torch.no_grad():
        if kind == "kl":
            torch.testing.assert_close(held["latent"].float(), network.encode(image), atol=5e-3, rtol=5e-3)
            back = network.decode(held["latent"].float())
        else:
            maps = encode_codes(network, image)
            wanted = dict(zip(["codes"] if kind == "vq" else ["top", "bottom"], maps, strict=True))
            assert held.keys() == wanted.keys() and all(held[name].dtype == torch.int32 for name in held)
            assert all(torch.equal(held[name], codes.int()) for name, codes in wanted.items())
            back = decode_codes(network, maps)
    status, printed, errors = call(
        "encode.py", stage[kind], "--decode", tmp_path / "codes", "--out", tmp_path / "back", "--batch", 5
    )
    assert status == 0 and printed == f"6 pictures: {tmp_path / 'back'}\n", errors
    for name, picture in zip(names, to_images(back), strict=True):
        path = tmp_path / "back" / (name if name.endswith("png") else f"{name}.png")
        with Image.open(path) as found:
            assert np.abs(np.asarray(found).astype(int) - np.asarray(picture).astype(int)).max() <= 1


def test_files_hold_so_many_pictures_each_and_stand_in_order(stage, pictures, tmp_path):
    whole, (held,) = encoded(stage["vq"], pictures, tmp_path / "one")
    source = (SCRIPTS / "encode.py").read_text(encoding="utf-8").replace("A_FILE = 4_096", "A_FILE = 4")
    (tmp_path / "encode.py").write_text(source, encoding="utf-8")
    divided, parts = encoded(stage["vq"], pictures, tmp_path / "two", script=tmp_path / "encode.py")
    assert [len(names) for names in divided["files"]] == [4, 2]
    assert [*divided["files"][0], *divided["files"][1]] == whole["files"][0]
    assert torch.equal(torch.cat([part["codes"] for part in parts]), held["codes"])


@pytest.mark.parametrize("kind", ["vq", "vq2"])
def test_what_the_page_on_first_stages_writes_in_python_runs(stage, monkeypatch, kind):
    monkeypatch.chdir(SCRIPTS.parent)
    (block,) = re.findall(r"```python\n(.*?)```", (SCRIPTS.parent / "docs" / "first-stages.md").read_text(), re.S)
    assert block.count("runs/first_stages/vq") == 1
    found = {}
    exec(block.replace("runs/first_stages/vq", str(stage[kind])), found)
    assert [codes.shape[0] for codes in found["maps"]] == [1] * (1 if kind == "vq" else 2)
    assert found["back"].shape == found["image"].shape
    torch.testing.assert_close(found["back"], found["same"])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--images none --out {out}", "--images none is not a folder"),
        ("--images docs --size 62 --out {out}", "--size 62 is not a multiple of 4; try 60"),
        ("--images docs --max-broken 2 --out {out}", "--max-broken 2.0 is not a share"),
        ("--images docs --batch 0 --out {out}", "--batch 0 is not at least 1"),
        ("--images configs --out {out}", "--images configs holds no picture; the endings looked for"),
        ("--images data/sample --out tests", "--out tests is there already"),
        ("--decode data/sample --size 64 --out {out}", "--size 64: what was encoded has its size"),
        ("--decode data/sample --out {out}", "manifest.json"),
        ("--decode ldm/assets/shapes64 --out {out}", "holds no pictures.json that encode.py wrote"),
        ("nowhere --images data/sample --out {out}", "nowhere is not there"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(args, says, tmp_path, monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)
    assert_one_line(call("encode.py", *args.format(out=tmp_path / "out").split()), says)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("kl", {"latent": torch.zeros(6, 3, 8, 8)}),
        ("vq2", {"top": torch.zeros(6, 3, 4, dtype=torch.int32), "bottom": torch.zeros(6, 8, 8, dtype=torch.int32)}),
        ("vq2", {"codes": torch.zeros(6, 8, 8, dtype=torch.int32)}),
    ],
)
def test_tensors_that_do_not_fit_are_refused(stage, pictures, tmp_path, kind, values):
    described, _ = encoded(stage[kind], pictures, tmp_path / "codes")
    with whole_folder(tmp_path / "codes") as staged:
        save_tensors(values, staged / "00000.safetensors")
        (staged / "pictures.json").write_text(json.dumps(described))
    result = call("encode.py", stage[kind], "--decode", tmp_path / "codes", "--out", tmp_path / "back")
    assert_one_line(after_its_bar(*result), "are not those of 6 pictures by this first stage")


def test_more_broken_pictures_than_a_share_end_it_and_leave_nothing(stage, pictures, tmp_path):
    result = call("encode.py", stage["vq"], "--images", pictures, "--size", 32, "--out", tmp_path / "codes")
    assert_one_line(
        (*result[:2], result[2].rpartition("\r")[2]), "1 of 6 pictures are broken, more than max_broken=0.1"
    )
    assert not (tmp_path / "codes").exists()


def test_nothing_that_is_there_is_replaced(stage, pictures, tmp_path):
    """Not even what the program wrote itself: a model, or the codes that are being decoded."""
    encoded(stage["vq"], pictures, tmp_path / "codes")
    for way, source, out in (
        ("--decode", tmp_path / "codes", tmp_path / "codes"),
        ("--images", pictures, stage["vq"] / "autoencoder"),
        ("--images", pictures, pictures / "0.png"),
    ):
        assert_one_line(call("encode.py", stage["vq"], way, source, "--out", out), f"--out {out} is there already")
    within = stage["vq"] / "autoencoder" / "codes"
    result = call("encode.py", stage["vq"], "--images", pictures, "--out", within)
    assert_one_line(result, "autoencoder, which is complete; name another place")
    load_autoencoder(stage["vq"] / "autoencoder")


def test_what_another_first_stage_encoded_is_refused(stage, pictures, tmp_path):
    encoded(stage["vq"], pictures, tmp_path / "codes")
    for other in (stage["vq2"], shipped_model()):
        result = call("encode.py", other, "--decode", tmp_path / "codes", "--out", tmp_path / "back")
        assert_one_line(result, "was encoded by another first stage")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"codes": torch.full((6, 8, 8), 8, dtype=torch.int32)},
            "codes from 8 to 8 are not of a first stage that has 8",
        ),
        ({"codes": torch.full((6, 8, 8), -1, dtype=torch.int32)}, "codes from -1 to -1"),
        ("../outside.png", "../outside.png"),
        ({"latent": torch.zeros(6, 4, 8, 8)}, "are not those of 6 pictures by this first stage: codes"),
        ({"codes": torch.zeros(6, 64, dtype=torch.int32)}, "tensors {'codes': (6, 64)} are not those"),
        ({"codes": torch.zeros(5, 8, 8, dtype=torch.int32)}, "are not those of 6 pictures"),
        ({"codes": torch.zeros(6, 0, 8, dtype=torch.int32)}, "are not those of 6 pictures"),
        ({}, "tensors {} are not those of 6 pictures"),
        (None, "holds no pictures.json that encode.py wrote"),
    ],
)
def test_codes_of_a_stranger_do_no_harm(stage, pictures, tmp_path, change, says):
    described, _ = encoded(stage["vq"], pictures, tmp_path / "codes")
    with whole_folder(tmp_path / "codes") as staged:
        held = read_tensors(tmp_path / "codes" / "00000.safetensors")
        if isinstance(change, str):
            described["files"][0][0] = change
        save_tensors(change if isinstance(change, dict) else held, staged / "00000.safetensors")
        (staged / "pictures.json").write_text(json.dumps([] if change is None else described))
    result = call("encode.py", stage["vq"], "--decode", tmp_path / "codes", "--out", tmp_path / "back")
    assert_one_line(after_its_bar(*result), says)  # after the bar
    assert not (tmp_path / "back").exists() and not (tmp_path / "outside.png").exists()
