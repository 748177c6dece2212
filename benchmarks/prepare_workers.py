"""The contenders of ``prepare.py``: each reads the log once, in a separate process, and ends.

PYTHON prepare_workers.py plain|fuxictr|deepctr|polars|transform LOG OUTPUT CORES
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path

COUNTS = [f"I{i}" for i in range(1, 14)]
CATEGORIES = [f"C{i}" for i in range(1, 27)]
BUCKETS = 100_000


def plain(log: str, out: str, cores: int) -> None:
    """The naive form: a line to a dict to a tf.Example, one row at a time."""
    import zlib

    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    # The buckets of a count: each integer up to 2 its own, above that floor((ln x)^2); the last one is for missing.
    width = 3 + 2**10

    class ToExample(beam.DoFn):
        def process(self, line: str):  # type: ignore[no-untyped-def]
            import tensorflow as tf

            label, *cells = line.split("\t")
            ids = []
            for place, cell in enumerate(cells):
                if place < len(COUNTS):
                    if not cell:
                        bucket = width - 1
                    else:
                        number = float(cell)
                        bucket = int(math.log(number) ** 2) + 2 if number > 2 else max(0, int(number))
                    ids.append(1 + place * width + bucket)
                else:
                    start = 1 + len(COUNTS) * width + (place - len(COUNTS)) * (BUCKETS + 1)
                    ids.append(start + (1 + zlib.crc32(cell.encode()) % BUCKETS if cell else 0))
            feature = {
                "label": tf.train.Feature(float_list=tf.train.FloatList(value=[float(label)])),
                "feature_ids": tf.train.Feature(int64_list=tf.train.Int64List(value=ids)),
                "feature_vals": tf.train.Feature(float_list=tf.train.FloatList(value=[1.0] * len(ids))),
            }
            yield tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    options = PipelineOptions([f"--direct_num_workers={cores}", "--direct_running_mode=multi_processing"])
    with beam.Pipeline(FnApiRunner(), options=options) as pipeline:
        _ = (
            pipeline
            | beam.io.ReadFromText(log)
            | beam.Reshuffle()  # otherwise one worker reads and converts the whole file
            | beam.ParDo(ToExample())
            | beam.io.WriteToTFRecord(os.path.join(out, "part"), file_name_suffix=".tfrecord")
        )


def fuxictr(log: str, out: str, cores: int) -> None:
    """FuxiCTR's own path from CSV to Parquet."""
    import polars as pl
    from fuxictr.preprocess import FeatureProcessor, build_dataset

    class Processor(FeatureProcessor):
        def bucket(self, name: str) -> pl.Expr:
            number = pl.col(name).cast(pl.Float64, strict=False)
            large = (number.log().pow(2)).floor()
            return pl.when(number > 2).then(large).otherwise(number).cast(pl.Int64).cast(pl.String).fill_null("")

    # Pickled by name, here and by Ray.
    Processor.__qualname__ = "Processor"
    globals()["Processor"] = Processor
    # It reads files with a header line and this suffix.
    csv = Path(out) / "log.csv"
    csv.parent.mkdir(parents=True)
    with csv.open("wb") as target, open(log, "rb") as source:
        target.write("\t".join(["label", *COUNTS, *CATEGORIES]).encode() + b"\n")
        shutil.copyfileobj(source, target, 1 << 20)
    processor = Processor(
        feature_cols=[
            {"name": COUNTS, "active": True, "dtype": "str", "type": "categorical", "preprocess": "bucket"},
            {"name": CATEGORIES, "active": True, "dtype": "str", "type": "categorical"},
        ],
        label_col={"name": "label", "dtype": "float"},
        dataset_id="criteo",
        data_root=out,
    )
    build_dataset(processor, train_data=str(csv), sep="\t", min_categr_count=1)


def deepctr(log: str, out: str, cores: int) -> None:
    """The recipe of DeepCTR's examples: everything in memory, one column after the other."""
    import pandas as pd
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import LabelEncoder, MinMaxScaler

    data = pd.read_csv(log, sep="\t", header=None, names=["label", *COUNTS, *CATEGORIES])
    data[CATEGORIES] = data[CATEGORIES].fillna("-1")
    data[COUNTS] = data[COUNTS].fillna(0)
    for name in CATEGORIES:
        data[name] = LabelEncoder().fit_transform(data[name])
    data[COUNTS] = MinMaxScaler(feature_range=(0, 1)).fit_transform(data[COUNTS])
    train, test = train_test_split(data, test_size=0.2, random_state=2020)
    parts = [{name: part[name] for name in COUNTS + CATEGORIES} for part in (train, test)]
    print(len(parts), len(train), len(test))


def polars(log: str, out: str, cores: int) -> None:
    """Ids by as many buckets, streamed from the log to one Parquet file: the label, then 39 ids."""
    os.environ["POLARS_MAX_THREADS"] = str(cores)
    import polars as pl

    width = 3 + 2**10
    first = 1 + len(COUNTS) * width

    def count(place: int, name: str) -> pl.Expr:
        number = pl.col(name)
        bucket = pl.when(number > 2).then(number.log().pow(2).floor() + 2).otherwise(pl.max_horizontal(number, 0))
        return (1 + place * width + bucket.cast(pl.Int64).fill_null(width - 1)).alias(name)

    def category(place: int, name: str) -> pl.Expr:
        cell = pl.col(name)
        bucket = pl.when(cell.is_null()).then(0).otherwise(1 + cell.hash() % BUCKETS)
        return (first + place * (BUCKETS + 1) + bucket.cast(pl.Int64)).alias(name)

    Path(out).mkdir(parents=True)
    types = {"label": pl.Float32, **dict.fromkeys(COUNTS, pl.Float64), **dict.fromkeys(CATEGORIES, pl.String)}
    rows = pl.scan_csv(log, separator="\t", has_header=False, schema=types, quote_char=None)
    ids = [*(count(i, name) for i, name in enumerate(COUNTS)), *(category(i, n) for i, n in enumerate(CATEGORIES))]
    rows.select("label", *ids).sink_parquet(Path(out) / "ids.parquet")


def transform(log: str, out: str, cores: int) -> None:
    """tensorflow-transform: Arrow batches of a CSV through one graph, one tf.Example per row to TFRecord files."""
    import tempfile

    import apache_beam as beam
    import tensorflow as tf
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from tensorflow_transform.tf_metadata import schema_utils
    from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder
    from tfx_bsl.public import tfxio

    kinds = {"label": tf.float32, **dict.fromkeys(COUNTS, tf.float32), **dict.fromkeys(CATEGORIES, tf.string)}
    spec = {name: tf.io.VarLenFeature(kind) for name, kind in kinds.items()}
    width = 3 + 2**10

    def ids_of(columns):  # type: ignore[no-untyped-def]
        """The same buckets as the others'; 0 and the last one are for missing cells."""
        result = {"label": tf.sparse.to_dense(columns["label"])[:, 0]}
        for place, name in enumerate(COUNTS):
            number = tf.squeeze(tf.sparse.to_dense(_one_wide(columns[name]), default_value=-1e9), 1)
            bucket = tf.where(
                number > 2, tf.floor(tf.math.log(tf.maximum(number, 1)) ** 2) + 2, tf.maximum(number, 0)
            )
            bucket = tf.where(number == -1e9, tf.constant(width - 1.0), bucket)
            result[name] = 1 + place * width + tf.cast(bucket, tf.int64)
        for place, name in enumerate(CATEGORIES):
            text = tf.squeeze(tf.sparse.to_dense(_one_wide(columns[name]), default_value=""), 1)
            hashed = tf.where(text == "", tf.constant(0, tf.int64), 1 + tft.hash_strings(text, BUCKETS))
            result[name] = 1 + len(COUNTS) * width + place * (BUCKETS + 1) + hashed
        return result

    def _one_wide(cells):  # type: ignore[no-untyped-def]
        return tf.SparseTensor(cells.indices, cells.values, [cells.dense_shape[0], 1])

    names = ["label", *COUNTS, *CATEGORIES]
    schema = schema_utils.schema_from_feature_spec(spec)
    source = tfxio.CsvTFXIO(log, column_names=names, delimiter="\t", schema=schema)
    options = PipelineOptions([f"--direct_num_workers={cores}", "--direct_running_mode=multi_processing"])
    with (
        tempfile.TemporaryDirectory() as temporary,
        beam.Pipeline(FnApiRunner(), options=options) as pipeline,
        tft_beam.Context(temp_dir=temporary),
    ):
        batches = pipeline | source.BeamSource(batch_size=4096)
        (made, metadata), _ = (batches, source.TensorAdapterConfig()) | tft_beam.AnalyzeAndTransformDataset(
            ids_of, output_record_batches=True
        )
        encoder = RecordBatchToExamplesEncoder(metadata.schema)
        _ = (
            made
            | beam.FlatMapTuple(lambda batch, _: encoder.encode(batch))
            | beam.io.WriteToTFRecord(os.path.join(out, "part"), file_name_suffix=".tfrecord")
        )


if __name__ == "__main__":
    name, log, out, cores = sys.argv[1:]
    workers = {"plain": plain, "fuxictr": fuxictr, "deepctr": deepctr, "polars": polars, "transform": transform}
    workers[name](log, out, int(cores))
