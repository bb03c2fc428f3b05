"""The command line, upernet-zoo. The commands are in `upernet_zoo.commands`."""

from __future__ import annotations

import argparse
import os
import sys

from .commands import benchmark, evaluate, listing, portable, segment, train, weights
from .commands.common import Commands
from .errors import UPerNetZooError
from .version import __version__


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for an error, 2 for wrong usage, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="upernet-zoo", description="Pretrained UPerNet segmentation models in plain PyTorch.")
    parser.add_argument("--version", action="version", version=f"upernet-zoo {__version__}")
    commands = Commands(parser)
    for module in (listing, weights, segment, evaluate, train, portable, benchmark):
        module.register(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except UPerNetZooError as error:
        print(f"upernet-zoo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("upernet-zoo: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `upernet-zoo list | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
