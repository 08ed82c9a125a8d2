"""Util: errors, files written atomically, this machine, settings, names that were meant, quiet libraries."""
