import numpy as np
import pyarrow as pa
import pytest

from fisa_model.mask_generators import MaskProposals
from fisa_platform.mask_codec import LOGIT, decode_masks, decode_proposals, encode_masks, encode_proposals
from fisa_platform.schema import PROPOSALS


def random_masks(count, height, width, seed=0):
    return np.random.default_rng(seed).random((count, height, width)) < 0.3


def test_masks_survive_run_lengths():
    masks = random_masks(5, 7, 11)
    structs = encode_masks(masks, np.linspace(0.1, 0.9, 5, dtype=np.float32))
    assert (decode_masks(structs) == masks).all()
    assert [struct["area"] for struct in structs] == masks.sum(axis=(1, 2)).tolist()
    assert (structs[0]["height"], structs[0]["width"]) == (7, 11)


def test_run_lengths_go_down_the_columns_as_in_coco():
    corner = np.array([[[1, 0], [0, 0]]], dtype=bool)
    # Runs 0, 1, 3 (none outside, one inside, three outside), each written as 48 + its number.
    assert encode_masks(corner, np.ones(1, np.float32))[0]["counts"] == b"013"


def test_proposals_survive_the_table():
    masks = random_masks(3, 6, 5)
    scores = np.array([0.9, 0.5, 0.25], dtype=np.float32)
    proposals = MaskProposals(np.where(masks, 3.5, -0.5).astype(np.float32), scores)
    row = {"image_id": "1", **encode_proposals(proposals, height=600, width=500)}
    (stored,) = pa.Table.from_pylist([row], schema=PROPOSALS).to_pylist()
    assert (stored["height"], stored["width"]) == (600, 500)
    read = decode_proposals(stored)
    assert read.mask_logits.dtype == np.float32
    assert read.mask_logits.tolist() == np.where(masks, LOGIT, -LOGIT).tolist()
    assert read.scores.tolist() == scores.tolist()


def test_a_mask_without_a_pixel_is_dropped_with_its_score():
    logits = np.array([[[-1.0, -1.0]], [[1.0, -1.0]]], dtype=np.float32)
    row = encode_proposals(MaskProposals(logits, np.array([0.9, 0.1], np.float32)), height=1, width=2)
    assert [(mask["area"], mask["score"]) for mask in row["masks"]] == [(1, pytest.approx(0.1))]


def test_an_image_may_have_no_proposals():
    row = encode_proposals(
        MaskProposals(np.zeros((0, 4, 4), np.float32), np.zeros(0, np.float32)), height=8, width=9
    )
    assert row["masks"] == []
    assert decode_proposals(row).mask_logits.shape == (0, 8, 9)


def test_masks_of_two_sizes_are_refused():
    ones = np.ones(1, np.float32)
    structs = encode_masks(random_masks(1, 2, 2), ones) + encode_masks(random_masks(1, 2, 3), ones)
    with pytest.raises(ValueError, match=r"share one size, got \[\(2, 2\), \(2, 3\)\]"):
        decode_masks(structs)


def test_real_proposals_survive(shared_data):
    for path in sorted((shared_data / "mask_proposals").glob("*.npz"))[:3]:
        packed = np.load(path)
        shape = tuple(packed["shape"])
        masks = np.unpackbits(packed["masks"], axis=-1, count=shape[-1]).astype(bool).reshape(shape)
        assert (decode_masks(encode_masks(masks, packed["scores"].astype(np.float32))) == masks).all()
