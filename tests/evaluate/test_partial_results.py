import numpy as np

from bench.core.files import write_arrays
from bench.evaluate.partial_results import PartialResults


def test_a_part_is_read_again_by_the_evaluation_that_wrote_it(tmp_path):
    PartialResults(tmp_path, "it").write("attack/0", {"index": np.arange(3)})
    assert PartialResults(tmp_path, "it").read("attack/0").keys() == {"index"}
    assert PartialResults(tmp_path, "it").read("attack/1") is None
    assert PartialResults(tmp_path, "other").read("attack/0") is None


def test_the_files_of_earlier_versions_are_read(tmp_path):
    # sha256("corruption fog")[:16]
    write_arrays(tmp_path / "8ddd250c0a013693.npz", {"seconds": np.array(2.0), "identity": np.array("it")})
    assert PartialResults(tmp_path, "it").read("corruption fog") == {"seconds": 2.0}


def test_a_damaged_file_or_one_without_identity_is_not_used(tmp_path):
    parts = PartialResults(tmp_path, "it")
    parts.write("a", {"index": np.arange(3)})
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert parts.read("a") is None
    write_arrays(path, {"index": np.arange(3)})
    assert parts.read("a") is None
