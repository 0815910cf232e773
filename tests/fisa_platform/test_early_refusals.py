"""What would fail after minutes, or wait forever, is refused at once, by the name the spec has for it."""

import re
import shutil
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pytest

from fisa_model.config import fisa_toy
from fisa_model.fisa import build_fisa
from fisa_model.weights import save_fisa
from fisa_platform import manifest, storage
from fisa_platform.classifier import ClassifierConfig, check_weights
from fisa_platform.compute import Compute, check_fits
from fisa_platform.job import what_data_depends_on
from fisa_platform.runner import outline_jobs, plan_jobs, run_job
from fisa_platform.spec import job_from_data
from fisa_platform.tables import write_parquet


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_fisa(path, build_fisa(fisa_toy())[0], fisa_toy())
    return path


def test_whole_weights_pass(weights: Path) -> None:
    check_weights(ClassifierConfig(weights_uri=str(weights)))


def test_damaged_weights_are_named_as_the_spec_names_them(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(weights.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=f"weights_uri: {path}: not a whole safetensors file"):
        check_weights(ClassifierConfig(weights_uri=str(path)))


def test_other_tensors_and_folders_without_weights_are_refused(tmp_path: Path) -> None:
    clip = Path(__file__).parents[2] / "fisa_model/assets/toy_clip/open_clip_model.safetensors"
    other = shutil.copy(clip, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="not written by a training run"):
        check_weights(ClassifierConfig(weights_uri=str(other)))
    with pytest.raises(ValueError, match="holds no version of weights"):
        check_weights(ClassifierConfig(weights_uri=str(tmp_path)))


def label_spec(**changes: Any) -> dict[str, Any]:
    config = {
        "images_uri": "/pictures",
        "classifier": {"frozen": {"clip": {"model": "toy"}, "image_size": 224}},
        "generator": "felzenszwalb",
        "output_uri": "/out",
        **changes,
    }
    return {"stage": "label", "config": config}


def a_picture(folder: Path) -> str:
    path = folder / "pictures" / "a.png"
    path.parent.mkdir()
    PIL.Image.new("RGB", (20, 20)).save(path)
    return str(path.parent)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"clip": {"model": "ViT-B-17"}, "image_size": 224}, "unknown CLIP 'ViT-B-17'"),
        ({"clip": {"model": "toy"}, "image_size": 225}, "must be a multiple of .* patch size 16, got 225"),
        ({"clip": {"model": "ViT-L-14", "weights": "openai"}, "image_size": 224}, "ViT-L-14-quickgelu"),
        ({"clip": {"model": "RN50-quickgelu"}, "image_size": 224}, "not a plain ViT"),
        (
            {"clip": {"model": "ViT-B-32", "weights": "lion"}, "image_size": 224},
            "unknown weights 'lion' of 'ViT-B-32'; choose one of openai, laion",
        ),
    ],
)
def test_a_model_that_cannot_be_built(tmp_path: Path, model: dict[str, Any], reason: str) -> None:
    uris = {"images_uri": a_picture(tmp_path), "output_uri": f"{tmp_path}/out"}
    job = job_from_data(label_spec(things=["cat"], classifier={"frozen": model}, **uris))
    for plan_of in (outline_jobs, plan_jobs):
        [plan] = plan_of({"label": job})
        [problem] = plan.problems
        assert re.search(f"config.classifier.frozen: .*{reason}", problem)
    with pytest.raises(ValueError, match=f"config.classifier.frozen: .*{reason}"):
        run_job("label", job, print)


def test_a_folder_that_describes_no_clip(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    (tmp_path / "open_clip_model.safetensors").touch()
    model = {"clip": {"model": f"local-dir:{tmp_path}"}, "image_size": 224}
    [plan] = outline_jobs({"label": job_from_data(label_spec(things=["cat"], classifier={"frozen": model}))})
    assert re.search("could not be built .*check its open_clip_config.json", plan.problems[0])


@pytest.mark.parametrize(
    "name", ["hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "xlm-roberta-base-ViT-B-32"]
)
def test_a_model_that_a_hub_describes_is_not_asked_for(name: str) -> None:
    model = {"clip": {"model": name}, "image_size": 224}
    [plan] = outline_jobs({"label": job_from_data(label_spec(things=["cat"], classifier={"frozen": model}))})
    assert plan.problems == []


def test_an_empty_folder_holds_no_input(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    spec = label_spec(things=["cat"], images_uri=f"{tmp_path}/pictures", output_uri=f"{tmp_path}/out")
    job = job_from_data(spec)
    refusal = f"config.images_uri: {tmp_path}/pictures: is an empty folder; check the path"
    [plan] = plan_jobs({"label": job})
    assert plan.problems[0].startswith(refusal)


def test_a_class_named_twice_is_a_mistake_of_the_spec() -> None:
    with pytest.raises(ValueError, match="config: class name 'cat' occurs more than once"):
        job_from_data(label_spec(things=["cat", "cat"]))


def test_a_folder_that_cannot_be_made_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    spec = label_spec(
        images_uri=a_picture(tmp_path), output_uri=str(tmp_path / "file" / "out"), things=["cat"]
    )
    with pytest.raises(OSError, match=r"output_uri: .*/file/out: cannot be made"):
        run_job("label", job_from_data(spec), lambda line: None)


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_this_machine_cannot_hold_is_refused() -> None:
    check_fits(Compute(cpus_per_worker=4))
    with pytest.raises(
        ValueError, match="cpus_per_worker asks for 5 CPUs, but no node here has more than 4 CPUs"
    ):
        check_fits(Compute(cpus_per_worker=5))
    with pytest.raises(ValueError, match="gpus_per_worker asks for 8 GPUs, but no node here has more"):
        check_fits(Compute(gpus_per_worker=8))


def test_local_weights_are_inputs_and_names_of_a_hub_are_not(tmp_path: Path) -> None:
    (tmp_path / "clip.pt").touch()
    frozen = {"clip": {"model": "ViT-B-32", "weights": str(tmp_path / "clip.pt")}}
    spec = label_spec(things=["cat"], generator="mask2former", generator_weights=str(tmp_path))
    spec["config"]["classifier"] = {"frozen": frozen}
    assert job_from_data(spec).input_uris() == {
        "images_uri": job_from_data(spec).config.images_uri,
        "generator_weights": str(tmp_path),
        "classifier.frozen.clip.weights": str(tmp_path / "clip.pt"),
    }
    spec["config"]["generator_weights"] = "facebook/mask2former-swin-base-coco-panoptic"
    frozen["clip"]["weights"] = "openai"
    assert list(job_from_data(spec).input_uris()) == ["images_uri"]


def test_a_folder_of_a_clip_is_an_input(tmp_path: Path) -> None:
    spec = label_spec(things=["cat"])
    spec["config"]["classifier"] = {"frozen": {"clip": {"model": f"local-dir:{tmp_path}"}, "image_size": 224}}
    job = job_from_data(spec)
    assert job.input_uris()["classifier.frozen.clip.model"] == str(tmp_path)
    spec["config"]["classifier"]["frozen"]["clip"]["model"] = f"local-dir:{tmp_path.parent}/./{tmp_path.name}"
    assert what_data_depends_on(job_from_data(spec).config) == what_data_depends_on(job.config)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"1")
    before = Path(job.input_uris()["classifier.frozen.clip.model"])
    digest = storage.fingerprint(str(before))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"22")
    assert storage.fingerprint(str(before)) != digest


def test_a_place_for_weights_that_has_other_things_is_a_problem(tmp_path: Path) -> None:
    spec = label_spec(images_uri=a_picture(tmp_path), output_uri=str(tmp_path / "out"), things=["cat"])
    spec["config"]["classifier"] = {"weights_uri": spec["config"]["images_uri"]}
    [plan] = plan_jobs({"label": job_from_data(spec)})
    assert "classifier.weights_uri: " in plan.problems[0]
    assert "holds no version of weights; give what `train` wrote" in plan.problems[0]


def test_tables_that_were_swapped_are_a_problem(tmp_path: Path) -> None:
    version = commit_a_file(tmp_path / "images", "images/a.parquet")
    swapped = {"images_uri": a_picture(tmp_path), "proposals_uri": version.uri}
    config = {**swapped, "output_uri": str(tmp_path / "out")}
    [plan] = plan_jobs({"evaluate": job_from_data({"stage": "evaluate", "config": config})})
    images, proposals = plan.problems
    assert re.match(r"config\.images_uri: .* holds no version of images; give what `shard` wrote", images)
    assert re.match(r"config\.proposals_uri: .* no version of proposals; give what `propose`", proposals)
    both = commit_a_file(tmp_path / "proposals", "proposals/a.parquet")
    right = {"images_uri": version.uri, "proposals_uri": both.uri, "output_uri": str(tmp_path / "out")}
    [plan] = plan_jobs({"evaluate": job_from_data({"stage": "evaluate", "config": right})})
    assert plan.problems == []


def commit_a_file(folder: Path, name: str) -> manifest.Version:
    """A version of one file."""
    pending = manifest.new_version(str(folder), "50" * 8)
    write_parquet(storage.join(pending.uri, name), pa.table({"image_id": ["a"]}))
    return manifest.commit(pending, stage="test", config={}, inputs={}, seconds=0)


def test_an_output_with_somebody_elses_pointer_is_refused_before_the_work(tmp_path: Path) -> None:
    spec = label_spec(images_uri=a_picture(tmp_path), output_uri=str(tmp_path / "out"), things=["cat"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "latest.json").write_text('{"name": "my app"}')
    with pytest.raises(ValueError, match="not written by this platform"):
        run_job("label", job_from_data(spec), lambda line: None)
    assert (tmp_path / "out" / "latest.json").read_text() == '{"name": "my app"}'
