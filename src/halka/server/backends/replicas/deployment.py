"""`Deployment`: a gateway's application on Ray Serve, whose replicas are engines, from its start to its end.

Serve places the replicas on nodes, replaces those that die, scales between two numbers, and lets a replica that is to
go finish its answers. No proxy of Serve's listens anywhere: requests come through the gateway alone.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from contextlib import ExitStack
from typing import Any

from halka.core import AdaptedModel
from halka.server.backends.replicas.channel import Channel, ServeChannel
from halka.server.backends.replicas.placement import CALLS
from halka.server.backends.replicas.plan import ReplicaPlan
from halka.server.backends.replicas.relay import RelayChannel
from halka.server.backends.replicas.serve_replica import ServeReplica
from halka.server.backends.replicas.share import Share, share_of
from halka.server.settings import ServerSettings
from halka.util.errors import HalkaError
from halka.util.files import write_text
from halka.util.ray_connection import RayConnection, last_line

NAME = "engine"  # of the deployment in the application
TIMEOUT = 900.0  # seconds in which the replicas must have loaded the base
LOOK = 0.5  # seconds between two looks meanwhile
BEYOND = 60.0  # seconds in which Serve ends a replica, beyond those in which this finishes its answers
AIM = 0.75  # requests under way that a replica is to have, as a share of its rows
ROUTER = "halka.server.backends.replicas.serve_router.InOrder"
ID = "replicas.id"  # of a gateway, in its folder of data
log = logging.getLogger("halka.server")


class Deployment:
    """The application and the connection to its cluster.

    channel  asks the replicas

    Raises HalkaError where there is no cluster, no Ray Serve or no room, and where no replica starts: its node has
    another base or another version of Halka, for example. Its replicas are ended then, as by every other error.
    """

    def __init__(self, settings: ServerSettings, model: AdaptedModel):
        assert settings.on is not None
        self.app, self._timeout = application(settings), settings.timeout + BEYOND
        with ExitStack() as opening:
            self.connection = RayConnection(settings.on)
            opening.callback(self.connection.close)
            self._serve = _serve()
            share = share_of(self.connection, settings, model)
            self._start_serve()
            opening.callback(self._end)
            self._remove()  # what is left of a gateway that was killed
            handle = self._run(settings, ReplicaPlan.of(settings, model, share.threads, share.beside), share)
            self._wait()
            self.channel: Channel = self._channel(handle)
            self._open = opening.pop_all()

    def close(self) -> None:
        """End the replicas, when they have answered what is under way, and leave the cluster."""
        self._open.close()

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_serve(self) -> None:
        """Start Serve, without proxies, where it does not run yet."""
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        self._serve.start(proxy_location="Disabled")

    def _run(self, settings: ServerSettings, plan: ReplicaPlan, share: Share) -> Any:
        """Start the application; returns the handle of its deployment."""
        least, most = settings.replica_range
        number: dict[str, Any] = {"num_replicas": least}
        if most > least:
            number = {
                "autoscaling_config": {
                    "min_replicas": least,
                    "initial_replicas": least,
                    "max_replicas": most,
                    "target_ongoing_requests": max(1.0, AIM * settings.rows),
                    "upscale_delay_s": settings.scale_up_after,
                    "downscale_delay_s": settings.scale_down_after,
                    "look_back_period_s": max(2.0, min(settings.scale_up_after, settings.scale_down_after)),
                    "metrics_interval_s": 1.0,
                }
            }
        deployment = self._serve.deployment(
            ServeReplica,
            name=NAME,
            **number,
            ray_actor_options={
                "num_cpus": share.threads,
                "num_gpus": share.gpus,
                "memory": share.memory,
                **self.connection.away_from_small_gpus(share.gpu_memory),
            },
            max_ongoing_requests=CALLS * settings.rows,
            max_constructor_retry_count=3,
            graceful_shutdown_wait_loop_s=LOOK,
            graceful_shutdown_timeout_s=settings.timeout,
            request_router_config={"request_router_class": ROUTER, "max_backoff_s": 0.1},
            logging_config={"log_level": "ERROR", "enable_access_log": False},
        )
        target = self._serve.RunTarget(deployment.bind(plan.json), name=self.app, route_prefix=None)
        (handle,) = self._serve.run_many([target], wait_for_applications_running=False)
        return handle

    def _wait(self) -> None:
        """Wait until the replicas run. Raises HalkaError with the reason where they do not."""
        end = time.monotonic() + TIMEOUT
        while (state := self._serve.status().applications[self.app]).status != "RUNNING":
            if state.status == "DEPLOY_FAILED":
                raise HalkaError(f"no replica starts on the Ray cluster: {reason(state)}")
            if time.monotonic() > end:
                raise HalkaError(
                    f"the replicas did not start within {TIMEOUT:g} s ({reason(state)}): are the cluster's nodes "
                    "taken by others?"
                )
            time.sleep(LOOK)

    def _channel(self, handle: Any) -> Channel:
        ray = self.connection.ray
        return RelayChannel(ray, self.app) if self.connection.remote else ServeChannel(ray, handle)

    def _remove(self) -> None:
        remove(self._serve, self.app, self._timeout)

    def _end(self) -> None:
        """End the application, and Serve where nobody has anything on it now. What fails of it is in the log."""
        errors = self.connection.ray.exceptions.RayError, self._serve.exceptions.RayServeException
        try:
            self._remove()
            state = self._serve.status()
            if not state.applications and not state.proxies:
                self._serve.shutdown()
        except (HalkaError, ConnectionError, TimeoutError, *errors) as error:
            fields = {"application": self.app, "reason": f"{type(error).__name__}: {last_line(error)}"}
            log.warning("the replicas were not seen to end", extra={"fields": fields})


def _serve() -> Any:
    try:
        from ray import serve
        from ray.serve import exceptions  # noqa: F401 (an attribute of serve from now on)
    except ImportError:
        raise HalkaError("--on needs Ray Serve, which is not installed: pip install 'halka[ray]'") from None
    return serve


def remove(serve: Any, app: str, timeout: float, look: float = LOOK) -> None:
    """End an application, if there is one of that name, and wait until its replicas have ended.

    Raises HalkaError where they have not after `timeout` seconds.
    """
    if app not in serve.status().applications:
        return
    serve.delete(app, _blocking=False)  # else it waits for a minute, whatever replicas have to finish
    end = time.monotonic() + timeout
    while app in serve.status().applications:
        if time.monotonic() > end:
            raise HalkaError(
                f"the replicas of application {app} on the Ray cluster did not end within {timeout:g} s: see `serve "
                "status` there, and end what it runs by `serve shutdown`"
            )
        time.sleep(look)


def application(settings: ServerSettings) -> str:
    """The application's name: the same for a gateway with the same folder of data, wherever it is started again."""
    path = settings.absolute().data / ID
    if not path.is_file():
        write_text(path, uuid.uuid4().hex)
    return f"halka-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def reason(state: Any) -> str:
    """Why an application does not run, of what Serve says of it and its deployments: our own error, if there is one."""
    messages = [deployment.message for deployment in state.deployments.values()] + [state.message]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    own = [line.partition("HalkaError: ")[2] for line in lines if "HalkaError: " in line]
    return own[-1] if own else (lines[-1] if lines else "Serve says no reason")
