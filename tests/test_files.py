"""Folders: whole or not there, and checked when read."""

import os
import stat
from collections import OrderedDict

import pytest
import torch
from torch import nn

from ldm.files import BrokenFile, check_folder, load_weights, read_tensors, save_tensors, whole_folder


def fill(folder, text="first"):
    with whole_folder(folder) as staged:
        (staged / "a.txt").write_text(text)
        (staged / "sub").mkdir()
        (staged / "sub" / "b.txt").write_text("b")


def tear(path):
    path.write_bytes(path.read_bytes()[:-3])


def two_layers(width=3):
    return nn.Sequential(OrderedDict(first=nn.Linear(2, width), second=nn.Linear(width, 1)))


def test_a_whole_folder_passes_its_check_and_leaves_nothing_beside_it(tmp_path):
    fill(tmp_path / "deep" / "model")
    check_folder(tmp_path / "deep" / "model")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]


def test_a_new_folder_replaces_the_old_one_entirely(tmp_path):
    with whole_folder(tmp_path / "model") as staged:
        (staged / "stale.txt").touch()
    fill(tmp_path / "model", "second")
    assert (tmp_path / "model" / "a.txt").read_text() == "second"
    assert not (tmp_path / "model" / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_notes_that_somebody_put_into_a_folder_are_kept_when_it_is_replaced(tmp_path):
    fill(tmp_path / "model")
    for name in ("README.md", "sub/notes.txt", "unknown.safetensors"):
        (tmp_path / "model" / name).write_text("theirs")
    for text in ("second", "third"):
        fill(tmp_path / "model", text)
    check_folder(tmp_path / "model")
    assert (tmp_path / "model" / "a.txt").read_text() == "third"
    assert (tmp_path / "model" / "README.md").read_text() == "theirs"
    assert (tmp_path / "model" / "sub" / "notes.txt").read_text() == "theirs"
    assert not (tmp_path / "model" / "unknown.safetensors").exists(), "weights of nobody knows what"


def test_where_the_manifest_is_broken_no_file_is_taken_for_a_note(tmp_path):
    fill(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("anybody's")
    (tmp_path / "model" / "manifest.json").write_text("{")
    fill(tmp_path / "model", "second")
    assert not (tmp_path / "model" / "README.md").exists()


def test_a_note_that_cannot_be_copied_costs_nothing_but_itself(tmp_path, monkeypatch, capsys):
    fill(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("theirs")

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ldm.files.shutil.copy2", refused)
    fill(tmp_path / "model", "second")
    assert (tmp_path / "model" / "a.txt").read_text() == "second"
    assert "README.md cannot be copied (Permission denied) and is not kept" in capsys.readouterr().err


@pytest.mark.parametrize("held", ["file", "folder"])
def test_what_this_program_did_not_write_is_not_replaced(tmp_path, held):
    theirs = tmp_path / "model" if held == "file" else tmp_path / "model" / "holiday.jpg"
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("theirs")
    with pytest.raises(ValueError, match=r"model (is a file|holds files that this program did not write).*; move it"):
        fill(tmp_path / "model")
    assert theirs.read_text() == "theirs"


@pytest.mark.parametrize("fault", [OSError("No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [True, False])
def test_a_folder_is_left_as_it_was_where_the_filling_fails(tmp_path, fault, old):
    if old:
        fill(tmp_path / "model")
    with pytest.raises(type(fault)), whole_folder(tmp_path / "model") as staged:
        (staged / "a.txt").write_text("half of the sec")
        raise fault
    assert [path.name for path in tmp_path.iterdir()] == ["model"] * old
    if old:
        check_folder(tmp_path / "model")
        assert (tmp_path / "model" / "a.txt").read_text() == "first"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_get_the_permissions_that_the_umask_asks_for(tmp_path, mask):
    before = os.umask(mask)
    try:
        with whole_folder(tmp_path / "model") as staged:
            save_tensors({"w": torch.ones(3)}, staged / "w.safetensors")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~mask}  # safetensors, left alone, writes 0600


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "no manifest", "torn manifest"])
def test_a_damaged_folder_is_refused_and_the_file_named(tmp_path, damage):
    """Fault 7."""
    fill(tmp_path / "model")
    path = tmp_path / "model" / "sub" / "b.txt"
    manifest = tmp_path / "model" / "manifest.json"
    if damage == "flip":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]))
    elif damage == "cut":
        path.write_bytes(b"")
    elif damage == "remove":
        path.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        tear(manifest)
    with pytest.raises(BrokenFile, match="manifest.json" if "manifest" in damage else "sub/b.txt"):
        check_folder(tmp_path / "model")


@pytest.mark.parametrize(
    "manifest",
    ["{}", "[]", '[["a.txt", "x"]]', '{"a.txt": 1}', '{"../out.txt": "x"}', '{"/etc/hostname": "x"}', 9_999 * "["],
)
def test_a_manifest_that_is_no_list_of_hashes_of_files_in_the_folder_is_refused(tmp_path, manifest):
    """Fault 7: by one line, and nothing outside the folder is read."""
    fill(tmp_path / "model")
    (tmp_path / "out.txt").mkdir()
    (tmp_path / "model" / "manifest.json").write_text(manifest)
    with pytest.raises(BrokenFile, match="manifest.json is missing or unreadable"):
        check_folder(tmp_path / "model")


@pytest.mark.parametrize("name", ["sub/more.safetensors", "config.yaml", "weights.PT"])
def test_a_file_that_would_be_read_and_is_not_in_the_manifest_is_refused_and_a_note_is_not(tmp_path, name):
    """Fault 7: whose hash is left out would go unchecked. Fault 5, for a pickle."""
    fill(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("what it is")
    check_folder(tmp_path / "model")
    (tmp_path / "model" / name).write_text("x")
    with pytest.raises(BrokenFile, match=f"{name} (is not in manifest.json|may be a pickle)"):
        check_folder(tmp_path / "model")


@pytest.mark.parametrize(
    "content",
    [b"", b"<!doctype html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x04cos\nsystem\n", None],
)
def test_what_is_no_safetensors_file_is_refused_by_name(tmp_path, content):
    """Fault 7."""
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BrokenFile, match="weights.safetensors"):
        read_tensors(path)


def test_a_truncated_safetensors_file_is_refused_by_name(tmp_path):
    """Fault 7."""
    path = tmp_path / "weights.safetensors"
    save_tensors({"w": torch.ones(100)}, path)
    tear(path)
    with pytest.raises(BrokenFile, match="weights.safetensors"):
        read_tensors(path)


def test_tensors_come_back_exactly_and_only_floats_are_halved(tmp_path):
    tensors = {"w": torch.randn(3, 4).T, "n": torch.tensor(7), "b": torch.tensor([True])}
    save_tensors(tensors, tmp_path / "whole.safetensors")
    save_tensors(tensors, tmp_path / "half.safetensors", torch.float16)
    whole, half = (read_tensors(tmp_path / f"{name}.safetensors") for name in ("whole", "half"))
    assert all(torch.equal(whole[key], value) for key, value in tensors.items())
    assert torch.equal(half["w"], tensors["w"].half())
    assert half["n"].dtype == torch.int64 and half["b"].dtype == torch.bool


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("first.bias"), r"lacks 1 weights \(first.bias"),
        (lambda w: w.update(third=torch.ones(1)), r"has the unknown 1 weights \(third"),
        (lambda w: w.update({"first.weight": torch.ones(7, 2)}), r"'first.weight' is \(7, 2\) .*, \(3, 2\) in"),
    ],
)
def test_weights_of_another_network_are_refused_by_key_and_shape(tmp_path, change, says):
    """Fault 8."""
    weights = dict(two_layers().state_dict())
    change(weights)
    save_tensors(weights, tmp_path / "here.safetensors")
    network = two_layers()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(BrokenFile, match=f"here.safetensors.*{says}"):
        load_weights(network, tmp_path / "here.safetensors")
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_half_precision_weights_load_into_what_the_network_has(tmp_path):
    first, second = two_layers(), two_layers()
    save_tensors(first.state_dict(), tmp_path / "half.safetensors", torch.float16)
    load_weights(second, tmp_path / "half.safetensors")
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.equal(theirs, ours.half().float())
