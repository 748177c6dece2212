"""The transform inside a SavedModel: moved, its sources gone, read by another process."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from afm_ctr.features import FeatureTransform
from afm_ctr.schema import Analysis, FeatureSchema, ResolvedSchema, resolve

COLUMNS = {
    "a": [b"x", b"\xff\x00 y", b"", b"unknown", b"z"],
    "b": [b"x z", b"", b"z nobody", b"z", b"y"],
    "n": [b"0", b"1e3", b"nan", b"", b"-2"],
}
READ = """
import json, sys
import tensorflow as tf
columns = {name: tf.constant([bytes.fromhex(t) for t in texts]) for name, texts in json.loads(sys.argv[2]).items()}
out = tf.saved_model.load(sys.argv[1]).signatures["raw"](**columns)
print(json.dumps({name: value.numpy().tolist() for name, value in out.items()}))
"""


def test_saved_moved_and_loaded_elsewhere(tmp_path: Path):
    spec = FeatureSchema.model_validate(
        {
            "name": "s",
            "format": {"kind": "delimited"},
            "spaces": {"word": {"kind": "vocabulary", "oov": 2}},
            "fields": [
                {"name": "a", "kind": "categorical", "encoding": {"kind": "vocabulary"}, "missing": "own"},
                {
                    "name": "b",
                    "kind": "categorical",
                    "space": "word",
                    "separator": " ",
                    "max_values": 2,
                    "keep": "last",
                },
                {"name": "n", "kind": "numeric", "encoding": {"kind": "value", "log": True}},
            ],
        }
    )
    counts = {"a": {b"x": 2, b"\xff\x00 y": 9}, "word": {b"x": 1, b"z": 2}}
    resolve(spec, Analysis(counts=counts)).save(tmp_path / "prepared")
    schema = ResolvedSchema.load(tmp_path / "prepared")
    transform = FeatureTransform(schema)
    shutil.rmtree(tmp_path / "prepared")
    expected = transform({name: tf.constant(texts) for name, texts in COLUMNS.items()})
    assert expected.feature_ids.numpy()[:2].tolist() == [[3, 8, 7, 9], [2, 0, 0, 9]]

    module = tf.Module()
    module.transform = transform
    signature = [tf.TensorSpec([None], tf.string, name=name) for name in schema.raw_columns]

    @tf.function(input_signature=signature)
    def raw(a, b, n):
        return transform({"a": a, "b": b, "n": n})._asdict()

    module.raw = raw
    tf.saved_model.save(module, str(tmp_path / "first"), signatures={"raw": raw})
    shutil.move(tmp_path / "first", tmp_path / "moved")
    shutil.rmtree(transform.vocabulary_folder)

    cells = json.dumps({name: [text.hex() for text in texts] for name, texts in COLUMNS.items()})
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "moved"), cells], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["feature_ids"] == expected.feature_ids.numpy().tolist()
    np.testing.assert_array_equal(np.array(found["feature_vals"], np.float32), expected.feature_vals.numpy())
    assert found["cut"] == expected.cut.numpy().tolist()
    assert found["bad"] == expected.bad.numpy().tolist()


def test_the_vocabulary_files_go_with_the_transform():
    field = {"name": "a", "kind": "categorical", "encoding": {"kind": "vocabulary"}}
    spec = FeatureSchema.model_validate({"name": "s", "format": {"kind": "delimited"}, "fields": [field]})
    transform = FeatureTransform(resolve(spec, Analysis(counts={"a": {b"x": 1}})))
    files = Path(transform.vocabulary_folder)
    assert (files / "a.txt").read_bytes() == b"x\n"
    del transform
    gc.collect()
    assert not files.exists()
