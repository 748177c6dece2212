"""What one rank does for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from afm_ctr.distributed import World
from afm_ctr.errors import UserError

Result = TypeVar("Result")


def on_chief(world: World, work: Callable[[], Result]) -> Result:
    """Do something on rank 0 alone and give every rank its result, or every rank its :class:`UserError`."""
    if world.size == 1:
        return work()
    result: Result | None = None
    mistake: str | None = None
    if world.is_chief:
        try:
            result = work()
        except UserError as error:
            mistake = str(error)
    result, mistake = world.broadcast_object((result, mistake))
    if mistake is not None:
        raise UserError(mistake)
    return result  # type: ignore[return-value]
