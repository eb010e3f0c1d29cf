#!/usr/bin/env python3
"""Golden values for tests/test_metrics.c: event records written by TensorBoard's own classes.

    pip install tensorboard 'setuptools<81'
    dev/golden/golden_tensorboard.py > tests/golden/tensorboard.txt

Each line is a record in hexadecimal: length, its checksum, the event, its checksum.
"""
import io

from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, HistogramProto, Summary, SummaryMetadata
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

WALL = 1764000000.25


def record(**fields):
    out = io.BytesIO()
    RecordWriter(out).write(Event(wall_time=WALL, **fields).SerializeToString(deterministic=True))
    return out.getvalue().hex()


def scalars(*pairs):
    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in pairs])


print(record(step=8, file_version="brain.Event:2"))
print(record(step=8, session_log=SessionLog(status=SessionLog.START)))
print(record(step=300, summary=scalars(("train/loss", 0.6931472), ("train/rewards/verify/mean", -1.5e-9), ("eval/accuracy", 1.0))))
print(record(step=1 << 40, summary=scalars(("train/" + "k" * 200, 3.0))))


def text(tag, value):
    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[value.encode()])
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"), data_class=DATA_CLASS_TENSOR)
    return Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=metadata)])


def hparams(values):
    summary = hparams_pb(values, trial_id="x", start_time_secs=WALL)
    for value in summary.value:  # this project's runs have no group
        data = value.metadata.plugin_data
        content = plugin_data_pb2.HParamsPluginData.FromString(data.content)
        content.session_start_info.ClearField("group_name")
        data.content = content.SerializeToString(deterministic=True)
    return summary


print(record(step=12, summary=text("samples/1", "2+3=\n\n    5 \u00e4")))
print(record(step=0, summary=hparams({"beta": 0.04, "input": "a b.shard"})))


def histogram(tag, values, buckets=30):
    """Buckets of equal width from the least to the greatest value; one if all are equal."""
    low, high = min(values), max(values)
    n = buckets if high > low else 1
    limits = [low + (high - low) * (i + 1) / n if i + 1 < n else high for i in range(n)]
    counts = [0.0] * n
    for v in values:
        counts[min(int((v - low) / (high - low) * n), n - 1) if high > low else 0] += 1
    proto = HistogramProto(
        min=low, max=high, num=len(values), sum=sum(values), sum_squares=sum(v * v for v in values),
        bucket_limit=limits, bucket=counts,
    )
    return Summary(value=[Summary.Value(tag=tag, histo=proto)])


print(record(step=13, summary=histogram("train/rewards/verify", [0.0, 1.0, 1.0, 0.25, -2.0])))
print(record(step=14, summary=histogram("train/completions/length", [8.0, 8.0])))
