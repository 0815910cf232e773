"""Scenes of the toy world in the form in which RefCOCO is published."""

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image
from pycocotools import mask as coco_mask

from fisa_platform.mask_codec import run_length
from fisa_platform.sources import toyworld


def write_refcoco(folder: Path, scenes: int, *, seed: int = 0) -> dict[str, Any]:
    """Write images, `refs(unc).p` and `instances.json`, and return the `refcoco` of a spec of `shard`.

    What a scene has once is referred to by its name, twice; scenes with an odd number are of split `train`.
    """
    images, annotations, references = [], [], []
    names = {category.id: category.name for category in toyworld.vocabulary("all").categories}
    (folder / "images").mkdir(parents=True)
    for number in range(scenes):
        scene = toyworld.draw_scene(seed, number, "all")
        height, width = scene.ids.shape
        file_name = f"COCO_train2014_{number:012d}.png"
        Image.fromarray(scene.image).save(folder / "images" / file_name)
        images.append({"id": number, "file_name": file_name, "height": height, "width": width})
        often = Counter(scene.category_ids.values())
        for segment, category in scene.category_ids.items():
            annotation = len(annotations)
            counts = _runs(run_length(scene.ids == segment))
            annotations.append(
                {"id": annotation, "segmentation": {"size": [height, width], "counts": counts}}
            )
            if often[category] == 1:
                sentences = [names[category], f"the {names[category]}, please"]
                references.append(
                    {
                        "ref_id": len(references),
                        "ann_id": annotation,
                        "image_id": number,
                        "split": "train" if number % 2 else "val",
                        "sentences": [{"sent": text, "raw": text.upper()} for text in sentences],
                    }
                )
    # Protocol 0 is what Python 2 wrote.
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=0))
    instances = {"images": images, "annotations": annotations, "categories": []}
    (folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    return {
        "images_uri": str(folder / "images"),
        "refs_uri": str(folder / "refs(unc).p"),
        "instances_uri": str(folder / "instances.json"),
    }


def _runs(compressed: dict[str, Any]) -> list[int]:
    """Run lengths as COCO's JSON lists them, zeros and ones in turn, down the columns."""
    pixels = coco_mask.decode(compressed).ravel(order="F").tolist()
    runs, last = [0], 0
    for pixel in pixels:
        if pixel != last:
            runs.append(0)
            last = pixel
        runs[-1] += 1
    return runs
