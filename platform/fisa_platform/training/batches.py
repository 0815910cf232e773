"""From rows of the images and proposals tables to batches of a training step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fisa_model.mask_generators import MaskProposals
from fisa_platform.training.sampler import nested_subset

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from fisa_model.matcher import Target
    from fisa_model.objective import TrainingBatch
    from fisa_model.transforms import Jitter, TrainingSample
    from fisa_model.vocabulary import Vocabulary
    from fisa_platform.rows import ProposalRows, TableRows
    from fisa_platform.training.sampler import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchConfig:
    size: int = 16
    """Images of one optimizer step, over all workers."""

    accumulation: int = 1
    """Forward passes that one worker splits its part of a step into, to save memory."""

    jitter_scale: tuple[float, float] | None = (0.1, 2.0)
    """Large-scale jitter: range of the longer side over the model's size; none takes the whole image."""

    flip: float = 0.5
    """Probability of a mirror image."""

    keep_empty: bool = False
    """Whether segments without a pixel in the jitter's window are learnt from, too, as in Mask2Former."""

    loader_processes: int = 0
    """Processes beside each worker that decode and jitter; 0 does it in the worker."""

    def __post_init__(self) -> None:
        for name in ("size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.loader_processes < 0:
            raise ValueError(f"loader_processes must be 0 or more, got {self.loader_processes}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be 0 to 1, got {self.flip}")
        if self.jitter_scale is not None and not 0 < self.jitter_scale[0] <= self.jitter_scale[1]:
            raise ValueError(
                f"jitter_scale must be a range of positive numbers, got {list(self.jitter_scale)}"
            )


NO_PROPOSALS = MaskProposals(np.zeros((0, 1, 1), np.float32), np.zeros(0, np.float32))


class TrainingExamples:
    """Decodes and jitters sample k of a run; the same sample is the same picture on any worker.

    Args:
        images: rows of the images table, with `image`, `panoptic` and `segments_info`.
        proposals: of the same images, where an image without is not trained on; None where a generator
            proposes in the training loop.
        vocabulary: the classes that are trained on.
        jitter: from a picture to the model's frame.
        seed: of the run.
        fraction: part of the images that is trained on, see `nested_subset`.
    """

    def __init__(
        self,
        images: TableRows,
        proposals: ProposalRows | None,
        vocabulary: Vocabulary,
        jitter: Jitter,
        *,
        seed: int,
        fraction: float = 1.0,
    ) -> None:
        self.images = images
        self.proposals = proposals
        self.vocabulary = vocabulary
        self.jitter = jitter
        self.seed = seed
        usable = [i for i, image_id in enumerate(images.ids) if proposals is None or image_id in proposals]
        self.without_proposals = len(images) - len(usable)
        chosen = nested_subset([images.ids[i] for i in usable], fraction, seed)
        self.usable = [usable[i] for i in chosen]

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, sample: Sample) -> TrainingSample:
        from fisa_model.pictures import decode_image

        row = self.images[self.usable[sample.row]]
        proposals = NO_PROPOSALS if self.proposals is None else self.proposals[row["image_id"]]
        rng = np.random.default_rng((self.seed, sample.number))
        target = read_target(row, self.vocabulary)
        try:
            return self.jitter(decode_image(row["image"]), proposals, target, rng)
        except ValueError as error:
            raise ValueError(f"image {row['image_id']} and its proposals: {error}") from error


def read_target(row: dict[str, Any], vocabulary: Vocabulary) -> Target:
    """The ground truth of a row: every segment that is no crowd."""
    import torch

    from fisa_model.matcher import Target
    from fisa_platform.panoptic_png import decode_panoptic

    if row["panoptic"] is None:
        raise ValueError(f"image {row['image_id']} has no ground truth; train on a table that has")
    ids = decode_panoptic(row["panoptic"])
    segments = [segment for segment in row["segments_info"] if not segment["iscrowd"]]
    labels = [vocabulary.index_of_id(segment["category_id"]) for segment in segments]
    masks = ids == np.array([segment["id"] for segment in segments], dtype=ids.dtype)[:, None, None]
    return Target(torch.tensor(labels, dtype=torch.long), torch.from_numpy(masks))


def load_batches(
    examples: TrainingExamples, micro_batches: Sequence[list[Sample]], loader_processes: int
) -> Iterator[TrainingBatch]:
    """The batches of one rank, decoded ahead by other processes where asked, no more than there are cores.

    Raises:
        ValueError: an example cannot be made; in one sentence, from whatever process it comes.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Begun here: it draws a random number, which within a step would change what is drawn there.
    return _in_own_words(iter(_loader(examples, micro_batches, min(loader_processes, cores))))


def _in_own_words(batches: Iterator[TrainingBatch]) -> Iterator[TrainingBatch]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except ValueError as error:
            raise ValueError(_own_words(str(error))) from error
        yield batch


def _own_words(message: str) -> str:
    """What we found wrong in a process of the loader, which sends its whole traceback as a message."""
    raised_in = message.rpartition('File "')[2].partition('"')[0]
    if not message.startswith("Caught ValueError in") or "fisa_" not in raised_in:
        return message
    return message.rpartition("\nValueError: ")[2].strip()


def _loader(
    examples: TrainingExamples, micro_batches: Sequence[list[Sample]], loader_processes: int
) -> DataLoader[TrainingBatch]:
    import torch
    from torch.utils.data import DataLoader

    from fisa_model.objective import collate

    return DataLoader(
        examples,  # type: ignore[arg-type]
        batch_sampler=micro_batches,
        collate_fn=collate,
        num_workers=loader_processes,
        # Forked processes would share the bucket client's sockets and locks.
        multiprocessing_context="spawn" if loader_processes else None,
        # Sixteen images with 100 proposals at 896 x 896 are 0.6 GB, which a GPU should not wait for.
        pin_memory=torch.cuda.is_available(),
    )
