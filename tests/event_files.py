"""TensorBoard's event files, read."""

import struct
from collections import defaultdict
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog


def read_curves(version: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every scalar of a version, as TensorBoard shows them, in the order of their files."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for path in sorted((version / "tensorboard").glob("events.out.tfevents.*")):
        for event in _events(path.read_bytes()):
            if event.session_log.status == SessionLog.START:
                # A run that goes on: what was drawn from here on is taken back.
                for points in curves.values():
                    points[:] = [point for point in points if point[0] < event.step]
            for value in event.summary.value:
                curves[value.tag].append((event.step, value.simple_value))
    return curves


def _events(data: bytes) -> list[Event]:
    """A record is its length, a checksum of that, the event, and a checksum of it."""
    events, place = [], 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        event = Event()
        event.ParseFromString(data[place + 12 : place + 12 + length])
        events.append(event)
        place += 12 + length + 4
    return events
