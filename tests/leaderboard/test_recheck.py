"""`bench recheck`: an honest run passes, and every way of tampering with a run or a proof is found."""

import json
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from bench.core import proof_format, sealed_json
from bench.core.counts import counted
from bench.core.errors import CheckError, UserError
from bench.core.example_table import Threat
from bench.core.files import read_arrays, write_arrays
from bench.core.network_format import Add, Description, Image, Linear, Maximum, Numbers, Rectifier, Reshape, Scale
from bench.core.proof_format import Bounds, Proof, Tree, decode, encode, proof_arrays, proofs_from
from bench.core.record_files import artifact, read_record, write_record
from bench.datasets.digits import digits
from leaderboard.published_results import Contest
from leaderboard.recheck.network import Network
from leaderboard.recheck.proofs import check_proof
from leaderboard.recheck.regions import Region
from leaderboard.recheck.report import report_text
from leaderboard.recheck.run import recheck
from tests.end_to_end.command import bench, bench_process
from tests.forged_records import change_record

EPS, ROOT = "0.05", Path(__file__).parents[2]


def numbers(*values):
    array = np.array(values, dtype=float)
    return Numbers(shape=list(array.shape), values=array.ravel().tolist())


def one_pixel(weight=([1, -1], [0, 0]), bias=(0.1, 0), leak=0.0):
    """z = x - 1/2 for one pixel x; two equal ReLUs of z. Logits (1/10 + first - second, 0), so the margin is 1/10."""
    layers = [
        Image(inputs=[], shape=[1, 1, 1]),
        Reshape(inputs=[0], shape=[1]),
        Linear(inputs=[1], shape=[2], weight=numbers([1], [1]), bias=numbers(-0.5, -0.5)),
        Rectifier(inputs=[2], shape=[2], leak=Numbers(shape=[], values=[leak])),
        Linear(inputs=[3], shape=[len(bias)], weight=numbers(*weight), bias=numbers(*bias)),
    ]
    return Network(Description(1, layers), {})


HALF = np.full((1, 1, 1), 0.5)
WHOLE = Threat("Linf", 0.5)
# the splits of both units. At z <= 0 of the first and z >= 0 of the second the margin is 1/10 - z, with z <= 0 by the
# multiplier 1 of the first; where the first is z and the second 0 it is 1/10 + z, with z >= 0
SPLITS = [0, 0, 0, 1, -1, -1, 0, 1, -1, -1]


def multipliers(*values):
    return np.array(values, dtype="<f2").tobytes()


TREE = Tree([1], SPLITS, [0] * 4, multipliers(0, 0, 1, 0, 1, 0, 0, 0))
HONEST = Proof(1, 0, [(-1, bytes([128, 128]))], [[0]], [Bounds([(0, 0)])], [TREE])


def changed(of=HONEST, **fields):
    return msgspec.structs.replace(of, **fields)


def checked(proof, *, label=0, x=HALF, threat=WHOLE):
    check_proof(one_pixel(), proof if isinstance(proof, bytes) else encode(proof), x, label, threat)


def test_splits_prove_what_slopes_alone_do_not():
    checked(HONEST)
    for q in (0, 128, 255):
        alone = Tree([1], [-1], [0])
        with pytest.raises(UserError, match=r"margin to class 1 is -0\.\d+, not positive"):
            checked(changed(lines=[(-1, bytes([q, q]))], trees=[alone]))
    checked(changed(trees=[Tree([1], [-1], [-1])]), threat=Threat("Linf", 0.04))  # by intervals
    with pytest.raises(UserError, match="not positive"):
        checked(changed(trees=[Tree([1], [-1], [-1])]), threat=Threat("Linf", 0.12))


def with_tree(**fields):
    return changed(trees=[changed(TREE, **fields)])


TAMPERED = {
    "another label": (changed(label=1), "is for class 1, and the image has the label 0"),
    "a line of another length": (changed(lines=[(-1, bytes([128]))]), "has 1 slopes; activation 0 has 2"),
    "an unknown rule": (changed(lines=["exact"]), "none of parallel, adaptive"),
    "a line based on itself": (changed(lines=[(0, bytes([0, 0]))]), "refers to line 0"),
    "a line that does not exist": (changed(slopes=[[1]]), "refers to line 1"),
    "slopes that do not exist": (with_tree(slopes=[0, 0, 0, 1]), "refers to slopes 1"),
    "slopes of no activation": (changed(slopes=[[]]), "the line of an activation"),
    "negative slopes index": (with_tree(slopes=[0, 0, 0, -2]), "refers to slopes -2"),
    "a missing leaf": (with_tree(splits=SPLITS[:-1]), "ends before its last leaf"),
    "a missing leaf and its multipliers": (
        with_tree(splits=SPLITS[:-1], slopes=[0] * 3, multipliers=multipliers(0, 0, 1, 0, 1, 0)), "ends before",
    ),
    "one leaf too many": (with_tree(splits=[*SPLITS, -1]), "goes on after its last leaf"),
    "no slopes of a leaf": (with_tree(slopes=[0] * 3), "4 leaves has slopes for 3"),
    "swapped children": (with_tree(multipliers=multipliers(1, 0, 0, 0, 1, 0, 0, 0)), "below 2 splits, not positive"),
    "one split left out": (with_tree(splits=[0, 0, -1, -1], slopes=[0] * 2, multipliers=multipliers(1, 1)), "positive"),
    "too few multipliers": (with_tree(multipliers=multipliers(0, 0, 1, 0, 1, 0, 0)), "14 bytes of multipliers"),
    "a negative multiplier": (with_tree(multipliers=multipliers(0, 0, 1, 0, 1, 0, 0, -1)), "negative or not finite"),
    "an infinite multiplier": (with_tree(multipliers=multipliers(0, 0, 1, 0, 1, 0, 0, np.inf)), "not finite"),
    "a multiplier that is no number": (with_tree(multipliers=multipliers(0, 0, 1, 0, 1, 0, 0, np.nan)), "not finite"),
    "a unit that does not exist": (with_tree(splits=[0, 0, 0, 2, -1, -1, 0, 1, -1, -1]), "splits unit 2"),
    "an activation that does not exist": (with_tree(splits=[0, 0, 1, 1, -1, -1, 0, 1, -1, -1]), "activation 1"),
    "the same split twice": (with_tree(splits=[0, 0, 0, 0, -1, -1, 0, 1, -1, -1]), "twice on one path"),
    "no tree of a wrong class": (changed(trees=[]), "must prove all classes but 0"),
    "a tree without classes": (with_tree(classes=[]), "must prove all classes but 0"),
    "a class that does not exist": (with_tree(classes=[1, 2]), "must prove all classes but 0"),
    "a proof that the label is not itself": (with_tree(classes=[0, 1]), "must prove all classes but 0"),
    "splits bounded by intervals": (with_tree(slopes=[-1, 0, 0, 0]), "below splits has no slopes"),
    "bounds of one activation too few": (changed(bounds=[]), "bounds of 0 activations"),
    "bounds of one activation too many": (changed(bounds=[Bounds(), Bounds()]), "bounds of 2 activations"),
    "another version": (changed(version=2), "has version 2"),
    "truncated bytes": (encode(HONEST)[:-1], "cannot be decoded"),
    "bytes after the end": (encode(HONEST) + b"\0", "cannot be decoded"),
    "an unknown first byte": (b"\2" + encode(HONEST)[1:], "cannot be decoded"),
    "no bytes": (b"", "cannot be decoded"),
}  # fmt: skip


@pytest.mark.parametrize("way", TAMPERED)
def test_a_proof_that_was_tampered_with_is_not_accepted(way):
    proof, reason = TAMPERED[way]
    with pytest.raises(UserError, match=reason):
        checked(proof)


def test_each_leaf_has_its_own_slopes():
    """Margins 1/10 + relu(z), which needs a slope below 1/5, and 3/10 + relu(z) - relu(z), which needs 1/2."""
    network = one_pixel(weight=([0, 0], [-1, 0], [-1, 1]), bias=(0, -0.1, -0.3))
    slopes = [Tree([1], [-1], [0]), Tree([2], [-1], [1])]
    proof = changed(lines=[(-1, bytes([0, 0])), (-1, bytes([128, 128]))], slopes=[[0], [1]], trees=slopes)
    check_proof(network, encode(proof), HALF, 0, WHOLE)
    with pytest.raises(UserError, match="not positive"):
        check_proof(network, encode(changed(proof, slopes=[[1], [0]])), HALF, 0, WHOLE)


def test_a_unit_may_have_bounds_of_its_own():
    """A second layer relu(3/10 + relu(z) - relu(z)). Its input is at least -1/5 by slope 0, and 1/20 by slope 1/2.

    The margin is its output less 1/25, which is positive only where it is known to be active.
    """
    first = one_pixel().layers[:4]
    zero = Numbers(shape=[], values=[0.0])
    layers = [
        *first,
        Linear(inputs=[3], shape=[1], weight=numbers([1, -1]), bias=numbers(0.3)),
        Rectifier(inputs=[4], shape=[1], leak=zero),
        Linear(inputs=[5], shape=[2], weight=numbers([1], [0]), bias=numbers(-0.04, 0)),
    ]
    network = Network(Description(1, layers), {})

    def proof(*units):
        lines = [(-1, bytes([0, 0])), (-1, bytes([128, 128])), (-1, bytes([0]))]
        bounds = [Bounds(), Bounds([(0, 0)], False, list(units))]
        return encode(Proof(1, 0, lines, [[0], [1], [1, 2]], bounds, [Tree([1], [-1], [2])]))

    check_proof(network, proof((0, 1, 1)), HALF, 0, WHOLE)
    for units, reason in (
        ([], r"is -0\.04, not positive"),
        ([(0, 0, 1)], r"is -0\.04, not positive"),
        ([(1, 1, 1)], "bounds of unit 1 of an activation with 1"),
        ([(-1, 1, 1)], "bounds of unit"),
        ([(0, 3, 1)], "refers to slopes 3"),
    ):
        with pytest.raises(UserError, match=reason):
            check_proof(network, proof(*units), HALF, 0, WHOLE)


def test_an_activation_that_falls_is_least_where_it_turns():
    """With the leak -1 the margin is |z| + bias, at least the bias."""
    intervals = changed(trees=[Tree([1], [-1], [-1])])
    check_proof(one_pixel(weight=([1, 0], [0, 0]), bias=(0.01, 0), leak=-1.0), encode(intervals), HALF, 0, WHOLE)
    with pytest.raises(UserError, match=r"is -0\.01, not positive"):
        check_proof(one_pixel(weight=([1, 0], [0, 0]), bias=(-0.01, 0), leak=-1.0), encode(intervals), HALF, 0, WHOLE)


def test_a_bound_has_no_place_in_a_proof():
    fields = msgspec.to_builtins(HONEST)
    fields[4][0] = [*fields[4][0], [-0.1, 0.1]]
    with pytest.raises(UserError, match="cannot be decoded"):
        decode(proof_format.PLAIN + msgspec.msgpack.encode(fields))


def test_another_image_or_region_needs_another_proof():
    with pytest.raises(UserError, match="has the label 1"):
        checked(HONEST, label=1)
    steep = one_pixel()
    steep.output.bias[0] = -0.1  # the margin is -1/10 everywhere
    with pytest.raises(UserError, match="not positive"):
        check_proof(steep, encode(HONEST), HALF, 0, WHOLE)
    root = changed(lines=["parallel"], trees=[Tree([1], [-1], [0])])  # proven where z has one sign
    checked(root, x=HALF + 0.3, threat=Threat("Linf", 0.25))
    for x, eps in ((HALF, 0.25), (HALF + 0.3, 0.6)):
        with pytest.raises(UserError, match="not positive"):
            checked(root, x=x, threat=Threat("Linf", eps))


def test_a_maximum_must_be_made_of_its_inputs():
    """With r = relu(a) instead of relu(a - b), r + b is not max(a, b), whose interval would be assumed."""

    def layers(of_difference):
        scalar = Numbers(shape=[], values=[-1.0])
        zero = Numbers(shape=[], values=[0.0])
        return [
            Image(inputs=[], shape=[1, 1, 1]),
            Scale(inputs=[0], shape=[1, 1, 1], weight=scalar, bias=zero),
            Scale(inputs=[1], shape=[1, 1, 1], weight=scalar, bias=zero),
            Add(inputs=[0, 2], shape=[1, 1, 1]),
            Rectifier(inputs=[of_difference], shape=[1, 1, 1], leak=zero),
            Maximum(inputs=[4, 1, 0], shape=[1, 1, 1]),
            Reshape(inputs=[5], shape=[1]),
        ]

    (logit,) = Network(Description(1, layers(3)), {}).logits(np.full((1, 1, 1, 1), 0.4))[0]
    assert logit == 0.4
    with pytest.raises(UserError, match="not the ReLU of the difference"):
        Network(Description(1, layers(0)), {})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a small network on 40 digits, with proofs and witnesses."""
    folder, data = tmp_path_factory.mktemp("recheck"), digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    x = torch.from_numpy(data.x_train[..., 0]).float() / 255
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), torch.from_numpy(data.y_train))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / "net.pt")
    words = ("--dataset", "digits", "--model", "mlp:hidden=20", "--norm", "Linf", "--eps", EPS, "--n-examples", "40")
    done = bench(
        folder, "eval", "--checkpoint", "net.pt", *words, "--attacks", "pgd-10", "--certifiers", "ibp,crown",
        "--threads", "1", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "proofs: of" in done.stdout
    (record,) = folder.rglob("record.json")
    return record.parent


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def sealed(run, *names, **fields):
    """Give the record the hashes of changed files, and other fields: what somebody would do who can read."""
    record = read_record(run)
    paths = {name: record.artifacts[name].path for name in names}
    artifacts = record.artifacts | {name: artifact(run / path) for name, path in paths.items()}
    write_record(run, msgspec.structs.replace(record, artifacts=artifacts, **fields))


def report_of(run):
    data = digits()
    return recheck(run, data.x_test, data.y_test, data.hash)


def test_an_honest_run_is_proven(finished):
    report, table = report_of(finished), read_arrays(finished / "examples.npz")
    certified = table["certified/ibp"] | table["certified/crown"]
    assert 5 < report.count("proven") == certified.sum() == read_record(finished).proofs.count
    assert 1 < report.count("witness valid") == (table["clean"] & ~table["robust/pgd-10"]).sum()
    assert not report.failures
    assert report.proven_acc == certified.mean() == report.certified_acc
    assert report.broken_acc == pytest.approx(1 - table["robust/pgd-10"].mean())
    text = report_text(report, every=False)
    assert "certified: proven" in text
    assert f"at least {100 * report.proven_acc:.1f} %" in text


@pytest.mark.slow
def test_the_command_needs_no_torch(finished, tmp_path):
    words = ("recheck", str(finished), "--json")
    (tmp_path / "torch.py").write_text("raise ImportError('no torch')")
    done = bench_process(tmp_path, *words, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["failed"] == 0
    assert [each["proof"] for each in found["examples"]].count("proven") == read_record(finished).proofs.count


def altered_weights(run):
    tensors = load_file(run / "weights.safetensors")
    tensors["output.weight"] = -tensors["output.weight"]
    with (run / "weights.safetensors").open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(size))["__metadata__"]
    save_file(tensors, run / "weights.safetensors", metadata=metadata)


def changed_layers(run, change):
    description = json.loads((run / "network.json").read_text())
    change(description["layers"])
    (run / "network.json").write_text(json.dumps(description))


def altered_layer(run):
    changed_layers(run, lambda layers: layers[-2]["leak"].update(values=[-3.0]))


def without_a_bias(run):
    changed_layers(run, lambda layers: layers[-1].update(bias=None))


def truncated_layers(run):
    changed_layers(run, lambda layers: layers.pop())


def later_input(run):
    changed_layers(run, lambda layers: layers[2].update(inputs=[3]))


def other_names(run):
    path = run / "network.json"
    path.write_text(path.read_text().replace("output.weight", "output.other"))


def swapped_proofs(run):
    proofs, table = proofs_from(read_arrays(run / "proofs.npz")), read_arrays(run / "examples.npz")
    first, *others = proofs
    other = next(each for each in others if table["label"][each] != table["label"][first])
    proofs[first], proofs[other] = proofs[other], proofs[first]
    write_arrays(run / "proofs.npz", proof_arrays(proofs))


def lost_proof(run):
    proofs = proofs_from(read_arrays(run / "proofs.npz"))
    proofs.popitem()
    write_arrays(run / "proofs.npz", proof_arrays(proofs))


def scrambled_proofs(run):
    arrays = read_arrays(run / "proofs.npz")
    write_arrays(run / "proofs.npz", arrays | {"end": arrays["end"][::-1]})


def another_label(run):
    table = read_arrays(run / "examples.npz")
    for name in ("label", "prediction"):
        table[name][0] = (table[name][0] + 1) % 10
    write_arrays(run / "examples.npz", table)


def moved_witness(run):
    witnesses = read_arrays(run / "witnesses.npz")
    witnesses["x_adv"][0, 0, 0, 0] += 0.1
    write_arrays(run / "witnesses.npz", witnesses)


def harmless_witness(run):
    witnesses, data = read_arrays(run / "witnesses.npz"), digits()
    witnesses["x_adv"][0, 0] = data.x_test[witnesses["index"][0], ..., 0].astype(np.float32) / 255
    write_arrays(run / "witnesses.npz", witnesses)


def lost_witness(run):
    witnesses = read_arrays(run / "witnesses.npz")
    write_arrays(run / "witnesses.npz", {name: array[1:] for name, array in witnesses.items()})


FILES = {
    "weights": altered_weights,
    "network": altered_layer,
    "proofs": swapped_proofs,
    "examples": another_label,
    "witnesses": moved_witness,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_the_records_is_refused(name, run):
    FILES[name](run)
    with pytest.raises(CheckError, match="was changed after it was finished"):
        report_of(run)


REFUSED = {
    "other weights": ("weights", altered_weights, "predicts another class"),
    "another activation": ("network", altered_layer, "predicts another class"),
    "a missing layer": ("network", truncated_layers, "predicts another class"),
    "a layer before its input": ("network", later_input, "does not have the inputs"),
    "weights of another name": ("network", other_names, "has a tensor 'output.other'|'output.other', which"),
    "scrambled proofs": ("proofs", scrambled_proofs, "do not fill its data"),
    "another label in the table": ("examples", another_label, "labels in the run's table"),
}


@pytest.mark.parametrize("way", REFUSED)
def test_a_run_whose_hashes_were_changed_too_is_refused(way, run):
    name, change, reason = REFUSED[way]
    change(run)
    sealed(run, name)
    with pytest.raises(CheckError, match=reason):
        report_of(run)


FAILING = {
    "proofs of two examples exchanged": ("proofs", swapped_proofs, "proof fails", 2),
    "a witness out of the ball": ("witnesses", moved_witness, "witness invalid", 1),
    "a witness that is classified correctly": ("witnesses", harmless_witness, "witness invalid", 1),
    "no witness": ("witnesses", lost_witness, "no witness", 1),
}


@pytest.mark.parametrize("way", FAILING)
def test_evidence_that_does_not_hold_fails(way, run):
    name, change, outcome, count = FAILING[way]
    change(run)
    sealed(run, name)
    report = report_of(run)
    assert report.count(outcome) == len(report.failures) == count
    done = bench(run, "recheck", str(run))
    assert done.returncode == 1
    assert f"example {report.failures[0].index}: " in done.stdout
    assert f"{counted(count, 'example')} of" in done.stderr


def test_a_larger_eps_is_not_what_was_proven(run):
    record = read_record(run)
    certifiers = {}
    table = read_arrays(run / "examples.npz")
    for spec, result in record.certifiers.items():
        table[f"radius/{spec}"] = table[f"radius/{spec}"] * np.float32(2)
        certifiers[spec] = msgspec.structs.replace(result, mean_radius=2 * result.mean_radius)
    write_arrays(run / "examples.npz", table)
    sealed(run, "examples", threat=Threat("Linf", 2 * record.threat.eps), certifiers=certifiers)
    report = report_of(run)
    assert report.count("proof fails") > 0
    assert report.proven_acc < report.certified_acc


def test_another_data_set_is_refused(run):
    data = digits()
    with pytest.raises(CheckError, match="has the hash 000000000000, the record"):
        recheck(run, data.x_test, data.y_test, "0" * 64)


@pytest.mark.slow
def test_a_description_that_leaves_something_out_is_shown_and_verification_finds_it(run):
    assert report_of(run).unused == []
    honest = bench(run, "verify", str(run), "--sample", "0", "--threads", "1")
    assert "layers of the model are those of network.json" in honest.stdout
    without_a_bias(run)
    sealed(run, "network")
    assert report_of(run).unused == ["output.bias"]
    assert "no part of the described network: output.bias" in bench(run, "recheck", str(run)).stdout
    verified = bench(run, "verify", str(run), "--sample", "0", "--threads", "1")
    assert verified.returncode == 1
    assert "are not those of" in verified.stdout


def test_a_certificate_without_a_proof_is_named_as_such(run):
    lost_proof(run)
    sealed(run, "proofs")
    report = report_of(run)
    assert not report.failures
    assert report.count("no proof") == 1
    assert "the record says" in report_text(report, every=False)
    done = bench(run, "recheck", str(run), "--examples")
    assert done.returncode == 3  # the record counts a proof that is not there
    assert "1 proof" in done.stderr
    assert done.stdout.count("  example ") == 40


def unpublished(run, *names):
    """Without these files, as seeds of an entry are published."""
    record = read_record(run)
    files = {name: msgspec.structs.replace(record.artifacts[name], path=None) for name in names}
    for name in names:
        (run / record.artifacts[name].path).unlink()
    write_record(run, msgspec.structs.replace(record, artifacts=record.artifacts | files))


@pytest.mark.parametrize("names", [("weights", "network", "witnesses", "proofs"), ("proofs",), ("witnesses",)])
def test_files_that_are_not_published_leave_evidence_unchecked_and_the_other_runs_are_checked(names, run, finished):
    unpublished(run, *names)
    done = bench(run, "recheck", str(run), str(finished))
    assert done.returncode == 3
    assert f"not published: {', '.join(names)} (train it again: bench eval" in done.stderr
    assert f"1 of 2 runs could not be checked, the first is {run}: " in done.stderr
    assert str(finished) in done.stdout
    assert (" proofs; not published" in done.stderr) == (names == ("proofs",))


def test_a_file_that_is_published_elsewhere_is_named_with_its_address(run):
    unpublished(run, "weights")
    change_record(run, lambda record: record["artifacts"]["weights"].update(url="https://example.org/w"))
    assert "published elsewhere: weights at https://example.org/w (download" in report_of(run).missing


def test_a_run_without_a_description_is_not_checked(run):
    record = read_record(run)
    kept = {name: file for name, file in record.artifacts.items() if name not in ("network", "proofs")}
    write_record(run, msgspec.structs.replace(record, artifacts=kept, proofs=None))
    done = bench(run, "recheck", str(run), "--json")
    assert (done.returncode, json.loads(done.stdout)[0]["failed"]) == (3, 0)
    assert "witnesses; the run has no network.json" in done.stderr


def contest_of(run, change=lambda point: point):
    """A contest that breaks the first broken example of the run once more, by its witness."""
    arrays = read_arrays(run / "witnesses.npz")
    index, x_adv = arrays["index"][:1], np.stack([change(arrays["x_adv"][0])])
    (run / "contests").mkdir(exist_ok=True)
    write_arrays(run / "contests/some.npz", {"index": index, "x_adv": x_adv})
    file = artifact(run / "contests/some.npz")
    contest = Contest(by="somebody", broken=index.tolist(), witnesses=file, finished="2026-11-20T00:00:00Z")
    (run / "contests/some.json").write_bytes(sealed_json.encode(contest))
    return int(index[0])


def test_witnesses_of_contests_are_checked_too(run):
    before = report_of(run)
    index = contest_of(run)
    assert report_of(run).count("contest valid") == 1
    assert report_of(run).broken_acc == before.broken_acc  # broken already
    assert "broken in a contest: valid witness" in report_text(report_of(run), every=False)
    image = digits().x_test[index].transpose(2, 0, 1) / np.float32(255)
    for change in (lambda point: 1 - point, lambda _: image):
        contest_of(run, change)
        (failed,) = report_of(run).failures
        assert (failed.index, failed.contest) == (index, "contest invalid")
    contest_of(run)
    (run / "contests/some.npz").write_bytes(b"other")
    with pytest.raises(CheckError, match="different hash from the one in its contest"):
        report_of(run)
    (run / "contests/some.npz").unlink()
    done = bench(run, "recheck", str(run))
    assert done.returncode == 3
    assert "1 witness; the witnesses of the contest are not in" in done.stderr


def test_an_example_that_only_a_contest_broke_lowers_the_upper_bound():
    done = bench(ROOT, "recheck", "leaderboard/results/digits/atas/0")
    assert done.returncode == 0
    assert "at most 65.6 %" in done.stdout


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_minima_do_not_depend_on_the_scale(norm):
    """Squares of numbers below 1e-162 underflow: without care the ball's part of an L2 bound would be 0."""
    rng = np.random.default_rng(0)
    region = Region.around(rng.random(9), Threat(norm, 0.2))
    forms = rng.normal(size=(9, 5))
    assert np.allclose(region.minimum(1e-170 * forms) * 1e170, region.minimum(forms), rtol=1e-9)
    assert (region.minimum(1e-320 * forms) <= 0).all()


@pytest.mark.parametrize("broken", [
    [Image(shape=[1, 1, 2], inputs=[]), Reshape(shape=[2], inputs=[0]), Scale(
        shape=[2], inputs=[1], weight=Numbers(shape=[-1, -1], values=[1.0]), bias=Numbers(shape=[1], values=[0.0])
    )],
    [Image(shape=[1, 1, 2], inputs=[]), Image(shape=[2], inputs=[])],
])  # fmt: skip
def test_a_description_that_contradicts_itself_is_a_user_error(broken):
    with pytest.raises(UserError, match="of the description"):
        Network(Description(version=1, layers=broken), {})
