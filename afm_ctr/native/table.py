"""The C++ ops for a table's part of a training step, and whether they can be used.

Shapes are those of the functions in :mod:`afm_ctr.sparse_gradients`; types are float32 and int64. A row or position
out of range, and shapes that do not match, raise ``tf.errors.InvalidArgumentError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from afm_ctr.native import gpu
from afm_ctr.native.op import asked_for, load, uses_gpu

if TYPE_CHECKING:
    import tensorflow as tf

TABLE = "AFM_CTR_TABLE"


def steps_tables(dtype: tf.DType) -> bool:
    """Whether lookups and sparse steps use the ops: for float32 on CPUs, if the library loads.

    The environment variable ``AFM_CTR_TABLE`` chooses a form: ``native`` or ``tensorflow``.

    Raises:
        UserError: the variable chooses a form that is not available.
    """
    import tensorflow as tf

    if dtype != tf.float32 or uses_gpu():
        return False
    return asked_for(TABLE, "native", "tensorflow", load().reason)


def merge_ids(ids: tf.Tensor, zero_first: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
    """The distinct ids by first appearance ``[u]``, and the index of each id among them, in the shape of ``ids``."""
    unique, inverse = load().module.afm_ctr_merge(ids=ids, zero_first=zero_first)
    return unique, inverse


def read_rows(variable: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
    """``variable[rows]``, float32 ``[u, d]``; its gradient is ``tf.IndexedSlices``, as with ``tf.gather``."""
    import tensorflow as tf

    tf.gather(variable, tf.zeros([0], tf.int64))  # makes a tape watch the variable
    return load().module.afm_ctr_read_rows(weights=variable.handle, rows=rows)


def expand_rows(rows: tf.Tensor, position: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """``scale[i] · rows[position[i]]``; no gradient is registered."""
    return load().module.afm_ctr_expand(rows=rows, position=position, scale=scale)


def add_rows(values: tf.Tensor, position: tf.Tensor, count: tf.Tensor, scale: tf.Tensor | None = None) -> tf.Tensor:
    """``result[p] = Σ scale[i] · values[i]`` over all i with ``position[i] = p``, in the order of i."""
    return load().module.afm_ctr_add_rows(
        values=values, position=position, scale=[] if scale is None else scale, count=count
    )


def fm(linear: tf.Tensor, vectors: tf.Tensor, position: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A factorization machine over all pairs of slots, from distinct rows; no gradient is registered.

    Returns:
        The logits without a bias ``[B]``, and the sum of each example's scaled vectors ``[B, k]``.
    """
    logits, sums = load().module.afm_ctr_fm(linear=linear, vectors=vectors, position=position, scale=scale)
    return logits, sums


def fm_gradient(
    upstream: tf.Tensor, sums: tf.Tensor, vectors: tf.Tensor, position: tf.Tensor, scale: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The gradient of :func:`fm` by ``linear`` and ``vectors``, from the logits' gradient ``[B]``; in batch order."""
    by_linear, by_vectors = load().module.afm_ctr_fm_gradient(
        upstream=upstream, sums=sums, vectors=vectors, position=position, scale=scale
    )
    return by_linear, by_vectors


def step_rows(
    rule: str,
    variables: Sequence[tf.Variable],
    rows: tf.Tensor,
    gradient: tf.Tensor,
    options: tf.Tensor,
    counts: tf.Tensor | None = None,
) -> None:
    """One optimizer step on some rows of a variable and of its slot variables, in place.

    Args:
        rule: "sgd", "adagrad", "adam" or "ftrl".
        variables: the weights and the rule's slot variables in its order, float32 ``[rows, d]``; that of
            "adagrad" may be ``[rows, 1]``.
        rows: int64 ``[u]``, distinct.
        gradient: float32 ``[u, d]``.
        options: the rule's scalars, float32 ``[n]``, see ``rules.h``.
        counts: scalar bool, whether to change anything; None: True.
    """
    op = getattr(load().module, f"afm_ctr_{rule}_rows")
    handles = [variable.handle for variable in variables]
    op(*handles, rows=rows, gradient=gradient, options=options, counts=True if counts is None else counts)


def steps_on_gpu(rule: str, variables: Sequence[tf.Variable]) -> bool:
    """Whether :func:`step_on_gpu` can step these: float32 of one shape, on a GPU, with the library and NVRTC.

    The environment variable ``AFM_CTR_TABLE`` chooses a form: ``native`` or ``tensorflow``.
    """
    import tensorflow as tf

    alike = {(variable.dtype, tuple(variable.shape)) for variable in variables}
    if not rule or len(alike) > 1 or variables[0].dtype != tf.float32 or not uses_gpu():
        return False
    reason = load().reason
    if not reason and isinstance(program := gpu.step_program(rule, gpu.capability() or 0), str):
        reason = program
    return asked_for(TABLE, "native", "tensorflow", reason)


def step_on_gpu(
    rule: str,
    variables: Sequence[tf.Variable],
    rows: tf.Tensor | None,
    gradient: tf.Tensor,
    options: tf.Tensor,
    counts: tf.Tensor | None = None,
) -> None:
    """:func:`step_rows` by one GPU kernel; rows outside the variable are skipped.

    Args:
        rows: int64 ``[u]``, distinct; None: the gradient is of the whole variable, whatever its rank.
    """
    import tensorflow as tf

    load().module.afm_ctr_step_on_gpu(
        variables=[variable.handle for variable in variables],
        rows=tf.zeros([0], tf.int64) if rows is None else rows,
        gradient=gradient,
        options=options,
        counts=tf.constant(True) if counts is None else counts,
        whole=rows is None,
        program=gpu.step_program(rule, gpu.capability() or 0),
    )
