"""Scripts called as a user calls them, in this process."""

import io
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def call(script, *args):
    """(exit status, output, errors) of a script."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [script, *map(str, args)])
        try:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()


def assert_one_line(result, says):
    status, _, errors = result
    assert status == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert says in errors
