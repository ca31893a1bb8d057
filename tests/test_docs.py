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


def equations():
    """The tables' rows, each of its numbers, an equation and the code."""
    rows = [line for line in (DOCS / "equations.md").read_text().splitlines() if line.startswith("| ")]
    return [row for row in rows if "---" not in row and not row.startswith("| | Equation")]


def cells(row):
    """What lies between the row's bars, but for those that a backslash says are of the text."""
    return re.split(r"(?<!\\)\|", row)[1:-1]


def numbers(text):
    """Those in brackets as pairs, the first note's with a 9 before them, the second's with a 1, all others with a 0.

    With all that lie between two which a dash joins.
    """
    spans = re.findall(r"\((?:([19])-)?(\d+)\)(?: - \((?:[19]-)?(\d+)\))?", text)
    return [(int(note or 0), n) for note, first, last in spans for n in range(int(first), int(last or first) + 1)]


def test_every_numbered_equation_of_the_notes_has_a_row_or_is_said_to_be_missing():
    missing = (DOCS / "equations.md").read_text().split("Not here yet:")[1]
    listed = [number for row in equations() for number in numbers(cells(row)[0])] + numbers(missing)
    survey, first, second = (
        ((0, n) for n in range(1, 51)),
        ((9, n) for n in range(1, 7)),
        [(1, 3), (1, 10), (1, 11), (1, 12)],
    )
    assert sorted(listed) == sorted([*survey, *first, *second])


def test_the_equations_name_a_function_each():
    rows = equations()
    assert len(rows) > 30
    assert all(re.search(r"`ldm\.[\w.]+` \|$", row) for row in rows)
    said = [cells(row)[1] for row in rows]
    assert [text for text in said if not re.search(r"[=<>+^(]|->", text)] == []
