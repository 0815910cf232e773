"""What a run is made of lies where it trains."""

from types import SimpleNamespace
from typing import Any

import pytest
from pretend_gpu import GPU, PretendGPUTensor, pretended_gpu

from fisa_model.vocabulary import Vocabulary
from fisa_platform.spec import job_from_data
from fisa_platform.training.setup import build_state


@pytest.mark.parametrize("trains_text", [False, True])
def test_words_are_encoded_where_the_model_trains(*, trains_text: bool) -> None:
    model = {"clip": {"model": "toy"}, "image_size": 224, "trains_text": trains_text}
    uris = {"images_uri": "images", "proposals_uri": "proposals", "output_uri": "weights"}
    config: Any = job_from_data(
        {"stage": "train", "config": {**uris, "iterations": 3, "model": model}}
    ).config
    accelerator: Any = SimpleNamespace(device=GPU, num_processes=1)
    with pretended_gpu():
        objective = build_state(config, Vocabulary.from_names(["cat", "dog"]), accelerator).objective
        tokens: Any = objective.class_tokens
        tokens = tokens() if trains_text else tokens
        assert isinstance(tokens.classifier, PretendGPUTensor)
        assert objective.model.device == GPU
