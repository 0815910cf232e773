"""Single files of reference implementations, imported from their checkouts without what else they need.

Nothing of theirs is copied: a checkout is named by an environment variable, and what a file imports but the
fixtures do not need (registries, data sets, CUDA) is an empty stand-in that is written here.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch


def checkout(variable: str) -> Path:
    folder = Path(os.environ.get(variable, ""))
    if not os.environ.get(variable) or not folder.is_dir():
        raise SystemExit(f"{variable} must name a checkout, got {os.environ.get(variable)!r}")
    return folder


def package(name: str, folder: Path, **attributes: Any) -> None:
    """Lets `name.x` be imported from `folder/x.py` without running the package's own `__init__`."""
    module = ModuleType(name)
    module.__path__ = [str(folder)]
    vars(module).update(attributes)
    sys.modules[name] = module


def stand_in(name: str, **attributes: Any) -> None:
    """A module that only has these attributes."""
    module = ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module


class Registry:
    """Registers nothing."""

    def register(self) -> Any:
        return lambda thing: thing


def maskclip() -> Any:
    root = checkout("MASKCLIP") / "maskclip"
    stand_in("clip")
    package("maskclip", root)
    package("maskclip.modeling", root / "modeling")
    return importlib.import_module("maskclip.modeling.maskclip")


def masqclip() -> Any:
    root = checkout("MASQCLIP") / "masqclip"
    stand_in("clip")
    for name in ("detectron2", "detectron2.data", "detectron2.data.datasets"):
        stand_in(name)
    stand_in("detectron2.data.datasets.builtin_meta", COCO_CATEGORIES=[])
    package("masqclip", root)
    package("masqclip.modeling", root / "modeling")
    for name in ("masqclip.data", "masqclip.data.datasets"):
        stand_in(name)
    for name, lists in {
        "register_ade20k_panoptic": ["ADE20K_150_CATEGORIES"],
        "register_ade20k_full": ["ADE20K_SEM_SEG_FULL_CATEGORIES"],
        "register_pascal_semseg": ["PASCAL_59_CATEGORIES"],
        "register_pascal_full_semseg": ["PASCAL_459_CATEGORIES"],
        "register_coco_split": ["COCO_CATEGORIES_INSTANCES65", "COCO_CATEGORIES_BASE48"],
    }.items():
        stand_in(f"masqclip.data.datasets.{name}", **{key: [] for key in lists})
    return importlib.import_module("masqclip.modeling.masqclip")


def detectron2() -> None:
    """Of detectron2 its PointRend, transforms and evaluators; all else that is imported is empty."""
    root = checkout("DETECTRON2")
    package("detectron2", root / "detectron2")
    package("detectron2.projects", root / "projects")
    package("detectron2.projects.point_rend", root / "projects" / "PointRend" / "point_rend")
    package("detectron2.data", root / "detectron2" / "data", DatasetCatalog={}, MetadataCatalog={})
    package("detectron2.data.transforms", root / "detectron2" / "data" / "transforms")
    package("detectron2.evaluation", root / "detectron2" / "evaluation")
    stand_in("detectron2.layers", cat=torch.cat, shapes_to_tensor=None)
    stand_in(
        "detectron2.structures",
        BitMasks=None,
        Boxes=lambda boxes: boxes,
        ImageList=None,
        Instances=lambda size: SimpleNamespace(image_size=size),
        pairwise_iou=None,
    )
    stand_in("detectron2.utils")
    comm = {
        "get_world_size": lambda: 1,
        "is_main_process": lambda: True,
        "all_gather": None,
        "synchronize": None,
    }
    stand_in("detectron2.utils.comm", **comm)
    stand_in("detectron2.utils.logger", log_every_n_seconds=None)
    stand_in("detectron2.utils.memory", retry_if_cuda_oom=None)
    stand_in("detectron2.utils.file_io", PathManager=LocalFiles)
    evaluator = importlib.import_module("detectron2.evaluation.evaluator")
    sys.modules["detectron2.evaluation"].DatasetEvaluator = evaluator.DatasetEvaluator  # type: ignore[attr-defined]


class LocalFiles:
    open = staticmethod(open)

    @staticmethod
    def mkdirs(folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)


def point_features() -> Any:
    detectron2()
    return importlib.import_module("detectron2.projects.point_rend.point_features")


def transforms() -> Any:
    detectron2()
    return importlib.import_module("detectron2.data.transforms.augmentation_impl")


def semantic_evaluators() -> dict[str, Any]:
    """The evaluator since July 2022 (detectron2) and before (MAFT+'s copy of v0.6)."""
    detectron2()
    package("maft", checkout("MAFT_PLUS") / "maft")
    package("maft.evaluation", checkout("MAFT_PLUS") / "maft" / "evaluation")
    return {
        "new": importlib.import_module("detectron2.evaluation.sem_seg_evaluation"),
        "old": importlib.import_module("maft.evaluation.semantic_evaluation"),
    }


def mask_accuracy() -> Any:
    detectron2()
    package("maskclippp", checkout("MASKCLIPPP") / "maskclippp")
    package("maskclippp.evaluation", checkout("MASKCLIPPP") / "maskclippp" / "evaluation")
    return importlib.import_module("maskclippp.evaluation.mask_acc_evaluation")


def mask2former() -> SimpleNamespace:
    detectron2()
    stand_in("detectron2.config", configurable=lambda function: function)
    package(
        "detectron2.modeling",
        Path(),
        META_ARCH_REGISTRY=Registry(),
        build_backbone=None,
        build_sem_seg_head=None,
    )
    stand_in("detectron2.modeling.backbone", Backbone=None)
    stand_in("detectron2.modeling.postprocessing", sem_seg_postprocess=None)
    root = checkout("MASK2FORMER") / "mask2former"
    package("mask2former", root)
    package("mask2former.modeling", root / "modeling")
    package("mask2former.utils", root / "utils")
    return SimpleNamespace(
        matcher=importlib.import_module("mask2former.modeling.matcher"),
        criterion=importlib.import_module("mask2former.modeling.criterion"),
        model=importlib.import_module("mask2former.maskformer_model"),
    )


def fc_clip() -> Any:
    detectron2()
    modeling = {"BACKBONE_REGISTRY": Registry(), "Backbone": torch.nn.Module, "ShapeSpec": None}
    stand_in("detectron2.modeling", **modeling)
    sys.modules["detectron2.utils"].comm = None  # type: ignore[attr-defined]
    package("fcclip", checkout("FC_CLIP") / "fcclip")
    package("fcclip.modeling", checkout("FC_CLIP") / "fcclip" / "modeling")
    package("fcclip.modeling.backbone", checkout("FC_CLIP") / "fcclip" / "modeling" / "backbone")
    return importlib.import_module("fcclip.modeling.backbone.clip")
