from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fisa_platform.compute import Compute
from fisa_platform.job import Stage, StageContext, StageResult
from fisa_platform.spec import SpecError, load_job
from fisa_platform.stages import STAGES


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    weights_uri: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyConfig:
    output_uri: str
    images_uri: str | None = None
    rate: float = 0.1
    names: tuple[str, ...] = ()
    iterations: int = 10
    model: Model = field(default_factory=Model)

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be 1 or more, got {self.iterations}; raise it")


def run_copy(config: CopyConfig, compute: Compute, context: StageContext) -> StageResult:
    return StageResult()


@pytest.fixture(autouse=True)
def copy_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "copy", Stage(CopyConfig, run_copy, uses_ray=False))


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return tmp_path / "copy.yaml"


def mistakes(spec: Path, text: str, *overrides: str) -> list[str]:
    spec.write_bytes(text.encode())
    with pytest.raises(SpecError) as caught:
        load_job(spec, overrides)
    return [line.replace(str(spec), "copy.yaml") for line in caught.value.mistakes]


GOOD = """#!/usr/bin/env -S python platform
stage: copy
config:
  output_uri: /out
  rate: 1e-4
  names: [no, on, 2024-01-01]
compute:
  workers: {max: 3}
"""


def test_a_spec_becomes_a_job(spec: Path) -> None:
    spec.write_text(GOOD)
    job = load_job(spec, ["config.iterations=3", "compute.workers={min: 2, max: 4}"])
    assert job.config == CopyConfig(
        output_uri="/out", rate=0.0001, names=("no", "on", "2024-01-01"), iterations=3
    )
    assert (job.compute.workers.min, job.compute.workers.max) == (2, 4)


def test_local_locations_become_absolute(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec.write_text(GOOD)
    job = load_job(
        spec, ["config.output_uri=out", "config.images_uri=s3://b/x/", "config.model.weights_uri=w"]
    )
    assert job.config.output_uri == str(tmp_path / "out")
    assert job.input_uris() == {"images_uri": "s3://b/x", "model.weights_uri": str(tmp_path / "w")}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD.replace("rate:", "raet:"), "copy.yaml:5: config.raet: unknown field (with the value 0.0001)"),
        (
            GOOD.replace("stage: copy", "stage: copi"),
            "copy.yaml:2: stage: unknown stage 'copi', accepted are ",
        ),
        (GOOD.replace("stage: copy\n", ""), "stage: required, but missing; add 'stage', one of "),
        (GOOD.replace("1e-4", "fast"), "copy.yaml:5: config.rate: expected a number, got 'fast'"),
        (GOOD.replace("max: 3", "max: 0"), "copy.yaml:8: compute.workers: max must be at least 1, got 0"),
        (
            GOOD + "kind: x\n",
            "copy.yaml:9: kind: unknown field (with the value 'x'), accepted are stage, config",
        ),
        (
            GOOD + "stage: copy\n",
            "copy.yaml: stage: line 9: written twice (first on line 2); keep one of the two",
        ),
        (GOOD.replace("{max: 3}", "{max: 3"), "copy.yaml: line 9, column 1: not valid YAML ("),
        ("", "copy.yaml: the file holds no spec; write the keys stage, config, compute"),
        ("- a\n", "copy.yaml: expected a mapping with the keys stage, config, compute, got ['a']"),
        (GOOD.replace("\n", "\r\n"), "copy.yaml: has Windows line ends (CRLF)"),
        ("stage: copy\nconfig:\n", "copy.yaml:2: config: expected a mapping with output_uri, images_uri,"),
        (
            GOOD.replace("rate: 1e-4", "iterations: -1"),
            "copy.yaml:5: config: iterations must be 1 or more, got -1",
        ),
        (GOOD.replace("/out", "[/out"), "copy.yaml: line 5, column 7: not valid YAML ("),
        (GOOD.replace("/out", "\tout"), "not valid YAML ("),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(spec: Path, text: str, sentence: str) -> None:
    found = mistakes(spec, text)
    assert len(found) == 1
    assert sentence in found[0]
    assert "\n" not in found[0]


def test_all_mistakes_are_reported_at_once(spec: Path) -> None:
    text = GOOD.replace("rate:", "raet:").replace("{max: 3}", "{mx: 3}")
    assert len(mistakes(spec, text, "config.iterations=x")) == 3


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "config.iterations=x",
            "copy.yaml with --set config.iterations=x: config.iterations: expected a whole",
        ),
        ("config.iteration=3", "did you mean 'iterations'?"),
        ("config.iterations", "--set: expected a dotted name, '=' and a value, got 'config.iterations'"),
        (
            "config.iterations=-1",
            "copy.yaml with --set config.iterations=-1: config: iterations must be 1 or",
        ),
        (
            "compute.workres.min=1",
            "copy.yaml with --set compute.workres.min=1: compute.workres: unknown field",
        ),
        ("config.rate.x=3", "config.rate.x: cannot be set, as something above it is no mapping"),
        ("config.rate=[1, 2", "copy.yaml: --set config.rate=[1, 2: line 1, column 6: not valid YAML ("),
        ("config.rate={a: 1, a: 2}", "--set config.rate={a: 1, a: 2}: line 1: written twice"),
        ("config.rate=!!int abc", "--set config.rate=!!int abc: line 1: 'abc' is not what its tag"),
        ("config.rate=!!bool x", "'x' is not what its tag 'tag:yaml.org,2002:bool' says; leave the tag out"),
        ('config.rate="\\ud83d"', "half a letter (a lone surrogate); write it whole"),
        ("config.rate=&a [*a]", "--set config.rate=&a [*a]: line 1: holds itself; write the values out"),
        ("config.iterations=99999999999999999999", "expected a whole number, got 9999999999999999999"),
        ("config.output_uri=s3:/x", "config.output_uri: 's3:/x' is no location; write a path"),
    ],
)
def test_a_mistake_in_an_override_names_the_override(spec: Path, override: str, sentence: str) -> None:
    assert sentence in mistakes(spec, GOOD, override)[0]


LABEL = "stage: label\nconfig: {images_uri: a, output_uri: b, classifier: {weights_uri: w}}\n"


def test_an_entry_of_a_list_that_an_override_set_is_its_own(spec: Path) -> None:
    spec.write_text(LABEL)
    with pytest.raises(SpecError, match=r"--set config.things=\[1, 2\]: config.things\[0\]: expected text"):
        load_job(spec, ["config.things=[1, 2]"])


def test_letters_that_json_writes_in_two_halves_are_one(spec: Path) -> None:
    spec.write_text(LABEL)
    assert load_job(spec, ['config.things=["\\ud83d\\ude00"]']).config.things == ("\U0001f600",)


def test_a_folder_is_no_spec(spec: Path) -> None:
    with pytest.raises(SpecError, match="is a folder, not a spec; give a file in it"):
        load_job(spec.parent)


def test_a_missing_file_suggests_its_neighbour(spec: Path) -> None:
    spec.write_text(GOOD)
    with pytest.raises(SpecError, match=r"copi\.yaml: no such file; did you mean 'copy\.yaml'\?"):
        load_job(spec.with_name("copi.yaml"))


PIPELINE = """stage: pipeline
config:
  output_uri: /out
  steps:
    first: {stage: copy, config: {output_uri: "${output_uri}/first"}}
    second: {stage: copy, config: {output_uri: "${output_uri}/second", images_uri: "${output_uri}/first"}}
"""


def test_steps_of_a_pipeline_share_its_output(spec: Path) -> None:
    spec.write_text(PIPELINE)
    steps = load_job(
        spec, ["config.output_uri=/else", "config.steps.second.config.iterations=2"]
    ).config.steps
    assert steps["first"].config.output_uri == "/else/first"
    assert steps["second"].config == CopyConfig(
        output_uri="/else/second", images_uri="/else/first", iterations=2
    )


def test_an_override_of_a_step_that_is_not_there_suggests_another(spec: Path) -> None:
    [found] = mistakes(spec, PIPELINE, "config.steps.frist.config.iterations=2")
    assert "copy.yaml with --set config.steps.frist.config.iterations=2: config.steps.frist.stage:" in found
    assert found.endswith("did you mean 'first'?")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            PIPELINE.replace("stage: copy", "stage: pipeline"),
            "config.steps.first.stage: unknown stage 'pipeline'",
        ),
        (PIPELINE.replace("${output_uri}/first", "${out}/first"), "unknown name in '${out}/first'"),
        (PIPELINE.replace("/second", "/first"), "steps 'first' and 'second' both write /out/first"),
        (PIPELINE + "compute: {}\n", "stage: stage 'pipeline' has no compute of its own"),
        (PIPELINE.split("    first")[0] + "    {}\n", "config: steps must name at least one step"),
        (
            PIPELINE.replace('/first"}}', '/first", images_uri: /out/second}}', 1),
            "'first' reads /out/second, which 'second' writes later; move 'second' up",
        ),
    ],
)
def test_a_mistaken_pipeline_is_refused(spec: Path, text: str, sentence: str) -> None:
    assert sentence in "\n".join(mistakes(spec, text))
