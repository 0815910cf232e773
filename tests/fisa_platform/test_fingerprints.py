"""What makes a stage run anew: another config, other inputs or another revision, but not a new release."""

import dataclasses
import hashlib
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fisa_model.config import PANOPTIC_PRESETS
from fisa_model.vocabulary import TEMPLATES
from fisa_platform.compute import Compute
from fisa_platform.decode import fields_of, is_required
from fisa_platform.job import Job, Stage, StageResult, what_data_depends_on
from fisa_platform.runner import run_job
from fisa_platform.stages import STAGES

DEFAULTS_PATH = Path(__file__).parent / "stage_defaults.json"
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    size: int = 3
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    output_uri: str
    seed: int
    part: Part = field(default_factory=Part)
    large: Part = Part(size=9)
    other: Part | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    max_rejected_fraction: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LaterWhole:
    """As `Whole`, of a release that can do more."""

    output_uri: str
    seed: int
    part: Part = field(default_factory=Part)
    mode: str = "as before"


def run(config, *, revision=1, result=None):
    stage = Stage(type(config), lambda *_: result or StageResult(), uses_ray=False, revision=revision)
    job = Job(stage_name="whole", stage=stage, config=config, compute=Compute())
    return run_job("whole", job, lambda _: None)


def test_what_a_spec_leaves_out_and_what_it_says_as_it_is_are_the_same():
    said = Whole(output_uri="/a", seed=1, part=Part(size=3, names=()), other=None, parts={})
    assert what_data_depends_on(said) == what_data_depends_on(Whole(output_uri="/b", seed=1)) == {"seed": 1}


def test_every_other_value_counts():
    configs = [
        Whole(output_uri="/a", seed=1),
        Whole(output_uri="/a", seed=0),
        Whole(output_uri="/a", seed=1, part=Part(size=4)),
        Whole(output_uri="/a", seed=1, part=Part(names=("cat", "dog"))),
        Whole(output_uri="/a", seed=1, large=Part()),
        Whole(output_uri="/a", seed=1, other=Part()),
        Whole(output_uri="/a", seed=1, parts={"one": Part()}),
        Whole(output_uri="/a", seed=1, parts={"two": Part()}),
        Whole(output_uri="/a", seed=1, parts={"two": Part(size=4)}),
    ]
    texts = {json.dumps(what_data_depends_on(config), sort_keys=True) for config in configs}
    assert len(texts) == len(configs)


def test_a_tolerance_does_not_count():
    tolerant = Whole(output_uri="/a", seed=1, max_rejected_fraction=0.5)
    assert what_data_depends_on(tolerant) == {"seed": 1}


def test_a_release_with_another_field_finds_what_an_earlier_one_made(tmp_path):
    output = str(tmp_path / "out")
    assert run(Whole(output_uri=output, seed=1)).ran
    assert not run(LaterWhole(output_uri=output, seed=1)).ran
    assert run(LaterWhole(output_uri=output, seed=1, mode="new")).ran


def test_another_revision_of_a_stage_makes_its_data_anew(tmp_path):
    config = Whole(output_uri=str(tmp_path / "out"), seed=1)
    first, again, revised = run(config), run(config), run(config, revision=2)
    assert (first.ran, again.ran, revised.ran) == (True, False, True)
    assert first.version.uri != revised.version.uri


def test_a_version_that_lost_more_than_may_be_lost_is_refused(tmp_path):
    lossy = StageResult(rows=8, extra={"rejected": 2})
    tolerant, strict = (
        Whole(output_uri=str(tmp_path / "out"), seed=1, max_rejected_fraction=share) for share in (0.2, 0.1)
    )
    assert run(tolerant, result=lossy).ran
    assert not run(tolerant).ran
    with pytest.raises(ValueError, match=r"made without 2 of 10 images, max_rejected_fraction is 0\.1; its"):
        run(strict)


def configs_within(kind):
    """The dataclasses that a type is made of, itself among them."""
    if dataclasses.is_dataclass(kind) and kind is not Job:
        return {kind}.union(*(configs_within(part) for _, part, _ in fields_of(kind)))
    return set().union(*(configs_within(part) for part in typing.get_args(kind)))


def default_of(member):
    value = member.default_factory() if member.default is dataclasses.MISSING else member.default
    if not dataclasses.is_dataclass(value):
        return value
    return f"{type(value).__name__}()" if value == type(value)() else repr(value)


def defaults_of(config):
    """Of a stage's config and all that it is made of."""
    return {
        f"{kind.__name__}.{member}": default_of(facts)
        for kind in sorted(configs_within(config), key=lambda kind: kind.__name__)
        for member, _, facts in fields_of(kind)
        if not is_required(facts)
    }


def shipped():
    """Digests of what decides data and stands in no config."""
    model = REPOSITORY / "fisa_model"
    files = [*(model / "class_lists").glob("*.tsv"), *(model / "assets").rglob("*")]
    contents = {path.relative_to(model).as_posix(): path.read_bytes() for path in files if path.is_file()}
    contents |= {"presets": repr(PANOPTIC_PRESETS).encode(), "templates": repr(TEMPLATES).encode()}
    return {name: hashlib.sha256(data).hexdigest()[:16] for name, data in sorted(contents.items())}


def test_a_changed_default_comes_with_a_revision(tmp_path):
    """Otherwise versions of the old default would pass for versions of the new one."""
    versioned = {name: stage for name, stage in STAGES.items() if stage.versioned}
    found = {
        "revisions": {name: stage.revision for name, stage in versioned.items()},
        "defaults": {name: defaults_of(stage.config) for name, stage in versioned.items()},
        "shipped": shipped(),
    }
    known = json.loads(DEFAULTS_PATH.read_text(encoding="utf-8"))
    found_path = tmp_path / DEFAULTS_PATH.name
    found_path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads(found_path.read_text(encoding="utf-8"))
    for stage, defaults in found["defaults"].items():
        before = known["defaults"].get(stage, {})
        changed = sorted(name for name in before.keys() & defaults if before[name] != defaults[name])
        same = known["revisions"].get(stage) == found["revisions"][stage]
        assert not (changed and same), f"{changed} changed; raise `revision` of stage {stage!r} in STAGES"
    changed = sorted(n for n in known["shipped"] if known["shipped"][n] != found["shipped"].get(n))
    same = known["revisions"] == found["revisions"]
    assert not (changed and same), f"{changed} changed; raise `revision` of the stages that read it in STAGES"
    assert known == found, f"write what is new to the file of defaults: mv {found_path} {DEFAULTS_PATH}"
