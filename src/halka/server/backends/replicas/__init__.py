"""Replicas of the engine on a Ray cluster, which Ray Serve starts, scales and replaces: <https://docs.ray.io/serve>."""
