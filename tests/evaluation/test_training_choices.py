"""benchmarks/training_choices.py: its rows are configurations that can be trained."""

from pathlib import Path

import pytest

from benchmarks.training_choices import RECIPES, TARGETS, configured, main, share
from ldm.config import load
from ldm.run import Run

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("config", ["demo.yaml", "shapes_unet.yaml"])
@pytest.mark.parametrize("row", TARGETS)
def test_every_row_is_a_configuration_that_is_not_refused(row, config):
    load(Run, CONFIGS / config, TARGETS[row])


@pytest.mark.parametrize("row", RECIPES)
def test_rows_of_the_recipe_take_as_many_steps_as_their_pace_says(row, tmp_path):
    pace, changes = RECIPES[row]
    run = configured(None, ["train_ldm.steps=800"], pace=pace, changes=changes, base=tmp_path, out=tmp_path)
    assert run.train_ldm.steps == round(800 * pace)


def test_every_row_every_base_and_every_length_has_a_folder_of_its_own(tmp_path):
    def folder(row, steps=800, base="base"):
        (pace, changes), asked = RECIPES[row], [f"train_ldm.steps={steps}"]
        return configured(None, asked, pace=pace, changes=changes, base=tmp_path / base, out=tmp_path).out

    first = next(iter(RECIPES))
    assert folder(first) == folder(first)
    made = [*map(folder, RECIPES), folder(first, 900), folder(first, 800, "other")]
    assert len(set(made)) == len(made)


def test_a_row_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["training_choices.py", "--base", str(tmp_path), "--row", "batches of 32"])
    with pytest.raises(ValueError, match=r"--row 'batches of 32' is not one of: v, cosine with shift 2; "):
        main()


def test_a_base_shares_the_stages_that_it_has_and_must_have_latents(tmp_path):
    (tmp_path / "text").mkdir()
    with pytest.raises(ValueError, match=r"has no cache; run `make demo` or scripts/cache_latents.py"):
        share(tmp_path, tmp_path / "row")
    (tmp_path / "cache").mkdir()
    share(tmp_path, tmp_path / "row")
    assert {path.name for path in (tmp_path / "row").iterdir()} == {"text", "cache"}
