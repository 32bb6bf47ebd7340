"""Rows are pinned and compared; the address restores what is shown; a view is copied as it is shown."""

import csv
import io
from collections import Counter

import numpy as np
import pytest

from leaderboard.board_data import Board
from leaderboard.page import write_page
from tests.leaderboard.boards import HOSTILE, board, row
from tests.leaderboard.details import details, robust_of

OPEN = "#comparison[open]"
BOARD = board(24)
MEASURED = [row for row in BOARD.rows if row.seeds]
A, B = MEASURED[:2]


def state(page):
    page.wait_for_timeout(200)
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def pin(page, row):
    page.get_by_role("checkbox", name=f"Compare {row.title}", exact=True).click()


def table(page, name):
    section = page.locator(f'{OPEN} [role=region][aria-label="{name}"]')
    return [line.locator("th, td").all_inner_texts() for line in section.locator("tbody tr").all()]


def survivors(row):
    """By most of its seeds."""
    return sum(robust_of(row, seed.seed).astype(int) for seed in row.seeds) * 2 > len(row.seeds)


def test_two_to_four_rows_are_pinned(visit, site):
    with visit(site) as page:
        assert page.locator("#pins").is_hidden()
        pin(page, A)
        assert page.locator("#compare").is_disabled()
        for each in MEASURED[1:4]:
            pin(page, each)
        assert page.locator("#compare").inner_text() == "Compare 4 entries"
        fifth = page.get_by_role("checkbox", name=f"Compare {MEASURED[4].title}", exact=True)
        assert fifth.is_disabled()
        page.get_by_role("button", name=f"Remove {A.title}", exact=True).click()
        assert not page.get_by_role("checkbox", name=f"Compare {A.title}", exact=True).is_checked()
        assert not fifth.is_disabled()
        assert state(page)["pins"] == ",".join(each.name for each in MEASURED[1:4])
        page.locator("#clear").click()
        assert page.locator("#pins").is_hidden()
        assert "pins" not in state(page)


def test_the_comparison_has_the_tests_and_who_survives_what(visit, site):
    with visit(site) as page:
        pin(page, B)
        pin(page, A)  # the other way round than on the board
        page.locator("#compare").click()
        assert page.locator(OPEN).get_by_role("heading", level=2).inner_text() == "Comparison of 2 entries"
        pairs = details(BOARD).comparisons.pairs
        pair = next(each for each in pairs if (each.a, each.b, each.metric) == (0, 1, "robust"))
        robust = table(page, "Differences")[0]
        assert robust[0].split() == ["A", "\u2212", "B", "robust"]
        ends = [f"{100 * -end:+.1f}".replace("-", "\u2212") for end in (pair.difference, pair.high, pair.low)]
        assert (robust[1], robust[2]) == (ends[0], f"[{ends[1]}, {ends[2]}]")
        assert robust[5].splitlines()[0] == ("B is better" if pair.better else "not told apart")

        counted = Counter(zip(survivors(B).tolist(), survivors(A).tolist(), strict=True))
        shown = {line[0]: int(line[3]) for line in table(page, "Who survives what")}
        patterns = {"both": (True, True), "only A": (True, False), "only B": (False, True), "none": (False, False)}
        assert shown == {name: counted[pattern] for name, pattern in patterns.items() if counted[pattern]}

        page.get_by_role("button", name="Show the examples that survive only A").click()
        examples = np.flatnonzero(survivors(B) & ~survivors(A))
        gallery = table(page, "Examples that survive only A")
        assert [line[0].split()[1] for line in gallery] == [str(i) for i in examples[:24]]
        assert page.evaluate("document.activeElement.textContent") == "Hide"
        assert state(page)["set"] == "10"
        page.keyboard.press("Escape")
        assert state(page) == {"suite": "digits", "pins": f"{B.name},{A.name}"}


def test_its_images_are_those_of_the_examples(visit, site):
    with visit(f"{site}#pins={A.name},{B.name}&view=compare&set=01") as page:
        example = int(np.flatnonzero(~survivors(A) & survivors(B) & ~robust_of(A, 0))[0])
        line = page.locator(f"{OPEN} .gallery tbody tr", has_text=f"no. {example}\n").first
        original, adversarial, difference = line.locator(".tile").all()[:3]
        x, y = 8 * (example % 19), 8 * (example // 19)
        assert original.get_attribute("viewBox") == f"{x} {y} 8 8"
        assert original.locator("image").get_attribute("href") == "images/digits/originals.png"
        assert adversarial.get_attribute("viewBox") == f"{x} {y} 8 8"
        assert difference.get_attribute("viewBox") == f"{x} {y + 8 * 19} 8 8"
        assert adversarial.locator("image").get_attribute("href") == f"images/digits/{A.name}.png"
        size = "async href => { const i = new Image(); i.src = href; await i.decode(); return i.naturalHeight }"
        assert page.evaluate(size, f"images/digits/{A.name}.png") == 2 * 19 * 8
        assert "by pgd-50, seed 0" in line.inner_text()


def test_what_cannot_be_compared_says_why(visit, site):
    reported = next(row for row in BOARD.rows if row.kind == "reported")
    with visit(f"{site}#pins={A.name},{MEASURED[3].name},{reported.name}&view=compare") as page:
        text = page.locator(OPEN).inner_text()
        assert "No test: one of them is a single seed." in text
        assert f"No test, because the results on each example are not known: {reported.title}." in text
        assert "both" in [line[0] for line in table(page, "Who survives what")]


def test_a_page_without_details_compares_what_the_board_has(visit, tmp_path):
    uri = write_page([BOARD], tmp_path).as_uri()
    with visit(f"{uri}#pins={A.name},{B.name}&view=compare") as page:
        assert "are not known" in page.locator(OPEN).inner_text()
        assert page.locator(f"{OPEN} .bar").count() == 2


def test_an_address_restores_the_view(visit, site):
    with visit(site) as page:
        pin(page, A)
        pin(page, B)
        page.locator("#verdict").select_option("no-warnings")
        page.locator("[data-sort=clean]").click()
        page.locator("#compare").click()
        page.get_by_role("button", name="Show the examples that survive both").click()
        page.wait_for_timeout(200)
        address, body, dialog = (page.url, *(page.locator(part).inner_text() for part in ("#body", OPEN)))
    fragment = address.partition("#")[2]
    with visit(f"{site}#{fragment}") as page:
        assert page.locator(OPEN).inner_text() == dialog
        assert page.locator("#body").inner_text() == body
        assert page.locator("#verdict").input_value() == "no-warnings"
        assert page.locator("#head .clean").get_attribute("aria-sort") == "descending"
    nonsense = f"{site}#pins=nobody,constructor,{A.name},{A.name}&view=compare&set=constructor"
    with visit(nonsense) as page:
        assert page.locator(OPEN).count() == 0
        assert page.locator("#pinned li").count() == 1


def test_copies_the_view_in_its_order(visit, site):
    with visit(f"{site}#sort=-clean&verdict=no-warnings", permissions=["clipboard-read", "clipboard-write"]) as page:
        shown = page.locator("#body .opener").all_text_contents()
        clean = page.locator("#body td.clean").all_inner_texts()
        page.get_by_role("button", name="CSV", exact=True).click()
        page.locator("#copied", has_text="Copied.").wait_for()
        rows = list(csv.DictReader(io.StringIO(page.evaluate("navigator.clipboard.readText()"))))
        assert [row["entry"] for row in rows] == shown
        assert [row["clean %"] for row in rows] == [text.split()[0] for text in clean]
        assert {"attacked low %", "certified %", "training passes", "decided by"} <= set(rows[0])
        page.get_by_role("button", name="LaTeX", exact=True).click()
        page.wait_for_function("navigator.clipboard.readText().then(text => text.startsWith('\\\\begin'))")
        lines = page.evaluate("navigator.clipboard.readText()").splitlines()
        body = [line for line in lines if line.endswith(r"\\")]
        assert [line.split(" & ")[1] for line in body[1:]] == shown
        columns = page.locator("#head th:not(.pin)").count()
        assert {line.count(" & ") for line in body} == {columns - 1}
        assert lines[0] == f"\\begin{{tabular}}{{{lines[0].split('{')[2]}"
        assert len(lines[0].split("{")[2].rstrip("}")) == columns


def test_a_copied_view_is_no_code_of_anything(visit, site, tmp_path):
    with visit(f"{site}#suite=hostile", permissions=["clipboard-read", "clipboard-write"]) as page:
        page.get_by_role("button", name="LaTeX", exact=True).click()
        page.locator("#copied", has_text="Copied.").wait_for()
        text = page.evaluate("navigator.clipboard.readText()")
        assert r"\$\{window.broken = 6\}\{\{7*7\}\}\$boards" in text
        assert r"\&lt;b\&gt;\&amp;" in text
    formula = row(title="=1+1;-2", name="formula", architecture='a,b"c')
    uri = write_page([Board(suite="s", summary="", rule="", rows=(formula,))], tmp_path).as_uri()
    with visit(uri, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.get_by_role("button", name="CSV", exact=True).click()
        page.locator("#copied", has_text="Copied.").wait_for()
        (only,) = csv.DictReader(io.StringIO(page.evaluate("navigator.clipboard.readText()")))
        assert only["entry"] == "'=1+1;'-2"
        assert only["architecture"] == 'a,b"c'


def test_filters_only_where_there_is_a_choice_and_columns_only_where_they_differ(visit, tmp_path):
    verdicts = ("no-warnings", "suspect")
    rows = tuple(row(name=f"e{i}", title=f"e{i}", verdict=verdict) for i, verdict in enumerate(verdicts))
    uri = write_page([Board(suite="s", summary="", rule="", rows=rows)], tmp_path).as_uri()
    with visit(uri) as page:
        assert page.locator("#verdict").is_visible()
        for hidden in ("norm", "architecture", "extra", "status", "certified", "budget"):
            assert page.locator(f"#{hidden}").is_hidden(), hidden
        heads = page.locator("#head th:not(.pin)").all_inner_texts()
        assert "Verdict" in heads
        assert {"Architecture", "Extra data", "Status"}.isdisjoint(heads)
        alike = "The same for all entries: architecture small-cnn; extra data none; status re-checkable."
        assert page.locator("#alike").inner_text() == alike


def test_reported_entries_have_a_position_a_key_and_their_data(visit, site):
    with visit(site) as page:
        for reported in (row for row in BOARD.rows if row.kind == "reported"):
            line = page.locator("#body tr", has=page.locator(f'[data-entry="{reported.name}"]'))
            assert line.locator(".rank").text_content() == f"({reported.position})as reported"
            assert line.locator(".title small").text_content().startswith(f"{reported.name} \u00b7 reported")
            assert line.locator(".extra").text_content() == reported.data
            assert line.locator(".decided").text_content() == "broken: AutoAttack"
            paper, code = line.locator(".title a").all()
            assert (paper.get_attribute("href"), code.get_attribute("href")) == (reported.url, reported.code)


def test_entries_that_are_left_out_are_told(visit, site):
    with visit(site) as page:
        assert page.locator("#left-out").is_hidden()
        page.locator("#suites a", has_text="hostile").click()
        page.locator("#suites [aria-current=true]", has_text="hostile").wait_for()
        left = f"{len(HOSTILE)} entries left out, because they cannot be read"
        assert page.locator("#left-out summary").inner_text() == left
        page.locator("#left-out summary").click()
        assert page.locator("#left-out li").count() == len(HOSTILE)


@pytest.mark.parametrize("width", [360, 834, 1100, 1300])
def test_fits_every_width(visit, site, width):
    wide = "document.scrollingElement.scrollWidth"
    with visit(f"{site}#pins={A.name},{B.name}", width=width, height=740) as page:
        assert page.evaluate(wide) == width
        for cell in page.locator("#body tr").first.locator("td:visible").all():
            box = cell.bounding_box()
            assert box["x"] >= 0
            assert width == 1300 or box["x"] + box["width"] <= width
        page.locator("#compare").click()
        page.get_by_role("button", name="Show the examples that survive both").click()
        assert page.evaluate(wide) == width
        assert page.evaluate("document.querySelector('#comparison .body').scrollWidth") <= width


def test_a_comparison_prints(visit, site):
    with visit(f"{site}#pins={A.name},{B.name}&view=compare&set=11") as page:
        page.emulate_media(media="print")
        assert page.locator("#main").is_hidden()
        assert page.locator(f"{OPEN} .gallery .tile").first.is_visible()
        assert page.locator(f"{OPEN} [data-set]").first.is_hidden()
        assert page.pdf().startswith(b"%PDF")
