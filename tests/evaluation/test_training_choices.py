"""benchmarks/training_choices.py: its rows are configurations that can be trained."""

from pathlib import Path

import pytest

from benchmarks.training_choices import ROWS, share
from ldm.config import load
from ldm.run import Run

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("config", ["demo.yaml", "shapes_unet.yaml"])
@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_configuration_that_is_not_refused(row, config):
    load(Run, CONFIGS / config, ROWS[row])


def test_a_base_without_a_stage_is_named(tmp_path):
    (tmp_path / "autoencoder").mkdir()
    with pytest.raises(ValueError, match=r"has no text; run `make demo`"):
        share(tmp_path, tmp_path / "row")
