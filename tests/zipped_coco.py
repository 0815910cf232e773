"""A sample in the form in which COCO is published."""

import shutil
import zipfile
from pathlib import Path


def zipped_coco(source: Path, target: Path) -> dict[str, str]:
    """Pack a sample as COCO's zips: one of the images with a folder in it, one of the PNGs, and the JSON.

    Returns the `coco` of a spec of `shard`.
    """
    for name in ("images", "panoptic"):
        with zipfile.ZipFile(target / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((source / name).iterdir()):
                archive.write(path, f"{name}_val2017/{path.name}")
    shutil.copy(source / "panoptic.json", target)
    return {
        "images_uri": str(target / "images.zip"),
        "panoptic_uri": str(target / "panoptic.zip"),
        "json_uri": str(target / "panoptic.json"),
    }
