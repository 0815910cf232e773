"""Every table must come back from Parquet exactly as it went in."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fisa_platform import schema

# Run lengths and PNGs may end in NULs, which numpy byte strings would cut off.
BYTES = b"run lengths\x00\x00"
SEGMENT = {"id": 16_777_215, "category_id": 200, "area": 12, "iscrowd": True}

ROWS = {
    "IMAGES": [
        {
            "image_id": "139",
            "file_name": "val/000000000139.jpg",
            "height": 3,
            "width": 4,
            "orientation": 6,
            "image": BYTES,
            "panoptic": BYTES,
            "segments_info": [SEGMENT],
            "referred": [{"expressions": ["left man", "man, in red"], "counts": BYTES}],
        },
        {
            "image_id": "photo",
            "file_name": "photo.jpg",
            "height": 3,
            "width": 4,
            "orientation": 6,
            "image": BYTES,
            "panoptic": None,
            "segments_info": None,
            "referred": None,
        },
    ],
    "PROPOSALS": [
        {
            "image_id": "139",
            "height": 3,
            "width": 4,
            "encoding": "rle",
            "masks": [{"height": 3, "width": 4, "data": BYTES, "score": 0.5, "area": 6}],
        },
        {"image_id": "empty", "height": 3, "width": 4, "encoding": "rle", "masks": []},
    ],
    "REFERENTS": [
        {
            "image_id": "139",
            "file_name": "139.jpg",
            "height": 3,
            "width": 4,
            "referents": [
                {
                    "expression": "left man",
                    "counts": BYTES,
                    "similarity": 0.25,
                    "intersection": 3,
                    "union": 2**33,
                    "best_iou": 0.5,
                }
            ],
        }
    ],
    "REJECTED": [{"image_id": "140", "file_name": "140.jpg", "reason": "cannot be decoded"}],
    "PREDICTIONS": [
        {
            "image_id": "139",
            "file_name": "139.jpg",
            "height": 3,
            "width": 4,
            "panoptic": BYTES,
            "segments_info": [
                {
                    "id": 1,
                    "category_id": 3,
                    "area": 12,
                    "bbox": [0, 0, 4, 3],
                    "isthing": False,
                    "score": 0.25,
                    "counts": BYTES,
                }
            ],
        }
    ],
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_survive_parquet(name, tmp_path):
    table = pa.Table.from_pylist(ROWS[name], schema=getattr(schema, name))
    pq.write_table(table, tmp_path / "table.parquet", compression=schema.COMPRESSION)
    read = pq.read_table(tmp_path / "table.parquet")
    assert read.schema == getattr(schema, name)
    assert read.to_pylist() == ROWS[name]


def test_a_row_without_its_key_is_not_written(tmp_path):
    row = {**ROWS["REJECTED"][0], "image_id": None}
    table = pa.Table.from_pylist([row], schema=schema.REJECTED)
    with pytest.raises(pa.ArrowInvalid, match="image_id"):
        pq.write_table(table, tmp_path / "table.parquet")
