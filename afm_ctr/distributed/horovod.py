"""The world of ranks that ``horovodrun`` started."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from afm_ctr.distributed import rendezvous
from afm_ctr.distributed.world import Op, World, is_replicated, raw_variable
from afm_ctr.errors import UserError

# Dtypes that Horovod's broadcast supports; others travel as bytes.
_DTYPES = (tf.uint8, tf.int8, tf.uint16, tf.int16, tf.int32, tf.int64, tf.float16, tf.float32, tf.float64, tf.bool)

_OPEN = "/proc/self/fd"  # the descriptors of all open files


def load() -> Any:
    try:
        import horovod.tensorflow as hvd
    except (ImportError, OSError, tf.errors.OpError) as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"this process was started by horovodrun, but Horovod does not load in {sys.executable} ({first_line}): "
            "build it for this TensorFlow by `python scripts/build_horovod.py` (or `make setup`), or start without "
            "horovodrun"
        ) from error
    return hvd


def _connections() -> Iterator[tuple[socket.socket, int]]:
    """This process's TCP connections, as duplicated sockets, and their inodes; none without ``/proc``."""
    for number in os.listdir(_OPEN) if os.path.isdir(_OPEN) else ():
        with contextlib.suppress(OSError), contextlib.ExitStack() as closing:
            copied = os.dup(int(number))  # its owner may close it meanwhile
            closing.callback(os.close, copied)
            if not stat.S_ISSOCK((status := os.fstat(copied)).st_mode):
                continue
            handle = socket.socket(fileno=os.dup(copied))
            closing.callback(handle.close)
            if handle.family in (socket.AF_INET, socket.AF_INET6) and handle.getpeername():
                yield handle, status.st_ino


def _given(tensor: Any) -> tf.Tensor:
    """A tensor of the graph that is being traced: Horovod's operations accept no other there."""
    tensor = tf.convert_to_tensor(tensor)
    if not tf.executing_eagerly() and isinstance(tensor, tf.__internal__.EagerTensor):
        return tf.identity(tensor)  # only here: on a GPU an identity of int32 is a copy to the host and back
    return tensor


class HorovodWorld(World):
    """The world of a job under Horovod (0.28.1, Gloo or NCCL).

    Only Horovod's TensorFlow operations are used: its Keras module silently reduces nothing under Keras 3.

    Raises:
        UserError: Horovod is not installed for this Python and TensorFlow.
    """

    def __init__(self) -> None:
        self._hvd = load()
        self.elastic = os.environ.get(rendezvous.ELASTIC) == "1"
        (rendezvous.arrive if self.elastic else rendezvous.meet)()
        self._ops = {"sum": self._hvd.Sum, "min": self._hvd.Min, "max": self._hvd.Max, "mean": self._hvd.Average}
        self._begin()

    def _begin(self) -> None:
        before = {inode for _, inode in _connections()}
        self._hvd.init()
        self._connections = {inode for _, inode in _connections()} - before
        self.rank = self._hvd.rank()
        self.size = self._hvd.size()
        self.local_rank = self._hvd.local_rank()
        self.local_size = self._hvd.local_size()

    def reset(self, neighbours: Sequence[int] = (), lost: bool = False) -> None:
        if not self.elastic:
            super().reset(neighbours)
        if lost:
            self.hang_up()
        self._hvd.shutdown()
        rendezvous.reconnect(neighbours)
        # Horovod would ask the launcher for the rank again, and abort the process if its host was removed.
        os.environ[rendezvous.ELASTIC] = "0"
        try:
            self._begin()
        finally:
            os.environ[rendezvous.ELASTIC] = "1"

    def hang_up(self) -> None:
        """Shut Gloo's connections down, so that ranks that wait for this one fail at once.

        Gloo leaves them open when an exchange fails, even after Horovod has been shut down. A rank that is not next
        to the lost one in the ring would wait for Gloo's timeout, half a minute, and the others for it.
        """
        for connection, inode in _connections():
            if inode in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def allreduce(self, tensor: Any, op: Op = "sum", name: str | None = None) -> tf.Tensor:
        return self._hvd.allreduce(_given(tensor), op=self._ops[op], name=name, ignore_name_scope=name is not None)

    def grouped_sum(self, tensors: Sequence[tf.Tensor], name: str | None = None) -> list[tf.Tensor]:
        reduced: list[tf.Tensor] = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):  # one group holds one dtype
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
            sums = self._hvd.grouped_allreduce(
                [_given(tensors[place]) for place in places],
                op=self._hvd.Sum,
                name=None if name is None else f"{name}_{dtype.name}",
                ignore_name_scope=name is not None,
            )
            for place, total in zip(places, sums, strict=True):
                reduced[place] = total
        return reduced

    def allgather(self, tensor: Any, name: str | None = None) -> tf.Tensor:
        return self._hvd.allgather(_given(tensor), name=name, ignore_name_scope=name is not None)

    def alltoall(self, tensor: Any, splits: Any, name: str | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        received, counts = self._hvd.alltoall(
            _given(tensor), _given(splits), name=name, ignore_name_scope=name is not None
        )
        return received, counts

    def broadcast(self, tensor: Any, name: str | None = None, root: int = 0) -> tf.Tensor:
        return self._hvd.broadcast(_given(tensor), root, name=name, ignore_name_scope=name is not None)

    def broadcast_variables(self, variables: Sequence[Any], root: int = 0) -> None:
        from horovod.tensorflow.mpi_ops import MPI_LIB

        for place, variable in enumerate(filter(is_replicated, variables)):
            raw = raw_variable(variable)
            if raw.dtype in _DTYPES:
                # In place: a table of a gigabyte is never held twice, as with hvd.broadcast_, which also matches
                # variables by name, and Keras numbers its layers by what a rank has built before.
                name = f"afm_ctr_variable_{place}"
                MPI_LIB.horovod_broadcast_inplace_resource([raw.handle], variable_names=[name], root_rank=root)
            else:
                raw.assign(tf.bitcast(self.broadcast(tf.bitcast(raw.read_value(), tf.uint8), root=root), raw.dtype))

    def shutdown(self) -> None:
        self._hvd.shutdown()
