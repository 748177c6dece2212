"""A resolved schema on disk: ``schema.yaml`` and ``vocab/<space>.txt``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from afm_ctr.errors import UserError
from afm_ctr.io.files import write_bytes

from .base import Frozen
from .reading import read_yaml, validate
from .resolve import statistics_from_spec
from .resolved import FORMAT_VERSION, IdRange, NumericStatistics, ResolvedSchema, derived_statistics, vocabulary_bytes
from .spec import FeatureSchema

_HEAD = """\
# A resolved schema: the user's schema (under `spec`) and the id ranges, statistics and vocabularies found for it.
# Written by afm-ctr. Prepared data and models name its id, so do not edit it: edit your own schema and prepare again.
"""


class _Digest(Frozen):
    entries: int
    sha256: str


class _File(Frozen):
    format_version: int
    id: str
    lineage: tuple[str, ...]
    feature_size: int
    ranges: tuple[IdRange, ...]
    statistics: dict[str, NumericStatistics]
    vocabularies: dict[str, _Digest]
    key_checks: dict[str, str] = Field(default_factory=dict)
    spec: FeatureSchema


def save(schema: ResolvedSchema, folder: Path) -> None:
    """See :meth:`ResolvedSchema.save`. The vocabularies come first: a ``schema.yaml`` never names absent files."""
    for space, entries in schema.vocabularies.items():
        write_bytes(folder / "vocab" / f"{space}.txt", vocabulary_bytes(entries))
    content = schema.content()
    derived = derived_statistics(schema.spec)
    document = {
        "format_version": FORMAT_VERSION,
        "id": schema.id,
        "lineage": content["lineage"],
        "feature_size": schema.feature_size,
        "ranges": content["ranges"],
        "statistics": {name: s for name, s in content["statistics"].items() if name not in derived},
        "vocabularies": content["vocabularies"],
        **{name: content[name] for name in ("key_checks",) if name in content},
        "spec": content["spec"],
    }
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    write_bytes(folder / "schema.yaml", (_HEAD + text).encode())


def load(path: Path) -> ResolvedSchema:
    """See :meth:`ResolvedSchema.load`."""
    file = path / "schema.yaml" if path.is_dir() or path.suffix not in (".yaml", ".yml") else path
    data = read_yaml(file)
    if not isinstance(data, dict) or "format_version" not in data:
        raise UserError(f"{file}: is not a resolved schema (`afm-ctr prepare` writes one into its output folder)")
    if data["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{file}: format_version: {data['format_version']!r}: this afm-ctr reads version {FORMAT_VERSION}; "
            "prepare the data again, or use the afm-ctr that wrote it"
        )
    read = validate(_File, data, file)
    schema = ResolvedSchema(
        spec=read.spec,
        lineage=read.lineage,
        ranges=read.ranges,
        statistics=statistics_from_spec(read.spec) | read.statistics,
        vocabularies={name: _vocabulary(file, name, digest) for name, digest in read.vocabularies.items()},
        key_checks=read.key_checks,
    )
    for name, digest in read.vocabularies.items():
        if schema.vocabulary_digests[name] != digest.sha256:
            raise UserError(
                f"{file.parent / 'vocab' / name}.txt: differs from the vocabulary that {file} was written with; "
                "restore it or prepare the data again"
            )
    if schema.id != read.id:
        raise UserError(
            f"{file}: id: {read.id!r}: the content has the id '{schema.id}': the file was edited or damaged; "
            "restore it or prepare the data again"
        )
    return schema


def _vocabulary(file: Path, space: str, digest: _Digest) -> tuple[bytes, ...]:
    path = file.parent / "vocab" / f"{space}.txt"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, but {file} names it; restore it or prepare the data again") from None
    return tuple(content.split(b"\n")[:-1])


class _Dumper(yaml.SafeDumper):
    """Lists of plain values on one line; no anchors; texts that our loader would read as something else, quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        flat = all(not isinstance(item, (dict, list, tuple)) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat)


# YAML 1.1, which the library writes, takes 1e5 for a text; our loader, which reads YAML 1.2, takes it for a number.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
