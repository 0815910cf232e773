"""Pictures for benchmarks of stages: scenes of the toy world, enlarged, as `shard` would store them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fisa_platform import manifest
from fisa_platform.schema import IMAGES
from fisa_platform.sources import toyworld
from fisa_platform.tables import failable_table, write_batch

ROWS_PER_FILE = 64


def enlarged(image: np.ndarray[Any, Any], side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write_images(folder: Path, count: int, side: int) -> str:
    """A table of so many pictures of side x side pixels."""
    pending = manifest.new_version(str(folder / f"images-{count}"), "be" * 8)
    for first in range(0, count, ROWS_PER_FILE):
        rows = []
        for number in range(first, min(first + ROWS_PER_FILE, count)):
            image = enlarged(toyworld.draw_scene(7, number, "all").image, side)
            name = f"{number:06}"
            shape = {"height": side, "width": side, "orientation": 1}
            rows.append({"image_id": name, "file_name": f"{name}.jpg", **shape, "image": image})
        write_batch(failable_table(IMAGES, rows), output_uri=pending.uri, name="images", schema=IMAGES)
    return manifest.commit(pending, stage="shard", config={}, inputs={}, seconds=0, rows=count).uri
