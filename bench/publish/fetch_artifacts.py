"""Downloads the files that a record refers to by an https address.

The address, the server and the content are untrusted. Only https to public addresses is opened, redirects included. A
download stops after the number of bytes in the record, or when it takes too long, and its hash must be the record's.
The file is written, but never executed.
"""

import hashlib
import http.client
import ipaddress
import math
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib import request

from bench.core import registry
from bench.core.errors import CheckError, UserError
from bench.core.records import Artifact
from bench.publish.untrusted_files import check_url, printable

PAUSE = 60.0  # seconds without a byte
PATIENCE, SLOWEST = 120.0, 2.0**17  # a download may take PATIENCE seconds, plus one per SLOWEST bytes
CHUNK = 2**20
EMBEDDING = ipaddress.IPv6Network("64:ff9b::/96")  # public addresses that may embed a private one
OpenUrl = Callable[[str, float], IO[bytes]]  # the address, and the time limit in seconds for all of it


class _Limited(socket.socket):
    """A socket that receives nothing after a point in time, however slowly the other side sends."""

    ends = math.inf  # of time.monotonic()

    def recv_into(self, *args: Any, **options: Any) -> int:
        left = self.ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("it takes too long")
        self.settimeout(min(PAUSE, left))
        return super().recv_into(*args, **options)


def open_https(url: str, seconds: float) -> IO[bytes]:
    """Open a public https address, which may then send for at most `seconds`.

    Redirects may only lead to other public https addresses; file:, http: and all other schemes are refused.
    """

    class LimitedTls(_Limited, ssl.SSLSocket):
        ends = time.monotonic() + seconds

    context = ssl.create_default_context()
    context.sslsocket_class = LimitedTls

    class PublicConnection(http.client.HTTPSConnection):
        proxied = False

        def set_tunnel(self, host: str, *args: Any, **options: Any) -> None:
            self.proxied = True  # the proxy resolves names, so it also decides what is public
            super().set_tunnel(host, *args, **options)

        def connect(self) -> None:
            if self.proxied:
                super().connect()
            else:
                self.sock = context.wrap_socket(connect_publicly(self.host, self.port), server_hostname=self.host)

    class Handler(request.HTTPSHandler):
        def https_open(self, asked: request.Request) -> Any:
            check_url(asked.full_url)  # of a redirect too
            return self.do_open(PublicConnection, asked, context=context)

    opener = request.OpenerDirector()
    for handler in (
        Handler(), request.HTTPRedirectHandler(), request.HTTPErrorProcessor(),
        request.HTTPDefaultErrorHandler(), request.UnknownHandler(),
        request.ProxyHandler({kind: proxy for kind, proxy in request.getproxies().items() if kind == "https"}),
    ):  # fmt: skip
        opener.add_handler(handler)
    response: IO[bytes] = opener.open(url, timeout=PAUSE)
    return response


def connect_publicly(host: str, port: int) -> socket.socket:
    """Connect to a host that has no private address. OSError if this fails.

    The connection uses the addresses that were checked, so a name server cannot substitute others in between.
    """
    addresses = [found[4] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in addresses:
        if not is_public(str(address[0])):
            raise OSError(f"{host} has the address {address[0]}, which is not public")
    errors = []
    for address in addresses:
        try:
            return socket.create_connection((str(address[0]), port), PAUSE)
        except OSError as error:
            errors.append(error)
    raise errors[0] if errors else OSError(f"{host} has no address")


def is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and (ip.sixtofour or ip.teredo or ip.ipv4_mapped or ip in EMBEDDING):
        return False
    return ip.is_global and not ip.is_multicast


def download(file: Artifact, path: Path, open_url: OpenUrl = open_https) -> None:
    """Download an artifact. CheckError if its content is not the record's; UserError if it cannot be fetched."""
    digest, left = hashlib.sha256(), file.bytes
    url, seconds = check_url(file.url or ""), PATIENCE + file.bytes / SLOWEST
    try:
        with open_url(url, seconds) as source, path.open("wb") as out:
            while left >= 0 and (chunk := source.read(min(CHUNK, left + 1))):
                left -= len(chunk)
                digest.update(chunk)
                out.write(chunk)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(printable(f"{url} cannot be fetched ({registry.one_line(error)})")) from error
    if digest.hexdigest() != file.sha256:
        raise CheckError(f"refused: the content of {url} is not the {path.name} of the record")
