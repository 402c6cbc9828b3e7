"""Reads what an offline W&B run wrote, so that tests see what a sync would send."""

import json
import struct
import time
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7


def finished(path: Path, seconds: float = 20.0) -> list[Record]:
    """The records of a run that was finished; W&B's own process may still be writing the last."""
    until = time.monotonic() + seconds
    while True:
        found = records(path)
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        assert time.monotonic() < until, "the run was never finished"
        time.sleep(0.05)


def records(path: Path) -> list[Record]:
    """The whole records of a ``.wandb`` file: a LevelDB log whose file header is 7 bytes."""
    data, position, whole, found = path.read_bytes(), HEADER, b"", []
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        position += HEADER
        if position + length > len(data):
            break
        whole += data[position : position + length]
        position += length
        # 1: a whole record; 2, 3, 4: its first, middle and last piece
        if kind in (1, 4):
            found.append(Record.FromString(whole))
            whole = b""
    return found


def logged(found: list[Record], kind: str) -> dict[str, Any]:
    """Every value of the config, history or summary records, the last one of each key."""
    values: dict[str, Any] = {}
    for record in found:
        if record.WhichOneof("record_type") != kind:
            continue
        part = getattr(record, kind)
        for item in part.item if kind == "history" else part.update:
            *parents, last = list(item.nested_key) or [item.key]
            place = values
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = json.loads(item.value_json)
    return values


def artifacts(found: list[Record], kind: str) -> dict[str, Any]:
    """Artifacts of a type, by name."""
    all_ = [r.artifact for r in found if r.WhichOneof("record_type") == "artifact"]
    return {artifact.name: artifact for artifact in all_ if artifact.type == kind}
