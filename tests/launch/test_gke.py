"""JobSets for GKE: valid by the controller's own schema, whatever the accelerator, and refused when they cannot be."""

import copy
import json
import os
import shlex
import subprocess
import sys

import jsonschema
import pytest
import yaml

from launch.accelerators import every_name, find
from launch.gke import gke, xpk_of
from launch.jobset import Gke, jobset
from launch.words import parse
from launch.yaml_text import yaml_text
from specialize.errors import ConfigError, LaunchError
from specialize.processes import ProcessConfig, identify
from tests.launch.crd import validator_of

IMAGE = ("--image", "europe-docker.pkg.dev/p/r/specialize:1")
FILE = "experiments/quickstart.py"


@pytest.fixture(scope="session")
def validator(shared):
    return validator_of(shared / "schemas/jobset-crd.yaml", "v1alpha2")


def made(*words: str) -> dict:
    """The JobSet as kubectl reads it from the YAML."""
    job = parse(Gke, [*IMAGE, *words], "specialize launch gke")
    manifest = jobset(job)
    read = yaml.safe_load(yaml_text(manifest))
    assert read == manifest
    return read


def pod_of(manifest: dict) -> dict:
    (job,) = manifest["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def env_of(manifest: dict) -> dict[str, str]:
    return {each["name"]: each.get("value") for each in pod_of(manifest)["containers"][0]["env"]}


@pytest.mark.parametrize("name", every_name())
def test_every_accelerator_has_a_valid_jobset(validator, name):
    manifest = made("--accelerator", name, FILE)
    validator.validate(manifest)
    found = find(name)
    spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["completions"] == spec["parallelism"] == found.hosts
    assert spec["backoffLimit"] == 0
    (container,) = pod_of(manifest)["containers"]
    assert container["resources"]["limits"] == {found.resource: str(found.chips_per_host)}
    assert found.node_selector.items() <= pod_of(manifest)["nodeSelector"].items()
    exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology" in manifest["metadata"].get("annotations", {})
    assert exclusive == (found.kind == "tpu" and found.hosts > 1)


EVERYTHING = (
    *("--name", "My Run_1", "--namespace", "speech", "--queue", "tpu-queue", "--priority-class", "high"),
    *("--service-account", "trainer", "--runs", "/data/runs", "--env", "A=1", "--env", "B=x=y"),
    *("--mount", "gs://bucket/corpora=/data", "--mount", "pvc:bases=/bases", "--workdir", "/app"),
    *("--cpu", "16", "--memory", "64Gi", "--grace", "300", "--restarts", "7"),
)


@pytest.mark.parametrize("accelerator", ["v6e-64", "h100-16", "l4-1"])
@pytest.mark.parametrize("machines", [("--spot",), ("--reservation", "res-1"), ()])
def test_every_flag_is_valid_and_arrives(validator, accelerator, machines):
    slices = "1" if accelerator == "l4-1" else "3"
    manifest = made("--accelerator", accelerator, "--slices", slices, *EVERYTHING, *machines, FILE)
    validator.validate(manifest)
    assert manifest["metadata"]["name"] == manifest["spec"]["network"]["subdomain"] == "my-run-1"
    assert manifest["metadata"]["namespace"] == "speech"
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "tpu-queue"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert manifest["spec"]["replicatedJobs"][0]["replicas"] == int(slices)
    pod = pod_of(manifest)
    assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("high", "trainer")
    assert pod["terminationGracePeriodSeconds"] == 300
    (container,) = pod["containers"]
    assert container["command"][-5:] == ["specialize", "train", FILE, "--runs", "/data/runs"]
    assert container["workingDir"] == "/app"
    assert {"cpu": "16", "memory": "64Gi"}.items() <= container["resources"]["requests"].items()
    assert {"A": "1", "B": "x=y"}.items() <= env_of(manifest).items()
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/data", "/bases"]
    assert pod["volumes"][0]["csi"]["volumeAttributes"] == {
        "bucketName": "bucket",
        "mountOptions": "implicit-dirs,only-dir=corpora",
    }
    assert pod["volumes"][1]["persistentVolumeClaim"] == {"claimName": "bases"}
    assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == ("--spot" in machines)


def misspelt(manifest: dict, path: list, old: str, new: str) -> dict:
    """The manifest with the name of a field changed."""
    changed = copy.deepcopy(manifest)
    at = changed
    for step in path:
        at = at[step]
    at[new] = at.pop(old)
    return changed


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ([], "spec", "specs"),
        (["metadata"], "labels", "label"),
        (["spec"], "failurePolicy", "failurepolicy"),
        (["spec", "failurePolicy"], "maxRestarts", "restarts"),
        (["spec", "replicatedJobs", 0], "replicas", "replica"),
        (["spec", "replicatedJobs", 0, "template", "spec"], "backoffLimit", "backOffLimit"),
        (["spec", "replicatedJobs", 0, "template", "spec", "template", "spec"], "nodeSelector", "nodeSelectors"),
        (["spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0], "env", "envs"),
    ],
)
def test_the_schema_refuses_a_misspelt_field(validator, path, old, new):
    manifest = made("--accelerator", "v5e-16", FILE)
    validator.validate(manifest)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(misspelt(manifest, path, old, new))


def test_the_schema_refuses_a_wrong_type_and_a_wrong_action(validator):
    manifest = made("--accelerator", "v5e-16", FILE)
    for path, value in (
        (["spec", "failurePolicy", "maxRestarts"], "3"),
        (["spec", "failurePolicy", "rules", 0, "action"], "Restart"),
        (["spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "command", 0], 1e-3),
    ):
        changed = copy.deepcopy(manifest)
        at = changed
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(changed)


def test_preemptions_restart_without_being_counted():
    manifest = made("--accelerator", "v5e-16", FILE)
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    by_code, by_condition = spec["podFailurePolicy"]["rules"]
    assert by_code["onExitCodes"] == {"containerName": "train", "operator": "In", "values": [75]}
    assert by_condition["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    # Kubernetes takes a pod failure policy only with it.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_tpu_processes_find_each_other_by_themselves():
    assert env_of(made("--accelerator", "v5e-16", FILE))["SPECIALIZE_PROCESSES"] == "auto"
    for accelerator in ("v5e-8", "h100-8"):
        found = identify(
            ProcessConfig(), env_of(made("--accelerator", accelerator, FILE)) | {"JOB_COMPLETION_INDEX": "0"}
        )
        assert found is not None
        assert found.count == 1


def test_gpu_processes_are_told_where_the_first_is_and_which_they_are(tmp_path):
    manifest = made("--accelerator", "h100-16", "--slices", "2", "--name", "run", FILE, "--a", "it's $(HOME) $HOME")
    env = env_of(manifest)
    assert env["SPECIALIZE_COORDINATOR"] == "run-train-0-0.run:8476"
    assert env["SPECIALIZE_PROCESSES"] == "4"
    # As the pod would do it: Kubernetes makes `$$` a dollar sign, then the shell has its turn.
    command = [word.replace("$$", "$") for word in pod_of(manifest)["containers"][0]["command"]]
    shows = tmp_path / "specialize"
    script = "import json, os, sys\nprint(json.dumps([os.environ['SPECIALIZE_PROCESS'], *sys.argv[1:]]))\n"
    shows.write_text(f"#!{sys.executable}\n{script}")
    shows.chmod(0o755)
    seen = []
    for job in range(2):
        for pod in range(2):
            told = {
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "SPECIALIZE_JOB_INDEX": str(job),
                "JOB_COMPLETION_INDEX": str(pod),
            }
            seen.append(json.loads(subprocess.run(command, env=told, capture_output=True, check=True).stdout))
    assert [index for index, *_ in seen] == ["0", "1", "2", "3"]
    assert all(rest == ["train", FILE, "--a", "it's $(HOME) $HOME"] for _, *rest in seen)


@pytest.mark.parametrize(
    "word",
    ["1e-3", "0x1F", "y", "no", "~", "12:30", "a: b", "#x", "é", "", "two\nlines\n", "\ttab", "'", '"', "-", "*"],
)
def test_words_are_texts_to_every_reader_of_yaml(word):
    manifest = made("--accelerator", "v5e-16", FILE, "--x", word)
    assert pod_of(manifest)["containers"][0]["command"][-1] == word
    assert f"- {word}\n" not in yaml_text({"x": [word]})


def test_names_of_pods_fit_into_a_label():
    manifest = made("--accelerator", "v5p-12288", "--slices", "2", "--name", "n" * 200, FILE)
    name = manifest["metadata"]["name"]
    assert len(f"{name}-train-1-1535-abcde") <= 63
    other = made("--accelerator", "v5p-12288", "--slices", "2", "--name", "n" * 201, FILE)
    assert other["metadata"]["name"] != name


def test_the_jobset_has_the_name_of_the_run():
    assert made("--accelerator", "l4-1", FILE)["metadata"]["name"] == "quickstart"
    assert made("--accelerator", "l4-1", FILE, "--name", "Other.1")["metadata"]["name"] == "other-1"
    assert made("--accelerator", "l4-1", FILE, "--name=2nd")["metadata"]["name"] == "s-2nd"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--accelerator", "v5e-17"), "v5e-16, v5e-32"),
        (("--accelerator", "tpu9"), "no accelerator"),
        (("--accelerator", "v5e-16", "--topology", "8x8"), "Choose from 4x4"),
        (("--accelerator", "v5e-8", "--slices", "2"), "several hosts only"),
        (("--accelerator", "v5e-16", "--slices", "0"), "1 or more"),
        (("--accelerator", "v5e-16", "--memory", "64 GB"), "64Gi"),
        (("--accelerator", "v5e-16", "--queue", "Big_Queue"), "small letters"),
        (("--accelerator", "v5e-16", "--env", "1=2"), "NAME=VALUE"),
        (("--accelerator", "v5e-16", "--env", "SPECIALIZE_PROCESSES=3"), "the launcher sets it"),
        (("--accelerator", "v5e-16", "--mount", "s3://b=/x"), "gs://BUCKET"),
        (("--accelerator", "v5e-16", "--mount", "gs://bucket=x"), "gs://BUCKET"),
        (("--accelerator", "v5e-16", "--spot", "--reservation", "r"), "Choose one"),
        (("--accelerator", "v5e-16", "--port", "65535"), "1 to 65534"),
        (("--accelerator", "v5e-16", "--name", "…"), "letter or digit"),
    ],
)
def test_bad_combinations_are_refused_with_the_choices(words, said):
    with pytest.raises(ConfigError, match=said):
        made(*words, FILE)


def test_runs_is_not_given_twice():
    with pytest.raises(ConfigError, match="before and after"):
        made("--accelerator", "v5e-16", "--runs", "/b/x", FILE, "--runs", "y")


def test_xpk_gets_the_same_job():
    words = [
        *IMAGE,
        "--accelerator",
        "v5p-128",
        "--slices",
        "2",
        "--cluster",
        "c",
        "--env",
        "A=b c",
        FILE,
        "--x",
        "it's",
    ]
    said = shlex.split(xpk_of(parse(Gke, words, "specialize launch gke")))
    assert said[:3] == ["xpk", "workload", "create"]
    flags = dict(
        word.removeprefix("--").split("=", 1) for word in said[3:] if "=" in word and not word.startswith("--env")
    )
    assert flags["tpu-type"] == "v5p-128"
    assert (flags["num-slices"], flags["cluster"], flags["workload"]) == ("2", "c", "quickstart")
    assert shlex.split(flags["command"]) == ["specialize", "train", FILE, "--x", "it's"]
    assert "--env=A=b c" in said
    assert "--env=SPECIALIZE_PROCESSES=auto" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--accelerator", "v5e-16"), "--cluster"),
        (("--accelerator", "v5e-4", "--cluster", "c"), "xpk has no v5e-4"),
        (("--accelerator", "h100-16", "--cluster", "c"), "several GPU machines"),
        (("--accelerator", "v5e-16", "--cluster", "c", "--queue", "q"), "nothing for --queue"),
    ],
)
def test_what_xpk_cannot_do_is_said(words, said):
    with pytest.raises(ConfigError, match=said):
        gke([*IMAGE, *words, "--xpk", FILE])


def test_what_is_printed_can_be_applied(capsys, validator, tmp_path):
    gke([*IMAGE, "--accelerator", "v5e-16", FILE, "--x", "a\nb: c"])
    printed = capsys.readouterr().out
    validator.validate(yaml.safe_load(printed))
    assert printed.startswith("# specialize launch gke --image")
    assert "# The same with xpk: xpk workload create --cluster=CLUSTER" in printed
    gke([*IMAGE, "--accelerator", "v5e-16", "--out", str(tmp_path / "job.yaml"), FILE])
    assert "kubectl apply -f" in capsys.readouterr().out
    validator.validate(yaml.safe_load((tmp_path / "job.yaml").read_text()))


def test_kubectl_gets_the_jobset_and_its_refusal_is_passed_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="kubectl is not installed"):
        gke([*IMAGE, "--accelerator", "v5e-16", "--apply", FILE])
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\n/bin/cat > {tmp_path}/got\nexit ${{REFUSES:-0}}\n')
    kubectl.chmod(0o755)
    gke([*IMAGE, "--accelerator", "v5e-16", "--namespace", "ns", "--apply", FILE])
    assert (tmp_path / "words").read_text() == "apply -f -\n"
    assert yaml.safe_load((tmp_path / "got").read_text()) == made("--accelerator", "v5e-16", "--namespace", "ns", FILE)
    assert "kubectl get jobset quickstart --namespace ns" in capsys.readouterr().out
    monkeypatch.setenv("REFUSES", "3")
    with pytest.raises(LaunchError, match="code 3"):
        gke([*IMAGE, "--accelerator", "v5e-16", "--apply", FILE])
