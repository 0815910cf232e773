"""The platform in processes of their own, as people start it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

REPOSITORY = Path(__file__).resolve().parents[1]
SECONDS = 240


def clean_environment() -> dict[str, str]:
    """Variables without those of the Ray that the tests run in."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "platform"), str(REPOSITORY)]),
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def start(
    *command: str | Path, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[str]:
    """`fisa run SPEC`, `fisa COMMAND ...`, or Python itself where the first word is an option of it."""
    if len(command) == 1:
        command = ("run", *command)
    if not str(command[0]).startswith("-"):
        command = (REPOSITORY / "platform", *command)
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**clean_environment(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What the process printed, once it has ended well."""
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    return output
