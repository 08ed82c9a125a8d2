"""`python -m halka` is `halka`: the command line, whose import Ctrl-C ends as quietly as a command."""

import sys


def main() -> None:
    try:
        from halka.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
