"""Real photos through a bucket, from COCO's zips to a contact sheet, as a person would run it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import finish, start
from zipped_coco import zipped_coco

from fisa_platform import storage

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "photos"), [("coco_panoptic", 2), ("coco_stuff", 13)])
def test_photos_go_through_a_bucket_to_a_contact_sheet(
    s3_server: Any, s3_uri: str, shared_data: Path, tmp_path: Path, name: str, photos: int
) -> None:
    uri = s3_uri
    for path in map(Path, zipped_coco(shared_data / name, tmp_path).values()):
        storage.upload(path, f"{uri}/{path.name}")
    coco = {
        "images_uri": f"{uri}/images.zip",
        "panoptic_uri": f"{uri}/panoptic.zip",
        "json_uri": f"{uri}/panoptic.json",
    }
    images, proposals = f"{uri}/images", f"{uri}/proposals"
    steps = {
        "shard": {"stage": "shard", "config": {"coco": coco, "output_uri": images}},
        "propose": {
            "stage": "propose",
            "config": {"images_uri": images, "generator": "felzenszwalb", "output_uri": proposals},
        },
    }
    spec = tmp_path / "bucket.yaml"
    spec.write_text(json.dumps({"stage": "pipeline", "config": {"output_uri": uri, "steps": steps}}))
    said = finish(start(spec, environment=s3_server.environment))
    assert said.count(f"{photos} images, 0 rejected") == 2
    for table in (images, proposals):
        sheet = tmp_path / "sheet.png"
        command = ("inspect", table, "--show", str(photos), "--output", sheet)
        said = finish(start(*command, environment=s3_server.environment))
        assert f"{photos} rows" in said
        with Image.open(sheet) as picture:
            assert picture.width > 400
            assert np.asarray(picture.convert("L")).std() > 20
    assert sum(path.endswith("/manifest.json") for path in storage.list_files(uri)) == 2
