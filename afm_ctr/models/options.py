"""The options of models, which are checked without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from afm_ctr.io.validation import Strict, validate


class InteractionOptions(Strict):
    """Options of an interaction. A subclass adds its own; an unknown one is an error."""

    factors: int = Field(16, ge=0, description="k, the width of the vectors; 0 for none")
    init_stddev: float = Field(0.01, ge=0, description="standard deviation of the vectors' initial values")


class LROptions(InteractionOptions):
    """Options of :class:`~afm_ctr.models.lr.LR`: none; there are no vectors."""

    factors: Literal[0] = Field(0, description="there are no vectors")
    init_stddev: float = Field(0.0, ge=0, le=0, description="there are no vectors")


class FMOptions(InteractionOptions):
    """Options of :class:`~afm_ctr.models.fm.FM`."""

    factors: int = Field(16, ge=1, description="k, the width of the vectors")


class AFMOptions(InteractionOptions):
    """Options of :class:`~afm_ctr.models.afm.AFM`."""

    factors: int = Field(16, ge=1, description="k, the width of the vectors")
    attention: int = Field(16, ge=1, description="t, the width of the attention network")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="share of pair weights dropped, after the softmax")
    pooled_dropout: float = Field(0.0, ge=0, lt=1, description="share of the pooled vector dropped")
    scale_by_pairs: bool = Field(False, description="multiply the pooled vector by the number of present pairs")
    attention_l2: float = Field(0.0, ge=0, description="λ of λ‖W‖², on the attention matrix only")


class DeepAFMOptions(AFMOptions):
    """Options of :class:`~afm_ctr.models.deep_afm.DeepAFM`."""

    scale_by_pairs: bool = Field(True, description="multiply pooled vectors by the number of present pairs")
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((64, 64), description="widths of the network's layers")
    read_vectors: bool = Field(False, description="let the network read the slots' vectors next to their sums")
    normalise: bool = Field(True, description="bring what the network reads of a row to mean 0 and variance 1")
    pooled_dropout: float = Field(0.0, ge=0, lt=1, description="share of each hidden layer dropped")


def parse_options(name: str, kind: type[InteractionOptions], options: Mapping[str, Any]) -> Any:
    """The checked options of a model: an instance of ``kind``, the model's ``Options``.

    Raises:
        UserError: one line that names the option, its value, and for an unknown one the known options.
    """
    return validate(kind, dict(options), f"model {name!r}")
