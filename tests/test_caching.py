"""When a run trains from a latent cache."""

import pytest

from ldm.caching import cache_pays
from ldm.config import load
from ldm.run import Run


class Pictures(list):
    fixed = True


@pytest.mark.parametrize(
    ("count", "num_processes", "pays"), [(48, 1, True), (49, 1, False), (96, 2, True), (97, 2, False)]
)
def test_a_cache_pays_once_all_processes_together_meet_every_picture(tmp_path, count, num_processes, pays):
    steps = ("train_ldm.steps=3", "train_ldm.batch=8", "train_ldm.accumulate=2")
    run = load(Run, None, [*steps, f"out={tmp_path}"])
    assert cache_pays(run, Pictures(range(count)), num_processes) is pays


def test_pictures_that_change_are_not_cached_unless_asked_for(tmp_path):
    changing = Pictures()
    changing.fixed = False
    assert not cache_pays(load(Run, None, [f"out={tmp_path}"]), changing, 8)
    assert cache_pays(load(Run, None, ["cache.use=always", f"out={tmp_path}"]), changing, 1)
