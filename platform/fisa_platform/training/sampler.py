"""Which row is sample k of a run: the same for any number of workers, so that a run repeats and resumes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Sample:
    """One draw: a row of the table, and the number that seeds its jitter."""

    row: int
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """Sample k is `permutation(seed, epoch)[k]`; every epoch is a new permutation of all rows."""

    rows: int
    """Rows of the table."""

    batch_size: int
    """Samples of one optimizer step, over all ranks."""

    seed: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(
                "the training table has no rows; check that its labels and proposals are not empty"
            )

    def step(self, step: int) -> list[Sample]:
        """The samples of one optimizer step, in order."""
        first = step * self.batch_size
        return [self._sample(k) for k in range(first, first + self.batch_size)]

    def micro_batches(
        self, *, first_step: int, last_step: int, rank: int, world: int, accumulation: int
    ) -> Iterator[list[Sample]]:
        """What one rank loads: `accumulation` lists a step; ranks and lists cut a step into equal parts."""
        parts = world * accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of workers x accumulation ({world} x "
                f"{accumulation}); change compute.workers, accumulation or batch_size"
            )
        size = self.batch_size // parts
        for step in range(first_step, last_step):
            samples = self.step(step)
            for part in range(rank, parts, world):
                yield samples[part * size : (part + 1) * size]

    def _sample(self, number: int) -> Sample:
        epoch, position = divmod(number, self.rows)
        return Sample(int(_permutation(self.seed, epoch, self.rows)[position]), number)


def nested_subset(ids: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Positions of a part of the ids, at least one; those of a smaller part are all in a larger one.

    An id's hash, with the seed, decides, so that neither the table's order nor its other ids matter much, and
    another seed takes other ids.
    """
    if fraction == 1:
        return list(range(len(ids)))
    keys = [hashlib.blake2b(f"{seed}/{image_id}".encode(), digest_size=8).digest() for image_id in ids]
    first = sorted(range(len(ids)), key=keys.__getitem__)
    return sorted(first[: max(1, round(fraction * len(ids)))])


_cached: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
    key = (seed, epoch, rows)
    if key not in _cached:
        _cached.clear()  # a run moves through its epochs in order, and one permutation of COCO is a megabyte
        _cached[key] = np.random.default_rng((seed, epoch)).permutation(rows)
    return _cached[key]
