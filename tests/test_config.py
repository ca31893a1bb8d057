"""Configuration: dataclass < YAML < command line, mistakes told in one line, and nothing that runs code."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from ldm.autoencoders import BOTTLENECKS, ReconstructionConfig
from ldm.config import ConfigError, from_dict, load, to_dict, to_yaml
from ldm.denoisers import DENOISERS
from ldm.folders import shipped_model
from ldm.run import Run
from ldm.training.optim import TrainConfig

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
FIRST_STAGES = [path for path in CONFIGS if path.parent.name == "first_stages"]
TABLES = [(f.name, name) for f in fields(Run) for name in f.metadata.get("table", ())]
CHECKED = ["train_ldm", "sample", "data", "autoencoder", "denoiser", "cache"]


def written(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def refused(*overrides, path=None):
    """The one line that ``overrides`` of the run are refused with."""
    with pytest.raises(ConfigError) as caught:
        load(Run, path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = written(tmp_path, "out: there\ntrain_ldm: {steps: 7, batch: 3}\n")
    run = load(Run, path, ["train_ldm.batch=5", "train_ldm.batch=6"])
    assert (run.out, run.train_ldm.steps, run.train_ldm.batch) == ("there", 7, 6)
    assert run.train_clip == Run().train_clip


def test_a_section_of_a_file_starts_from_its_class_and_one_of_the_command_line_from_the_run(tmp_path):
    in_file = load(Run, written(tmp_path, "train_ldm: {steps: 7}\n"))
    assert in_file.train_ldm == TrainConfig(steps=7)
    assert load(Run, None, ["train_ldm.steps=7"]).train_ldm == replace(Run().train_ldm, steps=7)


def test_a_section_keeps_the_defaults_of_its_run_not_of_its_class():
    assert load(Run, None, ["autoencoder.blocks=1"]).autoencoder.patch == Run().autoencoder.patch
    assert load(Run, None, ["denoiser.blocks=2"]).denoiser.width == Run().denoiser.width


def test_values_are_read_as_yaml():
    run = load(
        Run, None, ["autoencoder.multipliers=[1, 2]", "train_ldm.lr=1e-3", "train_ldm.compile=true", "out=a b=c"]
    )
    assert run.autoencoder.multipliers == [1, 2]
    assert run.train_ldm.lr == 1e-3 and run.train_ldm.compile is True
    assert run.out == "a b=c"


@pytest.mark.parametrize("path", FIRST_STAGES, ids=lambda path: path.stem)
def test_the_first_stages_of_the_table_differ_in_what_their_row_says_alone(path):
    run, common = load(Run, path), load(Run, path.parents[1] / "shapes_unet.yaml")
    for part in ("data", "autoencoder"):
        assert getattr(run, part) == getattr(common, part)
    likelihood = ReconstructionConfig(l1=0.0, gaussian=1.0)
    assert run.reconstruction == (likelihood if path.stem in ("vae", "beta_vae") else common.reconstruction)
    assert run.train_autoencoder == replace(common.train_autoencoder, steps=1_500, ema=0.99)
    assert run.out == f"runs/first_stages/{path.stem}"
    others = [load(Run, other) for other in FIRST_STAGES if other != path]
    assert all((run.bottleneck, run.robustness) != (other.bottleneck, other.robustness) for other in others)


def test_every_kind_of_bottleneck_has_a_row_of_the_table():
    assert {type(load(Run, path).bottleneck) for path in FIRST_STAGES} == {*BOTTLENECKS.values()}


@pytest.mark.parametrize(("section", "name"), TABLES)
def test_every_part_of_every_table_may_be_chosen_by_its_name(section, name, tmp_path):
    by_name = load(Run, None, [f"{section}={name}"])
    kind = next(f for f in fields(Run) if f.name == section).metadata["table"][name]
    assert type(getattr(by_name, section)) is kind
    assert by_name == load(Run, None, [f"{section}.name={name}"])
    assert getattr(load(Run, written(tmp_path, f"{section}: {name}\n")), section) == kind()
    assert getattr(load(Run, written(tmp_path, f"{section}: {{name: {name}}}\n")), section) == kind()


def test_another_name_replaces_the_section_and_its_keys(tmp_path):
    path = written(tmp_path, "denoiser: {name: dit, patch: 4, width: 64}\n")
    run = load(Run, path, ["denoiser.name=unet", "denoiser.blocks=1"])
    assert run.denoiser == DENOISERS["unet"](blocks=1)


@pytest.mark.parametrize("override", ["denoiser=unet", "denoiser.name=unet"])
@pytest.mark.parametrize("name", ["name: unet, ", ""])
def test_the_same_name_again_leaves_the_section_as_it_is(tmp_path, name, override):
    path = written(tmp_path, f"denoiser: {{{name}blocks: 4, width: 64}}\n")
    assert load(Run, path, [override]) == load(Run, path)
    assert load(Run, path).denoiser.blocks == 4


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trian_ldm.steps=3", "unknown section 'trian_ldm'; did you mean 'train_ldm'?"),
        ("train_ldm.step=3", "train_ldm.step: no such key; did you mean 'steps'?"),
        ("denoiser.name=dut", "denoiser.name: no 'dut' here; did you mean 'dit'?"),
        ("schedule=cosin", "did you mean 'cosine'?"),
        ("denoiser.name=zzzz", "known: dit, unet"),
        ("data.target=os.system", "data.target: no such key"),
    ],
)
def test_a_misspelt_word_is_named_with_the_nearest_right_one(override, says):
    """Fault 1."""
    assert says in refused(override)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train_ldm.steps=many", "train_ldm.steps"),
        ("train_ldm.steps=1.5", "train_ldm.steps"),
        ("train_ldm.compile=maybe", "train_ldm.compile"),
        ("autoencoder.multipliers=3", "autoencoder.multipliers"),
        ("autoencoder.multipliers=[null]", "autoencoder.multipliers"),
        ("train_ldm.lr=null", "train_ldm.lr: null is not allowed here"),
        ("train_ldm.lr=nan", "lr nan"),
        ("train_ldm.lr=-1", "lr -1"),
        ("train_ldm.seed=202601011230", "seed 202601011230 is not below 2^32; try seed="),
        ("train_ldm.lr=0", "lr 0"),
        ("train_ldm.lr=inf", "lr inf"),
        ("train_ldm.steps=0", "steps 0"),
        ("train_ldm.warmup=-1", "warmup -1"),
        ("train_ldm.clip=nan", "clip nan"),
        ("train_ldm.weight_decay=inf", "weight_decay inf"),
        ("train_ldm.betas=[0.9, nan]", "betas"),
        ("train_ldm.ema=1", "ema 1"),
        ("train_ldm.decay=exp", "exp"),
        ("train_ldm.keep=0", "keep 0"),
        ("guidance.scale=nan", "scale nan"),
        ("sampler.eta=nan", "eta nan"),
        ("sample.steps=0", "steps 0"),
        ("process.text_dropout=nan", "text_dropout nan"),
        ("process.target=w", "target 'w'"),
        ("data.size=true", "data.size"),
        ("out=3", "out"),
        ("out=", "out"),
        ("out.folder=x", "out"),
        ("cache=auto", "cache: a section of keys is wanted here, not 'auto'"),
        ("data=5", "data: a name or a section"),
        ("data=[1, 2]", "data: a name or a section"),
        ("denoiser.name=[1]", "denoiser"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(override, key):
    """Fault 2."""
    assert key in refused(override)


@pytest.mark.parametrize("text", ["steps", "=3", "train_ldm.steps=[1", "out=a: b: c"])
def test_what_is_no_override_is_refused(text):
    assert text in refused(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("out: a\nout: b\n", 2),
        ("data: {size: 64}\ndenoiser:\n  width: 3\n  width: 4\n", 4),
        ("out: a\ndata: {size: 64\n", 3),
        ("out: a\n\tdata: 3\n", 2),
        ("out: a\ndata: !!python/object:os.PathLike {}\n", 2),
    ],
)
def test_broken_yaml_is_refused_with_its_line(tmp_path, text, line):
    """Fault 3."""
    path = written(tmp_path, text)
    assert f"{path}, line {line}:" in refused(path=path)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "null\n"])
def test_a_file_without_sections_is_refused(tmp_path, text):
    """Fault 3."""
    path = written(tmp_path, text)
    assert str(path) in refused(path=path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"out: \xff\xfe\x00\n")
    assert str(path) in refused(path=path)


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path):
    written(tmp_path, "out: a\n")
    assert f"did you mean '{tmp_path / 'run.yaml'}'?" in refused(path=tmp_path / "runs.yaml")


@pytest.mark.parametrize("where", ["file", "command line"])
@pytest.mark.parametrize("tag", ["object/apply:os.system", "object/new:os.system", "name:os.system"])
def test_a_python_tag_is_refused_and_runs_nothing(tmp_path, tag, where):
    """Fault 4."""
    value = f"!!python/{tag} ['touch {tmp_path}/touched']"
    if where == "file":
        refused(path=written(tmp_path, f"out: {value}\n"))
    else:
        refused(f"out={value}")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "${data.size}", "pre${oc.env:HOME}"])
@pytest.mark.parametrize("key", ["out", "data.path", "train_ldm.tracker", "denoiser.name", "autoencoder.multipliers"])
def test_an_interpolation_is_refused_and_not_resolved(tmp_path, monkeypatch, key, value):
    """Fault 4."""
    monkeypatch.setenv("HOME", "a-secret")
    section, _, name = key.partition(".")
    texts = [f"{section}: {{{name}: '{value}'}}\n", f"{section}: {{{name}: ['{value}']}}\n"] if name else []
    for path in [None, *(written(tmp_path, text) for text in [*texts, f"{section}: '{value}'\n"])]:
        said = refused(*([f"{key}={value}"] if path is None else []), path=path)
        assert "interpolation" in said and "a-secret" not in said


def test_reading_does_not_change_what_is_given():
    given = {"denoiser": {"name": "unet", "width": 64}, "train_ldm": {"steps": 3}}
    from_dict(Run, given)
    assert given == {"denoiser": {"name": "unet", "width": 64}, "train_ldm": {"steps": 3}}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_survives_a_round_trip(path, tmp_path):
    run = load(Run, path)
    assert from_dict(Run, to_dict(run)) == run
    assert load(Run, written(tmp_path, to_yaml(run))) == run


@pytest.mark.parametrize("section", CHECKED)
def test_two_runs_do_not_share_a_section(section):
    assert getattr(Run(), section) is not getattr(Run(), section)


def test_the_shapes_configuration_is_what_runs_without_one():
    (path,) = (path for path in CONFIGS if path.name == "shapes_unet.yaml")
    assert load(Run, path) == Run()


def test_the_wide_configuration_is_the_shapes_run_with_the_shipped_models_denoiser():
    (path,) = (path for path in CONFIGS if path.name == "shapes_wide.yaml")
    wide, run = load(Run, path), Run()
    training = replace(run.train_ldm, steps=5_000, muon_iterations=5)
    denoiser = replace(run.denoiser, width=64)
    assert wide == replace(run, out="runs/shapes_wide", denoiser=denoiser, train_ldm=training)
    assert wide.denoiser == load(Run, shipped_model() / "config.yaml").denoiser


def test_tiny_overrides_fit_the_run(tiny):
    assert load(Run, None, tiny).train_ldm.steps == 4
