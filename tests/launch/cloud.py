"""A `gcloud` that records how it is called, and has workers: folders here, in which scripts for workers really run."""

import json
import os
import subprocess
import sys
from pathlib import Path

GCLOUD = """\
import concurrent.futures, json, os, pathlib, subprocess, sys

cloud, words = pathlib.Path(os.environ["CLOUD"]), sys.argv[1:]
with (cloud / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
queue, command = cloud / "queue", words[2:4]
if "ONLY_RECORDS" in os.environ:
    print("ACTIVE")
elif command == ["queued-resources", "create"]:
    if queue.exists():
        sys.exit("ALREADY_EXISTS")
    queue.write_text("WAITING_FOR_RESOURCES\\nWAITING_FOR_RESOURCES\\nPROVISIONING\\nACTIVE")
elif command == ["queued-resources", "describe"]:
    if not queue.exists():
        sys.exit("NOT_FOUND")
    state, _, later = queue.read_text().partition("\\n")
    queue.write_text(later or state)
    print(state)
elif command == ["queued-resources", "delete"]:
    queue.unlink()
elif command == ["tpu-vm", "scp"]:
    source, target = words[4:6]
    for home in sorted(cloud.glob("worker-*")):
        path = home / target.partition(":")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pathlib.Path(source).read_bytes())
elif command == ["tpu-vm", "ssh"]:
    (script,) = [word.partition("=")[2] for word in words if word.startswith("--command=")]

    def on(home):
        number = home.name.removeprefix("worker-")
        if number == os.environ.get("UNREACHABLE"):
            code = 255
        else:
            env = {"HOME": str(home), "WORKER": number, "PATH": f"{cloud}/tools:{os.environ['PATH']}"}
            code = subprocess.run(["bash", "-c", script], env=env, cwd=home).returncode
        if code:
            said = f"##### Command execution on worker {number} failed with exit status {code}. Continuing."
            print(said, file=sys.stderr)
        return code

    homes = sorted(cloud.glob("worker-*"))
    with concurrent.futures.ThreadPoolExecutor(len(homes)) as pool:
        sys.exit(next((code for code in pool.map(on, homes) if code), 0))
"""
TOOLS = {
    "curl": "echo $WORKER",
    # What uv would make: a Python, and the program of the checkout that was copied.
    "python3": """\
echo "$@" >> "$HOME/python3"
case "$*" in
  *"uv venv"*) mkdir -p "$HOME/.specialize/bin" && install -m 755 /dev/null "$HOME/.specialize/bin/python";;
  *"uv pip"*) cp "$HOME/specialize/program" "$HOME/.specialize/bin/specialize";;
esac""",
}
PROGRAM = (
    f"#!{sys.executable} -IS\n"
    + """\
import json, os, pathlib, signal, sys, time

home, number = pathlib.Path(os.environ["HOME"]), os.environ["WORKER"]
if sys.argv[1] == "--version":
    sys.exit(print("specialize 0"))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
told = [os.environ.get("SPECIALIZE_PROCESSES"), os.environ.get("A"), os.getcwd(), *sys.argv[1:]]
with (home / "runs.jsonl").open("a") as runs:
    runs.write(json.dumps(told) + "\\n")
print("step 1", flush=True)
while (home / "hold").exists():
    time.sleep(0.02)
if (home / "fails").exists():
    print("out of memory", file=sys.stderr)
    sys.exit(int((home / "fails").read_text()))
print("done")
"""
)


class Cloud:
    """A folder with a TPU VM of some workers."""

    def __init__(self, folder: Path, workers: int = 2):
        self.folder = folder
        self.homes = [folder / f"worker-{number}" for number in range(workers)]
        for home in self.homes:
            home.mkdir(parents=True)
        (folder / "calls.jsonl").touch()
        for place, name, text in (
            ("bin", "gcloud", f"#!{sys.executable} -IS\n{GCLOUD}"),
            *(("tools", name, f"#!/bin/sh\n{text}\n") for name, text in TOOLS.items()),
        ):
            path = folder / place / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        self.environment = {"CLOUD": str(folder), "PATH": f"{folder}/bin:{os.environ['PATH']}"}

    @property
    def calls(self) -> list[list[str]]:
        """Words of every call of gcloud, after `gcloud`."""
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    @property
    def runs(self) -> list[list[list[str]]]:
        """For each worker, what `specialize` was started with: processes, variable A, folder, words."""
        return [
            [json.loads(line) for line in (home / "runs.jsonl").read_text().splitlines()]
            if (home / "runs.jsonl").exists()
            else []
            for home in self.homes
        ]

    def checkout(self, folder: Path) -> Path:
        """A checkout whose program does what the tests ask."""
        for name, text in {
            "setup.py": "",
            "program": PROGRAM,
            "experiments/x.py": "experiment = 1",
            "runs/large": "not to be copied",
        }.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (folder / "program").chmod(0o755)
        return folder

    def command(self, *words: str, cwd: Path) -> subprocess.Popen[str]:
        """`specialize launch tpu-vm …` as a process of its own."""
        script = "import sys; from specialize.cli import main; main(['launch', 'tpu-vm', *sys.argv[1:]])"
        root = str(Path(__file__).parents[2])
        env = os.environ | self.environment | {"PYTHONPATH": root}
        return subprocess.Popen(
            [sys.executable, "-c", script, *words],
            env=env,
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
