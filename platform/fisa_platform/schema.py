"""The tables that cross a stage boundary, as pyarrow schemas.

All of them are Parquet with zstd. A row is one image, and its key is `image_id`, the source's own name of it;
a key is never made from a position. Rows travel as `pyarrow.Table` with one of these schemas, because numpy
byte arrays drop trailing NULs.
"""

import pyarrow as pa

COMPRESSION = "zstd"
"""Parquet compression of every table."""

SEGMENT = pa.struct(
    [
        # The segment's value in the decoded panoptic PNG; 0 is void and never a segment.
        pa.field("id", pa.int64(), nullable=False),
        # A category id of the version's vocabulary, not an index into it.
        pa.field("category_id", pa.int32(), nullable=False),
        # Pixels, as the source's JSON states them (PQ uses it; some count pixels painted over later).
        pa.field("area", pa.int64(), nullable=False),
        # A region of several objects: never trained on, and neither a miss nor a false alarm in PQ.
        pa.field("iscrowd", pa.bool_(), nullable=False),
    ]
)
"""One ground-truth segment."""

REFERRED = pa.struct(
    [
        # Sentences, each of which means this object and no other in the image.
        pa.field("expressions", pa.list_(pa.field("element", pa.string(), nullable=False)), nullable=False),
        # Its pixels as COCO's compressed run lengths, at the image's size.
        pa.field("counts", pa.binary(), nullable=False),
    ]
)
"""An object that people referred to; several in an image may overlap."""

INDEX = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        # Relative to the images folder, with `/` between its parts.
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("image_uri", pa.string(), nullable=False),
        # A panoptic PNG, or a label map where segments_info is null; null without ground truth.
        pa.field("panoptic_uri", pa.string()),
        # Pixels; null where the source does not say.
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        # Null without ground truth, and where it is in a label map.
        pa.field("segments_info", pa.list_(SEGMENT)),
        # Null where the source has no referring expressions.
        pa.field("referred", pa.list_(REFERRED)),
    ]
)
"""What a source yields: where each image and its ground truth are. Not stored."""

IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        # Pixels of the image as it is seen, that is after its EXIF orientation.
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        # EXIF's orientation of `image`, 1 to 8; 1 is upright.
        pa.field("orientation", pa.int8(), nullable=False),
        # The source's encoded bytes, never re-encoded.
        pa.field("image", pa.binary(), nullable=False),
        # COCO panoptic PNG (id = R + 256 G + 65536 B) of the size above; null without ground truth.
        pa.field("panoptic", pa.binary()),
        # One entry for each id in `panoptic`; null without ground truth.
        pa.field("segments_info", pa.list_(SEGMENT)),
        # Null, or absent in a table of an older release, where the source has no referring expressions.
        pa.field("referred", pa.list_(REFERRED)),
    ]
)
"""Stage `shard`: images with their ground truth."""

DECODED = pa.schema(
    [
        *(IMAGES.field(name) for name in ("image_id", "file_name", "height", "width")),
        # RGB, a byte each, row by row. Large: 32-bit offsets overflow at 2 GiB a block.
        pa.field("pixels", pa.large_binary(), nullable=False),
        IMAGES.field("panoptic"),
        IMAGES.field("segments_info"),
    ]
)
"""An image on its way to a generator. Not stored."""

MASK = pa.struct(
    [
        # Size of the stored mask, which covers the whole image; may be below the image's size.
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        # In the row's encoding; `rle` is COCO's. Large: nested 32-bit offsets overflow at 2 GiB a block.
        pa.field("data", pa.large_binary(), nullable=False),
        # The generator's own confidence that this is something, 0 to 1; 1 where it has none.
        pa.field("score", pa.float32(), nullable=False),
        # Pixels of the stored mask.
        pa.field("area", pa.int32(), nullable=False),
    ]
)
"""One mask proposal."""

PROPOSALS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        # Pixels of the image that the masks belong to.
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        # How each mask's `data` is written: rle, bits, logits4 or logits8; see mask_codec.py.
        pa.field("encoding", pa.string(), nullable=False),
        # Best first where the generator ranks; may be empty, never null.
        pa.field("masks", pa.list_(MASK), nullable=False),
    ]
)
"""Stage `propose`: what the frozen mask generator found, before anyone names it."""

REJECTED = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        # One sentence for the person who will mend the file.
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""Images that were set aside, by any stage."""

PREDICTED_SEGMENT = pa.struct(
    [
        # The segment's value in the decoded panoptic PNG; 0 is void and never a segment.
        pa.field("id", pa.int64(), nullable=False),
        # A category id of the version's vocabulary, not an index into it.
        pa.field("category_id", pa.int32(), nullable=False),
        # Pixels, counted.
        pa.field("area", pa.int64(), nullable=False),
        # COCO's [x, y, width, height] in pixels.
        pa.field("bbox", pa.list_(pa.int32()), nullable=False),
        pa.field("isthing", pa.bool_(), nullable=False),
        # Probability of the class, 0 to 1.
        pa.field("score", pa.float32(), nullable=False),
        # Its pixels as COCO's compressed run lengths.
        pa.field("counts", pa.binary(), nullable=False),
    ]
)
"""One segment of a prediction."""

PREDICTIONS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        # Pixels of the image and of `panoptic`.
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        # COCO panoptic PNG: id = R + 256 G + 65536 B, 0 where nothing was sure enough.
        pa.field("panoptic", pa.binary(), nullable=False),
        pa.field("segments_info", pa.list_(PREDICTED_SEGMENT), nullable=False),
    ]
)
"""Stages `evaluate` and `label`: the panoptic result."""

INSTANCE = pa.struct(
    [
        pa.field("category_id", pa.int32(), nullable=False),
        # Probability of the class times the mean probability of the mask's pixels and, where the rules ask
        # for it, the generator's confidence; 0 to 1.
        pa.field("score", pa.float32(), nullable=False),
        # COCO's compressed run lengths.
        pa.field("counts", pa.binary(), nullable=False),
    ]
)
"""A thing that was found; the masks of several may overlap."""

REFERENT = pa.struct(
    [
        pa.field("expression", pa.string(), nullable=False),
        # The chosen proposal at the image's size, as COCO's compressed run lengths.
        pa.field("counts", pa.binary(), nullable=False),
        # Cosine of its embedding and the expression's, -1 to 1; NaN without proposals.
        pa.field("similarity", pa.float32(), nullable=False),
        # Pixels that it shares with the object that is meant, and of both together.
        pa.field("intersection", pa.int64(), nullable=False),
        pa.field("union", pa.int64(), nullable=False),
        # The best intersection over union, 0 to 1, that any proposal has with that object.
        pa.field("best_iou", pa.float32(), nullable=False),
    ]
)
"""What the classifier takes an expression to mean."""

REFERENTS = pa.schema(
    [
        *(IMAGES.field(name) for name in ("image_id", "file_name", "height", "width")),
        pa.field("referents", pa.list_(REFERENT), nullable=False),
    ]
)
"""Stage `evaluate_referring`: one entry for each expression about an image."""

BY_RULES = pa.struct(
    [
        pa.field("panoptic", pa.binary(), nullable=False),
        pa.field("segments_info", pa.list_(PREDICTED_SEGMENT), nullable=False),
        # Class indices, coded as in a panoptic PNG; the number of classes where there was no proposal.
        pa.field("semantic", pa.binary(), nullable=False),
        # Null where not asked.
        pa.field("instances", pa.list_(INSTANCE)),
    ]
)
"""What one set of rules makes of an image's class scores."""

BY_TRUTH = pa.struct(
    [
        *BY_RULES,
        # The same by each of the config's further rules, in their order.
        pa.field("by_other_rules", pa.list_(BY_RULES), nullable=False),
        pa.field("true_panoptic", pa.binary(), nullable=False),
        pa.field("true_segments_info", pa.list_(SEGMENT), nullable=False),
        # Class indices of the ground-truth masks, and what the classifier calls them; null where not asked.
        pa.field("mask_classes", pa.list_(pa.int32())),
        pa.field("mask_names", pa.list_(pa.int32())),
    ]
)
"""What is made of an image's masks over the vocabulary of a ground truth, and that truth."""

EVALUATED = pa.schema(
    [
        *(PREDICTIONS.field(name) for name in ("image_id", "file_name", "height", "width")),
        *BY_TRUTH,
        # The same by each of the config's further ground truths, in their order.
        pa.field("by_other_truth", pa.list_(BY_TRUTH), nullable=False),
    ]
)
"""A prediction on its way to being scored. Not stored."""

LABELLED = pa.schema([*PREDICTIONS, pa.field("overlay", pa.binary())])
"""A prediction with its picture (JPEG), on its way to being written. Not stored."""
