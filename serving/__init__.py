"""Scoring through TF Serving: a light client and a local server with the same API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from serving.client import Client

        return Client
    raise AttributeError(f"module 'serving' has no attribute {name!r}; it has: {', '.join(__all__)}")
