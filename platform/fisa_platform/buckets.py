"""Clients of S3 and of servers that speak it, patient with a bucket that fails often.

Standard variables configure them: AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID, ...
"""

import os
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pyarrow.fs

ATTEMPTS = 10
"""How often pyarrow asks a bucket before a 503 is an error; its own three fail a long job in a bad hour."""


def open_s3() -> Any:
    """fsspec's client, for control files; one that no server answers fails within half a minute."""
    import s3fs.core

    config: dict[str, Any] = {"connect_timeout": 5, "retries": {"max_attempts": 3, "mode": "standard"}}
    if _endpoint():
        # Servers other than AWS: bucket names in the path, and no checksums that they do not know.
        config["s3"] = {"addressing_style": "path"}
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    s3fs.core.set_custom_error_handler(_may_pass)
    return fsspec.filesystem("s3", config_kwargs=config, use_listings_cache=False)


def pyarrow_s3(bucket: str) -> pyarrow.fs.S3FileSystem:
    """pyarrow's client for a bucket, for rows in bulk; it finds keys, profiles and roles itself."""
    return _pyarrow_s3(bucket, _endpoint())


@cache
def _pyarrow_s3(bucket: str, endpoint: str | None) -> pyarrow.fs.S3FileSystem:
    # The standard strategy has a budget of retries, which a bucket that fails often uses up in a minute.
    retries = pyarrow.fs.AwsDefaultS3RetryStrategy(max_attempts=ATTEMPTS)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint is None:
        region = region or pyarrow.fs.resolve_s3_region(bucket)
        return pyarrow.fs.S3FileSystem(region=region, retry_strategy=retries)
    address = urlsplit(endpoint)
    return pyarrow.fs.S3FileSystem(
        region=region, endpoint_override=address.netloc, scheme=address.scheme, retry_strategy=retries
    )


def _endpoint() -> str | None:
    """The address of a server other than AWS."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _may_pass(error: Exception) -> bool:
    """Whether s3fs asks again, five times, after botocore has: it knows SlowDown, which no HEAD can say."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return False
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (500, 502, 503, 504)
