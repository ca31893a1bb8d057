"""What the README, the docs and the shipped model's card link to and name, is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted({*ROOT.glob("*.md"), *(p for folder in ("docs", "data", "ldm") for p in (ROOT / folder).rglob("*.md"))})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_linked_file_and_heading_and_every_named_script_or_configuration_exists(page):
    text = page.read_text()
    for name in re.findall(r"(?<![\w/])(?:scripts|configs|benchmarks)/(?!test_)[\w/]+\.(?:py|yaml)", text):
        assert (ROOT / name).exists(), name
    for name, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        linked = page.parent / name if name else page
        assert linked.exists(), name
        assert not heading or heading in anchors(linked.read_text()), f"{name}#{heading}"


def anchors(text):
    """What GitHub calls the headings of a page: their words in small letters, without signs, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_file_tree_names_every_module():
    tree = README[README.index("## What is where") : README.index("## Add your own")]
    for module in (ROOT / "ldm").rglob("*.py"):
        if module.stem != "__init__":
            assert re.search(rf"\b{module.stem}\b", tree), module
