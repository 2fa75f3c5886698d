"""Scripts for the workers of a TPU VM, in bash: install, run, stop, look.

Training goes on when the connection ends: it belongs to no terminal, and writes to `~/.specialize-run/log`, which the
connection only shows. So the same command starts a run, shows one that runs already, and goes on with one that ended.
The code is in `~/specialize`, Python and packages in `~/.specialize`.
"""

import shlex
from collections.abc import Mapping, Sequence

ARCHIVE = "specialize.tar.gz"
"""Copied to the workers' home folders."""

# The number of a worker is what JAX asks for too: `agent-worker-number` of the metadata server.
_HEAD = """\
worker=$(curl --silent --fail --header 'Metadata-Flavor: Google' \
http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number || hostname)
state=$HOME/.specialize-run
mkdir -p "$state"
running() { grep --quiet --no-messages specialize-run "/proc/$(cat "$state/pid" 2>/dev/null)/cmdline"; }
finish() { echo "[$worker] ended with code $1"; exit "$1"; }
"""
# Several words a line would mix; with the number in front, lines stay whose they are.
_NUMBERED = 'sed --unbuffered "s/^/[$worker] /"'


def install_script(extras: str, python: str) -> str:
    """Unpacks the archive, and installs it with its packages.

    TPU VMs come with Python 3.10, so uv brings another.

    Args:
        extras: of the package, `tpu,bucket`.
        python: version, `3.12`.
    """
    steps = " && ".join(
        [
            'mkdir -p "$HOME/specialize"',
            # What the checkout no longer has goes; runs that were not put elsewhere stay.
            'find "$HOME/specialize" -mindepth 1 -maxdepth 1 ! -name runs -exec rm -rf {} +',
            f'tar xzf "$HOME/{ARCHIVE}" -C "$HOME/specialize"',
            "python3 -m pip install --quiet --user uv",
            f'{{ [ -x "$HOME/.specialize/bin/python" ] || python3 -m uv venv --python {shlex.quote(python)} '
            '"$HOME/.specialize"; }',
            'python3 -m uv pip install --quiet --python "$HOME/.specialize/bin/python" '
            f'--editable "$HOME/specialize"{shlex.quote(f"[{extras}]")}',
            '"$HOME/.specialize/bin/specialize" --version',
        ]
    )
    return f'{_HEAD}running && {{ echo "[$worker] a run is under way: stop it first"; finish 1; }}\n' + (
        f"set -o pipefail\n{{ {steps}; }} 2>&1 | {_NUMBERED}\nfinish $?\n"
    )


def run_script(command: Sequence[str], env: Mapping[str, str]) -> str:
    """Starts the command, or finds it running, and shows its output until it ends.

    Args:
        command: of `specialize`: train, the file, flags.
        env: variables for it.
    """
    words = ["env", *(f"{name}={value}" for name, value in env.items()), "../.specialize/bin/specialize", *command]
    # `wait` gives the code of the command itself, to which a stop sends its signal.
    inner = f'{shlex.join(words)} & echo $! > "$0/train"; wait $!; echo $? > "$0/code"'
    return f"""{_HEAD}cd "$HOME/specialize" || {{ echo "[$worker] nothing is installed"; finish 1; }}
if running; then
  echo "[$worker] runs already; its output follows"
else
  rm -f "$state/code"
  : > "$state/log"
  setsid nohup bash -c {shlex.quote(inner)} "$state" >> "$state/log" 2>&1 < /dev/null &
  echo $! > "$state/pid"
fi
tail --lines=+1 --sleep-interval=0.2 --pid="$(cat "$state/pid")" --follow "$state/log" | {_NUMBERED}
finish "$(cat "$state/code" 2>/dev/null || echo 137)"
"""


def stop_script() -> str:
    """Sends SIGTERM to what runs, which saves and ends with code 75."""
    return f"""{_HEAD}if running; then
  kill -TERM "$(cat "$state/train")" && echo "[$worker] asked to save and stop"
else
  echo "[$worker] nothing runs"
fi
finish 0
"""


def look_script() -> str:
    """Says whether anything runs, and shows its last lines."""
    return f"""{_HEAD}if running; then
  echo "[$worker] runs"
elif [ -e "$state/code" ]; then
  echo "[$worker] does not run; it ended with $(cat "$state/code")"
else
  echo "[$worker] has run nothing"
fi
[ -e "$state/log" ] && tail --lines=3 "$state/log" | {_NUMBERED}
finish 0
"""
