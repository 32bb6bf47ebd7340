"""Files from the https addresses that a record names: no more bytes than it says, and with the hash that it says."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib import request

from bench.core import registry
from bench.core.errors import CheckError, UserError
from bench.core.records import Artifact
from bench.publish.static_checks import check_url
from bench.publish.untrusted_files import plain

TIMEOUT = 60.0  # seconds without a byte
CHUNK = 2**20
OpenUrl = Callable[[str], IO[bytes]]


def open_https(url: str) -> IO[bytes]:
    """What an https address holds; it may redirect to https only, and nothing reads a file or another protocol."""
    opener = request.OpenerDirector()
    for handler in (
        request.HTTPSHandler(), request.HTTPRedirectHandler(), request.HTTPErrorProcessor(),
        request.HTTPDefaultErrorHandler(), request.UnknownHandler(),
        request.ProxyHandler({kind: proxy for kind, proxy in request.getproxies().items() if kind == "https"}),
    ):  # fmt: skip
        opener.add_handler(handler)
    found: IO[bytes] = opener.open(url, timeout=TIMEOUT)
    return found


def download(file: Artifact, path: Path, open_url: OpenUrl = open_https) -> None:
    """Write what lies at a file's address; CheckError where it is not the file, and never more bytes than it has."""
    digest, left = hashlib.sha256(), file.bytes
    url = check_url(file.url or "")
    try:
        with open_url(url) as source, path.open("wb") as out:
            while left >= 0 and (chunk := source.read(min(CHUNK, left + 1))):
                left -= len(chunk)
                digest.update(chunk)
                out.write(chunk)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(plain(f"{url} cannot be fetched ({registry.one_line(error)})")) from error
    if digest.hexdigest() != file.sha256:
        raise CheckError(f"refused: what lies at {url} is not the {path.name} of the record")
