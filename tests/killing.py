"""Kill an action at its k-th file operation, in a process that is forked after the imports.

Operations are: opening a file for writing, and making, renaming, deleting or syncing a file or a folder. A file that
was about to be opened is left empty, which is the worst that a kill inside of a write leaves.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from contextlib import chdir, redirect_stderr, redirect_stdout
from multiprocessing import RawValue
from pathlib import Path

from bench.cli import main

EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
NEVER = 1_000_000


def command(*words):
    """The action of a command, which fails if its exit code is not 0."""

    def act():
        main(words)

    return act


def operations(folder, act):
    """How many file operations an action makes that runs to its end in `folder`."""
    code, made = _forked(folder, act, NEVER)
    assert code == 0, output(folder)
    return made


def kill_at(k, folder, act):
    """Run an action in `folder` until it is killed before its k-th file operation, counted from 0."""
    code, _ = _forked(folder, act, k)
    assert code in (0, -signal.SIGKILL), output(folder)  # 0: a later operation of another process was counted


def output(folder):
    return (folder / "output.log").read_text()


def _forked(folder, act, k):
    made = RawValue("i", 0)  # shared with processes that the action forks
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), made.value
    code = 1
    try:
        os.setpgid(0, 0)
        with (folder / "output.log").open("w") as log, redirect_stdout(log), redirect_stderr(log), chdir(folder):
            try:
                _count_operations(made, k)
                act()
                code = 0
            except SystemExit as done:
                code = int(done.code or 0)
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


def _count_operations(made, k):
    here, fsync, fork = Path.cwd(), os.fsync, multiprocessing.get_context("fork")
    dying = []

    def count(opened=None):
        if made.value == k and not dying:
            dying.append(True)
            if opened is not None:
                os.close(os.open(opened, os.O_CREAT | os.O_WRONLY | os.O_TRUNC))
            os.killpg(0, signal.SIGKILL)
        made.value += 1

    def on_event(event, arguments):
        if event in EVENTS:
            count()
        elif event == "open":
            path, _, flags = arguments
            writes = isinstance(path, str) and flags & (os.O_WRONLY | os.O_RDWR)
            if writes and Path(path).absolute().is_relative_to(here):
                count(path)

    def counted_fsync(descriptor):
        count()
        fsync(descriptor)

    os.fsync = counted_fsync
    multiprocessing.get_context = lambda _=None: fork  # a sweep's processes are forked from this one
    sys.addaudithook(on_event)
