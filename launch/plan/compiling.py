"""How long programs take to compile where no cache has them, timed where one may."""

import time

import jax.monitoring

_SAVED = "/jax/compilation_cache/compile_time_saved_sec"
"""JAX tells it of each program that it finds in its persistent cache, where the time it once took is kept beside it."""


class Compiling:
    """Times what is compiled inside of the context, with what JAX's persistent cache spared."""

    seconds = 0.0

    def __enter__(self) -> "Compiling":
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began
        jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _SAVED:
            self.seconds += max(duration_secs, 0.0)
