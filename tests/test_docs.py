"""What the docs name is there."""

import re
from importlib import import_module
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NAMED = sorted(set(re.findall(r"`(ldm\.[\w.]+)`", (DOCS / "equations.md").read_text())))


@pytest.mark.parametrize("name", NAMED)
def test_every_function_that_the_equations_name_exists(name):
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            found = import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part)
        assert callable(found) or isinstance(found, property)
        return
    pytest.fail(f"no module of {name}")


def test_the_equations_name_a_function_each():
    rows = [
        row for row in (DOCS / "equations.md").read_text().splitlines() if row.startswith("| ") and "---" not in row
    ]
    equations = [row for row in rows if not row.startswith("| | Equation")]
    assert len(equations) > 30
    assert all(re.search(r"`ldm\.[\w.]+` \|$", row) for row in equations)
    said = [re.split(r"(?<!\\)\|", row)[2] for row in equations]
    assert [text for text in said if not re.search(r"[=<>+^(]|->", text)] == []
