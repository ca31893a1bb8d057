"""What the README says is there, is."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_linked_file_and_named_script_or_configuration_exists():
    named = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"(?:scripts|configs)/\w+\.(?:py|yaml)", README)
    assert [name for name in set(named) if not (ROOT / name).exists()] == []


def test_the_file_tree_names_every_module():
    tree = README[README.index("## What is where") : README.index("## Add your own")]
    for module in (ROOT / "ldm").rglob("*.py"):
        if module.stem != "__init__":
            assert re.search(rf"\b{module.stem}\b", tree), module
