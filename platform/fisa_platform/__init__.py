"""FISA platform: open-vocabulary segmentation as jobs on Ray."""

import subprocess
from functools import cache
from pathlib import Path

__version__ = "0.2.0"


@cache
def git_commit() -> str | None:
    """The commit of the checkout that this code runs from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
