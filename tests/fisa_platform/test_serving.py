"""The service: what it answers, and what it refuses with which sentence."""

import asyncio
import base64
import concurrent.futures
import dataclasses
import hashlib
import io
import os
import re
import signal
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools import mask as coco_mask

from fisa_model import FISAPredictor
from fisa_model.config import PanopticConfig, fisa_toy
from fisa_model.mask_generators.felzenszwalb import FelzenszwalbGenerator
from fisa_model.segmentation import NamedSegment, Segmentation
from fisa_model.vocabulary import Vocabulary
from fisa_platform.classifier import ClassifierConfig
from fisa_platform.compute import Compute
from fisa_platform.job import StageContext
from fisa_platform.panoptic_png import decode_panoptic
from fisa_platform.rendering import encode_picture
from fisa_platform.serving.api import build_api
from fisa_platform.serving.limits import Batching, Limits
from fisa_platform.serving.schemas import ModelInfo
from fisa_platform.serving.segmenter import Question, Segmenter, load_segmenter
from fisa_platform.sources.toyworld import draw_scene, vocabulary
from fisa_platform.stages.serve import ServeConfig, read_token_digest, run

MODEL = ModelInfo(
    classifier={}, clip_digest="0" * 64, image_size=4, templates=["{}"], generator="halves", device="cpu"
)
TOY = ClassifierConfig(frozen=fisa_toy())


def png(height: int, width: int, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, format=form)
    return buffer.getvalue()


def upload(data: bytes) -> dict[str, tuple[str, bytes]]:
    return {"image": ("picture.png", data)}


async def left_half(question: Question) -> Segmentation:
    """A model that finds the first class in the left half, with the threshold it was given as the score."""
    height, width, _ = question.image.shape
    ids = np.zeros((height, width), dtype=np.int32)
    ids[:, : width // 2] = 1
    first = question.vocabulary.categories[0]
    score, _ = question.panoptic.thresholds
    box = (0, 0, width // 2, height)
    segment = NamedSegment(1, first.id, first.name, score, height * (width // 2), box, first.is_thing)
    return Segmentation(ids, [segment])


def client(limits: Limits | None = None, *, token: str | None = None, answer: Any = left_half) -> TestClient:
    digest = hashlib.sha256(token.encode()).digest() if token else None
    api = build_api(
        answer, model=MODEL, panoptic=PanopticConfig(), limits=limits or Limits(), token_digest=digest
    )
    return TestClient(api)


def detail(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    sentence = response.json()["detail"]
    assert isinstance(sentence, str) and "\n" not in sentence
    return sentence


def test_a_form_is_answered_with_segments() -> None:
    form = {"classes": ["cat, kitten", "sofa"], "stuff": ["grass"], "object_threshold": "0.25"}
    answer = client().post("/v1/segment", data=form, files=upload(png(2, 4))).json()
    (segment,) = answer["segments"]
    run_lengths = segment.pop("segmentation")
    assert segment == {
        "id": 1, "name": "cat", "is_thing": True, "score": 0.25, "area": 4, "bbox": [0, 0, 2, 2]
    }  # fmt: skip
    assert (answer["height"], answer["width"]) == (2, 4)
    assert coco_mask.decode(run_lengths).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]


def test_json_asks_the_same() -> None:
    body = {"image": base64.b64encode(png(2, 4)).decode(), "stuff": ["grass"]}
    (segment,) = client().post("/v1/segment", json=body).json()["segments"]
    assert (segment["name"], segment["is_thing"], segment["score"]) == ("grass", False, 0.3)
    in_lines = {**body, "image": base64.encodebytes(png(200, 400)).decode()}
    assert in_lines["image"].count("\n") > 1
    assert client().post("/v1/segment", json=in_lines).json()["width"] == 400


def test_a_picture_below_an_allowed_prefix_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a.png").write_bytes(png(2, 4))
    (tmp_path / "secret.png").write_bytes(png(2, 4))
    asking = client(Limits(allowed_image_prefixes=(f"{tmp_path}/open",)))

    def ask(uri: str) -> Any:
        return asking.post("/v1/segment", json={"image_uri": uri, "classes": ["cat"]})

    assert ask(f"{tmp_path}/open/a.png").status_code == 200
    assert ask(f"file://{tmp_path}/open/a.png").status_code == 200
    assert "no such file" in detail(ask(f"{tmp_path}/open/b.png"), 404)
    for malformed in ("file:/etc/passwd", "s3:/b/x", "file://"):
        assert "is no location" in detail(ask(malformed), 422)
    for elsewhere in (
        f"{tmp_path}/secret.png",
        f"{tmp_path}/open/../secret.png",
        f"{tmp_path}/opened/a.png",
        "s3://bucket/a.png",
        "http://127.0.0.1/a.png",
    ):
        assert "not below a prefix" in detail(ask(elsewhere), 403)


def test_every_file_has_a_digest_of_its_own() -> None:
    seen: list[Question] = []

    async def look(question: Question) -> Segmentation:
        seen.append(question)
        return await left_half(question)

    asking = client(answer=look)
    for data in (png(2, 4), png(4, 2), png(2, 4)):
        asking.post("/v1/segment", data={"classes": ["cat"]}, files=upload(data))
    digests = [question.digest for question in seen]
    assert digests == [hashlib.sha256(data).hexdigest() for data in (png(2, 4), png(4, 2), png(2, 4))]


def test_pictures_are_drawn() -> None:
    form, files = {"classes": ["cat"]}, upload(png(2, 4))
    ids = client().post("/v1/segment?format=panoptic", data=form, files=files)
    assert decode_panoptic(ids.content).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    overlay = client().post("/v1/segment?format=overlay", data=form, files=files)
    assert overlay.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(overlay.content)) as picture:
        assert picture.width == 2 * picture.height
    assert "'json', 'overlay' or 'panoptic'" in detail(client().post("/v1/segment?format=gif"), 422)


@pytest.mark.parametrize(
    ("form", "data", "status", "words"),
    [
        ({"classes": ["cat"]}, b"%PDF-1.7 no picture", 422, "none of JPEG, PNG"),
        ({"classes": ["cat"]}, png(8, 8, "EPS"), 422, "none of JPEG, PNG"),
        ({"classes": ["cat"]}, png(64, 64)[:90], 422, "cannot be decoded"),
        ({"classes": ["cat"]}, b"", 422, "no picture"),
        ({"classes": ["cat"]}, bytes(2_001), 413, "more than 2,000 bytes"),
        ({"classes": ["cat"]}, bytes(2_000_000), 413, "more than 2,000 bytes"),
        ({"classes": ["cat"]}, png(101, 100), 413, "100 x 101 pixels, more than 10,000"),
        ({}, png(2, 4), 422, "no class names"),
        ({"classes": [" , "]}, png(2, 4), 422, "is empty"),
        ({"classes": ["cat"], "stuff": ["Cat"]}, png(2, 4), 422, "occurs more than once"),
        ({"classes": ["cat, kitten", "dog, puppy"]}, png(2, 4), 422, "4 class names with their synonyms"),
        ({"classes": ["cat\ndog"]}, png(2, 4), 422, "line break"),
        ({"classes": ["c" * 201]}, png(2, 4), 422, "201 characters"),
        ({"classes": ["cat"], "object_threshold": "2"}, png(2, 4), 422, "object_threshold"),
        ({"clases": ["cat"]}, png(2, 4), 422, "did you mean 'classes'?"),
        ({"classes": ["cat"]}, None, 415, "multipart/form-data"),
        ({"classes": ["cat"], "image_uri": "/a.png"}, png(2, 4), 422, "exactly one"),
        ({"classes": ["cat"] * 20}, png(2, 4), 400, "Too many fields"),
    ],
)
def test_what_cannot_be_answered_is_refused(form: Any, data: bytes | None, status: int, words: str) -> None:
    limits = Limits(max_image_bytes=2_000, max_image_pixels=10_000, max_class_names=3)
    files = None if data is None else upload(data)
    response = client(limits).post("/v1/segment", data=form, files=files)
    assert words in detail(response, status)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"classes": ["cat"]}, "exactly one of image and image_uri"),
        ({"classes": ["cat"], "image": "no base64!"}, "not base64"),
        ({"classes": ["cat"], "image": "\u00e9aaa"}, "not base64"),
        ({"classes": "cat", "image": "aaaa"}, "classes: input should be a valid array, got 'cat'"),
        ([], "input should be"),
    ],
)
def test_json_that_cannot_be_answered_is_refused(body: Any, words: str) -> None:
    assert words in detail(client().post("/v1/segment", json=body), 422).lower()


def test_a_body_without_a_length_is_stopped_too() -> None:
    chunks = (bytes(100_000) for _ in range(20))
    response = client(Limits(max_image_bytes=2_000)).post(
        "/v1/segment", content=chunks, headers={"Content-Type": "application/json"}
    )
    assert "content-length" not in response.request.headers
    assert "more than 2,000 bytes" in detail(response, 413)


def test_the_token_is_asked_for_everything_but_page_and_health() -> None:
    asking = client(token="open-sesame")
    assert "asks for a token" in detail(asking.get("/v1/info"), 401)
    wrong = asking.post("/v1/segment", headers={"Authorization": "Bearer close sesame"})
    assert "not the service's token" in detail(wrong, 401)
    assert wrong.headers["www-authenticate"] == "Bearer"
    right = asking.get("/v1/info", headers={"Authorization": "Bearer open-sesame"}).json()
    assert right["model"]["clip_digest"] == MODEL.clip_digest
    assert right["panoptic"]["object_threshold"] == 0.3  # what the page's slider starts at
    assert asking.get("/healthz").json() == {"status": "ok"}
    assert asking.get("/").status_code == 200


def test_a_request_that_takes_too_long_is_given_up() -> None:
    async def never(question: Question) -> Segmentation:
        await asyncio.Event().wait()
        raise AssertionError

    asking = client(Limits(request_timeout_seconds=0.05), answer=never)
    response = asking.post("/v1/segment", data={"classes": ["cat"]}, files=upload(png(2, 4)))
    assert "within 0.05 s" in detail(response, 504)


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = client().get("/")
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:)|url\(|@import|https?://", page.text)


def test_pictures_that_share_a_batch_get_their_own_words() -> None:
    segmenter = Segmenter(FISAPredictor.baseline(fisa_toy()), MODEL)
    scenes = [draw_scene(3, number, "seen").image for number in range(2)]
    small = np.ascontiguousarray(scenes[0][:120, :90])
    names = vocabulary("seen")
    few = dataclasses.replace(names, categories=names.categories[-6:])
    panoptic = PanopticConfig(object_threshold=0.0)
    questions = [Question(image, digest, words, panoptic) for image, digest, words in
                 [(scenes[0], "a", names), (scenes[1], "b", few), (small, "c", names)]]  # fmt: skip
    for together, question in zip(segmenter(questions), questions, strict=True):
        (alone,) = segmenter([question])
        assert [s.name for s in together.segments] == [s.name for s in alone.segments]
        assert np.array_equal(together.ids, alone.ids)
        assert together.ids.shape == question.image.shape[:2]
        assert {s.name for s in together.segments} <= set(question.vocabulary.names)


def test_words_that_cannot_be_read_are_one_questions_matter() -> None:
    segmenter = Segmenter(FISAPredictor.baseline(fisa_toy()), MODEL)
    long = Vocabulary.from_names(["rosy " * 35 + "cat"])
    image, panoptic = draw_scene(3, 0, "seen").image, PanopticConfig()
    good, bad = segmenter(
        [Question(image, "a", vocabulary("seen"), panoptic), Question(image, "a", long, panoptic)]
    )
    assert good.ids.shape == image.shape[:2]
    assert isinstance(bad, ValueError) and "it fills the 32 tokens that this CLIP reads" in str(bad)

    async def refuse(question: Question) -> ValueError:
        return bad

    response = client(answer=refuse).post("/v1/segment", data={"classes": ["x"]}, files=upload(png(2, 4)))
    assert "shorten the class name" in detail(response, 422)


def test_a_picture_of_one_pixel_is_answered() -> None:
    segmenter = Segmenter(FISAPredictor.baseline(fisa_toy()), MODEL)
    question = Question(
        np.zeros((1, 1, 3), np.uint8), "a", vocabulary("seen"), PanopticConfig(object_threshold=0.0)
    )
    assert segmenter([question])[0].ids.shape == (1, 1)


class CountingGenerator(FelzenszwalbGenerator):
    """Says how many pictures it was given."""

    pictures = 0

    def batch(self, images: Any) -> Any:
        self.pictures += len(images)
        return super().batch(images)


def question_of(number: int, words: Vocabulary) -> Question:
    """About scene `number`."""
    scene = draw_scene(3, number, "seen").image
    return Question(scene, f"scene {number}", words, PanopticConfig(object_threshold=0.0))


def test_other_words_about_a_picture_take_no_new_pass_over_it() -> None:
    generator = CountingGenerator()
    predictor = FISAPredictor.baseline(fisa_toy(), generator=generator)
    names = vocabulary("seen")
    few = dataclasses.replace(names, categories=names.categories[-6:])
    keeping, forgetful = Segmenter(predictor, MODEL, kept_bytes=10**9), Segmenter(predictor, MODEL)

    keeping([question_of(0, names), question_of(1, names)])
    assert generator.pictures == 2
    questions = [question_of(1, few), question_of(0, few), question_of(2, few), question_of(2, names)]
    again = keeping(questions)
    assert generator.pictures == 3
    fresh = [answer for question in questions for answer in forgetful([question])]
    assert generator.pictures == 7
    for one, other in zip(again, fresh, strict=True):
        assert [s.name for s in one.segments] == [s.name for s in other.segments]
        assert np.array_equal(one.ids, other.ids)
    assert {s.name for answer in again[:3] for s in answer.segments} <= set(few.names)


def test_of_more_pictures_than_there_is_room_for_the_last_ones_are_kept() -> None:
    generator = CountingGenerator()
    predictor = FISAPredictor.baseline(fisa_toy(), generator=generator)
    words = vocabulary("seen")
    one = Segmenter(predictor, MODEL, kept_bytes=10**9)
    one([question_of(0, words)])
    room = int(2.5 * one.kept.currsize)
    assert one.kept.currsize > 1_000_000

    segmenter = Segmenter(predictor, MODEL, kept_bytes=room)
    segmenter([question_of(number, words) for number in range(4)])
    assert 0 < segmenter.kept.currsize <= room
    generator.pictures = 0
    segmenter([question_of(3, words)])
    assert generator.pictures == 0
    segmenter([question_of(0, words)])
    assert generator.pictures == 1


def test_the_picture_that_was_asked_about_least_recently_goes_first() -> None:
    predictor = FISAPredictor.baseline(fisa_toy())
    words = vocabulary("seen")
    all_three = Segmenter(predictor, MODEL, kept_bytes=10**9)
    all_three([question_of(number, words) for number in range(3)])
    segmenter = Segmenter(predictor, MODEL, kept_bytes=int(all_three.kept.currsize) - 1)
    for number in (0, 1, 0, 2):
        segmenter([question_of(number, words)])
    assert set(segmenter.kept) == {"scene 0", "scene 2"}


def test_parts_of_a_batch_may_come_at_once() -> None:
    """Ray Serve calls for them so where a client sends `serve_multiplexed_model_id`."""
    predictor = FISAPredictor.baseline(fisa_toy())
    words = vocabulary("seen")
    alone = [Segmenter(predictor, MODEL)([question_of(number, words)])[0].ids for number in range(6)]
    one = Segmenter(predictor, MODEL, kept_bytes=10**9)
    one([question_of(0, words)])
    segmenter = Segmenter(predictor, MODEL, kept_bytes=int(2.5 * one.kept.currsize))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            order = [number % 6 for number in range(48)]
            answers = list(pool.map(lambda number: segmenter([question_of(number, words)]), order))
    finally:
        sys.setswitchinterval(interval)
    assert all(np.array_equal(answers[row][0].ids, alone[number]) for row, number in enumerate(order))
    kept = [Segmenter(predictor, MODEL, kept_bytes=10**9) for _ in segmenter.kept]
    for other, digest in zip(kept, segmenter.kept, strict=True):
        other([question_of(int(digest.removeprefix("scene ")), words)])
    assert segmenter.kept.currsize == sum(other.kept.currsize for other in kept) > 0


def test_what_is_kept_of_a_picture_holds_no_memory_of_its_batch() -> None:
    segmenter = Segmenter(FISAPredictor.baseline(fisa_toy()), MODEL, kept_bytes=10**9)
    segmenter([question_of(number, vocabulary("seen")) for number in range(3)])
    for picture in segmenter.kept.values():
        parts = [*picture.features.keys, *picture.features.values, *picture.proposals.mask_logits]
        parts.append(picture.features.cls_token)
        assert all(part.untyped_storage().nbytes() == part.nbytes for part in parts)


def test_without_a_token_the_stage_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"FISA_SERVE_TOKEN is not set; set it .* or write 'auth: none'"):
        read_token_digest("token", {"FISA_SERVE_TOKEN": " "})
    for token in ("open sesame", "t\u00f6ken", "a\x07b"):
        with pytest.raises(ValueError, match=r"FISA_SERVE_TOKEN has a space or a letter .* ASCII letters"):
            read_token_digest("token", {"FISA_SERVE_TOKEN": token})
    assert read_token_digest("none", {}) is None
    assert read_token_digest("token", {"FISA_SERVE_TOKEN": "a"}) == hashlib.sha256(b"a").digest()


def test_limits_that_limit_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="max_queued_requests must be 0 or more"):
        Limits(max_queued_requests=-1)
    with pytest.raises(ValueError, match="allowed_image_prefixes must be"):
        Limits(allowed_image_prefixes=("pictures",))
    with pytest.raises(ValueError, match="kept_bytes must be 0 or more"):
        ServeConfig(classifier=TOY, kept_bytes=-1)
    with pytest.raises(ValueError, match="port must be 1 to 65535"):
        ServeConfig(classifier=TOY, port=0)


def test_the_stage_serves_until_it_is_told_to_stop(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FISA_SERVE_TOKEN", "open-sesame")
    scene = draw_scene(3, 0, "seen").image
    buffer = io.BytesIO()
    Image.fromarray(scene).save(buffer, format="PNG")
    words = {"classes": ["striped red circle", "dotted blue square"], "stuff": ["grass", "brick", "sand"]}
    responses: dict[str, httpx.Response] = {}
    crowd: Counter[int] = Counter()

    def visit(line: str) -> None:
        if not line.startswith("ready"):
            return
        assert 'curl -H "Authorization: Bearer $FISA_SERVE_TOKEN" -F image=@picture.jpg' in line
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            responses["health"] = http.get("/healthz")
            responses["stranger"] = http.post("/v1/segment", data=words, files=upload(buffer.getvalue()))
            http.headers["Authorization"] = "Bearer open-sesame"

            def ask(data: bytes) -> httpx.Response:
                return http.post("/v1/segment", data=words, files=upload(data))

            responses["segments"] = ask(buffer.getvalue())
            responses["no picture"] = ask(b"GIF87a, but cut")
            responses["too large"] = ask(bytes(3_000_000))
            scenes = [Image.fromarray(draw_scene(4, number, "seen").image) for number in range(16)]
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                crowd.update(r.status_code for r in pool.map(ask, map(encode_picture, scenes)))
        os.kill(os.getpid(), signal.SIGTERM)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ServeConfig(
        classifier=TOY,
        port=port,
        panoptic=PanopticConfig(object_threshold=0.0),
        batching=Batching(size=2),
        limits=Limits(max_image_bytes=1_000_000, max_queued_requests=2),
    )
    result = run(config, Compute(), StageContext(output=None, progress=visit))

    assert result.message == "stopped serving"
    assert responses["health"].status_code == 200
    detail(responses["stranger"], 401)
    detail(responses["no picture"], 422)
    detail(responses["too large"], 413)
    assert crowd[200] >= 4 and crowd[503] >= 1 and set(crowd) == {200, 503}
    expected = load_segmenter(TOY, "felzenszwalb").predictor.segment(
        scene,
        Vocabulary.from_names(words["classes"], stuff=words["stuff"]),
        panoptic=PanopticConfig(object_threshold=0.0),
    )
    found = responses["segments"].json()["segments"]
    assert [(s["name"], s["is_thing"], s["area"], tuple(s["bbox"])) for s in found] == [
        (s.name, s.is_thing, s.area, s.bbox) for s in expected.segments
    ]
    for segment in found:
        mask = coco_mask.decode(segment["segmentation"])
        assert np.array_equal(mask.astype(bool), expected.ids == segment["id"])
