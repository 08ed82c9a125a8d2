"""Util: files that are whole or not there, this machine, settings, other libraries kept quiet."""
