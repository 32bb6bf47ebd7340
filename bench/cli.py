"""The command line: `bench COMMAND`. The commands are in bench/commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.commands import board, catalog, gate, runs, submission
from bench.commands.arguments import Parser, fail
from bench.core.errors import CheckError, UserError
from bench.core.package_origins import check_one_root


def parser() -> Parser:
    top = Parser(prog="bench", description="Robust accuracy between what is certified and what survives every attack.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for subject in (catalog, runs, board, submission, gate):
        subject.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Exit 0: done; 1: a check failed; 2: the user's mistake, in one line."""
    try:
        check_one_root()
        args = parser().parse_args(argv)
        args.act(args)
    except UserError as error:
        fail(str(error))
    except CheckError as error:
        fail(str(error), code=1)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        fail(f"{error.filename or 'file'}: {error.strerror or error}; choose a place that can be read and written")
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from here", code=130)


if __name__ == "__main__":
    main()
