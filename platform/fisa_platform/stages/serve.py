"""Stage `serve`: the model behind HTTP, on the connected Ray, until it is interrupted."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from fisa_model.config import PanopticConfig
from fisa_model.mask_generators import GeneratorName, Precision, check_generator
from fisa_platform.classifier import ClassifierConfig, check_weights
from fisa_platform.compute import Compute
from fisa_platform.job import StageContext, StageResult
from fisa_platform.serving.limits import Batching, Limits

if TYPE_CHECKING:
    from ray.serve import Application

TOKEN_VARIABLE = "FISA_SERVE_TOKEN"
APPLICATION = "fisa"

_EVERYWHERE = ("0.0.0.0", "::")
_SECONDS_BETWEEN_LOOKS = 5.0
# A replica says itself that time is up; the proxy's own limit covers its queue, and answers less clearly.
_PROXY_GRACE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    classifier: ClassifierConfig
    """What names the masks."""

    generator: GeneratorName = "felzenszwalb"
    """The mask generator."""

    generator_weights: str | None = None
    """Folder or hub name of the generator's weights; none is the hub's Swin-B of COCO for Mask2Former, and
    right for a generator that has none."""

    generator_size: tuple[int, int] | None = None
    """Test size of a generator that is a network, [shorter side, longest side] in pixels; none is its own."""

    generator_precision: Precision = "fp32"
    """Arithmetic of a network that generates; `bf16` is faster and moves the borders of masks a little."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""

    port: int = 8000
    """Port to listen on."""

    auth: Literal["token", "none"] = "token"
    """`token` asks requests for the one in FISA_SERVE_TOKEN; `none` lets everybody in."""

    panoptic: PanopticConfig = field(default_factory=PanopticConfig)
    """What becomes a segment; a request may set its own object_threshold."""

    batching: Batching = field(default_factory=Batching)
    """How many pictures share a forward pass."""

    limits: Limits = field(default_factory=Limits)
    """What a request may ask for."""

    kept_bytes: int = 2_000_000_000
    """Memory of a replica's device for the pictures asked about last, so that other words about one take no
    new pass over it: at 896 x 896 with ViT-L/14 one takes 0.8 GB in fp32, half in bf16. 0 keeps none."""

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError("host is empty; write 127.0.0.1 for this machine, 0.0.0.0 for all addresses")
        check_generator(self.generator, self.generator_weights, self.generator_size, self.generator_precision)
        if self.kept_bytes < 0:
            raise ValueError(f"kept_bytes must be 0 or more, got {self.kept_bytes}")
        if not 1 <= self.port <= 65_535:
            raise ValueError(f"port must be 1 to 65535, got {self.port}")


def run(config: ServeConfig, compute: Compute, context: StageContext) -> StageResult:
    """Deploy, say how to ask, and keep serving while this process runs."""
    from fisa_platform.serving.app import build_app
    from fisa_platform.serving.segmenter import load_segmenter

    check_weights(config.classifier)
    load = partial(
        load_segmenter,
        config.classifier,
        config.generator,
        config.generator_weights,
        config.generator_size,
        generator_precision=config.generator_precision,
        kept_bytes=config.kept_bytes,
    )
    app = build_app(
        load,
        panoptic=config.panoptic,
        batching=config.batching,
        limits=config.limits,
        compute=compute,
        token_digest=read_token_digest(config.auth, os.environ),
    )
    with deployed(app, config, context.progress) as url, _interrupted() as stop:
        context.progress(f"ready: open {url}/ in a browser, or ask\n{curl_line(url, config.auth)}")
        _watch(stop, context.progress)
        context.progress("stopping")
    return StageResult(message="stopped serving")


def read_token_digest(auth: Literal["token", "none"], environment: Mapping[str, str]) -> bytes | None:
    """SHA-256 of the token, so that the token itself is not stored on the cluster.

    Raises:
        ValueError: a token is asked for, and there is none, or none that can stand in a header.
    """
    if auth == "none":
        return None
    token = environment.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise ValueError(
            f"auth is 'token', but {TOKEN_VARIABLE} is not set; set it to a secret of your choice in the "
            "environment of this job, or write 'auth: none' in its config to let everybody in"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"{TOKEN_VARIABLE} has a space or a letter that clients write in headers in different ways; "
            "make it of ASCII letters, digits and signs, as `openssl rand -hex 32` does"
        )
    return hashlib.sha256(token.encode()).digest()


def curl_line(url: str, auth: Literal["token", "none"]) -> str:
    """A command that asks the service, for a terminal."""
    header = f' -H "Authorization: Bearer ${TOKEN_VARIABLE}"' if auth == "token" else ""
    return f"  curl{header} -F image=@picture.jpg -F 'classes=cat' -F 'classes=couch, sofa' {url}/v1/segment"


@contextmanager
def deployed(app: Application, config: ServeConfig, progress: Callable[[str], None]) -> Iterator[str]:
    """Run the application; gives its URL, and takes it away at the end.

    Raises:
        ValueError: the port or the application's name is taken, or the model cannot be loaded.
    """
    from ray import serve

    # Its lines about each step of Serve say nothing that ours do not.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    status = serve.status()
    if APPLICATION in status.applications:
        raise ValueError(
            f"an application {APPLICATION!r} is already served on this cluster; stop its job, "
            "or remove what a killed job left with `serve shutdown`"
        )
    if status.proxies:
        progress("Serve runs on this cluster already, so its own host, port and time limit hold")
    else:
        _start_serve(config)
    progress("loading the model")
    try:
        _deploy(app)
        yield f"http://{_reachable_host(config.host)}:{config.port}"
    finally:
        if status.proxies or serve.status().applications.keys() - {APPLICATION}:
            serve.delete(APPLICATION)
        else:
            serve.shutdown()  # type: ignore[no-untyped-call]


def _start_serve(config: ServeConfig) -> None:
    from ray import serve

    _check_port(config.host, config.port)
    timeout = config.limits.request_timeout_seconds + _PROXY_GRACE_SECONDS
    serve.start(
        http_options={"host": config.host, "port": config.port, "request_timeout_s": timeout},
        # A model that cannot be loaded would fill the terminal with the controller's tracebacks, twice.
        controller_options={"runtime_env": {"env_vars": {"RAY_SERVE_LOG_TO_STDERR": "0"}}},
    )


def _deploy(app: Application) -> None:
    from ray import serve

    try:
        serve.run(app, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        found = serve.status().applications[APPLICATION]
        # A deployment's message is a traceback; its last line says what happened.
        messages = [deployment.message for deployment in found.deployments.values()] or [found.message]
        reason = messages[0].rstrip().rsplit("\n", 1)[-1] or str(error)
        raise ValueError(f"the service could not start: {reason}") from error


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            # Any other error may be another machine's address, which the proxy there can use.
            if error.errno == errno.EADDRINUSE:
                raise ValueError(
                    f"port {port} of {host} is in use; choose another with --set config.port={port + 1}"
                ) from error


def _reachable_host(host: str) -> str:
    """An address of this cluster for a browser, where the service listens on all of them."""
    import ray

    if host in _EVERYWHERE:
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return f"[{host}]" if ":" in host else host


@contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM (`ray job stop`) sets, in place of ending this process at once."""
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(stop: threading.Event, progress: Callable[[str], None]) -> None:
    """Wait for `stop`; a change of the application's state is shown."""
    from ray import serve

    state = "RUNNING"
    while not stop.wait(_SECONDS_BETWEEN_LOOKS):
        found = serve.status().applications[APPLICATION]
        if found.status != state:
            state = found.status
            progress(f"the application is {state.lower()} {found.message}".rstrip())
