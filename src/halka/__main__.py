"""The process `halka`, or `python -m halka`: the command line, whose import Ctrl-C ends as quietly as a command."""

import sys

from halka.util.process import run_process


def main() -> None:
    try:
        run_process(_command_line)
    except KeyboardInterrupt:
        sys.exit(130)


def _command_line() -> None:
    from halka.cli import main as run

    run()


if __name__ == "__main__":
    main()
