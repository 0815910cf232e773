"""From rows of two tables to batches: the same picture everywhere, aligned, padded, without crowds."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fisa_model.mask_generators import MaskProposals
from fisa_model.objective import collate
from fisa_model.transforms import Jitter
from fisa_model.vocabulary import Category, Vocabulary
from fisa_platform import manifest
from fisa_platform.mask_codec import encode_proposals
from fisa_platform.panoptic_png import encode_panoptic
from fisa_platform.rows import ProposalRows, TableRows
from fisa_platform.schema import IMAGES, PROPOSALS
from fisa_platform.tables import failable_table, write_batch
from fisa_platform.training.batches import TrainingExamples, load_batches, read_target
from fisa_platform.training.sampler import Sample, Sampler

SIDE = 64
VOCABULARY = Vocabulary((Category(7, "box"), Category(3, "field", is_thing=False), Category(4, "herd")))
WHITE, BOX, FIELD, CROWD = 255, 40, 41, 42


def scene(top: int, left: int, height: int = 48, width: int = 80) -> NDArray[np.int32]:
    """Ids of a box of 20 x 30 pixels on a field, with a crowd in the corner."""
    ids = np.full((height, width), FIELD, dtype=np.int32)
    ids[top : top + 20, left : left + 30] = BOX
    ids[-4:, -4:] = CROWD
    return ids


def images_row(name: str, ids: NDArray[np.int32]) -> dict[str, object]:
    """The box is white, the rest black, and nothing is lost in the PNG."""
    picture = io.BytesIO()
    Image.fromarray(np.repeat((ids == BOX)[..., None] * np.uint8(WHITE), 3, axis=2)).save(picture, "PNG")
    segments = [
        {"id": number, "category_id": category, "area": int((ids == number).sum()), "iscrowd": crowd}
        for number, category, crowd in ((BOX, 7, False), (FIELD, 3, False), (CROWD, 4, True))
    ]
    return {
        "image_id": name,
        "file_name": f"{name}.png",
        "height": ids.shape[0],
        "width": ids.shape[1],
        "orientation": 1,
        "image": picture.getvalue(),
        "panoptic": encode_panoptic(ids),
        "segments_info": segments,
    }


def proposals_row(name: str, ids: NDArray[np.int32], count: int) -> dict[str, object]:
    """The box first, then the field, then the crowd."""
    masks = np.stack([ids == number for number in (BOX, FIELD, CROWD)[:count]])
    logits = np.where(masks, np.float32(1), np.float32(-1))
    proposals = MaskProposals(logits, np.ones(count, np.float32))
    return {"image_id": name, **encode_proposals(proposals, *ids.shape)}


def write(folder: Path, name: str, rows: list[dict[str, object]]) -> str:
    schema = {"images": IMAGES, "proposals": PROPOSALS}[name]
    pending = manifest.new_version(str(folder / name), "50" * 8)
    rows = [{"file_name": "unused", **row} for row in rows]
    write_batch(failable_table(schema, rows), output_uri=pending.uri, name=name, schema=schema)
    manifest.commit(pending, stage="test", config={}, inputs={}, seconds=0, rows=len(rows))
    return str(folder / name)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> TrainingExamples:
    """Three scenes with 1, 2 and 3 proposals, and one that has no row of proposals."""
    folder = tmp_path_factory.mktemp("tables")
    scenes = {"a": scene(5, 10), "b": scene(20, 40), "c": scene(0, 0), "d": scene(9, 9)}
    images_uri = write(folder, "images", [images_row(name, ids) for name, ids in scenes.items()])
    counts = {"a": 1, "b": 2, "d": 3}
    proposals_uri = write(
        folder, "proposals", [proposals_row(name, scenes[name], n) for name, n in counts.items()]
    )
    images = manifest.open_version(images_uri).files("images/")
    jitter = Jitter(image_size=SIDE, mean=(0, 0, 0), std=(1, 1, 1), scale=(0.5, 2.0))
    rows = TableRows(images, ["image_id", "image", "panoptic", "segments_info"])
    return TrainingExamples(rows, ProposalRows(proposals_uri), VOCABULARY, jitter, seed=11)


def test_an_image_without_proposals_is_left_out(examples: TrainingExamples) -> None:
    assert len(examples) == 3
    assert [examples.images.ids[row] for row in examples.usable] == ["a", "b", "d"]


def test_a_part_of_the_images_is_a_part_of_those_with_proposals(examples: TrainingExamples) -> None:
    part = TrainingExamples(
        examples.images, examples.proposals, VOCABULARY, examples.jitter, seed=11, fraction=0.67
    )
    assert len(part) == 2 and part.without_proposals == examples.without_proposals == 1
    assert set(part.usable) < set(examples.usable)


def test_a_sample_is_the_same_wherever_it_is_loaded(examples: TrainingExamples) -> None:
    samples = Sampler(rows=3, batch_size=2, seed=11).step(4)
    (here,) = load_batches(examples, [samples], 0)
    (elsewhere,) = load_batches(pickle.loads(pickle.dumps(examples)), [samples], 1)
    for name in ("images", "proposals", "valid"):
        assert torch.equal(getattr(here, name), getattr(elsewhere, name))
    for target, other in zip(here.targets, elsewhere.targets, strict=True):
        assert torch.equal(target.labels, other.labels)
        assert torch.equal(target.masks, other.masks)


@pytest.mark.parametrize("processes", [0, 1])
def test_what_is_wrong_with_an_example_is_one_sentence(examples: TrainingExamples, processes: int) -> None:
    """From another process it comes as a traceback."""
    other_names = Vocabulary.from_names(["nothing that is in the pictures"])
    foreign = TrainingExamples(examples.images, examples.proposals, other_names, examples.jitter, seed=11)
    with pytest.raises(ValueError, match=r"^category id \d+ is not in the vocabulary; its ids are 1$"):
        list(load_batches(foreign, [[Sample(0, 0), Sample(1, 1), Sample(2, 2)]], processes))


def test_every_sample_of_a_row_is_jittered_anew(examples: TrainingExamples) -> None:
    first, again, later = (examples[Sample(0, number)] for number in (0, 0, 3))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, later.image)


def test_crowds_are_no_targets(examples: TrainingExamples) -> None:
    target = read_target(examples.images[0], VOCABULARY)
    assert target.labels.tolist() == [0, 1]
    assert target.masks.flatten(1).sum(1).tolist() == [20 * 30, 48 * 80 - 20 * 30 - 4 * 4]


def test_an_image_without_ground_truth_is_refused() -> None:
    with pytest.raises(ValueError, match="image x has no ground truth"):
        read_target({"image_id": "x", "panoptic": None, "segments_info": None}, VOCABULARY)


def test_a_batch_is_filled_up_to_the_most_proposals(examples: TrainingExamples) -> None:
    batch = collate([examples[Sample(row, 0)] for row in range(3)])
    assert batch.images.shape == (3, 3, SIDE, SIDE)
    assert batch.proposals.shape == (3, 3, SIDE // 4, SIDE // 4)
    assert batch.valid.tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert (batch.proposals[~batch.valid] < 0).all()
    for row in range(3):
        assert torch.equal(batch.proposals[row, : row + 1], examples[Sample(row, 0)].proposals)


@pytest.mark.parametrize("number", range(8))
def test_picture_target_and_proposal_stay_aligned(examples: TrainingExamples, number: int) -> None:
    """The box ends at the same places in the picture, where it is white, the target and the proposal."""
    sample = examples[Sample(0, number)]
    assert sample.target.labels[0] == 0
    target = edges(sample.target.masks[0])
    picture = edges(sample.image.mean(0) > 0.75)  # the frame around a shrunk picture is gray
    proposal = 4 * edges(sample.proposals[0] > 0)
    assert (picture - target).abs().max() <= 1
    assert (proposal - target).abs().max() <= 4


def test_jitter_moves_mirrors_and_scales(examples: TrainingExamples) -> None:
    """So that the alignment above is not that of a jitter that does nothing."""
    areas = [int(examples[Sample(0, number)].target.masks[0].sum()) for number in range(8)]
    assert max(areas) > 2 * min(areas)
    squash = Jitter(image_size=SIDE, mean=(0, 0, 0), std=(1, 1, 1), scale=None)
    still = TrainingExamples(examples.images, examples.proposals, VOCABULARY, squash, seed=11)
    left = {int(edges(still[Sample(0, number)].target.masks[0])[2]) for number in range(8)}
    assert left == {8, SIDE - 32}  # 10 of 80 pixels from the left, or from the right


def edges(mask: torch.Tensor) -> torch.Tensor:
    """Top, bottom, left and right of what is set."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return torch.tensor([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1])
