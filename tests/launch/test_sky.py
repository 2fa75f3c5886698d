"""Task files for SkyPilot: what the machines would run, run here."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from launch.accelerators import every_name, find
from launch.sky import Sky, sky, task_of
from launch.words import parse
from launch.yaml_text import yaml_text
from specialize.errors import ConfigError

FILE = "experiments/quickstart.py"
OFFERED = [name for name in every_name() if not name.startswith("v7x")]


def made(*words: str) -> dict:
    """The task as SkyPilot reads it from the YAML."""
    task = task_of(parse(Sky, list(words), "specialize launch sky"))
    read = yaml.safe_load(yaml_text(task))
    assert read == task
    return read


@pytest.mark.parametrize("name", OFFERED)
def test_every_accelerator_has_a_task(name):
    found, task = find(name), made("--accelerator", name, FILE)
    resources = task["resources"]
    if found.kind == "tpu":
        assert resources["accelerators"] == f"tpu-{found.cloud_type}"
        assert resources["accelerator_args"]["runtime_version"] == found.family.runtime
        assert (resources["infra"], task["num_nodes"]) == ("gcp", 1)
        assert ("SPECIALIZE_PROCESSES=auto" in task["run"]) == (found.hosts > 1)
    else:
        kind, _, count = resources["accelerators"].partition(":")
        assert (kind, int(count)) == (found.family.sky, found.chips_per_host)
        assert task["num_nodes"] == found.hosts
        assert ("SPECIALIZE_PROCESSES" in task["run"]) == (found.hosts > 1)
    assert resources["job_recovery"] == {"max_restarts_on_errors": 3, "recover_on_exit_codes": [75]}


def test_processes_are_told_where_the_first_is_and_which_they_are(tmp_path):
    odd = ["--a", "it's $HOME", "--b", "1e-3", "two\nlines", ""]
    trained = ["train", FILE, "--runs", "/b/runs", *odd]
    task = made("--accelerator", "h100-16", "--runs", "/b/runs", FILE, *odd)
    program = tmp_path / ".specialize/bin/specialize"
    program.parent.mkdir(parents=True)
    names = ["SPECIALIZE_COORDINATOR", "SPECIALIZE_PROCESSES", "SPECIALIZE_PROCESS"]
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"print(json.dumps([*(os.environ[name] for name in {names}), *sys.argv[1:]]))\n"
    )
    program.chmod(0o755)
    for rank in range(2):
        told = {"SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": str(rank)}
        ended = subprocess.run(
            ["bash", "-c", task["run"]],
            env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]} | told,
            capture_output=True,
            check=True,
        )
        assert json.loads(ended.stdout) == ["10.0.0.7:8476", "2", str(rank), *trained]


def test_flags_arrive(tmp_path, capsys):
    task = made(
        *("--accelerator", "v6e-16", "--infra", "gcp/us-east5", "--spot", "--name", "My Run", "--env", "A=b"),
        *("--mount", "gs://bucket/x=/data", "--mount", "s3://other=/more", "--workdir", "..", "--restarts", "9", FILE),
    )
    assert (task["name"], task["workdir"], task["envs"]["A"]) == ("my-run", "..", "b")
    assert (task["resources"]["infra"], task["resources"]["use_spot"]) == ("gcp/us-east5", True)
    assert task["file_mounts"]["/data"] == {"source": "gs://bucket/x", "mode": "MOUNT"}
    assert "'.[tpu,bucket]'" in task["setup"]
    sky(["--accelerator", "l4-1", "--out", str(tmp_path / "t.yaml"), FILE])
    assert "sky jobs launch" in capsys.readouterr().out
    sky(["--accelerator", "l4-1", FILE])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == yaml.safe_load((tmp_path / "t.yaml").read_text()) == made("--accelerator", "l4-1", FILE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--accelerator", "v7x-8"), "v4, v5e, v5p, v6e"),
        (("--accelerator", "h100-12"), "multiple of 8"),
        (("--accelerator", "v5e-16", "--infra", "aws"), "TPUs are Google's"),
        (("--accelerator", "l4-1", "--mount", "bucket=/x"), "gs://BUCKET"),
        (("--accelerator", "l4-1", "--mount", "gs://a=/x", "--mount", "gs://b=/x"), "mounted twice"),
        (("--accelerator", "l4-1", "--env", "SPECIALIZE_PROCESS=1"), "the launcher sets it"),
        (("--accelerator", "l4-1", "--port", "0"), "1 to 65534"),
        (("--accelerator", "l4-1", "--restarts", "-1"), "0 or more"),
    ],
)
def test_bad_combinations_are_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        made(*words, FILE)
