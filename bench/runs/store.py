"""Folders of runs in an object store (fsspec: s3, gs, file, memory), for workers that share no file system.

Each file is an object whose name ends in the SHA-256 of its content. So an object is checked when it is read, an
existing object need not be written again, and workers never overwrite each other. The marker of a finished run or
training (record.json, training.json) is written after all other files, and read before them.
"""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from bench.core import files, record_files
from bench.core.errors import UserError
from bench.core.extras import import_extra
from bench.core.registry import one_line
from bench.runs.train import FINISHED

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")
MARKERS = (record_files.RECORD, FINISHED)
ATTEMPTS, PAUSE = 6, 0.1  # of each operation; seconds before the second attempt, twice as long before each further one
INTERVAL = 30.0  # seconds between two searches for new files
NAME = re.compile(r"(.+)\.([0-9a-f]{64})")


class Store:
    """The folders below `home` (--out) in an object store. url: such as s3://bucket/runs. An object for one worker."""

    def __init__(self, url: str, home: Path) -> None:
        core, utils = (import_extra(f"fsspec.{part}", "store", "--store") for part in ("core", "utils"))
        options = {"auto_mkdir": True} if utils.get_protocol(url) == "file" else {}
        try:
            self._files, root = core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:  # no package for s3, or no such protocol
            raise UserError(f"--store {url} cannot be used ({one_line(error)})") from error
        self.url, self._root, self._home = url, root.rstrip("/"), home
        self._known: dict[Path, set[str]] = {}  # objects of a folder that this worker has read or written

    def is_finished(self, folder: Path) -> bool:
        """Whether the folder has a marker in the store."""
        return any(self._objects(folder).get(name) for name in MARKERS)

    def pull(self, folder: Path) -> None:
        """Update the files of a folder from the store; other files stay. Damaged objects count as missing.

        If a file has several versions, the one whose hash is in the marker is used. Without a marker, any version is
        valid, because the work continues from each of them to the same result.
        """
        objects = self._objects(folder)
        known = self._known.setdefault(folder, set())
        known |= {f"{name}.{digest}" for name, sizes in objects.items() for digest in sizes}
        markers = [name for name in MARKERS if name in objects]
        contents = {name: self._read(folder, name, min(objects[name])) for name in markers}
        named = b"".join(content or b"" for content in contents.values())
        if any(content is not None for content in contents.values()):
            _unmark(folder)
        whole = True
        for name in sorted(set(objects) - set(markers)):
            digest = min(objects[name], key=lambda each: (each.encode() not in named, each))
            path = folder / name
            if path.exists() and files.sha256(path) == digest:
                if path.stat().st_size != objects[name][digest]:  # a write that was killed: `push` repeats it
                    known.discard(f"{name}.{digest}")
                continue
            content = self._read(folder, name, digest)
            if content is None:
                whole = False
                continue
            if path.exists():
                _unmark(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(path, content)
        for name in markers if whole else ():
            if (content := contents[name]) is not None:
                folder.mkdir(parents=True, exist_ok=True)
                files.write_atomically(folder / name, content)

    def push(self, folder: Path, *, final: bool = True) -> None:
        """Write the files of a folder that the store lacks. final: also delete objects whose files are gone here.

        Only objects that this worker has read or written are deleted. UserError if the store still refuses after
        several attempts.
        """
        known = self._known.setdefault(folder, set())
        present: dict[str, str] = {}
        for path in sorted(_visible_files(folder), key=lambda path: path.name in MARKERS):
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # the worker has deleted it meanwhile
                continue
            name, digest = path.relative_to(folder).as_posix(), hashlib.sha256(content).hexdigest()
            present[name] = key = f"{name}.{digest}"
            if key not in known:
                self._attempt(partial(self._files.pipe_file, self._address(folder, key), content))
                known.add(key)
        for key in sorted(known - set(present.values())):
            if final or _name(key) in present:
                self._attempt(partial(self._delete, folder, key))
                known.discard(key)

    def _objects(self, folder: Path) -> dict[str, dict[str, int]]:
        """The versions of each file of a folder: SHA-256 -> bytes."""
        start = self._address(folder, "")
        found: dict[str, dict[str, int]] = {}
        for address, info in self._attempt(lambda: self._find(start)).items():
            if match := NAME.fullmatch(address[len(start) :]):
                found.setdefault(match[1], {})[match[2]] = info["size"]
        return found

    def _find(self, start: str) -> dict[str, Any]:
        self._files.invalidate_cache()
        found: dict[str, Any] = self._files.find(start, detail=True)
        return found

    def _read(self, folder: Path, name: str, digest: str) -> bytes | None:
        """The content of an object; None, with a warning, if it does not match its name's hash: it is rewritten."""
        key = f"{name}.{digest}"
        try:
            content: bytes = self._attempt(lambda: self._files.cat_file(self._address(folder, key)))
        except FileNotFoundError:  # another worker has replaced it meanwhile
            return None
        if hashlib.sha256(content).hexdigest() == digest:
            return content
        print(f"warning: {self._address(folder, key)} is damaged and is made again", file=sys.stderr)
        self._known[folder].discard(key)
        return None

    def _delete(self, folder: Path, key: str) -> None:
        try:
            self._files.rm_file(self._address(folder, key))
        except FileNotFoundError:
            return

    def _address(self, folder: Path, key: str) -> str:
        return f"{self._root}/{folder.relative_to(self._home).as_posix()}/{key}"

    def _attempt(self, action: Callable[[], T]) -> T:
        for attempt in range(ATTEMPTS):
            try:
                return action()
            except FileNotFoundError:
                raise
            except Exception as error:  # those of the store's library, of its connections, ...
                if attempt == ATTEMPTS - 1:
                    raise UserError(
                        f"store {self.url} failed {ATTEMPTS} times ({one_line(error)}); run the same command again "
                        "once it works, and it continues"
                    ) from error
                time.sleep(PAUSE * 2**attempt)
        raise AssertionError


@contextmanager
def mirrored(store: Store, folders: Sequence[Path]) -> Iterator[None]:
    """Pull the folders, push what is new while the block works in them, and push the rest after it.

    So a killed worker loses only the work of the last INTERVAL.
    """
    for folder in folders:
        store.pull(folder)
    ended, pushing = threading.Event(), threading.Lock()

    def push_periodically() -> None:
        while not ended.wait(INTERVAL):
            with pushing:
                for folder in folders:
                    try:
                        store.push(folder, final=False)
                    except (UserError, OSError) as error:  # OSError: files vanish; the push at the end counts
                        print(f"warning: {error}", file=sys.stderr)

    threading.Thread(target=push_periodically, daemon=True).start()
    try:
        yield
    except BaseException:
        ended.set()
        with pushing, suppress(UserError):  # finished work need not be repeated
            for folder in folders:
                store.push(folder, final=False)
        raise
    ended.set()
    with pushing:
        for folder in folders:
            store.push(folder)


def _unmark(folder: Path) -> None:
    """Remove the markers before a folder changes, so that it counts as unfinished if this process is killed."""
    for name in MARKERS:
        (folder / name).unlink(missing_ok=True)


def _visible_files(folder: Path) -> list[Path]:
    """All files of a folder except locks and unfinished ones."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]


def _name(key: str) -> str:
    match: Any = NAME.fullmatch(key)
    return str(match[1])
