import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fisa_platform import cli, storage
from fisa_platform.compute import Compute
from fisa_platform.job import Stage, StageContext, StageResult
from fisa_platform.stages import STAGES

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class NoteConfig:
    output_uri: str
    text_uri: str | None = None
    problem: str = ""


def run_note(config: NoteConfig, compute: Compute, context: StageContext) -> StageResult:
    if config.problem == "expected":
        raise ValueError("config.problem: expected nothing, got 'expected'; remove it")
    if config.problem == "bug":
        json.loads("{")
    storage.write_json(storage.join(context.output.uri, "note.json"), config.text_uri)
    return StageResult(rows=1, message="noted")


@pytest.fixture(autouse=True)
def note_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "note", Stage(NoteConfig, run_note, uses_ray=False))


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "note.yaml"
    path.write_text(f"stage: note\nconfig:\n  output_uri: {tmp_path}/out\n")
    return path


@pytest.fixture
def pipeline_spec(tmp_path: Path) -> Path:
    path = tmp_path / "both.yaml"
    path.write_text(
        f"""stage: pipeline
config:
  output_uri: {tmp_path}/both
  steps:
    one: {{stage: note, config: {{output_uri: "${{output_uri}}/one"}}}}
    two: {{stage: note, config: {{output_uri: "${{output_uri}}/two", text_uri: "${{output_uri}}/one"}}}}
"""
    )
    return path


def fisa(*arguments: object) -> int:
    """Run a command here; its exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_a_spec_alone_runs(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fisa(spec) == 0
    first = capsys.readouterr().out
    assert "note: started (version " in first
    assert first.endswith("\n\nnoted\n")
    assert fisa("run", spec) == 0
    assert "note: up to date (version " in capsys.readouterr().out


def test_a_pipeline_ends_with_its_summary(pipeline_spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fisa(pipeline_spec) == 0
    assert "[2/2] two: finished" in capsys.readouterr().out
    assert fisa(pipeline_spec, "--set", "config.steps.two.config.problem=x") == 0
    assert "[1/2] one: up to date" in capsys.readouterr().out
    assert fisa(pipeline_spec, "--set", "config.steps.two.config.problem=x") == 0
    assert capsys.readouterr().out.endswith("\neverything is up to date\n")


def test_mistakes_exit_with_2_and_no_traceback(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fisa(spec, "--set", "config.textt_uri=a", "--set", "comput=1") == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 2
    assert all(line.startswith(f"error: {spec}") for line in output.err.splitlines())
    assert output.out == ""


def test_expected_failures_are_one_sentence_and_bugs_keep_their_traceback(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fisa(spec, "--set", "config.problem=expected") == 1
    assert capsys.readouterr().err == (
        "error: in 'note': config.problem: expected nothing, got 'expected'; remove it\n"
    )
    assert fisa(spec, "--set", "config.text_uri=/absent/x") == 1
    assert "/absent/x: nothing is there; check the path" in capsys.readouterr().err
    with pytest.raises(json.JSONDecodeError):
        cli.main([str(spec), "--set", "config.problem=bug"])


@pytest.mark.usefixtures("ray_cluster")
def test_failures_in_workers_are_told_apart_in_the_same_way() -> None:
    import ray

    with pytest.raises(FileNotFoundError) as ours:
        ray.get(ray.remote(storage.read_bytes).remote("/absent/x"))
    assert cli.raised_by_us(ours.value)
    with pytest.raises(json.JSONDecodeError) as foreign:
        ray.get(ray.remote(json.loads).remote("{"))
    assert not cli.raised_by_us(foreign.value)


def test_check_prints_the_plan_and_runs_nothing(
    pipeline_spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fisa("check", pipeline_spec) == 0
    plan = capsys.readouterr().out
    assert "stage pipeline of 2 jobs" in plan
    assert "2. two (stage note): to run" in plan
    assert f"reads   text_uri: {tmp_path}/both/one (written by an earlier step)" in plan
    assert f"writes  {tmp_path}/both/two" in plan
    assert "needs   1 workers, each 1 CPUs, 0 GPUs" in plan
    assert not (tmp_path / "both").exists()


def test_check_lists_the_mistakes_of_every_spec(
    spec: Path, pipeline_spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    below_a_file = f"{spec}/out"
    assert (
        fisa("check", spec, pipeline_spec, "absent.yaml", "--set", f"config.output_uri={below_a_file}") == 2
    )
    errors = capsys.readouterr().err.splitlines()
    refused = f"cannot be written, {spec} is no folder with write access; choose another"
    assert errors == [
        f"error: {spec}: config.output_uri: {below_a_file}: {refused}",
        f"error: {pipeline_spec}: config.steps.one.config.output_uri: {below_a_file}/one: {refused}",
        f"error: {pipeline_spec}: config.steps.two.config.output_uri: {below_a_file}/two: {refused}",
        "error: absent.yaml: no such file; check the path",
    ]


def test_check_refuses_a_bucket_that_is_not_there(
    spec: Path, s3_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fisa("check", spec, "--set", "config.text_uri=s3://absent/x") == 2
    reason = "there is no such bucket; check its name or create it"
    assert capsys.readouterr().err == f"error: {spec}: config.text_uri: s3://absent/x: {reason}\n"
    assert fisa("check", spec, "--set", f"config.output_uri={s3_uri}") == 0


def test_status_lists_versions_and_marks_the_latest(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fisa(spec)
    fisa(spec, "--set", "config.problem=x")
    capsys.readouterr()
    assert fisa("status", tmp_path) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["output", "version", "stage", "created", "rows", "seconds"]
    assert len(rows) == 2
    assert sum("*" in row for row in rows) == 1
    assert fisa("status", tmp_path / "absent") == 0
    assert "no versions there" in capsys.readouterr().out


def test_a_checkpoint_is_converted_or_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "model_final_54b88a.pkl"
    source.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert fisa("convert-mask2former", source, tmp_path / "out") == 1
    assert "its name says 54b88a; download it again, or pass --any-checksum" in capsys.readouterr().err
    assert fisa("convert-mask2former", "--any-checksum", source, tmp_path / "out") == 1
    assert capsys.readouterr().err.startswith(
        f"error: {source}: cannot be read as a pickle of arrays: it asks for os.system, which is refused"
    )
    assert list(tmp_path.iterdir()) == [source]


def test_schema_is_written(tmp_path: Path) -> None:
    assert fisa("schema", "--output", tmp_path / "spec.json") == 0
    schema = json.loads((tmp_path / "spec.json").read_text())
    assert "note" in schema["properties"]["stage"]["enum"]
    assert "pipeline" not in schema["$defs"]["step"]["properties"]["stage"]["enum"]


def python_platform(
    *arguments: str, folder: Path, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `python platform` as a shell would, with nothing on the path; `options` are Python's own."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *options, str(REPOSITORY / "platform"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_python_platform_is_the_same_command(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("stage: shrad\nconfig: {}\n")
    result = python_platform("x.yaml", folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: x.yaml:1: stage: unknown stage 'shrad'")
    assert "Traceback" not in result.stderr
    assert python_platform("check", "x.yaml", folder=tmp_path).stderr == result.stderr
    assert python_platform("--help", folder=tmp_path).returncode == 0


def test_a_python_without_the_dependencies_says_what_to_do(tmp_path: Path) -> None:
    result = python_platform("x.yaml", folder=tmp_path, options=["-S"])
    assert result.returncode == 1
    assert "is not installed for" in result.stderr and "`uv run`" in result.stderr
    assert "Traceback" not in result.stderr


def test_reading_a_spec_imports_neither_ray_nor_torch() -> None:
    code = "import sys, fisa_platform.cli; print({'ray', 'torch', 'open_clip', 'skimage'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "platform")}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
