"""The command line `bench COMMAND`, assembled from bench/commands."""

import argparse
import logging
import sys
from collections.abc import Sequence

from bench.commands import (
    board,
    catalog,
    check,
    other_verifiers,
    pack,
    ranks,
    recheck,
    runs,
    show,
    study,
    submission,
    sweep,
    verify,
)
from bench.commands.arguments import Parser, ShowVersion, fail
from bench.commands.help import SHELLS, Commands, PrintCompletion
from bench.core.errors import CheckError, UncheckedError, UserError
from bench.core.failures import FULL, OUT_OF_MEMORY, is_out_of_memory
from bench.core.package_origins import check_package_origins


def parser() -> Parser:
    about = "Measure the robust accuracy of neural networks: certified bounds from below, attacks from above."
    top = Parser(prog="bench", description=about)
    top.add_argument("--version", action=ShowVersion, nargs=0, help="print the version")
    help_text = 'print the completion script of a shell, as in: eval "$(bench --print-completion bash)"'
    top.add_argument("--print-completion", choices=SHELLS, action=PrintCompletion, help=help_text)
    commands = Commands(top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser))
    for subject in (
        catalog, study, show, runs, verify, sweep, pack, recheck, board, check, ranks, other_verifiers, submission,
    ):  # fmt: skip
        subject.add(commands)
    return top


def _advice(error: OSError) -> str:
    if error.errno in FULL:
        return "free some space and run the same command again, which continues; --out takes another disk"
    return "choose a path that can be read and written"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. Exit code 0: success; 1: a check failed; 2: an error of the user; 3: could not be checked.

    Errors are one line on standard error.
    """
    try:
        check_package_origins()
        top = parser()
        args = top.parse_args(argv, argparse.Namespace(quiet=False))
        if args.command is None:
            top.print_help()
            return
        logging.getLogger("bench.progress").disabled = args.quiet
        args.act(args)
    except UserError as error:
        fail(str(error))
    except CheckError as error:
        fail(str(error), code=1)
    except UncheckedError as error:
        fail(str(error), code=3)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        fail(f"{error.filename or 'file'}: {error.strerror or error}; {_advice(error)}")
    except MemoryError:
        fail(OUT_OF_MEMORY)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fail(OUT_OF_MEMORY)
    except KeyboardInterrupt:
        fail("interrupted; run the same command again to continue", code=130)
    finally:
        logging.getLogger("bench.progress").disabled = False
