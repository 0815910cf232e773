"""The oracle generator: ground-truth segments as mask proposals, the most that a mask generator could reach.

With it, what is lost is lost by the mask classifier. It looks at no image, so it is no MaskGenerator. The
oracle *classifier* is its counterpart: true classes on proposed masks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fisa_model.mask_generators import LOGIT, MaskProposals


def true_proposals(ids: NDArray[np.int32], segments: Sequence[Mapping[str, Any]]) -> MaskProposals:
    """One proposal for each segment that is no crowd and has pixels, in the order given.

    Args:
        ids: [H, W], each pixel's segment; void is an id that no segment has.
        segments: id and iscrowd of each.
    """
    painted = set(np.unique(ids).tolist())
    single = np.array([s["id"] for s in segments if not s["iscrowd"] and s["id"] in painted], dtype=np.int64)
    inside = ids == single[:, None, None]
    return MaskProposals(
        np.where(inside, np.float32(LOGIT), np.float32(-LOGIT)), np.ones(len(single), dtype=np.float32)
    )
