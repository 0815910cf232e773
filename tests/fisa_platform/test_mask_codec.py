"""Every encoding of masks: what comes back, and what is refused."""

import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as coco_mask

from fisa_model.mask_generators import LOGIT, MaskProposals
from fisa_platform.mask_codec import ENCODINGS, FORM_OF, decode_proposals, encode_proposals
from fisa_platform.schema import PROPOSALS

BINARY, LEVELS = ("rle", "bits"), {"logits4": 16, "logits8": 256}


def some_logits(count, height, width, seed=0):
    return np.random.default_rng(seed).normal(-1, 4, (count, height, width)).astype(np.float32)


def through_the_table(proposals, height, width, encoding):
    """Encoded, stored as the table stores it, and decoded."""
    row = {"image_id": "1", **encode_proposals(proposals, height, width, encoding)}
    (stored,) = pa.Table.from_pylist([row], schema=PROPOSALS).to_pylist()
    assert stored == row
    return decode_proposals(stored)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(7, 11), (1, 1), (6, 5)])
def test_proposals_survive_the_table(encoding, shape):
    logits = some_logits(5, *shape)
    logits[:, 0, 0] = 0.5  # no mask is empty
    scores = np.linspace(0.1, 0.9, 5, dtype=np.float32)
    height, width = 4 * shape[0], 4 * shape[1]
    read = through_the_table(MaskProposals(logits, scores), height, width, encoding)
    assert read.mask_logits.dtype == np.float32
    assert read.scores.tolist() == scores.tolist()
    assert np.array_equal(read.mask_logits >= 0, logits >= 0)
    if encoding in BINARY:
        assert np.array_equal(np.abs(read.mask_logits), np.full_like(logits, LOGIT))
    else:
        # Half of the distance of two levels, and at the border of a mask the whole of it.
        error = np.abs(read.mask_logits - logits.clip(-LOGIT, LOGIT))
        assert error.max() <= 2 * LOGIT / (LEVELS[encoding] - 1) / 2 + 1e-5
        assert len(np.unique(read.mask_logits)) <= LEVELS[encoding]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_comes_back_has_the_form_that_is_named(encoding):
    read = through_the_table(MaskProposals(some_logits(3, 8, 8), np.ones(3, np.float32)), 32, 32, encoding)
    values = np.abs(read.mask_logits)
    assert values.max() <= LOGIT
    assert (values.min() == LOGIT) == (FORM_OF[encoding] == "binary")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_logit_of_zero_is_inside(encoding):
    logits = np.array([[[0.0, -1e-6, 1e-6, -0.0]]], dtype=np.float32)
    read = through_the_table(MaskProposals(logits, np.ones(1, np.float32)), 4, 16, encoding)
    assert (read.mask_logits >= 0).tolist() == [[[True, False, True, True]]]


@pytest.mark.parametrize("encoding", LEVELS)
def test_finer_logits_are_stored_at_a_quarter_of_the_image(encoding):
    masks = np.zeros((2, 30, 41), dtype=bool)
    masks[0, :16, :20] = True
    masks[1, 3:29, 7:37] = True
    logits = np.where(masks, np.float32(9), np.float32(-9))
    read = through_the_table(MaskProposals(logits, np.ones(2, np.float32)), 30, 41, encoding)
    assert read.mask_logits.shape == (2, 8, 11)
    assert (read.mask_logits[0] >= 0).sum() == 4 * 5


def test_run_lengths_are_those_of_coco():
    logits = some_logits(3, 9, 7)
    row = encode_proposals(MaskProposals(logits, np.ones(3, np.float32)), 9, 7)
    for mask, expected in zip(row["masks"], logits >= 0, strict=True):
        found = {"size": [mask["height"], mask["width"]], "counts": mask["data"]}
        assert np.array_equal(coco_mask.decode(found), expected)
        assert mask["area"] == expected.sum()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_mask_without_a_pixel_is_dropped_with_its_score(encoding):
    logits = np.array([[[-1.0, -1.0]], [[1.0, -1.0]]], dtype=np.float32)
    row = encode_proposals(MaskProposals(logits, np.array([0.9, 0.1], np.float32)), 4, 8, encoding)
    assert [(mask["area"], mask["score"]) for mask in row["masks"]] == [(1, pytest.approx(0.1))]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_image_may_have_no_proposals(encoding):
    nothing = MaskProposals(np.zeros((0, 4, 4), np.float32), np.zeros(0, np.float32))
    assert encode_proposals(nothing, 8, 9, encoding)["masks"] == []
    assert through_the_table(nothing, 8, 9, encoding).mask_logits.shape == (0, 8, 9)


def test_what_cannot_be_read_is_refused():
    one = encode_proposals(MaskProposals(some_logits(1, 2, 2), np.ones(1, np.float32)), 2, 2)
    other = encode_proposals(MaskProposals(some_logits(1, 2, 3), np.ones(1, np.float32)), 2, 3)
    with pytest.raises(ValueError, match=r"share one size, got \[\(2, 2\), \(2, 3\)\]"):
        decode_proposals({**one, "masks": one["masks"] + other["masks"]})
    with pytest.raises(ValueError, match="encoded as 'jpeg', this version reads rle, bits"):
        decode_proposals({**one, "encoding": "jpeg"})


@pytest.mark.parametrize("encoding", BINARY)
def test_real_proposals_survive(shared_data, encoding):
    for path in sorted((shared_data / "mask_proposals").glob("*.npz"))[:3]:
        packed = np.load(path)
        shape = tuple(packed["shape"])
        masks = np.unpackbits(packed["masks"], axis=-1, count=shape[-1]).astype(bool).reshape(shape)
        logits = np.where(masks, np.float32(1), np.float32(-1))
        proposals = MaskProposals(logits, packed["scores"].astype(np.float32))
        read = through_the_table(proposals, *shape[1:], encoding)
        assert np.array_equal(read.mask_logits >= 0, masks)
