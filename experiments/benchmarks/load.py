"""A server under load: many clients at once for minutes, while Submodels are published, and rubbish is sent.

    python experiments/benchmarks/load.py --minutes 3 --json load.json

Starts `specialize serve` on a store of a few speakers. Clients ask without pause. Meanwhile one speaker's Submodel is
replaced again and again by two versions in turns: every answer must be one that either of them gives. What is counted:
answers by status, latency, answers that are neither version's, and the memory of the server from minute to minute.
"""

import collections
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tyro
from stores import random_submodel, store_of_many

from specialize.base import load_base
from specialize.submodel import LoRA

SPEC = LoRA(where=("encoder/**",), rank=8)
PUBLISHED = "published"


@dataclass(frozen=True)
class Benchmark:
    """Answers of a server under load."""

    base: Path = Path("specialize/embedded/base")
    """Base folder."""
    audio: Path = Path("specialize/embedded/audio/synth-mild-01/test-01.ogg")
    """What all clients send."""
    speakers: int = 50
    """In the store."""
    clients: int = 64
    """That ask at the same time."""
    minutes: float = 3.0
    """How long."""
    swaps: int = 200
    """Publications meanwhile."""
    budget: float = 10.0
    """Of the server; see `specialize serve --help`."""
    rubbish: int = 3_000
    """Malformed requests, meanwhile."""
    port: int = 8321
    """On loopback."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Benchmark) -> None:
    """Runs the load and prints what came of it."""
    base = load_base(options.base)
    with tempfile.TemporaryDirectory() as folder:
        store = store_of_many(Path(folder), random_submodel(base, SPEC, 0, 0.02), options.speakers)
        versions = [replace(random_submodel(base, SPEC, seed, 0.05), speaker=PUBLISHED) for seed in (1, 2)]
        store.save(versions[0])
        command = [sys.executable, "-m", "specialize.cli", "serve", "--base", str(options.base), "--submodels", folder]
        flags = [
            "--port",
            str(options.port),
            "--rows",
            "1",
            "8",
            "32",
            "--lengths",
            "4",
            "--budget",
            str(options.budget),
        ]
        with open(Path(folder).parent / "load_server.log", "w") as log:
            server = subprocess.Popen([*command, *flags], stderr=log, stdout=log)
        try:
            about = _load(options, store, versions, server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            ended = server.wait(60)
    about |= {"exit_code": ended, "device": f"cpu, {platform.machine()}, {os.cpu_count()} cores"}
    print(json.dumps(about, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(about, indent=1) + "\n")


def _load(options: Benchmark, store: Any, versions: list[Any], pid: int) -> dict[str, Any]:
    address = f"http://127.0.0.1:{options.port}"
    data = options.audio.read_bytes()
    _until_ready(address)
    expected = []
    for version in versions:
        store.save(version, overwrite=True)
        expected.append(_ask(address, data, PUBLISHED).json()["text"])
    assert expected[0] != expected[1], "the two versions say the same"
    end = time.monotonic() + 60 * options.minutes
    statuses, torn, failures, unexplained = collections.Counter(), [], collections.Counter(), []
    latencies: list[float] = []

    def client(number: int) -> None:
        draw = random.Random(number)
        with httpx.Client(timeout=120) as browser:
            while time.monotonic() < end:
                name = PUBLISHED if draw.random() < 0.3 else str(draw.randrange(options.speakers))
                began = time.perf_counter()
                try:
                    answer = _ask(address, data, name, browser)
                except httpx.HTTPError as error:
                    failures[type(error).__name__] += 1
                    continue
                statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    latencies.append(time.perf_counter() - began)
                    if name == PUBLISHED and answer.json()["text"] not in expected:
                        torn.append(answer.text)
                elif answer.status_code == 429 and "retry-after" in answer.headers:
                    time.sleep(min(1.0, float(answer.headers["retry-after"])))
                else:
                    unexplained.append(answer.text)

    memory, rubbish = [_resident(pid)], collections.Counter()
    with ThreadPoolExecutor(options.clients + 3) as threads:
        asking = [threads.submit(client, i) for i in range(options.clients)]
        publishing = threads.submit(_publish, options, store, versions, end)
        wrong = threads.submit(_rubbish, options, address, data, rubbish, failures, end)
        while time.monotonic() < end:
            time.sleep(min(30.0, max(0.0, end - time.monotonic())))
            memory.append(_resident(pid))
        for one in asking:
            one.result()
        swaps = publishing.result()
        wrong.result()
    return {
        "answers": {str(status): n for status, n in sorted(statuses.items())},
        "texts_a_second": len(latencies) / (60 * options.minutes),
        "latency_seconds": {str(q): float(np.percentile(latencies, q)) for q in (50, 95, 99)},
        "failed_connections": dict(failures),
        "errors_not_explained_by_back_pressure": len(unexplained),
        "examples": unexplained[:3],
        "swaps": swaps,
        "torn": len(torn),
        "rubbish": {str(status): n for status, n in sorted(rubbish.items())},
        "memory_mib": [round(n / (1 << 20)) for n in memory],
        "clients": options.clients,
        "minutes": options.minutes,
    }


def _publish(options: Benchmark, store: Any, versions: list[Any], end: float) -> int:
    pause = max(0.0, (end - time.monotonic()) / (options.swaps + 1))
    for swap in range(options.swaps):
        began = time.monotonic()
        store.save(versions[swap % 2], overwrite=True)
        time.sleep(max(0.0, pause - (time.monotonic() - began)))
    return options.swaps


def _rubbish(
    options: Benchmark,
    address: str,
    data: bytes,
    statuses: collections.Counter,
    failures: collections.Counter,
    end: float,
) -> None:
    draw = random.Random(0)
    with httpx.Client(timeout=60) as browser:
        for _ in range(options.rubbish):
            if time.monotonic() > end:
                return
            bad = bytearray(data)
            for _ in range(draw.randint(1, 40)):
                bad[draw.randrange(min(len(bad), 400))] = draw.randrange(256)
            kind = draw.randrange(4)
            if kind == 0:  # no audio
                bad = bytearray(draw.randbytes(draw.randrange(3_000)))
            if kind == 1:  # no form
                body = bytearray(
                    httpx.Request("POST", address, files={"file": ("a", data)}, data={"model": "0"}).read()
                )
                for _ in range(draw.randint(1, 9)):
                    body[draw.randrange(200)] = draw.randrange(256)
                form = {"Content-Type": f"multipart/form-data; boundary={draw.choice(['x', '', '-' * 70])}"}
                answer = browser.post(f"{address}/v1/audio/transcriptions", content=bytes(body), headers=form)
            else:
                name = draw.choice(["0", "0", "0", "../0", "\x00", "nobody", "é" * 500])
                answer = _ask(address, bytes(bad), name, browser)
            statuses[answer.status_code] += 1
            if (answer.status_code >= 500 and answer.status_code != 503) or "Traceback" in answer.text:
                failures[f"{answer.status_code} to rubbish"] += 1


def _ask(address: str, data: bytes, model: str, browser: Any = httpx) -> httpx.Response:
    return browser.post(
        f"{address}/v1/audio/transcriptions", files={"file": ("a.ogg", data)}, data={"model": model}, timeout=120
    )


def _until_ready(address: str) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise SystemExit("The server does not get ready.")


def _resident(pid: int) -> int:
    """Bytes of a process in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
