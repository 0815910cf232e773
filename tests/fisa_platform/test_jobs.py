"""Every spec in jobs/ runs as a command and says what the code accepts."""

import stat
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from fisa_platform.cli import app
from fisa_platform.json_schema import spec_schema
from fisa_platform.spec import OF_JOBS, load_job, step_stages
from fisa_platform.stages import STAGES
from fisa_platform.yaml_source import read_yaml

SPECS = sorted((Path(__file__).resolve().parents[2] / "jobs").iterdir())
NAMED_OTHERWISE = {
    "benchmarks.yaml",
    "data_scaling.yaml",
    "iteration_scaling.yaml",
    "quickstart.yaml",
    "refcoco.yaml",
    "toy_ablations.yaml",
}

each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.name)


@each_spec
def test_the_file_is_a_command(spec: Path) -> None:
    assert stat.S_IMODE(spec.stat().st_mode) == 0o755
    data = spec.read_bytes()
    assert data.startswith(b"#!/usr/bin/env -S python platform\n")
    assert b"\r" not in data


@each_spec
def test_the_spec_decodes_and_its_name_starts_with_its_stage(spec: Path) -> None:
    job = load_job(spec)
    if spec.name in NAMED_OTHERWISE:
        assert job.stage_name in OF_JOBS
    else:
        assert spec.name.startswith(job.stage_name)


@each_spec
def test_the_json_schema_accepts_the_spec(spec: Path) -> None:
    validator = jsonschema.Draft202012Validator(spec_schema(STAGES, step_stages()))
    validator.validate(read_yaml(spec.read_text(encoding="utf-8")).data)


def test_the_json_schema_refuses_what_decoding_refuses() -> None:
    schema = spec_schema(STAGES, step_stages())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for mistaken in (
        {"stage": "shrad", "config": {}},
        {"stage": "shard", "config": {"outputuri": "x"}},
        {"stage": "shard"},
        {
            "stage": "pipeline",
            "config": {"output_uri": "x", "steps": {"a": {"stage": "pipeline", "config": {}}}},
        },
        {"stage": "pipeline", "config": {"output_uri": "x", "steps": {}}, "compute": {"workers": 3}},
    ):
        assert not validator.is_valid(mistaken), mistaken


def test_every_spec_is_accepted_without_its_data() -> None:
    result = CliRunner().invoke(app, ["check", "--offline", *map(str, SPECS)])
    assert result.exit_code == 0
    assert result.output.count("not looked at") >= len(SPECS)
