"""A table's part of a step by the ops in C++, and when they can be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from afm_ctr.native.op import asked_for, load, uses_gpu

if TYPE_CHECKING:
    import tensorflow as tf

TABLE = "AFM_CTR_TABLE"


def steps_tables(dtype: tf.DType) -> bool:
    """Whether lookups and sparse steps are built around the ops: for float32 on CPUs, when their library is there.

    The environment variable ``AFM_CTR_TABLE`` asks for one form: ``native`` or ``tensorflow``.

    Raises:
        UserError: the variable asks for what is not there.
    """
    import tensorflow as tf

    if dtype != tf.float32 or uses_gpu():
        return False
    return asked_for(TABLE, "native", "tensorflow", load().reason)


def merge_ids(ids: tf.Tensor, zero_first: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
    """The distinct ids by their first appearance ``[u]``, and where each is among them, in the shape of the ids.

    Args:
        ids: int64 of any shape.
        zero_first: 0 is the first of them, whether it occurs or not.
    """
    unique, inverse = load().module.afm_ctr_merge(ids=ids, zero_first=zero_first)
    return unique, inverse


def read_rows(variable: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
    """``variable[rows]``, float32 ``[u, d]``; its gradient is ``tf.IndexedSlices``, as that of ``tf.gather``.

    Args:
        variable: float32 ``[n, d]``.
        rows: int64 ``[u]``.

    Raises:
        tf.errors.InvalidArgumentError: a row is outside ``[0, n)``.
    """
    import tensorflow as tf

    tf.gather(variable, tf.zeros([0], tf.int64))  # a tape takes notice of the variable
    return load().module.afm_ctr_read_rows(weights=variable.handle, rows=rows)


def expand_rows(rows: tf.Tensor, position: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """``scale[i] · rows[position[i]]``; no gradient is registered.

    Args:
        rows: float32 ``[u, d]``.
        position: int64 ``[n]``.
        scale: float32 ``[n]``.

    Raises:
        tf.errors.InvalidArgumentError: a position is outside ``[0, u)``, or shapes do not fit.
    """
    return load().module.afm_ctr_expand(rows=rows, position=position, scale=scale)


def add_rows(values: tf.Tensor, position: tf.Tensor, count: tf.Tensor, scale: tf.Tensor | None = None) -> tf.Tensor:
    """``result[p] = Σ scale[i] · values[i]`` over all i with ``position[i] = p``, in the order of i.

    Args:
        values: float32 ``[n, d]``.
        position: int64 ``[n]``.
        count: int64 scalar, the number of sums.
        scale: float32 ``[n]``; None: 1.

    Raises:
        tf.errors.InvalidArgumentError: a position is outside ``[0, count)``, or shapes do not fit.
    """
    return load().module.afm_ctr_add_rows(
        values=values, position=position, scale=[] if scale is None else scale, count=count
    )


def fm(linear: tf.Tensor, vectors: tf.Tensor, position: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A factorization machine of all pairs of slots, from distinct rows; no gradient is registered.

    Args:
        linear: float32 ``[u, 1]``.
        vectors: float32 ``[u, k]``.
        position: int64 ``[B, F]``, in ``[0, u)``.
        scale: float32 ``[B, F]``.

    Returns:
        The logits without a bias ``[B]``, and each example's sum of its scaled vectors ``[B, k]``.

    Raises:
        tf.errors.InvalidArgumentError: a position is outside ``[0, u)``, or shapes do not fit.
    """
    logits, sums = load().module.afm_ctr_fm(linear=linear, vectors=vectors, position=position, scale=scale)
    return logits, sums


def fm_gradient(
    upstream: tf.Tensor, sums: tf.Tensor, vectors: tf.Tensor, position: tf.Tensor, scale: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The gradient of :func:`fm` by ``linear`` and ``vectors``, for one ``[B]`` by the logits: in the batch's order.

    Raises:
        tf.errors.InvalidArgumentError: as of :func:`fm`.
    """
    by_linear, by_vectors = load().module.afm_ctr_fm_gradient(
        upstream=upstream, sums=sums, vectors=vectors, position=position, scale=scale
    )
    return by_linear, by_vectors


def step_rows(
    rule: str,
    variables: Sequence[tf.Variable],
    rows: tf.Tensor,
    gradient: tf.Tensor,
    options: Sequence[tf.Tensor | float],
    counts: tf.Tensor | None = None,
) -> None:
    """One step of an optimizer on some rows of a variable and of its slots, in place.

    Args:
        rule: "sgd", "adagrad", "adam" or "ftrl".
        variables: the weights and the rule's slots in its order, float32 ``[rows, d]``; that of
            "adagrad" may be ``[rows, 1]``.
        rows: int64 ``[u]``, distinct.
        gradient: float32 ``[u, d]``.
        options: the scalars of the rule, see ``table.cc``.
        counts: scalar bool, whether anything is to change; None: True.

    Raises:
        tf.errors.InvalidArgumentError: a row is outside the variable, or shapes do not fit.
    """
    import tensorflow as tf

    op = getattr(load().module, f"afm_ctr_{rule}_rows")
    scalars = tf.stack([tf.cast(option, tf.float32) for option in options])
    handles = [variable.handle for variable in variables]
    op(*handles, rows=rows, gradient=gradient, options=scalars, counts=True if counts is None else counts)
