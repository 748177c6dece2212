"""The reader: batches of a split by (epoch, step), the same on any number of ranks."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from afm_ctr import native
from afm_ctr.errors import UserError, find_user_error, in_graph, release
from afm_ctr.forked import refuse_forked
from afm_ctr.io import paths
from afm_ctr.records.blocks import SplitBlocks
from afm_ctr.records.manifest import AGAIN, MANIFEST_NAME, Manifest
from afm_ctr.records.order import EpochOrder, Take
from afm_ctr.records.parsing import BadRecordError, parse_examples
from afm_ctr.schema import ResolvedSchema

if TYPE_CHECKING:
    import tensorflow as tf

# Steps kept ready, and steps prepared in parallel: from local disks one thread keeps pace and more would compete for
# Python's lock; over a network several hide its latency.
_READY, _SIDE_BY_SIDE_REMOTE = 2, 8

# Columns of a batch: dtypes, and whether there is one value per slot.
_TYPES: Final = {
    "feature_ids": (np.int64, True),
    "feature_vals": (np.float32, True),
    "label": (np.float32, False),
    "weight": (np.float32, False),
    "group": (np.int64, False),
    "has_group": (np.bool_, False),
    "key": (np.bytes_, False),
    "row": (np.int64, False),
}
COLUMNS: Final = tuple(_TYPES)


class Reader:
    """Batches of one split of a prepared data set.

    Global step s of an epoch is positions [s*batch_size, (s+1)*batch_size) of the epoch's order; rank r takes places
    [r*local_batch, (r+1)*local_batch) of them. Places without a row (in the last step, or if the ranks do not divide
    the batch) are padding: weight 0, ids 0, values 0, label 0, no group, key ``b""``.

    Args:
        data_dir: a prepared data set.
        split: ``train``, ...
        batch_size: rows of a step over all ranks.
        seed: of the order.
        rank: this process, 0 <= rank < size.
        size: number of processes.
        shuffle: False = file order, for evaluation and prediction.

    Raises:
        UserError: no such data set or split, an empty split, a schema that is not the data set's, batch_size < 1.

    Attributes:
        manifest: the data set's manifest.
        schema: its resolved schema.
        split: the split's name.
        rows: rows of the split.
        steps_per_epoch: ceil(rows / batch_size).
        local_batch: ceil(batch_size / size), the leading dimension of every batch.
        error: the first UserError that a batch raised, or None. TensorFlow wraps what its own threads raise; callers
            that catch such an error raise this one instead.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        split: str,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        size: int = 1,
        shuffle: bool = True,
    ) -> None:
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise UserError(f"batch_size {batch_size!r} must be a whole number of at least 1")
        if not isinstance(seed, int | np.integer):
            raise UserError(f"seed {seed!r} must be a whole number")
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} must be in [0, size {size})")
        self._data_dir, self.split = os.fspath(data_dir), split
        self.manifest = Manifest.load(data_dir)
        self.schema = ResolvedSchema.load(self._data_dir)
        if self.schema.id != self.manifest.schema_id:
            raise UserError(
                f"{os.fspath(data_dir)}: foreign schema: schema.yaml is {self.schema.id}, {MANIFEST_NAME} was made "
                f"with {self.manifest.schema_id}; put back the schema of this data set or {AGAIN}"
            )
        self._blocks = SplitBlocks(data_dir, self.manifest, split)
        self.rows = int(self._blocks.rows.sum())
        self.batch_size, self.rank, self.size = batch_size, rank, size
        self._seed, self._shuffle = seed, shuffle
        self.steps_per_epoch = -(-self.rows // batch_size)
        self.local_batch = -(-batch_size // size)
        self.error: UserError | None = None
        self._plain = self._blocks.is_plain()
        self._order = lru_cache(maxsize=2)(lambda epoch: EpochOrder(self._blocks.rows, seed, epoch, shuffle))

    def of_all_ranks(self) -> Reader:
        """A reader of the same steps with the rows of all ranks."""
        return self._like(rank=0, size=1)

    def _like(self, **changed: int) -> Reader:
        return Reader(self._data_dir, self.split, **{**self._options(), **changed})

    def _options(self) -> dict[str, Any]:
        same = {"batch_size": self.batch_size, "rank": self.rank, "size": self.size}
        return {**same, "seed": self._seed, "shuffle": self._shuffle}

    def __reduce__(self) -> Any:
        """A copy in another process, such as a worker of a data loader, opens the data set again."""
        return partial(Reader, **self._options()), (self._data_dir, self.split)

    def _positions(self, step: int) -> tuple[int, int]:
        """This rank's stretch of the epoch's order."""
        if not 0 <= step < self.steps_per_epoch:
            raise ValueError(f"step {step} must be in [0, {self.steps_per_epoch})")
        first = step * self.batch_size
        last = min(first + self.batch_size, self.rows)
        start = min(first + self.rank * self.local_batch, last)
        return start, min(start + self.local_batch, last)

    def local_rows(self, step: int) -> int:
        """Number of this rank's real rows in a step; they come first, padding after them."""
        start, stop = self._positions(step)
        return stop - start

    def batch(self, epoch: int, step: int, columns: Collection[str] = COLUMNS) -> dict[str, np.ndarray]:
        """This rank's part of one global step; B = local_batch, F = slots.

        Args:
            epoch: 0, 1, ...
            step: of the epoch.
            columns: those to return; a training step needs neither groups nor keys, and strings are slow.

        Returns:
            These columns: ``feature_ids`` int64 [B, F], ``feature_vals`` float32 [B, F], ``label``
            float32 [B] (nan in unlabelled data), ``weight`` float32 [B], ``group`` int64 [B], ``has_group`` bool [B],
            ``key`` bytes [B], and ``row`` int64 [B] = (epoch * steps_per_epoch + step) * batch_size + place in the
            global batch. Arrays may be read-only.

        Raises:
            UserError: a damaged shard, or a record that is not of the schema.
        """
        refuse_forked()
        batch = self._read_at_once(epoch, step, columns) or self._read(epoch, step)
        place = np.arange(self.rank * self.local_batch, (self.rank + 1) * self.local_batch, dtype=np.int64)
        batch["row"] = (epoch * self.steps_per_epoch + step) * self.batch_size + place
        return {name: batch[name] for name in _in_order(columns)}

    def _read_at_once(self, epoch: int, step: int, columns: Collection[str]) -> dict[str, np.ndarray] | None:
        """By the op in C++; None if that is impossible, or if something is wrong or unusual: use :meth:`_read`."""
        start, stop = self._positions(step)
        if start == stop or not self._plain or not native.reads_records():
            return None
        order, label = self._order(epoch), self.schema.spec.label
        stretches = order.stretches(start, stop)
        places = self._blocks.places(stretches[:, 0])
        return native.read_records(
            self._blocks.paths_tensor,
            np.concatenate([places, stretches[:, 1:]], axis=1),
            order.keys(stretches[:, 0].tolist()),
            rows=self.local_batch,
            slots=self.schema.num_slots,
            feature_size=self.schema.feature_size,
            labelled=self.manifest.labelled,
            binary=label is not None and label.kind == "binary",
            groups=not {"group", "has_group"}.isdisjoint(columns),
            keys="key" in columns,
        )

    def _read(self, epoch: int, step: int) -> dict[str, np.ndarray]:
        takes = self._order(epoch).take(*self._positions(step))
        records = [record for take in takes for record in self._blocks.records(take.block, take.records)]
        try:
            parsed = parse_examples(records, self.schema.num_slots)
        except BadRecordError as error:
            raise UserError(f"{self._where(takes, error.index)}: {error.what}; {AGAIN}") from None
        found = self._find_bad(parsed)
        if found is not None:
            row, what = found
            where = self._where(takes, row)
            raise UserError(f"{where}: key {parsed['key'][row].decode(errors='replace')!r}: {what}; {AGAIN}")
        return {name: _pad(values, self.local_batch) for name, values in parsed.items()}

    def mistake_behind(self, error: Exception) -> UserError | None:
        """The UserError that ended an iteration over :meth:`dataset`, here or in a graph; None: another cause.

        Raise it in the exception's place: the exception's frames, and the iterator in them, have been released.
        """
        mistake = self.error or find_user_error(error)
        if mistake is not None:
            release(error)
        return mistake

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Within it an iteration over :meth:`dataset` raises the UserError behind its exception, if there is one.

        Raises:
            UserError: see :meth:`mistake_behind`.
        """
        try:
            yield
        except Exception as error:
            mistake = self.mistake_behind(error)
            if mistake is None:
                raise
            raise mistake from error

    def _where(self, takes: list[Take], index: int) -> str:
        """The place of a record of a batch, for messages."""
        places = [(take.block, record) for take in takes for record in take.records.tolist()]
        block, record = places[index]
        return f"{self._blocks.where(block)}, record {record}"

    def _find_bad(self, rows: dict[str, np.ndarray]) -> tuple[int, str] | None:
        """The first row whose numbers do not fit the schema, and what is wrong with it."""
        ids, values, labels, weights = (rows[n] for n in ("feature_ids", "feature_vals", "label", "weight"))
        size = self.schema.feature_size
        if ids.size and (ids.min() < 0 or ids.max() >= size):
            row, slot = np.argwhere((ids < 0) | (ids >= size))[0].tolist()
            return row, f"feature_ids: slot {self._slot(slot)} has id {ids[row, slot]} outside [0, {size})"
        if not np.isfinite(values).all():
            row, slot = np.argwhere(~np.isfinite(values))[0].tolist()
            return row, f"feature_vals: slot {self._slot(slot)} has the value {values[row, slot]}"
        label = self.schema.spec.label
        wrong = np.isinf(labels) | (self.manifest.labelled & np.isnan(labels))
        if label is not None and label.kind == "binary":
            wrong |= ~np.isnan(labels) & (labels != 0) & (labels != 1)
        if wrong.any():
            row = int(np.argmax(wrong))
            if np.isnan(labels[row]):
                return row, "no label in a labelled data set"
            return row, f"the label is {labels[row]}" + (", not 0 or 1" if label and label.kind == "binary" else "")
        wrong = ~(np.isfinite(weights) & (weights >= 0))
        if wrong.any():
            row = int(np.argmax(wrong))
            return row, f"the weight is {weights[row]}"
        return None

    def _slot(self, index: int) -> str:
        return f"{index} ({self.schema.slots[index].name})"

    def dataset(self, epoch: int, start_step: int = 0, columns: Collection[str] = COLUMNS) -> tf.data.Dataset:
        """Steps [start_step, steps_per_epoch) of an epoch as a ``tf.data.Dataset`` of dict batches.

        Elements are those of :meth:`batch` with these columns and static shapes; reading runs in the background.
        An error is stored in ``error`` and raised through TensorFlow with its text marked for
        ``errors.find_user_error``.
        """
        return self._epochs((epoch, start_step), epoch + 1, columns)

    def as_dataset(
        self,
        batch_size: int | None = None,
        epochs: int = 1,
        *,
        supervised: bool = False,
        start: tuple[int, int] = (0, 0),
    ) -> tf.data.Dataset:
        """Batches of several epochs, each in its own order, for any Keras model or a loop over NumPy batches.

        With one process there is no padding, and the last batch of an epoch may be smaller. With more, each has
        ``steps_per_epoch`` batches of ``local_batch`` rows per epoch, and padding rows have weight 0.

        Args:
            batch_size: rows of a step over all ranks; the reader's, if None.
            epochs: the batches end before this epoch.
            supervised: elements are ``(x, label, weight)`` as ``keras.Model.fit`` takes them, ``x`` a dict of
                ``feature_ids`` int64 ``[B, F]`` and ``feature_vals`` float32 ``[B, F]``, the others float32 ``[B]``.
                Otherwise one dict of all of these and ``row`` int64 ``[B]``, without ``label`` in unlabelled data.
            start: epoch and step of the first batch. A loop that ended after step s of epoch e continues from
                ``(e, s + 1)`` with the same batches as without the interruption.

        Raises:
            UserError: ``supervised`` in unlabelled data; through TensorFlow, what :meth:`batch` raises.
            ValueError: a step that no epoch has.

        Example:
            >>> reader = Reader("data", "train", batch_size=4096)
            >>> batches = reader.as_dataset(epochs=3, supervised=True)
            >>> model.fit(batches, epochs=3, steps_per_epoch=reader.steps_per_epoch)
        """
        if batch_size not in (None, self.batch_size):
            return self._like(batch_size=batch_size).as_dataset(None, epochs, supervised=supervised, start=start)
        labelled = self.manifest.labelled
        if supervised and not labelled:
            where = f"{self._data_dir}, split {self.split!r}"
            raise UserError(f"{where}: no labels, which supervised=True needs; they are given to `afm-ctr prepare`")
        columns = ("feature_ids", "feature_vals", *(["label"] if labelled else []), "weight", "row")
        batches = self._epochs(start, epochs, columns)
        trimmed = self.size == 1 and self.rows % self.batch_size > 0

        def element(batch: dict[str, Any]) -> Any:
            if trimmed:
                real = self.rows - batch["row"][0] % (self.steps_per_epoch * self.batch_size)
                batch = {name: values[:real] for name, values in batch.items()}
            if not supervised:
                return batch
            x = {name: batch[name] for name in ("feature_ids", "feature_vals")}
            return x, batch["label"], batch["weight"]

        return batches.map(element)

    def _epochs(self, start: tuple[int, int], epochs: int, columns: Collection[str]) -> tf.data.Dataset:
        """Steps from ``start`` (epoch, step) to the end of the epoch before ``epochs``."""
        refuse_forked()
        import tensorflow as tf

        if not isinstance(epochs, int | np.integer) or epochs < 0:
            raise UserError(f"epochs {epochs!r} must be a whole number of at least 0")
        if not 0 <= start[1] <= self.steps_per_epoch:
            raise ValueError(f"start_step {start[1]} must be in [0, {self.steps_per_epoch}]")

        names = _in_order(columns)

        def load(place: np.int64) -> list[np.ndarray]:
            try:
                batch = self.batch(*divmod(int(place), self.steps_per_epoch), names)
            except UserError as error:
                self.error = self.error or error
                raise ValueError(in_graph(str(error))) from None
            return list(batch.values())

        def element(place: tf.Tensor) -> dict[str, tf.Tensor]:
            types = [_TYPES[name] for name in names]
            tensors = tf.numpy_function(load, [place], [tf.as_dtype(dtype) for dtype, _ in types])
            shapes = [(self.local_batch, *([self.schema.num_slots] if by_slot else [])) for _, by_slot in types]
            return {name: tf.ensure_shape(*of) for name, *of in zip(names, tensors, shapes, strict=True)}

        steps = tf.data.Dataset.range(start[0] * self.steps_per_epoch + start[1], epochs * self.steps_per_epoch)
        parallel = _SIDE_BY_SIDE_REMOTE if paths.is_remote(self._data_dir) else 1
        return steps.map(element, num_parallel_calls=parallel, deterministic=True).prefetch(_READY)


def _in_order(columns: Collection[str]) -> list[str]:
    if not set(columns) <= set(COLUMNS):
        raise ValueError(f"columns {columns} must be of {COLUMNS}")
    return [name for name in COLUMNS if name in columns]


def _pad(values: np.ndarray, rows: int) -> np.ndarray:
    """Lengthen dimension 0 with zeros (empty byte strings)."""
    missing = rows - len(values)
    if not missing:
        return values
    padding = np.full((missing, *values.shape[1:]), b"" if values.dtype == object else 0, values.dtype)
    return np.concatenate([values, padding])
