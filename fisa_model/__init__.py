"""FISA: a CLIP that classifies mask proposals with words given at run time (https://arxiv.org/abs/2409.16278v2).

Importing this package loads no framework; each name below is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fisa_model.config import FISAConfig
    from fisa_model.fisa import build_fisa
    from fisa_model.predictor import FISAPredictor
    from fisa_model.vocabulary import Vocabulary

__all__ = ["FISAConfig", "FISAPredictor", "Vocabulary", "build_fisa"]

_HOME = {
    "FISAConfig": "fisa_model.config",
    "FISAPredictor": "fisa_model.predictor",
    "Vocabulary": "fisa_model.vocabulary",
    "build_fisa": "fisa_model.fisa",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
