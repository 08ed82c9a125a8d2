"""What stands before every route: keys and rights, limits, bounded bodies, logs, metrics, an orderly end."""
