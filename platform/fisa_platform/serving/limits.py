"""What one request may ask for, and how many requests are worked on together."""

from dataclasses import dataclass

MAX_NAME_LENGTH = 200
"""Characters of one class name with its synonyms."""

_ROOM_FOR_WORDS = 1_000_000
_PREFIX_FORMS = ("/", "file:///", "s3://")


@dataclass(frozen=True, kw_only=True, slots=True)
class Batching:
    size: int = 8
    """Pictures of one forward pass, at most."""

    wait_seconds: float = 0.01
    """How long the first picture of a batch waits for others."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        if self.wait_seconds < 0:
            raise ValueError(f"wait_seconds must be 0 or more, got {self.wait_seconds}")

    @property
    def max_ongoing_requests(self) -> int:
        """Requests that one replica accepts: a batch that is computed, and the next that is being read."""
        return 2 * self.size


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    max_image_bytes: int = 20_000_000
    """Size of an encoded picture."""

    max_image_pixels: int = 40_000_000
    """Width times height of a picture; looked at before it is decoded."""

    max_class_names: int = 1_500
    """Class names of one request, synonyms counted."""

    max_queued_requests: int = 64
    """Requests that wait while all replicas are busy; the next one is answered with 503."""

    request_timeout_seconds: float = 60.0
    """A request that takes longer is answered with 504."""

    allowed_image_prefixes: tuple[str, ...] = ()
    """Folders (absolute paths, file:// or s3://) below which an `image_uri` may lie; none refuses all."""

    def __post_init__(self) -> None:
        for name in ("max_image_bytes", "max_image_pixels", "max_class_names"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        # Ray Serve takes -1 as "no limit", which would let a crowd fill the memory.
        if self.max_queued_requests < 0:
            raise ValueError(f"max_queued_requests must be 0 or more, got {self.max_queued_requests}")
        if self.request_timeout_seconds <= 0:
            raise ValueError(f"request_timeout_seconds must be above 0, got {self.request_timeout_seconds}")
        for prefix in self.allowed_image_prefixes:
            if not prefix.startswith(_PREFIX_FORMS):
                raise ValueError(
                    f"allowed_image_prefixes must be absolute paths, file:// or s3://, got {prefix!r}"
                )

    @property
    def max_body_bytes(self) -> int:
        """Size of a whole request: the picture in base64, and the words."""
        return self.max_image_bytes * 4 // 3 + _ROOM_FOR_WORDS
