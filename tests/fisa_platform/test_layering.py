"""The house keeps its shape: what may import what, what lies where, and how long it may grow."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import fisa_platform

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for folder in ("platform", "fisa_model") for path in (REPOSITORY / folder).rglob("*.py")
)
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70
MAX_LONG_FUNCTION_LINES = 120
TRAINING_LOOP = "platform/fisa_platform/training/loop.py"


def test_platform_never_shadows_the_standard_library() -> None:
    assert not (REPOSITORY / "platform" / "__init__.py").exists()
    entries = {entry.name for entry in (REPOSITORY / "platform").iterdir()} - {"__pycache__"}
    assert entries == {"__main__.py", "fisa_platform"}
    code = "import platform, uuid; print(platform.system(), platform.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert str(REPOSITORY) not in result.stdout


def test_imports_point_down_only() -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "platform"), str(REPOSITORY)]),
    }
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def may_be_long(path: Path, function: ast.FunctionDef) -> bool:
    """The training loop and a model's constructor."""
    place = str(path.relative_to(REPOSITORY))
    return place == TRAINING_LOOP or (place.startswith("fisa_model") and function.name == "__init__")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for function in functions(ast.parse(text)):
        limit = MAX_LONG_FUNCTION_LINES if may_be_long(path, function) else MAX_FUNCTION_LINES
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= limit, f"{function.name} has {length} lines"


def test_the_version_is_written_once_and_again() -> None:
    """A checkout is not installed, so the code cannot ask for the version of its distribution."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert fisa_platform.__version__ == project["version"]


def test_specs_keep_their_line_ends_in_every_checkout() -> None:
    assert "*.yaml text eol=lf" in (REPOSITORY / ".gitattributes").read_text(encoding="utf-8")
