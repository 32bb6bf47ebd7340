"""Downloads: only from public https addresses, of a limited size, and within a limited time."""

import io
import socket
import threading

import pytest

from bench.core.errors import UserError
from bench.core.records import Artifact
from bench.publish import fetch_artifacts
from bench.publish.fetch_artifacts import connect_publicly, download, is_public, open_https
from bench.publish.untrusted_files import check_url

FILE = Artifact(sha256="0" * 64, bytes=10, url="https://example.org/weights.safetensors")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://127.0.0.1:9/x", "ftp://127.0.0.1/x", "data:,x"])
def test_only_https_is_opened(url):
    with pytest.raises(OSError, match="unknown url type"):
        open_https(url, 1.0)


@pytest.mark.parametrize("url", [
    "https://", "https:///x", "https://[", "https://[::1", "https://[::1]/x", "https://a]b/x", "https://localhost/x",
    "https://127.0.0.1/x", "https://127.1/x", "https://0x7f000001/x", "https://2130706433/x", "https://a.org:port/x",
    "https://a.org:99999/x", "https://a.org:-1/x", "https://a.org:0/x", "https://a..b/x", "https://-a.org/x", "https://.b/x",
    f"https://{'a' * 64}.org/x", f"https://{'a.' * 130}org/x", "https://me:word@a.org/x", "https://a.org\\x", "https://a_b.c/x",
])  # fmt: skip
def test_odd_hosts_and_ports_are_one_line(url, tmp_path):
    with pytest.raises(UserError, match=r"\A[ -~]+ is not a public address; write https://HOST/[ -~]+\Z"):
        download(Artifact(sha256="0" * 64, bytes=1, url=url), tmp_path / "x")


@pytest.mark.parametrize(
    "url", ["https://a.org/x", "https://a-1.example.org:8443/x@y?z=1#f", "https://xn--bcher-kva.de/"]
)
def test_public_addresses_pass(url):
    assert check_url(url) == url


@pytest.mark.parametrize("address", [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8",
    "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:5ef5:79fb::1",
])  # fmt: skip
def test_private_addresses_are_no_public_ones(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
def test_other_addresses_are(address):
    assert is_public(address)


def test_a_name_with_a_private_address_among_others_is_not_connected_to(monkeypatch, tmp_path):
    found = [(0, 0, 0, "", (address, 443)) for address in ("8.8.8.8", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(OSError, match=r"example.org has the address 127.0.0.1, which is not public"):
        connect_publicly("example.org", 443)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"\A[ -~]*cannot be fetched [ -~]*which is not public[ -~]*\Z"):
        download(FILE, tmp_path / "x")


class Socket(fetch_artifacts._Limited):
    """Without TLS."""


def test_a_server_that_sends_a_byte_now_and_then_is_left():
    ours, theirs = socket.socketpair()
    limited = Socket(fileno=ours.detach())
    limited.ends = fetch_artifacts.time.monotonic() + 0.3
    stop = threading.Event()

    def drip():
        while not stop.wait(0.02):
            theirs.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with pytest.raises(TimeoutError, match=r"too long|timed out"), limited.makefile("rb") as source:
            source.read(10_000)
    finally:
        stop.set()
        thread.join()
        limited.close()
        theirs.close()


def test_the_time_grows_with_the_size(tmp_path):
    times = []

    def open_url(_, seconds):
        times.append(seconds)
        return io.BytesIO()

    for size in (1, 2**30):
        with pytest.raises(Exception, match="is not the x of the record"):
            download(Artifact(sha256="0" * 64, bytes=size, url=FILE.url), tmp_path / "x", open_url)
    assert times[1] - times[0] == pytest.approx(2**30 / fetch_artifacts.SLOWEST, rel=1e-6)
