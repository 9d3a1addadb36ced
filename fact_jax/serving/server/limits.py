"""Limits of the server, each a flag of `fact-jax serve`."""

import dataclasses

from fact_jax.ranges import Real, Whole, check_fields, setting

_SECONDS = Real(0, 3600, above=True)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on what clients can make the server hold, and for how long."""

    max_body_mb: int = setting(16, Whole(1, 1024), "MiB of a request's body")
    max_bodies_mb: int = setting(256, Whole(1, 65_536), "MiB of all bodies held at one time")
    max_megapixels: int = setting(64, Whole(1, 178), "millions of pixels of a picture")
    max_queue: int = setting(256, Whole(1, 65_536), "images that wait for the network")
    max_tasks: int = setting(1000, Whole(1, 1_000_000), "tasks that are loaded at one time")
    max_name: int = setting(100, Whole(1, 200), "characters of a task's name")
    max_connections: int = setting(256, Whole(1, 65_536), "connections at one time")
    max_delay_ms: float = setting(
        5.0, Real(0, 10_000), "milliseconds that an image waits for others to share its batch"
    )
    decode_threads: int = setting(2, Whole(1, 256), "threads that decode pictures and parse JSON")
    head_timeout: float = setting(
        10.0, _SECONDS, "seconds in which the head of a request must arrive"
    )
    body_timeout: float = setting(30.0, _SECONDS, "seconds in which its body must arrive")
    answer_timeout: float = setting(
        60.0, _SECONDS, "seconds until the network must have answered, and the client have read"
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def body_bytes(self) -> int:
        """Bytes of a request's body."""
        return self.max_body_mb << 20

    @property
    def bodies_bytes(self) -> int:
        """Bytes of all bodies held at one time."""
        return self.max_bodies_mb << 20

    @property
    def pixels(self) -> int:
        """Pixels of a picture."""
        return self.max_megapixels * 1_000_000
