"""Requests in, tokens out: continuous batches with an adapter a row."""
