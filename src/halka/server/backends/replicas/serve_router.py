"""`InOrder`: Serve's router for replicas, which tries them in the order that comes with a request."""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class InOrder(RequestRouter):
    """The gateway sees every request and reply, so it knows who holds what (`placement.py`), and Serve who is alive."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The candidates, one after the other; those that the order does not name are at its None, or at its end."""
        order = [] if pending_request is None else pending_request.kwargs.get("order", [])
        named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        others = [replica for name, replica in named.items() if name not in order]
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        ranked = [others if name is None else [named[name]] for name in order if name is None or name in named]
        return ranked if None in order else [*ranked, others]
