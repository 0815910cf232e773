"""Class probabilities of FISA and of the frozen CLIP, put together."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fisa_model.config import EnsembleConfig


def ensemble(trained: Tensor, frozen: Tensor, seen: Sequence[bool], config: EnsembleConfig) -> Tensor:
    """The weighted geometric mean of two classifiers, made to sum to one again: twice [..., K] -> [..., K].

    The rule of FC-CLIP (https://github.com/bytedance/fc-clip/blob/2b0bbe2/fcclip/fcclip.py#L365-L402).
    `trained` and `frozen` are probabilities over the same K classes for the same masks, without void, whose
    probability belongs to the masks and is multiplied in afterwards; `seen` is `Vocabulary.shares_name_with`
    the vocabulary of training.
    """
    if trained.shape != frozen.shape or trained.shape[-1] != len(seen):
        raise ValueError(
            f"probabilities must both be [..., K] for K = {len(seen)} classes, got {list(trained.shape)} of "
            f"FISA and {list(frozen.shape)} of the frozen CLIP"
        )
    shares = [config.seen_weight if is_seen else config.unseen_weight for is_seen in seen]
    weights = torch.tensor(shares, dtype=torch.float32, device=trained.device)
    logs = (1 - weights) * _log(trained) + weights * _log(frozen)
    return F.softmax(logs, dim=-1)


def _log(probabilities: Tensor) -> Tensor:
    """Finite for a class that has none, so that two classifiers without a common class give no NaN."""
    probabilities = probabilities.float()
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()
