"""Training on a few scenes of the toy world: what it writes, what it leaves alone, and how it goes on."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from event_files import read_curves
from safetensors.torch import load_file

from fisa_model.objective import FISAObjective
from fisa_model.predictor import FISAPredictor
from fisa_platform import manifest
from fisa_platform.compute import Compute, Workers
from fisa_platform.job import Job, what_data_depends_on
from fisa_platform.manifest import Version
from fisa_platform.schema import IMAGES, PROPOSALS
from fisa_platform.sources import toyworld
from fisa_platform.spec import job_from_data
from fisa_platform.stages.propose import ProposeConfig, Proposer, decode_images, fetch_trained_generator
from fisa_platform.stages.shard import load_images
from fisa_platform.stages.train import TrainConfig, check_workers
from fisa_platform.tables import write_batch
from fisa_platform.training.batches import BatchConfig
from fisa_platform.training.checkpoint import load_checkpoint, save_checkpoint
from fisa_platform.training.loop import TrainingState, train
from fisa_platform.training.setup import build_batches, build_examples, build_state, loop_config

Run = Callable[..., Version]

SCENES = 16
VOCABULARY = toyworld.vocabulary("seen")
MODEL = {"clip": {"model": "toy"}, "image_size": 224, "seve": {"query_width": 64, "heads": 2}}
SETTINGS = {
    "model": MODEL,
    "iterations": 6,
    "batches": {"size": 4},
    "loss": {"points": 256},
    "checkpoint_interval": 2,
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Scenes of the toy world and their proposals, written without Ray."""
    folder = tmp_path_factory.mktemp("tables")
    images = load_images(toyworld.index(seed=1, count=SCENES, names="seen").rows)
    (decoded,) = decode_images(images, rows_at_once=SCENES, needs_truth=False)
    config = ProposeConfig(images_uri="", output_uri="", generator="felzenszwalb")
    proposals = Proposer(config, "cpu")(decoded)
    for name, table, schema in (("images", images, IMAGES), ("proposals", proposals, PROPOSALS)):
        pending = manifest.new_version(str(folder / name), "70" * 8)
        write_batch(table, output_uri=pending.uri, name=name, schema=schema)
        vocabulary = VOCABULARY.to_json() if name == "images" else None
        manifest.commit(
            pending, stage="test", config={}, inputs={}, seconds=0, rows=SCENES, vocabulary=vocabulary
        )
    return {"images_uri": str(folder / "images"), "proposals_uri": str(folder / "proposals")}


def make_job(tables: dict[str, str], output_uri: str = "/unused", **changes: Any) -> Job:
    config = {**tables, **SETTINGS, "output_uri": output_uri, **changes}
    return job_from_data({"stage": "train", "config": config})


def new_state(config: TrainConfig) -> TrainingState[FISAObjective]:
    return build_state(config, VOCABULARY, Accelerator(cpu=True))


def run_loop(
    config: TrainConfig,
    state: TrainingState[FISAObjective],
    *,
    save: Callable[[], None] | None = None,
) -> None:
    """The stage's loop in this process."""
    accelerator = Accelerator(cpu=True)
    examples = build_examples(config, VOCABULARY, state.objective.model)
    batches = build_batches(config, examples, state.step, accelerator)
    train(state, batches, loop_config(config), accelerator=accelerator, report=lambda row: None, save=save)


def test_only_what_learns_changes(tables: dict[str, str]) -> None:
    state = new_state(make_job(tables, iterations=2).config)
    model = state.objective.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run_loop(make_job(tables, iterations=2).config, state)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert changed
    assert changed <= learns
    assert len(changed) > 0.9 * len(learns)  # a bias may have no gradient in two steps


def test_a_run_that_was_stopped_ends_with_the_same_weights(tables: dict[str, str], tmp_path: Path) -> None:
    """In this process; that Ray finds the checkpoint after a crash is tested below."""
    config = make_job(tables, checkpoint_interval=3).config
    whole = new_state(config)

    def save() -> None:
        save_checkpoint(tmp_path / str(whole.step), whole)

    run_loop(config, whole, save=save)
    torch.manual_seed(99)
    resumed = new_state(config)
    load_checkpoint(tmp_path / "3", resumed)
    run_loop(config, resumed)
    for (name, expected), (_, found) in zip(
        whole.objective.named_parameters(), resumed.objective.named_parameters(), strict=True
    ):
        assert torch.equal(expected, found), name


def test_ranks_divide_mask_losses_by_the_same_number(tables: dict[str, str]) -> None:
    """Here by twice its own number of segments, as where another rank has three times as many."""
    config = make_job(tables).config
    objective = new_state(config).objective
    batches = build_batches(
        config, build_examples(config, VOCABULARY, objective.model), 0, Accelerator(cpu=True)
    )
    (batch, *_) = batches
    torch.manual_seed(0)
    alone = objective(batch)
    objective.mean_over_ranks = lambda count: 2.0 * count
    torch.manual_seed(0)
    shared = objective(batch)
    for name, factor in {"loss_class": 1.0, "loss_mask": 0.5, "loss_dice": 0.5}.items():
        torch.testing.assert_close(shared[name], factor * alone[name])


@pytest.fixture(scope="module")
def trained(run: Run, tables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Version:
    output_uri = str(tmp_path_factory.mktemp("trained") / "weights")
    return run("train", **tables, **SETTINGS, tracking={"trackers": ["tensorboard"]}, output_uri=output_uri)


def test_the_stage_writes_weights_that_the_predictor_loads(trained: Version) -> None:
    assert [Path(uri).name for uri in trained.files()] == ["weights.safetensors", "metrics.jsonl"]
    assert trained.manifest.rows == 6 * 4
    assert trained.manifest.vocabulary == VOCABULARY.to_json()
    predictor = FISAPredictor.load(Path(trained.file("weights.safetensors")))
    assert predictor.proposal_form == "binary"
    learns = {name for name, p in predictor.model.named_parameters() if p.requires_grad}
    assert load_file(trained.file("weights.safetensors")).keys() == learns
    scene = toyworld.draw_scene(5, 0, "all")
    found = predictor.segment(scene.image, ["grass", "red circle"])
    assert found.ids.shape == scene.ids.shape


def test_the_stage_reports_its_loss(trained: Version) -> None:
    rows = [json.loads(line) for line in Path(trained.file("metrics.jsonl")).read_text().splitlines()]
    assert [row["step"] for row in rows] == [6]
    assert 0 < rows[0]["loss_class"] < 20
    assert rows[0]["emptied_segments"] >= 0
    assert trained.manifest.extra["final"] == rows[-1]
    curves = read_curves(Path(trained.uri))
    assert set(curves) == {f"train/{name}" for name in rows[0] if name != "step"}
    assert curves["train/loss"] == [(6, pytest.approx(rows[0]["loss"]))]


def test_trackers_make_nothing_anew(tables: dict[str, str]) -> None:
    tracking = {"trackers": ["wandb", "tensorboard"], "project": "seve"}
    untracked, tracked = make_job(tables).config, make_job(tables, tracking=tracking).config
    assert what_data_depends_on(tracked) == what_data_depends_on(untracked)


def test_a_generator_learns_with_the_classifier_and_proposes_afterwards(
    run: Run, tables: dict[str, str], mask2former_folder: Path, tmp_path: Path
) -> None:
    weights, images_uri = str(tmp_path / "weights"), tables["images_uri"]
    settings = {**SETTINGS, "optimizer": {"learning_rate": 1e-2, "generator_scale": 1.0}}
    run(
        "train",
        images_uri=images_uri,
        generator_weights=str(mask2former_folder),
        output_uri=weights,
        **settings,
    )
    proposed = run(
        "propose",
        images_uri=images_uri,
        generator="mask2former",
        generator_uri=weights,
        output_uri=str(tmp_path / "proposals"),
    )
    assert proposed.manifest.rows == SCENES
    (learnt,) = manifest.open_version(weights).files(prefix="generator/", suffix="model.safetensors")
    before, after = load_file(mask2former_folder / "model.safetensors"), load_file(learnt)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert len(changed) > 0.9 * len(before)
    assert not any(name.startswith("class_predictor") for name in changed)
    classifier = FISAPredictor.load(Path(manifest.open_version(weights).file("weights.safetensors")))
    assert classifier.proposal_form is None


def test_a_run_without_a_generator_that_learnt_is_refused_as_one(trained: Version, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no generator learnt in this run"):
        fetch_trained_generator(trained.uri, tmp_path)


def test_more_classes_than_the_vocabulary_has_are_refused(
    run: Run, tables: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"classes_per_batch is 39, but the vocabulary of .* has 38 classes"):
        run("train", **tables, **SETTINGS, classes_per_batch=39, output_uri=str(tmp_path))


def test_options_of_batches_reach_the_objective_and_the_jitter(tables: dict[str, str]) -> None:
    model = {**MODEL, "resize": "letterbox"}
    batches = {"size": 4, "keep_empty": True}
    config = make_job(tables, classes_per_batch=7, batches=batches, model=model).config
    objective = new_state(config).objective
    assert objective.classes_per_batch == 7
    jitter = build_examples(config, VOCABULARY, objective.model).jitter
    assert jitter.keep_empty
    assert jitter.resize == "letterbox"


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_a_part_of_the_images_is_trained_on(tables: dict[str, str], fraction: float) -> None:
    config = make_job(tables, data_fraction=fraction).config
    model = new_state(config).objective.model
    assert len(build_examples(config, VOCABULARY, model)) == round(fraction * SCENES)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_part_that_is_none_is_refused(tables: dict[str, str], fraction: float) -> None:
    with pytest.raises(ValueError, match="data_fraction must be above 0 and at most 1, got"):
        make_job(tables, data_fraction=fraction)


def test_norm_layers_and_embeddings_of_a_generator_that_learns_are_not_decayed(
    tables: dict[str, str], mask2former_folder: Path
) -> None:
    from_table = {"images_uri": tables["images_uri"], "proposals_uri": None}
    config = make_job({**from_table, "generator_weights": str(mask2former_folder)}).config  # type: ignore[dict-item]
    state = new_state(config)
    assert state.objective.generator is not None
    decay = {id(p): group["weight_decay"] for group in state.optimizer.param_groups for p in group["params"]}
    learning = {name: p for name, p in state.objective.generator.named_parameters() if p.requires_grad}
    undecayed = {name for name, p in learning.items() if decay[id(p)] == 0}
    # Group norms have numbers for names, and the level embedding of the pixel decoder is a bare parameter.
    exempt = re.compile(
        r"norm|position_bias_table|queries_|transformer_module.level_embed"
        r"|(adapter_1|layer_1|input_projections\.\d)\.1\."
    )
    assert undecayed == {name for name in learning if exempt.search(name)}


def test_proposals_come_from_a_table_or_from_a_generator(tables: dict[str, str]) -> None:
    for changes in ({"proposals_uri": None}, {"generator_weights": "somewhere"}):
        with pytest.raises(ValueError, match="exactly one of proposals_uri and generator_weights"):
            make_job(tables, **changes)


def test_workers_that_cannot_share_a_batch_are_refused() -> None:
    check_workers(Compute(workers=Workers(min=2, max=4)), BatchConfig(size=12))
    check_workers(Compute(workers=Workers(min=0, max=3)), BatchConfig(size=12, accumulation=2))
    with pytest.raises(ValueError, match=r"batches\.size \(12\) cannot be shared by 5 workers"):
        check_workers(Compute(workers=Workers(min=4, max=6)), BatchConfig(size=12))
    for gpus in (0.5, 2):
        with pytest.raises(ValueError, match=f"gpus_per_worker is {gpus:g}, .* on one GPU; write 1"):
            check_workers(Compute(gpus_per_worker=gpus), BatchConfig())


def test_a_table_without_ground_truth_is_refused(run: Run, tables: dict[str, str], tmp_path: Path) -> None:
    swapped = {"images_uri": tables["proposals_uri"], "proposals_uri": tables["images_uri"]}
    with pytest.raises(ValueError, match=r"holds no version of images; .* holds no version of proposals"):
        run("train", **swapped, **SETTINGS, output_uri=str(tmp_path / "weights"))
    pending = manifest.new_version(str(tmp_path / "bare"), "70" * 8)
    scenes = load_images(toyworld.index(seed=1, count=2, names="seen").rows)
    write_batch(scenes, output_uri=pending.uri, name="images", schema=IMAGES)
    bare = manifest.commit(pending, stage="test", config={}, inputs={}, seconds=0, rows=2)
    with pytest.raises(ValueError, match="has no ground truth; train on a table that has"):
        run("train", **{**tables, "images_uri": bare.uri}, **SETTINGS, output_uri=str(tmp_path / "weights"))


@pytest.mark.slow
def test_a_mistake_that_shows_in_a_worker_is_one_sentence(
    run: Run, tables: dict[str, str], tmp_path: Path
) -> None:
    """And Ray does not try it again."""
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"warmup_steps .* must be below the run's 6 iterations"):
        run(
            "train",
            **tables,
            **SETTINGS,
            schedule={"warmup_steps": 7},
            output_uri=str(tmp_path / "weights"),
        )
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(
    run: Run, trained: Version, tables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's controller notes checkpoints when it looks after its workers.
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    tracking = {"trackers": ["tensorboard"]}
    settings = {**SETTINGS, "iterations": 24, "checkpoint_interval": 4, "tracking": tracking}
    whole = run("train", **tables, **settings, output_uri=str(tmp_path / "whole"))
    killer = Killer(tmp_path / "killed")
    killer.start()
    try:
        killed = run("train", **tables, **settings, output_uri=str(tmp_path / "killed"))
    finally:
        killer.stopped.set()
        killer.join()
    assert killer.victim is not None
    assert len(killer.checkpoints) == 24 // 4, "a run that began anew would have written some of them twice"
    expected, found = (load_file(version.file("weights.safetensors")) for version in (whole, killed))
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    steps = [step for step, _ in read_curves(Path(killed.uri))["train/loss"]]
    assert steps == [step for step, _ in read_curves(Path(whole.uri))["train/loss"]] == [10, 20, 24]


@pytest.mark.slow
def test_a_tracker_that_refuses_ends_a_run_of_several_workers(
    run: Run, tables: dict[str, str], tmp_path: Path
) -> None:
    """Only one of them has it, here without a key; the others would wait for that one."""
    with pytest.raises(ValueError, match="tracking: wandb cannot be started"):
        run(
            "train",
            compute={"workers": {"min": 2, "max": 2}},
            **tables,
            **SETTINGS,
            tracking={"trackers": ["wandb"]},
            output_uri=str(tmp_path / "weights"),
        )


class Killer(threading.Thread):
    """Kills the training worker as soon as Ray has noted a checkpoint, and counts checkpoints."""

    def __init__(self, output: Path) -> None:
        super().__init__(daemon=True)
        self.output = output
        self.stopped = threading.Event()
        self.victim: int | None = None
        self.checkpoints: set[str] = set()

    def run(self) -> None:
        while not self.stopped.wait(0.01):
            self.checkpoints |= {path.name for path in self.output.glob("*/ray_train/run/checkpoint_2*")}
            noted = "".join(
                path.read_text() for path in self.output.glob("*/ray_train/run/checkpoint_manager_*.json")
            )
            if self.victim is None and any(name in noted for name in self.checkpoints):
                self.victim = training_worker()
                os.kill(self.victim, signal.SIGKILL)


def training_worker() -> int:
    """The one process below this one that works in a folder for artifacts, as Ray's training workers do."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # it has just ended

    def is_below(pid: int) -> bool:
        while pid in parents:
            if pid == os.getpid():
                return True
            pid = parents[pid]
        return False

    (worker,) = [pid for pid in parents if is_below(pid) and "/artifacts/" in os.readlink(f"/proc/{pid}/cwd")]
    return worker


@pytest.mark.slow
def test_two_workers_learn_what_one_learns_that_accumulates(
    run: Run, tables: dict[str, str], tmp_path: Path
) -> None:
    """With cross-entropy alone, whose mean is over the images of one worker or of one pass."""
    settings = {**SETTINGS, "model": {**MODEL, "adapter": {"layers": 0}}}
    settings["optimizer"] = {"learning_rate": 1e-3}
    two = run(
        "train",
        compute={"workers": {"min": 2, "max": 2}, "cpus_per_worker": 1},
        **tables,
        **settings,
        output_uri=str(tmp_path / "two"),
    )
    settings["batches"] = {"size": 4, "accumulation": 2}
    one = run("train", **tables, **settings, output_uri=str(tmp_path / "one"))
    assert two.manifest.extra["final"]["loss"] == pytest.approx(one.manifest.extra["final"]["loss"], rel=1e-4)
    expected, found = (load_file(version.file("weights.safetensors")) for version in (one, two))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
