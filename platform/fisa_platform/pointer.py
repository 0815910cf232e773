"""`latest.json`, which says which of an output's versions is meant where only the output is named."""

import re

from fisa_platform import storage

LATEST_NAME = "latest.json"
VERSION_NAME = r"[0-9a-f]{16}"
"""What `manifest.fingerprint_of` makes."""


def read(output_uri: str) -> str | None:
    """The name of the version that is meant; None where there is no pointer, or somebody else's file."""
    uri = storage.join(output_uri, LATEST_NAME)
    if not storage.exists(uri):
        return None
    try:
        pointer = storage.read_json(uri)
    except ValueError:
        return None
    name = pointer.get("version") if isinstance(pointer, dict) and len(pointer) == 1 else None
    return name if isinstance(name, str) and re.fullmatch(VERSION_NAME, name) else None


def write(output_uri: str, name: str) -> None:
    """Let `output_uri` stand for the version of this name."""
    storage.write_json(storage.join(output_uri, LATEST_NAME), {"version": name})


def check(output_uri: str) -> None:
    """Raises ValueError where a `latest.json` of somebody else would be written over."""
    uri = storage.join(output_uri, LATEST_NAME)
    if read(output_uri) is None and storage.exists(uri):
        raise ValueError(
            f"{uri}: not written by this platform, and a version would have to replace it; choose another "
            "output_uri, or move the file away"
        )
