"""Deployment files: each is parsed by what will read it, and they agree with each other and with what is exported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.server import flags as local_flags

FILES = ("models.config", "batching.config", "monitoring.config")


@pytest.fixture(scope="module")
def deploy(root: Path) -> Path:
    return root / "serving" / "deploy"


@pytest.fixture(scope="module")
def objects(deploy: Path) -> dict[str, dict[str, Any]]:
    return {item["kind"]: item for item in yaml.safe_load_all((deploy / "kubernetes.yaml").read_text())}


def message_type(name: str, *fields: tuple[str, int, str]) -> Any:
    """A message like the server's own, which its Python package leaves out: (name, number, type)."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="test", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    message = file.message_type.add(name=name)
    for field, number, kind in fields:
        added = message.field.add(name=field, number=number, label=kinds.LABEL_OPTIONAL)
        if kind.startswith("repeated "):
            added.label = kinds.LABEL_REPEATED
        kind = kind.removeprefix("repeated ")
        if kind[0].isupper():
            added.type, added.type_name = kinds.TYPE_MESSAGE, f".google.protobuf.{kind}"
        else:
            added.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"test.{name}"))


# tensorflow_serving/servables/tensorflow/session_bundle_config.proto
BatchingParameters = message_type(
    "BatchingParameters",
    ("max_batch_size", 1, "Int64Value"),
    ("batch_timeout_micros", 2, "Int64Value"),
    ("max_enqueued_batches", 3, "Int64Value"),
    ("num_batch_threads", 4, "Int64Value"),
    ("thread_pool_name", 5, "StringValue"),
    ("allowed_batch_sizes", 6, "repeated int64"),
    ("pad_variable_length_inputs", 7, "bool"),
)


def test_models_config_is_a_model_server_config(deploy: Path) -> None:
    config = text_format.Parse((deploy / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("afm", "/models/afm", "tensorflow")
    served = set(model.model_version_policy.specific.versions)
    assert served and set(model.version_labels.values()) <= served
    assert "stable" in model.version_labels


def test_the_runbook_s_canary_is_a_valid_change(deploy: Path, root: Path) -> None:
    page = (root / "docs" / "serving-runbook.md").read_text()
    (canary,) = re.findall(r"```\n(\s*model_version_policy.*?)```", page, re.S)
    text = f'model_config_list {{ config {{ name: "afm" base_path: "/m" {canary} }} }}'
    (model,) = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert dict(model.version_labels) == {"stable": 1, "canary": 2}
    assert list(model.model_version_policy.specific.versions) == [1, 2]


def test_batching_parameters_follow_the_server_s_rules(deploy: Path) -> None:
    text = (deploy / "batching.config").read_text()
    batching = text_format.Parse(text, BatchingParameters())
    sizes = list(batching.allowed_batch_sizes)
    assert sizes == sorted(set(sizes)) and sizes[-1] == batching.max_batch_size.value
    assert batching.num_batch_threads.value >= 1 and batching.max_enqueued_batches.value >= 1
    assert 0 <= batching.batch_timeout_micros.value <= 10_000, "no more than the latency that it may cost"
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text + "max_batch_sise { value: 1 }", BatchingParameters())
    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batch_size: 1", BatchingParameters())


def test_monitoring_config(deploy: Path, objects: dict[str, dict[str, Any]]) -> None:
    text = (deploy / "monitoring.config").read_text()
    inner = re.fullmatch(r"(?:#.*\n)*prometheus_config \{\n(.*)\}\n", text, re.S)
    assert inner
    prometheus = message_type("PrometheusConfig", ("enable", 1, "bool"), ("path", 2, "string"))
    config = text_format.Parse(inner[1], prometheus())
    assert config.enable
    notes = objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/path"] == config.path and notes["prometheus.io/port"] == "8501"


def test_config_map_holds_the_files_of_the_folder(deploy: Path, objects: dict[str, dict[str, Any]]) -> None:
    assert objects["ConfigMap"]["data"] == {name: (deploy / name).read_text() for name in FILES}


def test_deployment_and_service_fit_each_other(objects: dict[str, dict[str, Any]]) -> None:
    assert set(objects) == {"ConfigMap", "Deployment", "Service"}
    spec = objects["Deployment"]["spec"]
    pod = spec["template"]
    (container,) = pod["spec"]["containers"]
    assert spec["selector"]["matchLabels"] == pod["metadata"]["labels"] == objects["Service"]["spec"]["selector"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"]: port["port"] for port in objects["Service"]["spec"]["ports"]} == ports
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert volumes["config"]["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    assert not any("subPath" in mount for mount in container["volumeMounts"])
    for probe in ("startupProbe", "readinessProbe"):
        command = container[probe]["exec"]["command"]
        assert "/v1/models/afm" in command[-1] and "AVAILABLE" in command[-1]
        assert str(ports["rest"]) in command[-1]
    assert container["livenessProbe"]["grpc"]["port"] == ports["grpc"]
    assert container["readinessProbe"]["failureThreshold"] == 2


@pytest.mark.parametrize("which", ["compose", "kubernetes", "top"])
def test_flags_are_the_server_s_and_name_what_is_mounted(
    deploy: Path, root: Path, objects: dict[str, dict[str, Any]], which: str
) -> None:
    if which == "kubernetes":
        (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
        flags, program = container["args"], container["command"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    else:
        file = root / "docker-compose.yml" if which == "top" else deploy / "docker-compose.yml"
        service = yaml.safe_load(file.read_text())["services"]["serving"]
        flags, program = service["command"], service["entrypoint"]
        mounted = {"/" + volume.split(":/")[1].split(":")[0] for volume in service["volumes"]}
        mounted |= {str(Path(path).parent) for path in mounted}
        assert "AVAILABLE" in service["healthcheck"]["test"][-1]
    assert program == ["tensorflow_model_server"]
    values = dict(flag.removeprefix("--").split("=") for flag in flags)
    source = Path(local_flags.__file__).read_text()
    assert all(re.search(rf"\b{name}\b", source) for name in values), "known to the local server, or refused by name"
    assert values["port"] == "8500" and values["rest_api_port"] == "8501"
    assert values["enable_grpc_healthcheck_service"] == "true"
    if which == "top":
        assert values["model_base_path"] in mounted
        return
    assert values["enable_batching"] == "true"
    paths = {name: Path(value) for name, value in values.items() if value.startswith("/")}
    assert {path.name for path in paths.values()} == set(FILES)
    assert {str(path.parent) for path in paths.values()} == {"/config"} and {"/config", "/models/afm"} <= mounted
