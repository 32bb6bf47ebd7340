"""Thousands of malformed files of a submission: each is read or refused in one line, soon and in little memory."""

import random
import resource
import struct
import time
import zipfile
from io import BytesIO

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save

from bench.core.errors import UserError
from bench.core.example_table import check_table
from bench.core.files import read_arrays
from bench.core.record_files import read_record
from bench.publish.static_checks import check_weights_file, check_witness_file, read_submitted_about
from bench.publish.untrusted_files import MIB, check_npz, errors_as_one_line, read_json
from tests.publish.published import ABOUT, flags, table_of, write_run

INPUTS = 2000  # of each kind
SECONDS, MEMORY = 2.0, 200 * MIB  # of the processor, and above what the process had before
TOKENS = [
    b"[" * 50, b"{" * 50, b'{"a":' * 30, b"]", b"}", b'"', b"'", b"\\", b"\\u0000", b"\\ud800", b"null", b"NaN", b"-1",
    b"1e999", b"9" * 400, b"-0.0", b"\x00", b"\xff\xfe", b"\xe2\x80\xae", b"a." * 500, b"[[x]]\n", b'"""', b"'''", b"#",
    b"\n", b"\r", b"1979-05-27", b"PK\x05\x06", b"PK\x01\x02", b"\x93NUMPY", b"'descr': '|O'",
    b"'shape': (9" + b"9" * 30,
    b"\xff" * 8, struct.pack("<Q", 2**40), b"F64", b'"data_offsets":[0,99]', b'"__metadata__":{"a":1}', b"true", b" = ",
]  # fmt: skip


def mutated(content, draws):
    data = bytearray(content)
    for _ in range(draws.randint(1, 6)):
        at = draws.randrange(len(data) + 1)
        match draws.randrange(5):
            case 0:
                data[at : at + draws.randint(1, 8)] = draws.randbytes(draws.randint(1, 8))
            case 1:
                data[at:at] = draws.choice(TOKENS) * draws.choice((1, 1, 1, 40))
            case 2:
                del data[at : at + draws.randint(1, 200)]
            case 3:
                data[at:at] = data[draws.randrange(len(data) + 1) :][: draws.randint(1, 2000)]
            case 4 if at < len(data):
                data[at] ^= 1 << draws.randrange(8)
    return bytes(data)


def read_as_record(path):
    read_json(path, MIB)
    with errors_as_one_line("record.json"):
        read_record(path.parent)


def read_as_table(path):
    check_npz(path, 16 * MIB)
    with errors_as_one_line("examples.npz"):
        check_table(read_arrays(path))


def npz(**arrays):
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("valid") / "run", table_of(flags(30, 12), certified=flags(30, 6)))
    weights = {"a.weight": np.zeros((3, 4), np.float32), "a.bias": np.zeros(3, np.float32)}
    return {
        "record.json": (read_as_record, (run / "record.json").read_bytes()),
        "about.toml": (read_submitted_about, msgspec.toml.encode(msgspec.structs.replace(ABOUT, note="A 'note'."))),
        "examples.npz": (read_as_table, (run / "examples.npz").read_bytes()),
        "witnesses.npz": (check_witness_file, npz(index=np.arange(3), x_adv=np.zeros((3, 1, 8, 8), np.float32))),
        "weights.safetensors": (check_weights_file, save(weights, metadata={"robust-bracket": '{"model": "cnn"}'})),
    }


def bomb(size, name="x_adv.npy"):
    """An .npz whose member unpacks to `size` zeros."""
    buffer = BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w") as file,
    ):
        for _ in range(size // MIB):
            file.write(bytes(MIB))
    return buffer.getvalue()


def header(text):
    return struct.pack("<Q", len(text)) + text


MADE = {
    "record.json": [
        b"[" * MIB, b'{"a":' * (MIB // 5), b"[" + b"[]," * (MIB // 3 - 9) + b"[]]", b'"' + b'\\"' * (MIB // 2 - 9),
        b"[" + b"1," * (MIB // 2 - 9) + b"1]", b"{" + b'"a":1,' * (MIB // 6 - 9) + b'"a":1}', b"9" * MIB, b" " * MIB,
    ],
    "about.toml": [
        b"a." * 32_000 + b"a = 1", b"[" + b"a." * 32_000 + b"a]", b"x = " + b"[" * 65_000, b"x = {" + b"a={" * 20_000,
        b"[[a]]\n" * 10_000, b"".join(b"a%d.b.c.d = 1\n" % n for n in range(4000)), b"x = 1" + b"0" * 60_000,
        b'x = "' + b"\\u0041" * 10_000 + b'"', b"x = '''" + b"'" * 60_000, b"a = " + b"1_" * 30_000 + b"1",
        b"".join(b"[a%d.b.c.d]\n" % n for n in range(4000)),
    ],
    "examples.npz": [bomb(64 * MIB, "index.npy"), bomb(15 * MIB, "index.npy"), npz(index=np.zeros(10**6, np.int64))],
    "witnesses.npz": [bomb(64 * MIB), npz(index=np.zeros(2, "U1000000"), x_adv=np.zeros(1, np.float32))],
    "weights.safetensors": [
        header(b"[" * 10**6), header(b"{" + b'"a":{},' * 10**6 + b'"b":{}}'), struct.pack("<Q", 2**63) + b"{}", b"",
        header(b'{"a":{"dtype":"F32","shape":[99999999,99999999],"data_offsets":[0,4]}}') + b"1234",
        header(b'{"__metadata__":{"' + b"a" * 10**6 + b'":"b"}}'), header(b"{}" + b" " * 10**6),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", list(MADE))
def test_malformed_files_are_read_or_refused_in_one_line(name, valid, tmp_path):
    read, content = valid[name]
    path, draws, lines, slowest = tmp_path / name, random.Random(name), [], 0.0
    path.write_bytes(content)
    read(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for data in [*MADE[name], *(mutated(content, draws) for _ in range(INPUTS))]:
        path.write_bytes(data)
        start = time.process_time()
        try:
            read(path)
        except UserError as error:
            lines.append(str(error))
        slowest = max(slowest, time.process_time() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert len(lines) > INPUTS / 3
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert slowest < SECONDS
    assert memory < MEMORY
    print(f"{name}: {len(lines)} of {INPUTS + len(MADE[name])} refused, {slowest:.2f} s, {memory / MIB:.0f} MiB")
