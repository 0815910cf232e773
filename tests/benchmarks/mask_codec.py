"""Encodings of stored masks: their size, their time, and what they lose.

    uv run python tests/benchmarks/mask_codec.py     # masks of a small YOLO net, from beside the checkout
    uv run python tests/benchmarks/mask_codec.py --source mask2former --model FOLDER_OR_HUB_NAME

`bytes` is an image's part of a Parquet file of the proposals table, which is compressed with zstd. `IoU` is
of masks at the image's size before and after; `patches` is the share of patches of the attention mask at
896 x 896 that change sides, before anything was trained. The last line is JSON.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from measuring import machine
from torch import Tensor

from fisa_model.mask_generators import MaskProposals, load_mask_generator
from fisa_model.open_patches import open_patches
from fisa_model.pictures import decode_image
from fisa_model.transforms import to_model_proposals, to_tensor
from fisa_platform.mask_codec import ENCODINGS, decode_proposals, encode_proposals
from fisa_platform.schema import COMPRESSION, PROPOSALS
from fisa_platform.tables import ROWS_PER_GROUP

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SIZE, GRID = 896, 64


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with mask_proposals and photos")
    parser.add_argument("--source", choices=["yolo", "mask2former", "felzenszwalb"], default="yolo")
    parser.add_argument("--model", help="folder or hub name of a Mask2Former")
    parser.add_argument("--images", type=int, default=15, help="how many photos")
    return parser.parse_args()


def read_proposals(arguments: argparse.Namespace) -> Iterator[tuple[MaskProposals, int, int]]:
    """Proposals of each photo, and the photo's height and width."""
    if arguments.source == "yolo":
        for path in sorted((arguments.data / "mask_proposals").glob("*.npz"))[: arguments.images]:
            packed = np.load(path)
            count, height, width = (int(size) for size in packed["shape"])
            masks = np.unpackbits(packed["masks"], axis=-1, count=width).astype(bool)
            logits = np.where(masks.reshape(count, height, width), np.float32(10), np.float32(-10))
            yield MaskProposals(logits, packed["scores"].astype(np.float32)), height, width
        return
    generator = load_mask_generator(arguments.source, weights=arguments.model)
    photos = sorted((arguments.data / "coco_stuff" / "images").glob("*.jpg"))[: arguments.images]
    for photo in photos:
        image = decode_image(photo.read_bytes())
        yield generator(image), *image.shape[:2]


def parquet_bytes(rows: list[dict[str, Any]]) -> int:
    table = pa.Table.from_pylist(rows, schema=PROPOSALS)
    file = io.BytesIO()
    pq.write_table(table, file, compression=COMPRESSION, row_group_size=ROWS_PER_GROUP)
    return len(file.getvalue())


def at_size(masks: Tensor, height: int, width: int) -> Tensor:
    """[Q, h, w] -> [Q, height, width] bool."""
    return F.interpolate(masks[None], size=(height, width), mode="bilinear", align_corners=False)[0] >= 0


def losses(before: MaskProposals, after: MaskProposals, height: int, width: int) -> tuple[list[float], float]:
    """IoU of each mask, and the share of patches that change sides."""
    here, there = (at_size(torch.from_numpy(p.mask_logits), height, width) for p in (before, after))
    inter, union = (here & there).sum((1, 2)), (here | there).sum((1, 2))
    opened = [
        open_patches(
            to_model_proposals(to_tensor(p.mask_logits), image_size=SIZE), image_size=SIZE, grid_size=GRID
        )
        for p in (before, after)
    ]
    return (inter / union.clamp(min=1)).tolist(), (opened[0] != opened[1]).float().mean().item()


def measure(encoding: str, images: list[tuple[MaskProposals, int, int]]) -> dict[str, float]:
    rows: list[dict[str, Any]] = []
    encode: list[float] = []
    decode: list[float] = []
    ious: list[float] = []
    changed: list[float] = []
    for number, (proposals, height, width) in enumerate(images):
        inside = (proposals.mask_logits >= 0).any(axis=(1, 2))
        kept = MaskProposals(proposals.mask_logits[inside], proposals.scores[inside])
        started = time.perf_counter()
        row = encode_proposals(kept, height, width, encoding)  # type: ignore[arg-type]
        encode.append((time.perf_counter() - started) / len(kept))
        started = time.perf_counter()
        decoded = decode_proposals(row)
        decode.append((time.perf_counter() - started) / len(kept))
        rows.append({"image_id": str(number), **row})
        if len(decoded) == len(kept):  # a mask smaller than a cell may be gone
            lost, share = losses(kept, decoded, height, width)
            ious += lost
            changed.append(share)
    return {
        "bytes_per_image": parquet_bytes(rows) / len(rows),
        "encode_ms_per_mask": 1000 * statistics.median(encode),
        "decode_ms_per_mask": 1000 * statistics.median(decode),
        "iou_mean": statistics.mean(ious),
        "iou_min": min(ious),
        "patches_changed": statistics.mean(changed),
        "masks_lost": sum(len(p) for p, *_ in images) - sum(len(row["masks"]) for row in rows),
    }


def main() -> None:
    arguments = parse_arguments()
    images = [image for image in read_proposals(arguments) if len(image[0])]
    masks = sum(len(proposals) for proposals, *_ in images)
    results = {encoding: measure(encoding, images) for encoding in ENCODINGS}
    print(f"{masks} masks of {len(images)} photos, {arguments.source}")
    print(
        f"{'':10}{'KB/image':>10}{'enc ms':>9}{'dec ms':>9}{'IoU':>8}{'least':>8}{'patches':>10}{'lost':>6}"
    )
    for name, row in results.items():
        print(
            f"{name:10}{row['bytes_per_image'] / 1000:10.1f}{row['encode_ms_per_mask']:9.2f}"
            f"{row['decode_ms_per_mask']:9.2f}{row['iou_mean']:8.4f}{row['iou_min']:8.4f}"
            f"{100 * row['patches_changed']:9.3f}%{row['masks_lost']:6.0f}"
        )
    print(
        json.dumps({"results": results, "source": arguments.source, "images": len(images), **machine("cpu")})
    )


if __name__ == "__main__":
    main()
