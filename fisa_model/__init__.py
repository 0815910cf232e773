"""FISA: a CLIP that classifies mask proposals with words given at run time (https://arxiv.org/abs/2409.16278v2).

Importing this package loads no framework; each name below is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fisa_model.class_lists import load_class_list
    from fisa_model.config import FISAConfig, fisa_vit_l14_336
    from fisa_model.fisa import build_fisa
    from fisa_model.mask_generators import MaskProposals
    from fisa_model.objective import FISAObjective
    from fisa_model.predictor import FISAPredictor
    from fisa_model.referring import refer
    from fisa_model.training_facts import TrainingFacts
    from fisa_model.vocabulary import Vocabulary
    from fisa_model.weights import save_fisa

__all__ = [
    "FISAConfig",
    "FISAObjective",
    "FISAPredictor",
    "MaskProposals",
    "TrainingFacts",
    "Vocabulary",
    "build_fisa",
    "fisa_vit_l14_336",
    "load_class_list",
    "refer",
    "save_fisa",
]

_HOME = {
    "FISAConfig": "config",
    "FISAObjective": "objective",
    "FISAPredictor": "predictor",
    "MaskProposals": "mask_generators",
    "TrainingFacts": "training_facts",
    "Vocabulary": "vocabulary",
    "build_fisa": "fisa",
    "fisa_vit_l14_336": "config",
    "load_class_list": "class_lists",
    "refer": "referring",
    "save_fisa": "weights",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
