"""Text embeddings on disk, so that a vocabulary of thousands of prompts is encoded once."""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = "fisa-text-1"
_ROWS = "rows"


def default_path() -> Path | None:
    """`$XDG_CACHE_HOME/fisa/text`, by default `~/.cache/fisa/text`; None for a user without a home."""
    if os.path.isabs(folder := os.environ.get("XDG_CACHE_HOME", "")):
        return Path(folder) / "fisa" / "text"
    with suppress(RuntimeError):
        return Path.home() / ".cache" / "fisa" / "text"
    return None


class TextCache:
    """One safetensors file for each list of names and templates that one CLIP has encoded.

    It only ever grows, so it is meant for vocabularies that come again, not for the words of every request.
    """

    def __init__(self, folder_path: Path | str, clip_digest: str) -> None:
        self.folder_path = Path(folder_path)
        self.clip_digest = clip_digest

    def path_of(self, names: Sequence[str], templates: Sequence[str]) -> Path:
        key = json.dumps([FORMAT, self.clip_digest, list(names), list(templates)])
        return self.folder_path / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def read(self, names: Sequence[str], templates: Sequence[str]) -> Tensor | None:
        """The rows [R, D] of these names; None where there is no file, or one that cannot be trusted."""
        path = self.path_of(names, templates)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                rows: Tensor = file.get_tensor(_ROWS)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            logger.warning("%s: not a whole safetensors file (%s); it will be written anew", path, error)
            return None
        if metadata != _header(path, rows) or rows.shape[:1] != (len(names),):
            logger.warning("%s: not what this cache wrote; it will be written anew", path)
            return None
        return rows

    def write(self, names: Sequence[str], templates: Sequence[str], rows: Tensor) -> None:
        """Keeps rows [R, D] if the folder can be written; another process sees the whole file or none."""
        path = self.path_of(names, templates)
        rows = rows.detach().cpu().contiguous()
        partial = self.folder_path / f".partial-{uuid.uuid4().hex}"
        try:
            self.folder_path.mkdir(parents=True, exist_ok=True)
            save_file({_ROWS: rows}, partial, metadata=_header(path, rows))
            os.replace(partial, path)
        except (SafetensorError, OSError) as error:
            logger.warning("%s: text embeddings are not kept (%s); they are encoded each time", path, error)
        finally:
            with suppress(OSError):
                partial.unlink()


def _header(path: Path, rows: Tensor) -> dict[str, str]:
    """What must stand in the file: a changed byte, or another cache's file under this name, shows here."""
    data = rows.view(-1).view(torch.uint8).numpy().tobytes()
    return {"format": FORMAT, "key": path.stem, "sha256": hashlib.sha256(data).hexdigest()}
