"""docs/reliability.md: every fault that is listed there has tests that say so themselves."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAULTS = range(1, 37)
PAGE = (ROOT / "docs" / "reliability.md").read_text().partition("## Every fault")[2]


def named_by_fault():
    """{fault: {(file, test)}} of the numbers in the tests' docstrings."""
    found = {number: set() for number in FAULTS}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for number in re.findall(r"\b[Ff]ault (\d+)", ast.get_docstring(node) or ""):
                    found[int(number)].add((path.relative_to(ROOT / "tests").as_posix(), node.name))
    return found


@pytest.mark.parametrize("number", FAULTS)
def test_every_fault_has_a_row_and_the_tests_named_there_say_that_they_are_its(number):
    rows = re.findall(rf"^\| {number} \|.*\|$", PAGE, flags=re.MULTILINE)
    assert len(rows) == 1
    named = {(file, test) for file, test in re.findall(r"`([\w/]+\.py)::(\w+)`", rows[0])}
    assert named and named <= named_by_fault()[number]
