"""A bucket that answers 503 is asked again, also where the answer has no body that says why."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest
from faulty_proxy import Faults, faulty_proxy

from fisa_platform import storage


@contextmanager
def failing(server: Any, refused: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The bucket of the tests behind a proxy that refuses such a share of the requests."""
    faults = Faults(refused=refused, delayed=0)
    with faulty_proxy(server.environment["AWS_ENDPOINT_URL"], faults) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield faults


def test_files_are_read_and_written_though_most_requests_are_refused(
    s3_server: Any, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [storage.join(s3_uri, str(number)) for number in range(30)]

    def write_and_read(uri: str) -> str:
        storage.write_bytes(uri, uri.encode())
        return storage.sha256_of(uri)  # a HEAD and a GET

    with failing(s3_server, 0.6, monkeypatch) as faults, ThreadPoolExecutor(len(uris)) as pool:
        digests = list(pool.map(write_and_read, uris))
    assert faults.failures > 0.4 * faults.requests > 0
    assert digests == [hashlib.sha256(uri.encode()).hexdigest() for uri in uris]


def test_a_bucket_that_refuses_everything_is_one_sentence(
    s3_server: Any, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{s3_uri}/there", b"1")
    with (
        failing(s3_server, 1, monkeypatch),
        pytest.raises(storage.StorageError, match="too busy each time it was asked; try again later"),
    ):
        storage.sha256_of(f"{s3_uri}/there")
