"""Each run is a task of Ray, on a cluster that is there, or on one of this command's own on this machine.

A cluster is joined only by the launcher's ``address``: ``RAY_ADDRESS`` in the environment decides nothing. A cluster
that asks for a token is told it by Ray's own variables, ``RAY_AUTH_MODE=token`` and ``RAY_AUTH_TOKEN``; one of our own
has a token that nobody else knows. Every node needs this package, and sees the output under the same path.

Not covered: what a run prints stays in Ray's logs; a node that is lost takes the runs on it with it, and the same
command continues them.
"""

import logging
import secrets
import signal
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from continual.errors import Terminated, UserError
from continual.sweep import Outcome
from continual.worker import STOP_SECONDS, Job, Reply, lost, spawning, variables, work

if TYPE_CHECKING:
    from continual.progress import Watcher

CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Ray:
    """Runs several jobs at once.

    Attributes:
        address: of a cluster that is there, e.g. ``10.0.0.1:6379``, or ``auto`` for the one on this machine; None for
            one of our own, which ends with the sweep.
        num_cpus: cores of a cluster of our own, >= 1; None for all of this machine.
        cpus_per_run: cores that a run takes up, > 0.
        gpus_per_run: accelerators that a run takes up, >= 0; without any it sees none.
        object_store_mb: memory in 10^6 bytes for objects of a cluster of our own, >= 80; runs put none there.
    """

    address: str | None = None
    num_cpus: int | None = None
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0
    object_store_mb: int = 100

    def __post_init__(self) -> None:
        for name, holds, bound in (
            ("num_cpus", self.num_cpus is None or self.num_cpus >= 1, "at least 1, or null"),
            ("num_cpus", self.num_cpus is None or self.address is None, "null: the cluster at the address has its own"),
            ("cpus_per_run", self.cpus_per_run > 0, "above 0"),
            ("cpus_per_run", self.num_cpus is None or self.cpus_per_run <= self.num_cpus, "at most num_cpus"),
            ("gpus_per_run", self.gpus_per_run >= 0, "at least 0"),
            ("object_store_mb", self.object_store_mb >= 80, "at least 80"),
        ):
            if not holds:
                raise UserError(f"hydra.launcher.{name}={getattr(self, name)} must be {bound}")
        if find_spec("ray") is None:
            raise UserError("hydra/launcher=ray needs the package ray: pip install 'continual[ray]'")

    def __call__(self, jobs: Sequence[Job], watch: "Watcher") -> Generator[Outcome, None, None]:
        if not jobs:
            return
        with self._cluster() as ray:
            options = {"num_cpus": self.cpus_per_run, "num_gpus": self.gpus_per_run, "max_retries": 0}
            task = ray.remote(work).options(name="continual", **options)
            running = {task.remote(job): job for job in jobs}
            try:
                while running:
                    over, _ = ray.wait(list(running))
                    for reference in over:
                        yield running.pop(reference).judged(_reply(reference))
            except SystemExit as stop:  # Ray's own, whatever the handler of SIGTERM raises while it waits
                raise Terminated(128 + signal.SIGTERM) from stop
            finally:
                for reference in running:  # the sweep is stopped
                    ray.cancel(reference, force=False)
                if running:
                    ray.wait(list(running), num_returns=len(running), timeout=STOP_SECONDS)

    @contextmanager
    def _cluster(self) -> Iterator[Any]:
        """Join or start the cluster; in the end leave it, or end it. What is given is the module ray."""
        options: dict[str, Any] = {"address": self.address}
        settings = {"RAY_USAGE_STATS_ENABLED": "0"}
        if self.address is None:  # "local" starts one whatever the environment says
            options = {"address": "local", "num_cpus": self.num_cpus, "include_dashboard": False}
            options["object_store_memory"] = self.object_store_mb * 10**6
            settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        else:
            _check_answers(self.address)
        before = signal.getsignal(signal.SIGTERM)
        with variables(settings):
            import ray  # not before: what it reads of them when it is imported, it keeps

            try:
                with spawning():
                    ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                where = f"joined at {self.address}" if self.address else "started"
                raise UserError(f"hydra/launcher=ray: no cluster can be {where}: {error}") from error
            finally:
                signal.signal(signal.SIGTERM, before)  # Ray puts its own there
            try:
                yield ray
            finally:
                ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise a UserError if nobody listens at ``host:port``, which Ray would try for a quarter of an hour."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if not colon or not port.isdigit():  # auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"hydra.launcher.address={address}: no Ray cluster answers there ({error})") from None


def _reply(reference: Any) -> Reply:
    import ray

    try:
        reply: Reply = ray.get(reference)
        return reply
    except ray.exceptions.RayError as error:
        return lost(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
