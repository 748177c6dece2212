"""The scoring client: TF Serving's gRPC API with grpcio, protobuf and numpy only.

Example:
    >>> with Client("localhost:8500", model_name="afm") as client:
    ...     client.wait_ready(60)
    ...     for scored in client.score_rows({"I1": "3", "C1": "68fd1e64"} for _ in range(1000)):
    ...         print(scored["probability"])
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.channel import tls_credentials
from serving.connection import Connection, Pending
from serving.errors import InvalidArgument
from serving.responses import Metadata, Outputs, Scores, Signature, TensorSpec, VersionStatus, join
from serving.rows import Chunk, by_row, encode, split
from serving.top_pairs import PairShare, read_pair_names, top_pairs

__all__ = [
    "Client",
    "Metadata",
    "Outputs",
    "PairShare",
    "Pending",
    "Scores",
    "Signature",
    "TensorSpec",
    "VersionStatus",
    "tls_credentials",
]


class Client(Connection):
    """Scores rows with one model. Threads may share it; close it, or use it as a context manager.

    Opened like :class:`serving.connection.Connection`, which also has the plain calls: ``predict``, ``submit``,
    ``status``, ``metadata``, ``wait_ready``.
    """

    _known: Metadata | None = None
    _versions: frozenset[int] = frozenset()  # those that have answered

    def score_rows(
        self, rows: Any, batch_size: int = 256, signature: str = "raw", outputs: Sequence[str] = ()
    ) -> Iterator[dict[str, Any]]:
        """Score rows with several requests in flight; results keep the order of the rows, which are read lazily.

        Args:
            rows: An iterable of mappings of column to value, one per row; a mapping of column to array; a DataFrame;
                or an Arrow table. In string columns, such as those of ``raw``, a cell is any value of the table in
                :mod:`serving.cell_text`; None, NaN or an absent column is a missing value. Other inputs need a value
                of the model's type and shape in each row.
            batch_size: Rows per request.
            signature: The model's signature to call.
            outputs: The outputs to return; default: all.

        Yields:
            The outputs of each row, such as ``{"probability": 0.031, "logit": -3.44, "bad_cells": 0}``.

        Raises:
            ServingError: As in :meth:`predict`. InvalidArgument, raised before sending, names the row (from 0) and
                the column; BadCells names the first row with unreadable cells, and its columns.
            ValueError: ``batch_size`` is below 1.
        """
        for part in self._score(rows, batch_size, signature, outputs):
            yield from by_row(part)

    def score(self, rows: Any, batch_size: int = 256, signature: str = "raw", outputs: Sequence[str] = ()) -> Scores:
        """Score rows like :meth:`score_rows`, but return the outputs as arrays over all rows, in order."""
        parts = list(self._score(rows, batch_size, signature, outputs))
        return join(parts, {} if parts else self._outputs_of(signature, outputs))

    def explain(
        self,
        rows: Any,
        pairs: str | Path | Sequence[str],
        top: int = 10,
        batch_size: int = 256,
        signature: str = "explain",
    ) -> list[list[PairShare]]:
        """The pairs of fields with the largest shares of attention, for each row.

        Args:
            rows: As in :meth:`score_rows`, with the inputs of the signature: ``feature_ids`` and ``feature_vals``.
            pairs: Path of ``assets.extra/pairs.json`` of the served version, or the names of its pairs in order.
            top: Maximum number of pairs per row; pairs with a share of 0 are left out.
            batch_size: Rows per request.
            signature: A signature with the output ``attention`` [B, pairs].

        Raises:
            ServingError: As in :meth:`score_rows`; InvalidArgument if the names do not match the model's pairs.
        """
        names = read_pair_names(pairs) if isinstance(pairs, (str, Path)) else list(pairs)
        return [
            row
            for part in self._score(rows, batch_size, signature, ["attention"])
            for row in top_pairs(part["attention"], names, top)
        ]

    def signature(self, name: str = "raw") -> Signature:
        """Inputs and outputs of a signature; fetched once, and again when another version answers.

        Raises:
            InvalidArgument: the model has no such signature.
        """
        known = self._known
        if known is None:
            known = self._known = self.metadata()
        if name not in known.signatures:
            there = ", ".join(known.signatures)
            raise InvalidArgument(f"{self.model_name} at {self.target} has no signature {name}; there are {there}")
        return known.signatures[name]

    def string_columns(self, signature: str = "raw") -> list[str]:
        """Names of the inputs of a signature that takes raw columns.

        Raises:
            InvalidArgument: the model has no such signature, or it has inputs that are not strings.
        """
        inputs = self.signature(signature).inputs
        others = [name for name, spec in inputs.items() if spec.dtype != "string"]
        if others:
            raise InvalidArgument(f"signature {signature} has inputs that are not strings: {', '.join(others)}")
        return sorted(inputs)

    def submit(self, inputs: Mapping[str, Any], signature: str = "raw", outputs: Sequence[str] = ()) -> Pending:
        """Send a request without waiting; arguments as in :meth:`predict`.

        A request without rows is answered here, because a server that batches requests never answers it.
        """
        if isinstance(inputs, Mapping) and any(_has_no_rows(value) for value in inputs.values()):
            nothing = join([], self._outputs_of(signature, outputs))
            version = self._known.version if self._known is not None else 0
            return Pending(lambda: Outputs(nothing, version), lambda: None)
        return super().submit(inputs, signature, outputs)

    def _outputs_of(self, signature: str, outputs: Sequence[str]) -> dict[str, TensorSpec]:
        specs = self.signature(signature or "serving_default").outputs
        return {name: spec for name, spec in specs.items() if not outputs or name in outputs}

    def _score(self, rows: Any, batch_size: int, signature: str, outputs: Sequence[str]) -> Iterator[Outputs]:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        pending: deque[tuple[Chunk, dict[str, Any], Pending]] = deque()
        try:
            for chunk in split(rows, batch_size):
                inputs = self._encode(chunk, signature)
                call = self._send(inputs, signature, self._with_bad_cells(signature, outputs))
                pending.append((chunk, inputs, call))
                if len(pending) >= self.max_in_flight:
                    yield self._chosen(self._finish(*pending.popleft(), signature), outputs)
            while pending:
                yield self._chosen(self._finish(*pending.popleft(), signature), outputs)
        finally:
            for *_, call in pending:
                call.cancel()

    def _with_bad_cells(self, signature: str, outputs: Sequence[str]) -> Sequence[str]:
        """The outputs to request: the caller's, plus ``bad_cells`` where the answer has to be checked."""
        if not outputs or self.allow_bad_cells or "bad_cells" not in self.signature(signature).outputs:
            return outputs
        return list(dict.fromkeys([*outputs, "bad_cells"]))

    def _chosen(self, answer: Outputs, outputs: Sequence[str]) -> Outputs:
        return Outputs({n: a for n, a in answer.items() if not outputs or n in outputs}, answer.version)

    def _encode(self, chunk: Chunk, signature: str) -> dict[str, Any]:
        fresh = self._known is None
        try:
            return encode(chunk, self.signature(signature).inputs)
        except InvalidArgument:
            if fresh:
                raise
        self._known = None  # a newer version may take what the cached signature does not
        return encode(chunk, self.signature(signature).inputs)

    def _finish(self, chunk: Chunk, inputs: dict[str, Any], call: Pending, signature: str) -> Outputs:
        try:
            answer = call.result()
        except InvalidArgument as error:
            self._known = None
            raise type(error)(f"rows from {chunk.start}: {error}") from None
        return self._checked(answer, inputs, signature, chunk.start)

    def _answered_by(self, version: int) -> None:
        if version not in self._versions:
            self._versions |= {version}
            if self._known is not None and self._known.version != version:
                self._known = None


def _has_no_rows(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.shape[:1] == (0,)
    return isinstance(value, (list, tuple)) and not value
