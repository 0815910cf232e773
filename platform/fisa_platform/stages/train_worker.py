"""What each Ray Train worker does."""

from __future__ import annotations

import json
import logging
import tempfile
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from fisa_model.mask_generators.mask2former import LearningMask2Former
from fisa_model.objective import FISAObjective
from fisa_model.training_facts import TrainingFacts
from fisa_model.vocabulary import Vocabulary
from fisa_model.weights import save_fisa
from fisa_platform import storage
from fisa_platform.classifier import WEIGHTS_NAME
from fisa_platform.job import to_json
from fisa_platform.manifest import open_version
from fisa_platform.stages.train import GENERATOR_NAME, METRICS_NAME, TrainConfig
from fisa_platform.tracking import RunTracker
from fisa_platform.training.batches import TrainingExamples
from fisa_platform.training.checkpoint import load_checkpoint, save_checkpoint
from fisa_platform.training.loop import TrainingState, log_progress, train
from fisa_platform.training.setup import build_batches, build_examples, build_state, loop_config

logger = logging.getLogger(__name__)


def train_worker(arguments: dict[str, Any]) -> str | None:
    """A run on one of its workers; a mistake of the spec is returned, since Ray would retry an error."""
    try:
        _train(arguments)
    except ValueError as error:
        place = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not {"fisa_platform", "fisa_model"}.intersection(place.parts):
            raise
        return str(error)
    return None


def _train(arguments: dict[str, Any]) -> None:
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    logging.getLogger("fisa_platform").setLevel(logging.INFO)
    config: TrainConfig = arguments["config"]
    world = ray.train.get_context().get_world_size()
    accelerator = Accelerator(
        # Unless told, Accelerate takes each of several workers without a GPU for a run of its own.
        cpu=world > 1 and ray.train.torch.get_device().type == "cpu",
        mixed_precision="bf16" if config.precision == "bf16" else "no",
    )
    assert accelerator.num_processes == world
    vocabulary = Vocabulary.from_json(open_version(config.images_uri).manifest.vocabulary or [])
    state = build_state(config, vocabulary, accelerator)
    history: list[dict[str, float]] = []
    _resume(state, history)
    examples = build_examples(config, vocabulary, state.objective.model)
    facts = TrainingFacts(
        templates=config.templates,
        vocabulary=vocabulary,
        proposal_form=None if examples.proposals is None else examples.proposals.form,
    )
    if accelerator.is_main_process:
        _log_images(examples)
    log = log_progress(config.iterations)
    with _start_tracking(arguments, history, accelerator) as tracker:

        def report(row: dict[str, float]) -> None:
            history.append(row)
            if accelerator.is_main_process:
                log(row)
            if tracker is not None:
                tracker.log(row)
            ray.train.report(row)

        train(
            state,
            build_batches(config, examples, state.step, accelerator),
            loop_config(config),
            accelerator=accelerator,
            report=report,
            save=lambda: _save(state, history, is_main=accelerator.is_main_process),
        )
    if accelerator.is_main_process:
        _write_outputs(arguments["output_uri"], config, state.objective, facts, history)


def _start_tracking(
    arguments: dict[str, Any], history: list[dict[str, float]], accelerator: Accelerator
) -> AbstractContextManager[RunTracker | None]:
    """The trackers of the first rank; where they refuse, all ranks raise, or the others would wait for it."""
    config: TrainConfig = arguments["config"]
    tracker: RunTracker | None = None
    problem: list[str | None] = [None]
    if config.tracking is not None and accelerator.is_main_process:
        try:
            tracker = RunTracker(
                config.tracking,
                version_uri=arguments["version_uri"],
                facts={**to_json(config), "workers": accelerator.num_processes},
                history=history,
            )
        except ValueError as error:
            problem = [str(error)]
    [sentence] = broadcast_object_list(problem)
    if sentence is not None:
        raise ValueError(sentence)
    return nullcontext() if tracker is None else tracker


def _log_images(examples: TrainingExamples) -> None:
    total, missing = len(examples.images), examples.without_proposals
    if missing:
        logger.warning("%d of %d images have no proposals: not trained on", missing, total)
    if len(examples) < total - missing:
        logger.info("trains on %d of %d images", len(examples), total - missing)


def _resume(state: TrainingState[FISAObjective], history: list[dict[str, float]]) -> None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            load_checkpoint(Path(folder), state)
            history += _read_history(Path(folder) / METRICS_NAME)


def _save(state: TrainingState[FISAObjective], history: list[dict[str, float]], *, is_main: bool) -> None:
    """Every rank calls this, since reporting to Ray Train is a barrier; the first one brings the files."""
    if not is_main:
        ray.train.report({"step": state.step})
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), state)
        (Path(folder) / METRICS_NAME).write_text(_history_text(history))
        ray.train.report({"step": state.step}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _write_outputs(
    output_uri: str,
    config: TrainConfig,
    objective: FISAObjective,
    facts: TrainingFacts,
    history: list[dict[str, float]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS_NAME
        save_fisa(path, objective.model, config.model, facts)
        if isinstance(objective.generator, LearningMask2Former):
            objective.generator.save(Path(folder) / GENERATOR_NAME)
        for file in filter(Path.is_file, Path(folder).rglob("*")):
            storage.upload(file, storage.join(output_uri, file.relative_to(folder).as_posix()))
    storage.write_bytes(storage.join(output_uri, METRICS_NAME), _history_text(history).encode())


def _history_text(history: list[dict[str, float]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in history)


def _read_history(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
