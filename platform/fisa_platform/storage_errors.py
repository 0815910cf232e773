"""What goes wrong with a disk or a bucket, in one sentence with the next step."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


class StorageError(OSError):
    """A location that cannot be used, with the reason and the next step."""


_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_REASONS = {
    "NoCredentials|Unable to locate credentials": f"no credentials were found; set {_KEYS}, or AWS_PROFILE",
    "ProfileNotFound": "AWS_PROFILE names a profile that ~/.aws/config does not have; correct it or unset it",
    "InvalidAccessKeyId|SignatureDoesNotMatch|InvalidSecurity|InvalidToken|ExpiredToken": (
        f"the access key was refused; check {_KEYS}"
    ),
    r"AccessDenied|Forbidden|\b403\b": f"access was denied; check {_KEYS} and the key's rights there",
    "NoSuchBucket|bucket does not exist": "there is no such bucket; check its name or create it",
    "EndpointConnection|ConnectTimeout|ConnectionClosed|ClientConnector|Could not connect|ReadTimeout": (
        "the server does not answer; check AWS_ENDPOINT_URL and the network"
    ),
    "SlowDown|reduce your request rate|'HTTPStatusCode': 50[0234]": (
        "the server was too busy each time it was asked; try again later: a job goes on where it stopped"
    ),
}


@contextmanager
def clear_errors(uri: str, *, local: bool) -> Iterator[None]:
    """Say in one sentence what a bucket's client reports in many ways; other errors pass unchanged."""
    try:
        yield
    except (StorageError, FileExistsError):
        raise
    except Exception as error:
        if local:
            clear = _local_error(uri, error)
            if clear is error:
                raise
            raise clear from error
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
            chain.append(cause)
        text = " ".join(f"{type(e).__name__} {getattr(e, 'response', '')} {e}" for e in chain)
        for pattern, reason in _REASONS.items():
            if re.search(pattern, text):
                raise StorageError(f"{uri}: {reason}") from error
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"{uri}: no such file; check the path") from error
        raise


def _local_error(uri: str, error: Exception) -> Exception:
    """The sentence for an error of a disk; any other error as it is."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{uri}: no such file; check the path")
    if isinstance(error, PermissionError) and error.strerror:
        return PermissionError(f"{uri}: {error.strerror}; check the rights there")
    if isinstance(error, IsADirectoryError):
        return StorageError(f"{uri}: is a folder, not a file; check the path")
    if isinstance(error, OSError) and error.strerror:
        return StorageError(f"{uri}: {error.strerror}; choose another place or make room there")
    return error
