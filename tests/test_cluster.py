"""The manifests of `cluster/` are what KubeRay and Ray's launcher take, and hold what jobs ask for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fisa_platform.spec import load_job

REPOSITORY = Path(__file__).resolve().parents[1]
CLUSTER = REPOSITORY / "cluster"
JOBS = ["shard", "propose", "train", "evaluate", "label"]


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def closed(schema: Any) -> Any:
    """An OpenAPI schema that refuses keys it does not know, as the server does with strict validation."""
    if isinstance(schema, list):
        return [closed(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    inner = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner["additionalProperties"] = False
    return inner


def test_kuberay_takes_the_cluster(shared_data: Path) -> None:
    definition = yaml.safe_load((shared_data / "kuberay_crds" / "ray.io_rayclusters.yaml").read_text())
    (schema,) = (
        version["schema"]["openAPIV3Schema"]
        for version in definition["spec"]["versions"]
        if version["name"] == "v1"
    )
    schema = closed(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    manifest = read("kuberay.yaml")
    jsonschema.validate(manifest, schema)
    manifest["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(manifest, schema)


def test_the_cluster_launcher_takes_the_cluster() -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = read("aws.yaml")
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    config["available_node_types"]["gpu"]["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(config, schema)


def worker_shapes() -> Iterator[tuple[str, list[dict[str, float]]]]:
    """CPUs and GPUs of one node of each kind of worker."""
    groups = read("kuberay.yaml")["spec"]["workerGroupSpecs"]
    containers = [group["template"]["spec"]["containers"][0]["resources"] for group in groups]
    yield (
        "kuberay.yaml",
        [
            {
                "CPU": float(resources["requests"]["cpu"]),
                "GPU": float(resources["limits"].get("nvidia.com/gpu", 0)),
            }
            for resources in containers
        ],
    )
    kinds = read("aws.yaml")["available_node_types"]
    yield "aws.yaml", [{"CPU": 0.0, "GPU": 0.0, **kind["resources"]} for kind in kinds.values()]


@pytest.mark.parametrize("job", JOBS)
def test_some_kind_of_node_holds_a_worker_of_each_job(job: str) -> None:
    compute = load_job(REPOSITORY / "jobs" / f"{job}.yaml", []).compute
    for name, shapes in worker_shapes():
        assert any(
            shape["CPU"] >= compute.cpus_per_worker and shape["GPU"] >= compute.gpus_per_worker
            for shape in shapes
        ), name


def test_nothing_runs_on_the_head_and_every_worker_may_go() -> None:
    kuberay, aws = read("kuberay.yaml")["spec"], read("aws.yaml")
    assert kuberay["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert aws["available_node_types"]["head"]["resources"]["CPU"] == 0
    assert {group["minReplicas"] for group in kuberay["workerGroupSpecs"]} == {0}
    assert {kind.get("min_workers", 0) for kind in aws["available_node_types"].values()} == {0}
    spot = {
        name
        for name, kind in aws["available_node_types"].items()
        if kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    }
    assert spot == {"data", "gpu"}
