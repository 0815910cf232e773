"""What tests of both packages share: the real samples, one Ray session, one S3 server."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Before anything imports ray: under `uv run` it would install this project anew for every worker.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"

# Text embeddings that jobs keep on this machine are not the user's, and not those of an earlier run.
_caches = tempfile.TemporaryDirectory(prefix="fisa-caches-")
os.environ["XDG_CACHE_HOME"] = _caches.name

# Before anything imports torch: models of these tests are too small to share between threads, which on a busy
# machine wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real samples that lie beside the checkout."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the samples are not beside the checkout ({folder})")
    return folder


@pytest.fixture(scope="session")
def reference() -> Callable[[str], dict[str, Any]]:
    """Random inputs and what a reference implementation answered, by name (tests/fisa_model/parity)."""

    def load(name: str) -> dict[str, Any]:
        with np.load(Path(__file__).parent / "fisa_model" / "parity" / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray session of four logical cores; it is never another one that runs on this machine.

    It also says to have a GPU: workers that ask for one get none, but as many threads as a GPU's would.
    """
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY / "platform"), str(REPOSITORY)])
    import ray

    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, logging_level="WARNING")
    yield
    ray.shutdown()


@dataclass(frozen=True)
class S3Server:
    """A running S3 server."""

    environment: dict[str, str]
    """The standard variables that lead to it."""

    folder: Path
    """Where it keeps its buckets, one folder each."""


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server on this machine, with one bucket named `bucket`."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    rclone = Path(sys.executable).with_name("rclone")
    command = [str(rclone), "serve", "s3", "--addr", address, "--auth-key", f"{key},{secret}", str(folder)]
    environment = {**os.environ, "RCLONE_CONFIG": os.devnull}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://{address}", process)
        yield S3Server(
            environment={
                "AWS_ENDPOINT_URL": f"http://{address}",
                "AWS_ACCESS_KEY_ID": key,
                "AWS_SECRET_ACCESS_KEY": secret,
                "AWS_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            },
            folder=folder,
        )
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture
def s3_uri(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An unused folder in a bucket; the variables that lead there are set for this test."""
    import fsspec

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    s3 = fsspec.get_filesystem_class("s3")
    s3.clear_instance_cache()
    yield f"s3://bucket/{secrets.token_hex(6)}"
    s3.clear_instance_cache()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the S3 server ended at once with exit code {process.returncode}")
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"the S3 server did not answer at {url}")


@pytest.fixture(scope="session")
def mask2former_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mask2Former with random weights, as transformers saves it."""
    import torch
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=7,
        num_labels=5,
    )
    folder = tmp_path_factory.mktemp("mask2former")
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    return folder
