"""A server of tiny Submodels in this process, at a free port of loopback."""

import asyncio
import contextlib
import copy
import io
import threading
import time
from collections.abc import Iterator

import numpy as np
import soundfile
import uvicorn

from specialize.serve.app import create_app
from specialize.serve.audio import AudioDecoder


def wav(clip: np.ndarray, rate: int = 16_000) -> bytes:
    """A clip as a file, without loss."""
    file = io.BytesIO()
    soundfile.write(file, clip, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


@contextlib.contextmanager
def listening(service, **how) -> Iterator[str]:
    """The address of a server that runs while the context does, with processes of its own that decode audio."""
    service = copy.copy(service)
    service.decoder, service._decoding = AudioDecoder(workers=1, max_seconds=8.0), asyncio.Semaphore(1)
    app = create_app(service, **how)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        async with service.decoder:
            yield

    app.router.lifespan_context = lifespan
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
