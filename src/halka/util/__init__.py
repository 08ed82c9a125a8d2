"""Util: what knows of no adapters: errors, atomic files, this machine, settings, turns of threads, quiet libraries."""
