"""Deployment files: each is parsed by what will read it, and they agree with each other and with what is exported."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from importlib.metadata import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.server import flags as local_flags

FILES = ("models.config", "batching.config", "monitoring.config")


@pytest.fixture(scope="module")
def deploy(root: Path) -> Path:
    return root / "deploy" / "serving"


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
    assert set(objects) == {"ConfigMap", "Deployment", "Service", "NetworkPolicy"}
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


@pytest.mark.parametrize("which", ["compose", "kubernetes", "first_try"])
def test_flags_are_the_server_s_and_name_what_is_mounted(
    deploy: Path, root: Path, objects: dict[str, dict[str, Any]], which: str
) -> None:
    if which == "kubernetes":
        (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
        flags, program = container["args"], container["command"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    else:
        file = root / "deploy" / "docker-compose.yml" if which == "first_try" else deploy / "docker-compose.yml"
        service = yaml.safe_load(file.read_text())["services"]["serving"]
        flags, program = service["command"], service["entrypoint"]
        mounted = {"/" + volume.split(":/")[1].split(":")[0] for volume in service["volumes"]}
        mounted |= {str(Path(path).parent) for path in mounted}
        assert "AVAILABLE" in service["healthcheck"]["test"][-1]
    assert int(dict(flag.removeprefix("--").split("=") for flag in flags)["grpc_max_threads"]) >= 64
    assert program == ["tensorflow_model_server"]
    values = dict(flag.removeprefix("--").split("=") for flag in flags)
    source = Path(local_flags.__file__).read_text()
    assert all(re.search(rf"\b{name}\b", source) for name in values), "known to the local server, or refused by name"
    assert values["port"] == "8500" and values["rest_api_port"] == "8501"
    assert values["enable_grpc_healthcheck_service"] == "true"
    if which == "first_try":
        assert values["model_base_path"] in mounted
        return
    assert values["enable_batching"] == "true"
    paths = {name: Path(value) for name, value in values.items() if value.startswith("/")}
    assert {path.name for path in paths.values()} == set(FILES)
    assert {str(path.parent) for path in paths.values()} == {"/config"} and {"/config", "/models/afm"} <= mounted


@pytest.mark.parametrize("which", ["deploy/serving/docker-compose.yml", "deploy/docker-compose.yml"])
def test_compose_lets_in_this_machine_alone_and_takes_no_rights(root: Path, which: str) -> None:
    service = yaml.safe_load((root / which).read_text())["services"]["serving"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert re.fullmatch(r"tensorflow/serving:\$\{TF_SERVING_TAG:-\d+\.\d+\.\d+\}", service["image"])
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["init"]
    assert service["user"].split(":")[0] not in ("0", "root")
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["mem_limit"] and service["cpus"] and service["pids_limit"] and service["stop_grace_period"]
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    # Compose reads relative paths from the folder of its file: they are of the checkout, or files of that folder.
    for path in re.findall(r"^(?:\$\{MODEL_BASE:-)?(\.[./\w]*)", "\n".join(service["volumes"]), re.M):
        found = (root / which).parent / path
        assert found.is_file() or found.resolve() == root.resolve() / "served" / "afm"


def test_pods_have_no_rights_and_limits_and_are_reached_by_labelled_callers(
    objects: dict[str, dict[str, Any]],
) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert re.fullmatch(r"tensorflow/serving:\d+\.\d+\.\d+", container["image"])
    assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["limits"])
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/tmp"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert 0 < pause < pod["terminationGracePeriodSeconds"]
    policy = objects["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == objects["Deployment"]["spec"]["selector"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"} and policy["egress"] == []
    (rule,) = policy["ingress"]
    assert rule["from"] and {port["port"] for port in rule["ports"]} == {"grpc", "rest"}


class Instruction(NamedTuple):
    """A line of a Dockerfile, continued lines joined: FROM, its text, and the number of the stage that it is in."""

    name: str
    text: str
    stage: int


def dockerfile(path: Path) -> list[Instruction]:
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    found: list[Instruction] = []
    stage = -1
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, text = line.split(maxsplit=1)
            stage += name == "FROM"
            found.append(Instruction(name, text.strip(), stage))
    return found


@pytest.fixture(scope="module")
def image(root: Path) -> list[Instruction]:
    return dockerfile(root / "deploy" / "gpu" / "Dockerfile")


def test_image_stages_and_arguments(image: list[Instruction], root: Path) -> None:
    assert {one.name for one in image} <= {"ARG", "FROM", "ENV", "WORKDIR", "RUN", "COPY", "CMD", "USER"}
    constraints = (root / "requirements" / "constraints.txt").read_text()
    (pinned,) = re.findall(r"^tensorflow==(\S+)$", constraints, re.M)
    assert image[0] == Instruction("ARG", f"TENSORFLOW={pinned}", -1)
    stages: dict[str, int] = {}
    declared: set[tuple[int, str]] = {(0, "TENSORFLOW")}
    for one in image:
        if one.name == "FROM":
            source, _, alias = one.text.partition(" AS ")
            assert source in stages or source == "tensorflow/tensorflow:${TENSORFLOW}-gpu"
            stages[alias or "the image"] = one.stage
        elif one.name == "ARG":
            declared.add((one.stage, one.text.partition("=")[0]))
        for variable in re.findall(r"\$\{(\w+)\}", one.text):
            assert (one.stage, variable) in declared, f"an ARG counts only in its own stage: {one}"
        if copied := re.match(r"--from=(\w+)", one.text):
            assert stages[copied[1]] < one.stage
    assert list(stages) == ["base", "horovod", "the image"]
    assert json.loads(image[-1].text) == ["afm-ctr", "doctor"]


def test_image_commands_are_there(image: list[Instruction], root: Path) -> None:
    commands = " ; ".join(one.text for one in image if one.name == "RUN")
    assert subprocess.run(["bash", "-n", "-c", commands], check=False).returncode == 0
    (extras,) = re.findall(r"\"\.\[([\w,]+)\]\"", commands)
    assert set(extras.split(",")) <= set(metadata("afm-ctr").get_all("Provides-Extra") or [])
    scripts = [(one.stage, shlex.split(one.text)) for one in image if "scripts/" in one.text]
    assert [stage for stage, _ in scripts] == [1, 1, 2, 2], "built in one stage, installed in the other"
    for _, words in scripts:
        (at,) = [number for number, word in enumerate(words) if word.startswith("scripts/")]
        source = (root / words[at]).read_text()
        assert ("--gpu" in words) == (words[at] == "scripts/build_horovod.py")
        assert all(f'"{option}"' in source for option in words[at + 1 :])
        named = [word.partition("=")[0] for word in words[:at] if word.startswith("HOROVOD_")]
        assert all(f'"{name}"' in source for name in named)
    # The cache that one stage fills is the one that the other finds.
    (environment,) = [shlex.split(one.text) for one in image if one.name == "ENV"]
    cache = dict(word.split("=") for word in environment)["AFM_CTR_CACHE"]
    assert [one.text for one in image if "--from" in one.text] == [f"--from=horovod {cache} {cache}"]
    # Only named paths are copied, all of them are there, and nothing runs as root.
    sources = [
        word for one in image if one.name == "COPY" and "--from" not in one.text for word in one.text.split()[:-1]
    ]
    assert {"afm_ctr", "scripts", "setup.py"} <= set(sources) and all((root / word).exists() for word in sources)
    assert not {".", "./", "*", "data", "run", "served"} & set(sources)
    assert [one.text for one in image if one.name == "USER"] == ["afm"] and image[-2].name == "USER"
    # What pip and the scripts read is not kept out of the image.
    ignored = (root / "deploy" / "gpu" / "Dockerfile.dockerignore").read_text().splitlines()
    assert not {"afm_ctr", "beam_jobs", "serving", "scripts", "requirements", "setup.py", "README.md"} & set(ignored)
    assert {"data", "run", "served"} <= set(ignored)


def test_what_commands_write_stays_out_of_git_and_of_images(root: Path) -> None:
    for name in (".gitignore", ".dockerignore"):
        lines = [line.rstrip("/") for line in (root / name).read_text().splitlines()]
        assert {"/data", "/run", "/served"} <= set(lines), (
            f"{name}: only at the root, where no source folder has these names"
        )
    if not (root / ".git").exists():
        pytest.skip("not a git checkout: what .gitignore does cannot be asked")
    paths = ["data/x", "run/x", "served/x", "afm_ctr/data/x.py", "examples/run/x.py"]
    told = subprocess.run(["git", "check-ignore", *paths], cwd=root, capture_output=True, text=True, check=False)
    assert told.stdout.split() == ["data/x", "run/x", "served/x"]


def test_image_page_says_what_was_not_run(root: Path) -> None:
    page = (root / "docs" / "gpu-image.md").read_text()
    assert "**This image was never built" in page
    builds = re.findall(r"docker build -f (\S+)", page)
    assert builds and all((root / file).is_file() for file in builds)
    arguments = {one.text.partition("=")[0] for one in dockerfile(root / builds[0]) if one.name == "ARG"}
    assert set(re.findall(r"--build-arg (\w+)=", page)) <= arguments
