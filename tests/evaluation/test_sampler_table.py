"""benchmarks/samplers.py: every sampler is in the table, at as many steps as a budget of calls allows."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.samplers import BUDGETS, NAMED, ROWS, Kept, Point, budget_of, most_steps, table, tables, with_others
from ldm.diffusion.grids import uniform
from ldm.diffusion.schedules import SCHEDULES
from ldm.samplers import SAMPLERS
from ldm.sampling import Sampling
from ldm.types import Prediction

SCHEDULE = SCHEDULES["cosine"](shift=2.0).build()
OWN = Sampling().but("sampler.eta=1")  # what a model may draw with itself, which no row may depend on
STEPPED = {name: overrides for name, overrides in ROWS.items() if "sampler=ode" not in overrides}


def samplers_of(rows):
    return {part.partition(",")[0] for row in rows for part in row.split(" = ")}


def test_every_sampler_has_a_row_and_every_row_a_sampler():
    assert samplers_of(NAMED) <= {*SAMPLERS} == samplers_of(ROWS)
    assert all(row[0].removeprefix("sampler=") in samplers_of([name]) for name, row in ROWS.items())


def test_a_sampler_without_a_row_of_its_own_gets_one():
    assert with_others({"heun": ["sampler=heun"]}, ["mine", "heun"]) == {
        "heun": ["sampler=heun"],
        "mine": ["sampler=mine"],
    }


@pytest.mark.parametrize("row", [row for row in ROWS if " = " in row])
def test_samplers_that_share_a_row_take_the_same_steps(row):
    grid = uniform(SCHEDULE, 4)
    start, generator = torch.randn(2, 1, 3, 3), torch.Generator()

    def drawn(sampler):
        draws = iter(torch.randn(9, 2, 1, 3, 3, generator=generator.manual_seed(0)))
        return sampler(lambda x, level: Prediction(torch.tanh(x)), start, grid, lambda: next(draws))

    first, *others = (part.partition(",")[0] for part in row.split(" = "))
    wanted = drawn(OWN.but(*ROWS[row]).sampler)
    assert ROWS[row][0] == f"sampler={first}"
    for name in others:
        torch.testing.assert_close(drawn(SAMPLERS[name]()), wanted)


@pytest.mark.parametrize("name", STEPPED)
def test_as_many_steps_are_taken_as_the_budget_allows_and_one_more_is_too_many(name):
    sampling = OWN.but(*STEPPED[name])
    steps = most_steps(sampling, SCHEDULE, 16)
    assert steps >= 1
    assert sampling.but(f"sample.steps={steps}").rehearsal(SCHEDULE)[0] <= 16
    assert sampling.but(f"sample.steps={steps + 1}").rehearsal(SCHEDULE)[0] > 16


def test_samplers_that_draw_noise_are_told_from_those_that_do_not():
    drawing = {name for name, overrides in STEPPED.items() if OWN.but(*overrides).rehearsal(SCHEDULE)[1]}
    always = {"ddim, eta 1 = ddpm = euler_ancestral", "euler_maruyama", "annealed_langevin", "dpm_solver_pp, eta 1"}
    assert always <= drawing
    assert not {"ddim = euler", "heun", "plms", "ipndm", "deis", "dpm_solver", "dpm_solver_pp", "unipc"} & drawing


def test_a_sampler_of_the_variance_that_a_denoiser_learned_can_be_rehearsed():
    assert OWN.but("sampler=ddpm", "sampler.variance=learned", "sample.steps=5").rehearsal(SCHEDULE) == (5, True)


def test_a_point_stands_in_the_first_column_that_allows_its_calls():
    points = [Point(15, 0.5, None, 0.1), Point(max(BUDGETS) + 40, 0.75, 0.2, 0.1)]
    assert [budget_of(point) for point in points] == [20, max(BUDGETS)]
    row = table({"heun": points}, "right", lambda point: f"{point.score:.0%}").splitlines()[2]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["heun", *[""] * 5, "50%", "", "75% (140 calls)"]


def test_rows_that_are_there_are_kept_and_those_of_another_model_refused(tmp_path):
    path, point = tmp_path / "samplers.json", Point(calls=8, score=0.5, distance=None, seconds=0.1)
    of = {"model": "a hash", "prompts_per_category": 5}
    Kept(path, of).add("ddim", ["sampler=ddim"], [point])
    Kept(path, of).add("heun", ["sampler=heun"], [])
    kept = Kept(path, of)
    assert kept.found == {"ddim": [point], "heun": []} and kept.settings["ddim"] == ["sampler=ddim"]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="another prompts_per_category 5, now 6; give another --out"):
        Kept(path, {**of, "prompts_per_category": 6})


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"of": {}, "rows": []}', '{"of": {}, "rows": {"ddim": {"points": [{"calls": 1}]}}}']
)
def test_a_file_that_holds_no_rows_is_left_as_it_is(tmp_path, text):
    path = tmp_path / "samplers.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no rows of this benchmark"):
        Kept(path, {})
    assert path.read_text() == text


def test_the_tables_in_the_docs_are_of_the_rows_that_there_are():
    docs = Path(__file__).parents[2] / "docs"
    stored = json.loads((docs / "samplers.json").read_text())
    rows = {name: row["settings"] for name, row in stored["rows"].items()}
    assert rows and rows.items() <= ROWS.items()  # a new sampler's may wait to be measured
    kept, page = Kept(docs / "samplers.json", stored["of"]), (docs / "samplers.md").read_text()
    for wanted in tables({name: kept.found[name] for name in ROWS if name in rows}):
        assert wanted in page


@pytest.mark.parametrize("told", ["docs/samplers.md", "benchmarks/samplers.py"])
def test_the_commands_that_are_told_go_on_from_the_table_in_the_docs(told):
    root = Path(__file__).parents[2]
    of = json.loads((root / "docs" / "samplers.json").read_text())["of"]
    how = f"--prompts-per-category {of['prompts_per_category']} --precision {of['precision']} --out docs/samplers.png"
    assert f"benchmarks/samplers.py {how}" in " ".join((root / told).read_text().split())
