"""``--model_config_file``: one model with its version policy and labels, in the real server's text format."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import text_format

from afm_ctr.errors import UserError
from afm_ctr.io.inputs import read_settings

_FLAG = "serve: --model_config_file"


@dataclass(frozen=True)
class VersionPolicy:
    """The versions to serve: the ``most`` highest ones (None: all), or the ``specific`` ones if any are given."""

    most: int | None = 1
    specific: tuple[int, ...] = ()

    def candidates(self, versions: Iterable[int]) -> list[int]:
        """The versions to try to load, best first, until ``most`` of them are loaded."""
        ordered = sorted(versions, reverse=True)
        return [version for version in ordered if version in self.specific] if self.specific else ordered


@dataclass(frozen=True)
class ModelConfig:
    """The served model: its name, the folder of its versions, which of them to serve, and their labels."""

    name: str
    base_path: str
    policy: VersionPolicy = VersionPolicy()
    labels: Mapping[str, int] = field(default_factory=dict)


def read_model_config(path: str) -> ModelConfig:
    """Read a ModelServerConfig in text format.

    Raises:
        UserError: the file cannot be read, does not parse, or uses what only the real server supports.
    """
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    config = ModelServerConfig()
    try:
        text_format.Parse(read_settings(path).decode(), config)
    except OSError as error:
        raise UserError(f"{_FLAG}={path}: {error.strerror or error}") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{_FLAG}={path}: not a ModelServerConfig in text format: {error}") from None
    models = config.model_config_list.config
    if len(models) != 1:
        raise UserError(f"{_FLAG}={path}: this local server serves one model, not {len(models)} as the real one can")
    (model,) = models
    if not model.name or model.model_platform != "tensorflow":
        raise UserError(f'{_FLAG}={path}: a model needs a name and model_platform: "tensorflow"')
    if not Path(model.base_path).is_absolute() and "://" not in model.base_path:
        raise UserError(f"{_FLAG}={path}: base_path: {model.base_path!r} must be absolute, as in the real server")
    policy = VersionPolicy()
    chosen = model.model_version_policy
    if chosen.HasField("all"):
        policy = VersionPolicy(None)
    elif chosen.HasField("specific"):
        policy = VersionPolicy(None, tuple(chosen.specific.versions))
        if not policy.specific:
            raise UserError(f"{_FLAG}={path}: model_version_policy specific names no versions")
    elif chosen.HasField("latest"):
        policy = VersionPolicy(chosen.latest.num_versions or 1)
    return ModelConfig(model.name, model.base_path, policy, dict(model.version_labels))


def check_labels(old: Mapping[str, int], new: Mapping[str, int], available: Collection[int], name: str) -> None:
    """The real server's rule: a label in use may only move to a version that is already loaded.

    Raises:
        UserError: a label would move to another version; the message is the real server's.
    """
    for label, version in sorted(new.items()):
        if version != old.get(label, version) and version not in available:
            raise UserError(
                f"serve: label {label}: Request to assign label to version {version} of model {name}, "
                "which is not currently available for inference"
            )
