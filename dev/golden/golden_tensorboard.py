#!/usr/bin/env python3
"""Golden values for tests/test_metrics.c: event records written by TensorBoard's own classes.

    pip install tensorboard 'setuptools<81'
    dev/golden/golden_tensorboard.py > tests/golden/tensorboard.txt

Each line is a record in hexadecimal: length, its checksum, the event, its checksum.
"""
import io

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

WALL = 1764000000.25


def record(**fields):
    out = io.BytesIO()
    RecordWriter(out).write(Event(wall_time=WALL, **fields).SerializeToString())
    return out.getvalue().hex()


def scalars(*pairs):
    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in pairs])


print(record(step=8, file_version="brain.Event:2"))
print(record(step=8, session_log=SessionLog(status=SessionLog.START)))
print(record(step=300, summary=scalars(("train/loss", 0.6931472), ("train/rewards/verify/mean", -1.5e-9), ("eval/accuracy", 1.0))))
print(record(step=1 << 40, summary=scalars(("train/" + "k" * 200, 3.0))))
