"""Downloads of the files that a record names by an https address.

Not trusted: the address, the server and the content. Only https is opened, redirects included; a download stops after
the number of bytes in the record, and its hash must be the record's. The file is written, never executed.
"""

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
from bench.publish.untrusted_files import printable

TIMEOUT = 60.0  # seconds without a byte
CHUNK = 2**20
OpenUrl = Callable[[str], IO[bytes]]


def open_https(url: str) -> IO[bytes]:
    """Open an https address. Redirects may only lead to https; file:, http: and all other schemes are refused."""
    opener = request.OpenerDirector()
    for handler in (
        request.HTTPSHandler(), request.HTTPRedirectHandler(), request.HTTPErrorProcessor(),
        request.HTTPDefaultErrorHandler(), request.UnknownHandler(),
        request.ProxyHandler({kind: proxy for kind, proxy in request.getproxies().items() if kind == "https"}),
    ):  # fmt: skip
        opener.add_handler(handler)
    response: IO[bytes] = opener.open(url, timeout=TIMEOUT)
    return response


def download(file: Artifact, path: Path, open_url: OpenUrl = open_https) -> None:
    """Download an artifact. CheckError if its content is not the record's; UserError if it cannot be fetched."""
    digest, left = hashlib.sha256(), file.bytes
    url = check_url(file.url or "")
    try:
        with open_url(url) as source, path.open("wb") as out:
            while left >= 0 and (chunk := source.read(min(CHUNK, left + 1))):
                left -= len(chunk)
                digest.update(chunk)
                out.write(chunk)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(printable(f"{url} cannot be fetched ({registry.one_line(error)})")) from error
    if digest.hexdigest() != file.sha256:
        raise CheckError(f"refused: the content of {url} is not the {path.name} of the record")
