"""The mask classifier of a job, trained or a frozen CLIP, and how its scores become segments."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fisa_model.config import AdapterUse, EnsembleConfig, FISAConfig, PanopticConfig, check_choices
from fisa_model.mask_generators import Precision

if TYPE_CHECKING:
    from fisa_model.mask_generators import MaskGenerator, MaskProposals
    from fisa_model.prediction import Prediction
    from fisa_model.predictor import FISAPredictor
    from fisa_model.vocabulary import Vocabulary

WEIGHTS_NAME = "weights.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """Exactly one of `weights_uri` and `frozen`."""

    weights_uri: str | None = None
    """What `train` wrote, or a weights file."""

    frozen: FISAConfig | None = None
    """A CLIP as it is: mask attention without anything trained (the paper's baseline)."""

    templates: Literal["vild", "photo", "literal"] = "vild"
    """Sentences for the names of a frozen CLIP; weights bring their own."""

    ensemble: EnsembleConfig | None = None
    """Lets the frozen CLIP have a say beside trained weights, as FC-CLIP does; none leaves it out."""

    adapter_where: AdapterUse | None = None
    """What takes the masks that the weights' adapter changed, to compare; left out, as they were trained."""

    precision: Precision | None = None
    """Arithmetic; none is bf16 on a GPU that has it, fp32 elsewhere. A CPU with AMX is fast in bf16, too."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.frozen is not None and self.ensemble is not None:
            raise ValueError(
                "ensemble is given, but frozen names a CLIP alone; give weights_uri, or leave it out"
            )
        if self.frozen is not None and self.adapter_where is not None:
            raise ValueError(
                f"adapter_where is {self.adapter_where!r}, but a frozen CLIP has no adapter; leave it out"
            )
        if (self.weights_uri is None) == (self.frozen is None):
            raise ValueError("exactly one of weights_uri and frozen must be given; frozen names a CLIP")


class NoGenerator:
    """Stands where proposals come from a table, so that no generator is loaded."""

    def __call__(self, image: Any) -> MaskProposals:
        raise RuntimeError("this job reads its proposals from a table")


def load_predictor(
    config: ClassifierConfig, generator: MaskGenerator | None = None, *, caches_words: bool = True
) -> FISAPredictor:
    """The classifier on this worker's device; without `generator` it only takes given proposals.

    `caches_words` keeps what it encodes on this machine's disk, for the other workers and the next job.

    Raises:
        ValueError: the weights are damaged, or belong to another CLIP.
    """
    from fisa_model.device import DTYPE_OF
    from fisa_model.predictor import FISAPredictor
    from fisa_model.text_cache import default_path

    cache = default_path() if caches_words else None
    generator = generator or NoGenerator()
    dtype = None if config.precision is None else DTYPE_OF[config.precision]
    if config.frozen is not None:
        return FISAPredictor.baseline(
            config.frozen,
            generator=generator,
            templates=config.templates,
            dtype=dtype,
            text_cache_path=cache,
        )
    assert config.weights_uri is not None
    with tempfile.TemporaryDirectory() as folder:
        path = _download_weights(config.weights_uri, Path(folder))
        predictor = FISAPredictor.load(
            path, generator=generator, dtype=dtype, ensemble=config.ensemble, text_cache_path=cache
        )
    if config.adapter_where is not None:
        predictor.model.adapter.where = config.adapter_where
    return predictor


def check_weights(config: ClassifierConfig) -> None:
    """Refuses weights that no worker could load, before workers are started.

    Raises:
        ValueError: there are none, or their file is not whole or not of a training run.
    """
    if config.weights_uri is None:
        return
    from safetensors import SafetensorError, safe_open

    with tempfile.TemporaryDirectory() as folder:
        path = _download_weights(config.weights_uri, Path(folder))
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(
                f"classifier.weights_uri: {config.weights_uri}: not a whole safetensors file ({error}); "
                "copy or download it again"
            ) from error
    if "fisa_config" not in metadata:
        raise ValueError(
            f"classifier.weights_uri: {config.weights_uri}: not written by a training run; "
            "give what `train` wrote"
        )
    adapter = json.loads(metadata["fisa_config"]).get("adapter", {})
    if config.adapter_where is not None and adapter.get("layers") == 0:
        raise ValueError(
            f"classifier.adapter_where is {config.adapter_where!r}, but {config.weights_uri} has no adapter "
            "(it was trained with 0 layers); leave it out"
        )


def _download_weights(uri: str, folder: Path) -> Path:
    from fisa_platform import storage
    from fisa_platform.manifest import find_version

    if not uri.endswith(".safetensors"):
        version = find_version(uri)
        if version is None:
            raise ValueError(
                f"classifier.weights_uri: {uri}: holds no version of weights; "
                "give what `train` wrote, or a .safetensors file"
            )
        uri = version.file(WEIGHTS_NAME)
    return storage.download(uri, folder / WEIGHTS_NAME)


def prediction_row(prediction: Prediction, vocabulary: Vocabulary, config: PanopticConfig) -> dict[str, Any]:
    """The columns of the predictions table that say what was found, from one image's prediction."""
    from fisa_model.segmentation import name_segments
    from fisa_platform.mask_codec import run_length
    from fisa_platform.panoptic_png import encode_panoptic

    result = name_segments(prediction.panoptic(vocabulary.is_thing, config), vocabulary)
    segments = [
        {
            "id": segment.id,
            "category_id": segment.category_id,
            "area": segment.area,
            "bbox": list(segment.bbox),
            "isthing": segment.is_thing,
            "score": segment.score,
            "counts": run_length(result.ids == segment.id)["counts"],
        }
        for segment in result.segments
    ]
    height, width = prediction.size
    return {
        "height": height,
        "width": width,
        "panoptic": encode_panoptic(result.ids),
        "segments_info": segments,
    }
