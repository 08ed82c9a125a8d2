"""The command line: one file a group of commands, one short function a command."""

from halka.cli.app import app, main
from halka.cli.reference import cli_reference

__all__ = ["app", "cli_reference", "main"]
