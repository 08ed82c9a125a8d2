"""Adapters become weights, and several become one: what merging costs (`error`), how adapters combine (`combining`)."""
