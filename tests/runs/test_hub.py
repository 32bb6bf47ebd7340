"""Weights of a hub that is served on this machine, and a whole `bench eval` of them."""

import hashlib
import json
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import safetensors.torch

from bench.core.errors import UserError
from bench.core.record_files import read_record
from bench.models.build import build_model
from bench.runs import hub
from tests.end_to_end.command import bench
from tests.networks import drawn_weights

OLD, NEW = "a" * 40, "b" * 40
FILES = {OLD: {"model.safetensors": b"old", "config.json": b"{}"}, NEW: {"model.safetensors": b"new"}}
TWO = {"one.pt": b"1", "two.pt": b"2"}


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub: the files of a revision, and a file with its commit and its ETag."""

    main = OLD

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            name, _, revision = path.removeprefix("api/models/").partition("/revision/")
            commit = Hub.main if revision in ("", "main") else revision
            files = TWO if name == "org/two" else FILES.get(commit)
            if files is None or name not in ("org/net", "org/two"):
                return self.answer(404, b"{}")
            siblings = [{"rfilename": file} for file in files]
            return self.answer(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode())
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        commit = Hub.main if revision == "main" else revision
        if name != "org/net" or file not in FILES.get(commit, {}):
            return self.answer(404, b"", "EntryNotFound")
        return self.answer(200, FILES[commit][file], commit=commit)

    def answer(self, status, body, error=None, commit=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        if commit:
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def served(tmp_path, monkeypatch):
    package = pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    api, download = package.HfApi, package.hf_hub_download
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(package, "HfApi", lambda: api(endpoint=address, token=False))
    monkeypatch.setattr(
        package, "hf_hub_download",
        lambda *names, revision: download(*names, revision=revision, endpoint=address, cache_dir=tmp_path, token=False),
    )  # fmt: skip
    monkeypatch.setattr(Hub, "main", OLD)
    yield server
    server.shutdown()
    server.server_close()


def test_a_branch_is_pinned_to_its_commit_and_a_change_is_seen(served):
    first = hub.fetch("hf:org/net")
    assert (first.address, first.path.read_bytes()) == (f"hf:org/net/model.safetensors@{OLD}", b"old")
    Hub.main = NEW
    second = hub.fetch("hf:org/net@main")
    assert (second.address, second.path.read_bytes()) == (f"hf:org/net/model.safetensors@{NEW}", b"new")
    assert hub.fetch(first.address).path.read_bytes() == b"old"


def test_an_evaluation_names_the_commit_and_is_not_taken_for_that_of_another(served, monkeypatch, tmp_path):
    """The same command before and after the branch has moved, again, and without a connection."""
    for commit, seed in ((OLD, 1), (NEW, 2)):
        weights = drawn_weights(build_model("mlp", (1, 8, 8), 10), seed=seed, gain=1.0).float().state_dict()
        monkeypatch.setitem(FILES[commit], "model.safetensors", safetensors.torch.save(weights))
    words = ("eval", "--checkpoint", "hf:org/net", "--suite", "digits", "--model", "mlp", "--attacks", "fgsm")
    words = (*words, "--n-examples", "20", "--threads", "1", "--quiet")
    assert bench(tmp_path, *words).returncode == 0
    Hub.main = NEW
    assert bench(tmp_path, *words).returncode == 0
    assert "was finished already" in bench(tmp_path, *words).stdout
    records = {record.provenance["checkpoint"]: record for record in map(read_record, tmp_path.glob("runs/*/0"))}
    assert set(records) == {f"hf:org/net/model.safetensors@{commit}" for commit in (OLD, NEW)}
    hashes = {record.artifacts["weights"].sha256 for record in records.values()}
    assert len(hashes) == len({record.config_hash for record in records.values()}) == 2
    verified = bench(tmp_path, "verify", "runs", "--sample", "0")
    assert verified.returncode == 0, verified.stdout
    served.shutdown()
    served.server_close()
    offline = bench(tmp_path, *words)
    assert (offline.returncode, offline.stderr.count("\n")) == (2, 1)
    assert "checkpoint 'hf:org/net' cannot be fetched (" in offline.stderr
    command = shlex.split(records[f"hf:org/net/model.safetensors@{OLD}"].provenance["command"])
    assert bench(tmp_path, *command[1:]).returncode == 0  # the commit is in the cache


def test_a_full_commit_needs_no_connection_once_it_is_here(served):
    address = hub.fetch("hf:org/net").address
    served.shutdown()
    served.server_close()
    assert hub.fetch(address).path.read_bytes() == b"old"
    with pytest.raises(UserError, match="cannot be fetched") as error:
        hub.fetch("hf:org/net")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf:org/none", "cannot be fetched"),
        ("hf:org/net/other.pt", "there is no other.pt; its weights are model.safetensors"),
        ("hf:org/two", "the repository has one.pt, two.pt; name a file"),
    ],
)
def test_what_is_not_there_is_named(served, address, says):
    with pytest.raises(UserError, match=says) as error:
        hub.fetch(address)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("address", ["hf:net", "hf:", "hf:org/net@", "hf:a b/c", "hf:org/"])
def test_other_addresses_are_refused(address):
    with pytest.raises(UserError, match="is not an address of the hub; write hf:ORG/NAME"):
        hub.fetch(address)


def test_a_record_names_the_repository_and_a_command_the_commit():
    from pathlib import Path

    from bench.runs.request import Request

    address = f"hf:org/net/sub/model.safetensors@{OLD}"
    assert hub.repository_name(address) == "net"
    command = Request(checkpoint=Path("/cache/model.safetensors"), origin=address, model="cnn").command_line(0)
    assert command.startswith(f"bench eval --checkpoint {address} --model cnn")
