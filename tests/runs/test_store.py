"""Folders of runs in an object store: nothing is lost, nothing is half visible, and damage is noticed."""

import threading

import pytest

from bench.core.errors import UserError
from bench.runs import store as stores
from bench.runs.store import Store, mirrored

fsspec = pytest.importorskip("fsspec")
FILES = {"weights.safetensors": b"w", "parts/a/1.npz": b"one", "parts/a/2.npz": b"two", "record.json": b"of w"}


@pytest.fixture
def url(tmp_path):
    return f"memory://{tmp_path.name}"


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch):
    monkeypatch.setattr(stores, "PAUSE", 0.0)


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def objects(url):
    """Name -> contents of its versions."""
    files, root = fsspec.core.url_to_fs(url)
    found = {}
    for address in files.find(root):
        name = address.removeprefix(f"{root}/run/").rpartition(".")[0]
        found.setdefault(name, []).append(files.cat_file(address))
    return found


def pulled(url, home):
    store = Store(url, home)
    store.pull(home / "run")
    return store


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_what_is_pushed_is_pulled_by_another_machine(kind, url, tmp_path):
    url = url if kind == "memory" else f"file://{tmp_path}/store"
    write(tmp_path / "a/run", FILES | {".0.lock": b"", ".x.1.part": b"half"})
    Store(url, tmp_path / "a").push(tmp_path / "a/run")
    pulled(url, tmp_path / "b")
    assert read(tmp_path / "b/run") == FILES


def test_the_marker_is_written_last(url, tmp_path, monkeypatch):
    written = []
    store = Store(url, tmp_path)
    pipe = store._files.pipe_file

    def piped(address, content):
        written.append(address)
        return pipe(address, content)

    monkeypatch.setattr(store._files, "pipe_file", piped)
    write(tmp_path / "run", FILES)
    store.push(tmp_path / "run")
    assert len(written) == 4
    assert "/record.json." in written[-1]


def test_a_store_that_fails_every_fifth_write_loses_nothing(url, tmp_path, monkeypatch):
    files = {f"parts/{n}.npz": bytes([n]) for n in range(23)} | FILES
    store, calls = Store(url, tmp_path / "a"), []
    pipe = store._files.pipe_file

    def failing(address, content):
        calls.append(address)
        if len(calls) % 5 == 0:
            raise OSError("the store is busy")
        return pipe(address, content)

    monkeypatch.setattr(store._files, "pipe_file", failing)
    write(tmp_path / "a/run", files)
    store.push(tmp_path / "a/run")
    assert len(calls) == len(files) + len(calls) // 5 > len(files)
    pulled(url, tmp_path / "b")
    assert read(tmp_path / "b/run") == files


def test_a_store_that_is_gone_is_one_line(url, tmp_path, monkeypatch):
    store = Store(url, tmp_path)

    def fail(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(store._files, "pipe_file", fail)
    write(tmp_path / "run", FILES)
    with pytest.raises(UserError, match=r"failed 6 times \(ConnectionError: no route\); run the same command again"):
        store.push(tmp_path / "run")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_object_is_made_again_and_its_run_is_not_finished(url, tmp_path, name, capsys):
    write(tmp_path / "a/run", FILES)
    Store(url, tmp_path / "a").push(tmp_path / "a/run")
    files, root = fsspec.core.url_to_fs(url)
    (address,) = [each for each in files.find(root) if f"/run/{name}." in each]
    files.pipe_file(address, b"damaged")
    store = pulled(url, tmp_path / "b")
    assert read(tmp_path / "b/run") == {key: value for key, value in FILES.items() if key not in (name, "record.json")}
    assert "is damaged" in capsys.readouterr().err
    write(tmp_path / "b/run", FILES)
    store.push(tmp_path / "b/run")
    assert objects(url) == {key: [value] for key, value in FILES.items()}


def test_what_a_worker_deletes_or_replaces_is_deleted_in_the_store(url, tmp_path):
    home = tmp_path / "a"
    write(home / "run", {"checkpoint.pt": b"1", "log.jsonl": b"1"})
    Store(url, home).push(home / "run")
    store = pulled(url, home)
    write(home / "run", {"checkpoint.pt": b"2"})
    store.push(home / "run", final=False)
    assert objects(url) == {"checkpoint.pt": [b"2"], "log.jsonl": [b"1"]}
    (home / "run/checkpoint.pt").unlink()
    store.push(home / "run", final=False)
    assert "checkpoint.pt" in objects(url)  # until the end of the task
    store.push(home / "run")
    assert objects(url) == {"log.jsonl": [b"1"]}


def test_a_worker_does_not_delete_what_others_wrote_meanwhile(url, tmp_path):
    one, other = tmp_path / "a", tmp_path / "b"
    first = pulled(url, one)
    write(other / "run", {"parts/2.npz": b"2"})
    Store(url, other).push(other / "run")
    write(one / "run", {"parts/1.npz": b"1"})
    first.push(one / "run")
    assert objects(url) == {"parts/1.npz": [b"1"], "parts/2.npz": [b"2"]}


def test_of_two_versions_the_one_that_the_marker_names_is_taken(url, tmp_path):
    import hashlib

    for home, weights in ((tmp_path / "a", b"w"), (tmp_path / "b", b"v")):
        write(home / "run", {"weights.safetensors": weights})
        Store(url, home).push(home / "run")
    for named in (b"w", b"v"):
        record = hashlib.sha256(named).hexdigest().encode()
        write(tmp_path / "c/run", {"record.json": record})
        store = Store(f"{url}-{named.decode()}", tmp_path / "c")
        files, root = fsspec.core.url_to_fs(url)
        files.copy(root, store._root, recursive=True)
        store.push(tmp_path / "c/run")
        home = tmp_path / f"to-{named.decode()}"
        pulled(store.url, home)
        assert read(home / "run") == {"record.json": record, "weights.safetensors": named}


def test_a_marker_that_is_not_that_of_the_files_goes_before_they_change(url, tmp_path):
    """A worker that is killed while it fetches a run does not leave the record of another one."""
    write(tmp_path / "a/run", FILES)
    Store(url, tmp_path / "a").push(tmp_path / "a/run")
    write(tmp_path / "b/run", {"record.json": b"of another", "weights.safetensors": b"x"})
    store = Store(url, tmp_path / "b")
    read_object = store._read

    def killed(folder, name, digest):
        if name == "weights.safetensors":
            raise KeyboardInterrupt
        return read_object(folder, name, digest)

    store._read = killed
    with pytest.raises(KeyboardInterrupt):
        store.pull(tmp_path / "b/run")
    assert "record.json" not in read(tmp_path / "b/run")


def test_a_long_task_pushes_now_and_then_and_a_failed_one_what_it_has(url, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "INTERVAL", 0.01)
    pushed, push = threading.Event(), Store.push

    def seen(self, folder, *, final=True):
        push(self, folder, final=final)
        if objects(url):
            pushed.set()

    monkeypatch.setattr(Store, "push", seen)

    def work():
        with mirrored(Store(url, tmp_path), [tmp_path / "run"]):
            write(tmp_path / "run", {"checkpoint.pt": b"1"})
            assert pushed.wait(30)
            write(tmp_path / "run", {"parts/1.npz": b"1"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert objects(url) == {"checkpoint.pt": [b"1"], "parts/1.npz": [b"1"]}


@pytest.mark.parametrize("url", ["nothing://a", "s4://bucket"])
def test_an_unknown_protocol_is_one_line(url, tmp_path):
    with pytest.raises(UserError, match="cannot be used"):
        Store(url, tmp_path)
