"""benchmarks/training_choices.py: its rows are configurations that can be trained."""

from pathlib import Path

import pytest

from benchmarks.training_choices import RECIPES, TARGETS, configured, share
from ldm.config import load
from ldm.denoisers.dit import DiTConfig
from ldm.run import Run

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("config", ["demo.yaml", "shapes_unet.yaml"])
@pytest.mark.parametrize("row", TARGETS)
def test_every_row_is_a_configuration_that_is_not_refused(row, config):
    load(Run, CONFIGS / config, TARGETS[row])


def test_rows_of_the_recipe_take_the_time_of_the_first_and_a_folder_each(tmp_path):
    runs = {name: configured(None, ["train_ldm.steps=800"], *RECIPES[name], tmp_path) for name in RECIPES}
    assert runs["as configured"].train_ldm.steps == 800
    assert runs["batches of 32"].train_ldm.steps > 800 > runs["width 96"].train_ldm.steps
    assert isinstance(runs["DiT of width 256 and depth 5"].denoiser, DiTConfig)
    assert len({run.out for run in runs.values()}) == len(runs)


def test_a_base_shares_the_stages_that_it_has_and_must_have_latents(tmp_path):
    (tmp_path / "text").mkdir()
    with pytest.raises(ValueError, match=r"has no cache; run `make demo` or scripts/cache_latents.py"):
        share(tmp_path, tmp_path / "row")
    (tmp_path / "cache").mkdir()
    share(tmp_path, tmp_path / "row")
    assert {path.name for path in (tmp_path / "row").iterdir()} == {"text", "cache"}
