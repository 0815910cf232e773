"""Mask2Former and its kin through detectron2 itself, where that is installed.

For networks that transformers does not have: another backbone, another decoder, one's own training run.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fisa_model.mask_generators.detectron2_pickle import read_checkpoint
from fisa_model.mask_generators.frame import pad
from fisa_model.mask_generators.network import NetworkGenerator

WEIGHTS_NAMES = ("model_final.pkl", "model_final.pth")


class Detectron2Generator(NetworkGenerator):
    """A network of detectron2 that predicts a set of masks.

    It has `pixel_mean` and `pixel_std` for RGB, a `backbone`, and a `sem_seg_head` that makes of its features
    `pred_masks` [B, Q, H / 4, W / 4] and `pred_logits` [B, Q, K + 1], the last of them "no object". On a GPU
    its pixel decoder stays in float32 by itself.
    """

    @classmethod
    def load(cls, weights: str, **options: Any) -> "Detectron2Generator":
        """From an output folder of Mask2Former's `train_net.py`: config.yaml and model_final.pth or .pkl.

        `options` are those of `NetworkGenerator`; the test size is the config's where they name none.
        """
        folder = Path(weights)
        paths = [folder / name for name in WEIGHTS_NAMES if (folder / name).is_file()]
        if not (folder / "config.yaml").is_file() or not paths:
            raise ValueError(
                f"{weights}: must be a folder with config.yaml and one of {', '.join(WEIGHTS_NAMES)}"
            )
        network, settings = _build(folder / "config.yaml")
        _load_tensors(network, paths[0])
        size = {"shortest": settings.MIN_SIZE_TEST, "longest": settings.MAX_SIZE_TEST}
        return cls(network, **{**size, **options})

    def run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        normalised = (pixels - self.network.pixel_mean) / self.network.pixel_std
        output = self.network.sem_seg_head(self.network.backbone(pad(normalised)))
        return output["pred_masks"], output["pred_logits"]


def _build(config_path: Path) -> tuple[nn.Module, Any]:
    """The network of a configuration, without its weights, and the configuration's INPUT."""
    try:
        from detectron2.config import get_cfg
        from detectron2.modeling import build_model
        from detectron2.projects.deeplab import add_deeplab_config
        from mask2former import add_maskformer2_config
    except ImportError as error:
        raise ValueError(
            f"generator 'detectron2' needs the packages detectron2 and mask2former: {str(error).strip()}; "
            "install them, or take generator 'mask2former' (`fisa convert-mask2former` makes its weights)"
        ) from error
    config = get_cfg()
    add_deeplab_config(config)
    add_maskformer2_config(config)
    config.merge_from_file(str(config_path))
    if config.INPUT.FORMAT != "RGB":
        raise ValueError(f"{config_path}: INPUT.FORMAT must be RGB, got {config.INPUT.FORMAT}")
    # The generator moves it; its own choice would be a GPU that may not be there.
    config.MODEL.DEVICE = "cpu"
    return build_model(config), config.INPUT


def _load_tensors(network: nn.Module, path: Path) -> None:
    """Every tensor of the network from a checkpoint, and none left over."""
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for name, value in _read_tensors(path).items():
        tensors[name.replace(".static_query.", ".query_feat.")] = value
    # Without a version the network would take the names for those of its first one, and rename them.
    tensors._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit config.yaml beside it: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".pkl":
        return {name: torch.from_numpy(np.array(array)) for name, array in read_checkpoint(path).items()}
    content = torch.load(path, map_location="cpu", weights_only=True)
    return dict(content.get("model", content))
