"""The quickstart, reduced: the whole chain, then nothing, then only what a changed setting touches."""

import json
from pathlib import Path

import pytest

from fisa_platform.runner import Outcome, run_jobs
from fisa_platform.spec import load_job

QUICKSTART = Path(__file__).resolve().parents[2] / "jobs" / "quickstart.yaml"
SMALL = {
    "shard-train.config.toyworld.scenes": 24,
    "shard-val.config.toyworld.scenes": 16,
    "train.config.iterations": 4,
    "train.config.batches.size": 4,
    "label.config.limit": 2,
}

pytestmark = pytest.mark.timeout(600)


def quickstart(output: Path, **changes: object) -> dict[str, Outcome]:
    settings = {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}}
    overrides = [f"config.steps.{name}={value}" for name, value in settings.items()]
    job = load_job(QUICKSTART, [f"config.output_uri={output}", *overrides])
    return {outcome.name: outcome for outcome in run_jobs(job.config.steps, print)}


@pytest.mark.usefixtures("ray_cluster")
def test_quickstart(tmp_path: Path) -> None:
    first = quickstart(tmp_path)
    assert all(outcome.ran for outcome in first.values())
    report = first["report"].version
    assert report is not None
    result = json.loads(Path(report.file("result.json")).read_text())
    for system in ("baseline", "fisa"):
        for subset in ("seen", "unseen", "all"):
            assert 0 <= result[system][subset]["PQ"] <= 100
            assert 0 <= result[system][subset]["mIoU"] <= 100
    measured = {name: o.version.manifest.seconds for name, o in first.items() if o.version is not None}
    assert result["seconds"] == {name: s for name, s in measured.items() if name not in ("label", "report")}
    page = Path(report.file("report.html")).read_text()
    assert "Ground truth" in page and 'src="http' not in page
    labels = first["label"].version
    assert labels is not None
    assert len(json.loads(Path(labels.file("panoptic.json")).read_text())["annotations"]) == 2
    for name in ("panoptic", "overlays"):
        assert len(list(Path(labels.folder(name)).iterdir())) == 2

    again = quickstart(tmp_path)
    assert not any(outcome.ran for outcome in again.values())
    assert again["report"].message == first["report"].message

    changed = quickstart(tmp_path, train__config__seed=7)
    assert [name for name, outcome in changed.items() if outcome.ran] == [
        "train",
        "evaluate-fisa",
        "label",
        "report",
    ]
