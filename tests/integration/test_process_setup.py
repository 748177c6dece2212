"""What has to be set before TensorFlow starts, each in a process of its own: it has long started in this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from afm_ctr.devices import ahead_on_gpu

CODE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from afm_ctr.process_setup import load_tensorflow_without_keras, share_memory
share_memory()
with ThreadPoolExecutor(3) as pool:
    list(pool.map(lambda _: load_tensorflow_without_keras(), range(3)))
assert "tensorflow" in sys.modules and not {"keras", "scipy", "h5py"} & {*sys.modules}
import tensorflow as tf
assert tf.function(lambda x: x + 1)(tf.constant(1)).numpy() == 2
import keras
assert tf.keras.optimizers.Adam is keras.optimizers.Adam
load_tensorflow_without_keras()
assert sys.modules["keras"] is keras
"""


def run(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_keras_stays_out_and_can_be_had_later() -> None:
    run(CODE)


BEAM = """
import sys
from afm_ctr.cli.quiet_imports import load_beam
load_beam(["--direct_running_mode=multi_processing"])
assert "apache_beam" in sys.modules and not {"pandas", "pymongo", "bson", "boto3", "tensorflow"} & {*sys.modules}
assert not {"pyarrow", "IPython.core", "requests"} & {*sys.modules}
from beam_jobs import files
files.share_client()
from apache_beam.io.aws.clients.s3 import boto3_client
if importlib.util.find_spec("boto3"):
    boto3_client.Client({"s3_region_name": "us-east-1"})
    assert boto3_client.boto3 is sys.modules["boto3"]
from afm_ctr import native
from afm_ctr.schema import FeatureSchema
from beam_jobs.job import PrepareOptions, prepare
encoding = {"kind": "hash", "buckets": 9}
fields = [{"name": "a", "kind": "categorical", "encoding": encoding}]
fields += [{"name": "l", "column": "a", "kind": "numeric", "encoding": {"kind": "value", "log": True}}]
fields += [{"name": "t", "column": "a", "kind": "time", "format": "epoch", "part": "hour"}]
spec = FeatureSchema.model_validate({"name": "s", "format": {"kind": "FORMAT"}, "label": {}, "fields": fields})
done = prepare(PrepareOptions(spec, ["log"], "data", split="hash:a:80/20", max_reject_share=1))
assert done.rows_in == 40 and ("tensorflow" in sys.modules) == (not native.prepares())
import pandas
"""
LOGS = {
    "delimited": ["label,a", *(f"{i % 2},{i}" for i in range(40))],
    "jsonl": [f'{{"label": {i % 2}, "a": "{i}"}}' for i in range(40)],
}


@pytest.mark.parametrize("kind", LOGS)
def test_prepare_loads_what_it_needs(kind: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(LOGS[kind]))
    code = "import importlib.util" + BEAM.replace("FORMAT", kind)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")


AHEAD = """
import sys
import numpy as np
import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from afm_ctr.devices import ahead_on_gpu
from afm_ctr.errors import UserError, find_user_error, in_graph
from afm_ctr.models import CTRModel

class WithGpu:
    def get_visible_devices(self, kind):
        return [kind]

def batches(last):
    def load(step):
        if step == last:
            raise ValueError(in_graph("record 7 is damaged"))
        return np.random.default_rng(step).integers(0, 9, [4, 2])

    def element(step):
        ids = tf.ensure_shape(tf.numpy_function(load, [step], tf.int64), [4, 2])
        parts = {"feature_ids": ids, "feature_vals": tf.ones([4, 2]), "row": 4 * step + tf.range(4, dtype=tf.int64)}
        return {**parts, "label": tf.cast(ids[:, 0] > 4, tf.float32), "weight": tf.ones([4])}

    return tf.data.Dataset.range(6).map(element).prefetch(2)

def ahead(last=-1):
    return ahead_on_gpu(batches(last), WithGpu(), "/CPU:1")

for ours, plain in zip(ahead(), batches(-1), strict=True):
    assert all(tensor.device.endswith("CPU:1") for tensor in ours.values())
    assert all((ours[name].numpy() == plain[name].numpy()).all() for name in plain)

def trained(given):
    model = CTRModel("fm", {"factors": 3}, 9, 2, [(0, 1)])
    model.compile("adam")
    model.fit(given, steps_per_epoch=6, verbose=0)
    return [variable.numpy() for variable in model.trainable_variables]

for ours, plain in zip(trained(ahead()), trained(batches(-1)), strict=True):
    assert (ours == plain).all() and ours.any()
try:
    trained(ahead(last=3))
except Exception as error:
    print(find_user_error(error))
"""


def test_batches_are_copied_to_the_gpu_ahead() -> None:
    """A second CPU stands for the GPU: the same batches there, the same training, and a reader's error is its own."""
    plain = ["batches"]
    assert ahead_on_gpu(plain) is plain  # type: ignore[arg-type, comparison-overlap]
    assert run(AHEAD) == "record 7 is damaged\n"
