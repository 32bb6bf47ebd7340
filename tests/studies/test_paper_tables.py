import subprocess
import sys

import msgspec
import pytest

from bench.studies.reproduction.paper_tables import Block, Note, PaperTable, paper_table_names, read_paper_table


def cell(table, dataset, model, norm, row, column):
    table = read_paper_table(f"thesis-{table}")
    (block,) = [b for b in table.blocks if (b.dataset, b.model, b.norm) == (dataset, model, norm)]
    return next(cell for cell in table.cells(block, row) if cell.column == column)


@pytest.mark.parametrize(
    ("where", "printed"),
    [
        (("3.6", "mnist", "fc1", "Linf", "KW", "CRE Lin"), 12.91),
        (("3.6", "mnist", "cnn", "Linf", "L-PER", "ACB PEC"), 0.0965),
        (("3.6", "cifar10", "cnn", "Linf", "AT", "CRE MIP"), 88.50),
        (("3.6", "cifar10", "cnn", "Linf", "I-PER+at", "CTE"), 26.66),
        (("3.7", "mnist", "fc1", "L2", "L-PER", "ACB IBP"), 0.1225),
        (("3.7", "cifar10", "cnn", "L2", "MMR+at", "PGD"), 43.98),
        (("3.8", "mnist", "fc1:activation=sigmoid", "Linf", "CROWN-IBP", "CRE CRO"), 26.04),
        (("3.8", "mnist", "fc1:activation=tanh", "L2", "plain", "ACB PEC"), 0.1789),
        (("3.9", "mnist", "fc1", "Linf", "KW", "T_PEC"), 8.48),
        (("3.9", "cifar10", "cnn", "L2", "L-PER+at", "T_PEC / T_Lin"), 0.8926),
        (("5.2", "cifar10", "resnet34", "Linf", "gamma = 0.1", "r = 0.99"), 44.88),
        (("5.3", "cifar10", "resnet34", "Linf", "no LBN", "a = 1"), 31.04),
        (("5.4", "cifar10", "resnet34", "Linf", "gamma = 1.0", "Binary, LBN"), 30.62),
        (("5.5", "cifar10", "resnet34", "Linf", "gamma = 0.2", "Kaiming, LBN"), 94.35),
        (("5.7", "cifar100", "resnet34", "Linf", "Ours, RN34-LBN, p = 0.1", "Binary"), 34.83),
        (("5.8", "cifar10", "resnet34", "Linf", "ATMC, RN34-LBN, p = 1.0", "FP"), 27.88),
        (("5.9", "cifar10", "resnet34", "Linf", "Ours (fast), RN34-LBN, p = 0.1", "Binary"), 81.63),
        (("5.10", "imagenet100", "resnet34", "Linf", "HYDRA, RN34, p = 0.1", "FP"), 43.18),
    ],
)
def test_cells_are_as_printed(where, printed):
    assert cell(*where).printed == printed


def test_all_blocks_and_rows_are_there():
    sizes = {name: [len(block.rows) for block in read_paper_table(name).blocks] for name in paper_table_names()}
    assert sizes == {
        "non-uniform": [2] * 5, "reflected-1": [5], "reflected-2": [8] * 4,
        "thesis-4.2": [3, 6, 6], "thesis-4.6": [6, 1], "thesis-4.7": [9, 9], "thesis-5.11": [7, 7, 7, 7, 6, 5],
        "thesis-5.2": [7], "thesis-5.3": [2], "thesis-5.4": [7], "thesis-5.5": [7], "thesis-5.6": [3],
        "thesis-5.7": [13, 13], "thesis-5.8": [30, 30], "thesis-5.9": [13, 13], "thesis-5.10": [11],
        "thesis-3.6": [11] * 3, "thesis-3.7": [11] * 3, "thesis-3.8": [8] * 4, "thesis-3.9": [7] * 6,
    }  # fmt: skip


@pytest.mark.parametrize("name", paper_table_names())
def test_every_row_is_complete_and_every_note_covers_a_cell(name):
    table = read_paper_table(name)
    covered = []
    for block in table.blocks:
        for row in block.rows:
            cells = list(table.cells(block, row))  # as many as columns, or it raises
            assert all(cell.tolerance > 0 or cell.column == "T_Lin" for cell in cells)
            covered += [note for cell in cells for note in cell.notes]
    for note in table.notes:
        assert note in covered
        known = {row for block in table.blocks for row in block.rows}
        assert {*note.rows, *note.right} <= known
        assert set(note.columns) <= set(table.columns)


def test_acb_is_eps_times_the_certified_share_except_for_cells_with_a_note():
    for name in ("thesis-3.6", "thesis-3.7", "thesis-3.8"):
        table = read_paper_table(name)
        for block in table.blocks:
            for row in block.rows:
                cells = {cell.column: cell for cell in table.cells(block, row)}
                for short in ("Lin", "CRO", "IBP"):
                    if f"CRE {short}" not in cells:
                        continue
                    error, bound = cells[f"CRE {short}"], cells[f"ACB {short}"]
                    share = 1 - (error.right or error.printed) / 100
                    notes = [note for note in (*error.notes, *bound.notes) if note.kind in ("misprint", "open")]
                    known = any(row not in note.right for note in notes)  # and what is right is not
                    apart = abs(block.eps * share - (bound.right or bound.printed))
                    assert apart < 1.1e-4 or known or (block.model, row, short) in SLIGHTLY_APART, (block.title, row)


# printed with a last digit that is off by four
SLIGHTLY_APART = {("fc1:activation=sigmoid", "at", "IBP"), ("fc1:activation=tanh", "IBP", "IBP")}


@pytest.mark.parametrize(
    ("where", "ours", "verdict"),
    [
        (("3.6", "mnist", "fc1", "Linf", "KW", "CRE Lin"), 12.96, "equal"),  # 0.05 points
        (("3.6", "mnist", "fc1", "Linf", "KW", "CRE Lin"), 12.97, "DIFFERS"),
        (("3.6", "mnist", "fc1", "Linf", "KW", "ACB Lin"), 0.0872, "equal"),
        (("3.6", "mnist", "fc1", "Linf", "KW", "ACB Lin"), 0.08725, "DIFFERS"),
        (("3.6", "mnist", "fc1", "Linf", "I-PER+at", "CRE Lin"), 13.19, "misprint"),
        (("3.6", "mnist", "fc1", "Linf", "I-PER+at", "CRE Lin"), 13.50, "DIFFERS"),
        (("3.6", "mnist", "cnn", "Linf", "L-PER", "CTE"), 1.41, "equal"),
        (("3.8", "mnist", "fc1:activation=tanh", "Linf", "L-PER", "CRE CRO"), 12.94, "unsound"),
        (("3.8", "mnist", "fc1:activation=tanh", "Linf", "L-PER", "ACB PEC"), 0.09, "unsound"),
        (("3.8", "mnist", "fc1:activation=tanh", "L2", "IBP", "CRE CRO"), 8.31, "open"),
        (("3.7", "mnist", "fc1", "L2", "L-PER+at", "CTE"), 0.9, "DIFFERS"),  # leaked, but the checkpoint is the same
        (("3.7", "mnist", "fc1", "L2", "plain", "CRE Lin"), 53.29, "DIFFERS"),  # the margin's, where PEC's is meant
        (("3.9", "mnist", "fc1", "Linf", "KW", "T_PEC"), 8.50, "equal"),
        (("3.9", "mnist", "fc1", "Linf", "KW", "T_PEC"), 8.51, "DIFFERS"),
    ],
)
def test_verdicts(where, ours, verdict):
    assert cell(*where).verdict(ours) == verdict


def test_the_certifier_of_each_column():
    assert cell("3.7", "mnist", "cnn", "L2", "KW", "CRE Lin").certifier == "pec"
    assert cell("3.6", "mnist", "cnn", "Linf", "KW", "CRE Lin").certifier is None
    tight = cell("3.8", "mnist", "fc1:activation=sigmoid", "Linf", "L-PER", "CRE CRO")
    assert tight.certifier == "crown:relaxation=tight"


def test_a_note_covers_the_cells_that_match_its_filters():
    block = Block(dataset="mnist", model="fc1", norm="Linf", eps=0.1, rows={"a": (1.0, 2.0), "b": (1.0, 2.0)})
    note = Note(kind="misprint", reason="", columns=("x",), norm="Linf", right={"a": 3.0})
    assert [note.covers(block, row, column) for row in "ab" for column in "xy"] == [True, False, False, False]
    assert not note.covers(msgspec.structs.replace(block, norm="L2"), "a", "x")
    table = PaperTable(title="", source="", columns=("x", "y"), tolerance={"x": 0.1}, blocks=(block,), notes=(note,))
    assert [(c.printed, c.right, c.tolerance) for c in table.cells(block, "a")] == [
        (1.0, 3.0, 0.1),
        (2.0, None, 0.0),
    ]


def test_reading_them_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; from bench.studies.reproduction import paper_tables; "
    code += "paper_tables.read_paper_table('thesis-3.6')"
    subprocess.run([sys.executable, "-c", code], check=True)
