import json

import pytest

from leaderboard.board_data import Board
from leaderboard.page import write_page
from tests.leaderboard.boards import HOSTILE, board, row, run

CLOSED, OPEN = "#entry:not([open])", "#entry[open]"


def titles(page):
    return page.locator("#body .opener").all_text_contents()


def shown(page):
    return page.locator("#count").inner_text()


def state(page):
    """The address, once it is written."""
    page.wait_for_timeout(200)
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def by(key, rows, down=False):
    """Titles in the order of a key; without a value last, equal ones as they are."""
    have = [row for row in rows if key(row) is not None]
    ordered = sorted(have, key=key, reverse=down)
    return [row.title for row in [*ordered, *(row for row in rows if key(row) is None)]]


def acc(estimate):
    return None if estimate is None else estimate.acc


ROWS = board(24).rows


def test_shows_a_board_from_a_file_offline(visit, site):
    with visit(site) as page:
        assert page.title() == "digits \u2013 robust-bracket leaderboard"
        assert titles(page) == [row.title for row in ROWS]
        assert shown(page) == "24 of 24 entries shown"
        first = page.locator("#body tr").first
        best = ROWS[0]
        ends = f"[{100 * best.certified.acc:.1f}, {100 * best.attacked.acc:.1f}]"
        assert first.locator(".rank").inner_text().startswith("1\u20133")
        assert first.locator(".bracket .ends").inner_text() in (ends, f"\u2264 {100 * best.attacked.acc:.1f}")
        assert first.locator(".attacked").inner_text().startswith(f"{100 * best.attacked.acc:.1f} \u00b1 0.4")
        assert page.locator("tr.leading").count() == sum(row.rank == 1 for row in ROWS)


def data_text(row):
    return row.data or ("yes" if row.extra_data else "none")


SORTS = {
    "clean": (lambda row: acc(row.clean), True),
    "attacked": (lambda row: acc(row.attacked), True),
    "certified": (lambda row: acc(row.certified), True),
    "bracket": (lambda row: row.attacked.acc - row.certified.acc if row.certified else None, False),
    "passes": (lambda row: row.cost and row.cost.training_passes, False),
    "seconds": (lambda row: row.cost and row.cost.training_seconds, False),
    "verdict": (lambda row: row.verdict, False),
    "extra": (data_text, False),
    "status": (lambda row: row.status, False),
    "rank": (ROWS.index, False),
}


def test_sorts_by_keyboard(visit, site):
    with visit(site) as page:
        for column, (key, down) in SORTS.items():
            head = page.locator(f"#head th.{column}")
            head.get_by_role("button").focus()
            for way in (down, not down):
                page.keyboard.press("Enter")
                assert titles(page) == by(key, ROWS, way), column
                assert head.get_attribute("aria-sort") == ("descending" if way else "ascending")
            assert page.locator("#head th[aria-sort]:not([aria-sort=none])").count() == 1
        assert state(page)["sort"] == "-rank"


FILTERS = {
    "architecture": ("small-cnn", lambda row: row.architecture.startswith("small-cnn")),
    "certified": ("not certified", lambda row: row.certified is None),
    "verdict": ("suspect", lambda row: row.verdict == "suspect"),
    "extra": ("synthetic", lambda row: data_text(row).startswith("synthetic")),
    "status": ("reported, not verified", lambda row: row.kind == "reported"),
    "budget": ("5", lambda row: row.cost and 1e5 <= row.cost.training_passes < 1e6),
    "q": ("author7 PAPER", lambda row: "author7 " in row.paper.lower()),
}


def test_filters(visit, site):
    with visit(site) as page:
        assert page.locator("#count").get_attribute("aria-live") == "polite"
        for control, (value, keep) in FILTERS.items():
            left = {row.title for row in ROWS if keep(row)}
            assert left, control
            field = page.locator(f"#{control}")
            field.fill(value) if control == "q" else field.select_option(value)
            assert set(titles(page)) == left, control
            assert shown(page) == f"{len(left)} of 24 entries shown"
            assert page.locator("#plots figure").first.locator(".mark").count() == len(left)
            assert state(page)[control] == value
            page.locator("#reset").click()
            assert len(titles(page)) == 24
            assert page.locator("#reset").is_hidden()
        assert state(page) == {"suite": "digits"}


def test_filters_together_and_none_left(visit, site):
    with visit(site) as page:
        page.locator("#certified").select_option("certified")
        page.locator("#verdict").select_option("no-warnings")
        assert set(titles(page)) == {row.title for row in ROWS if row.certified and row.verdict == "no-warnings"}
        page.locator("#q").fill("no such entry")
        assert titles(page) == []
        assert page.locator("#none").inner_text() == "No entry matches the filters."
        assert page.locator("figcaption").first.inner_text().startswith("None of these entries")


def test_opens_and_closes_an_entry_by_keyboard(visit, site):
    row = next(row for row in ROWS if row.verdict == "suspect" and row.certified and row.kind == "recipe")
    with visit(site, permissions=["clipboard-read", "clipboard-write"]) as page:
        button = page.locator(f'#body [data-entry="{row.name}"]')
        button.focus()
        page.keyboard.press("Enter")
        dialog = page.locator(OPEN)
        assert dialog.get_by_role("heading", level=2).inner_text() == row.title
        text = dialog.inner_text()
        for expected in (
            row.threat, row.paper, row.licence, row.reasons[0], row.command, "AMD EPYC", "autoattack", "crown",
            f"[{100 * row.certified.acc:.1f}, {100 * row.attacked.acc:.1f}]", row.seeds[1].config_hash,
        ):  # fmt: skip
            assert expected in text, expected
        assert state(page)["entry"] == row.name
        assert page.evaluate("document.querySelector('#entry').contains(document.activeElement)")
        weights = dialog.get_by_role("link", name=row.seeds[0].weights[:12])
        assert weights.get_attribute("href") == row.seeds[0].weights_url
        assert weights.get_attribute("rel") == "noopener noreferrer"
        dialog.get_by_role("button", name="Copy").click()
        dialog.get_by_text("Copied.").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == row.command
        dialog.get_by_text("Provenance of seed 0").click()
        assert dialog.get_by_text("2eb1e54").first.is_visible()
        page.keyboard.press("Escape")
        page.wait_for_selector(CLOSED, state="attached")
        assert "entry" not in state(page)
        assert button.evaluate("node => node === document.activeElement")


def stages(page):
    """The table of how the examples were decided, as rows of texts, and what is said below it."""
    section = page.locator(OPEN).locator("section", has=page.get_by_role("heading", name="How it was decided"))
    rows = [row.locator("th, td").all_inner_texts() for row in section.locator("tr").all()]
    return rows, section.locator("p").inner_text()


def test_an_entry_shows_how_its_examples_were_decided(visit, tmp_path):
    cut = row(name="cut", title="cut", truncated=True)
    open_ = row(name="open", title="open", truncated=False, budget=1000, decided=cut.decided[:2])
    closed = row(name="closed", title="closed", truncated=False, budget=1000, open=0.0, decided=(), seeds=(run(0),))
    plain = Board(suite="digits", summary="", rule="", rows=(cut, open_, closed))
    uri = write_page([plain], tmp_path).as_uri()
    with visit(f"{uri}#suite=digits&entry=cut") as page:
        (head, *rows), below = stages(page)
        assert head == [
            "Stage", "Tried", "Certified", "Broken", "Forwards", "Backwards", "Sub-problems", "Time", "Proofs checked",
        ]  # fmt: skip
        none = "\u2014"
        assert rows[1] == ["crown", "354", "130.7", "0", "708", "354", none, "3.5 s", none]
        assert rows[2] == ["exact", "103.3", "7", "0", "207", "103", "51.3K", "2.0 h", "6.3"]
        assert below == (
            "96.3 examples are open, because a time limit ended the search: another machine may decide more or fewer. "
            "Means over the seeds."
        )
    with visit(f"{uri}#suite=digits&entry=open") as page:
        (head, *_), below = stages(page)
        assert {"Sub-problems", "Proofs checked"}.isdisjoint(head)
        assert below.startswith("96.3 examples are open (budget: 1,000 sub-problems for each example). Means")
    with visit(f"{uri}#suite=digits&entry=closed") as page:
        assert page.locator(OPEN).get_by_role("heading", name="How it was decided").count() == 0


def test_closes_by_its_button_by_a_click_beside_it_and_by_going_back(visit, site):
    def by_back(page):
        page.evaluate("history.back()")

    ways = (lambda page: page.locator("#close").click(), lambda page: page.mouse.click(20, 400), by_back)
    with visit(site) as page:
        for way in ways:
            page.locator("#body .opener").first.click()
            page.wait_for_selector(OPEN)
            way(page)
            page.wait_for_selector(CLOSED, state="attached")
            assert "entry" not in state(page)


def test_follows_the_address(visit, site):
    with visit(f"{site}#suite=mnist&sort=-clean&certified=certified&entry=atas") as page:
        rows = board(40, "mnist", 1).rows
        assert page.locator(OPEN).get_by_role("heading", level=2).inner_text() == "atas"
        assert titles(page) == by(lambda row: row.clean.acc, [row for row in rows if row.certified], True)
        page.keyboard.press("Escape")
        page.wait_for_selector(CLOSED, state="attached")
        focused = page.evaluate("document.activeElement.dataset.entry")
        assert focused == "atas" or "atas" not in titles(page)
        page.locator("#suites a", has_text="digits").click()
        page.locator("#suites [aria-current=true]", has_text="digits").wait_for()
        assert shown(page) == "24 of 24 entries shown"
        page.go_back()
        page.locator("#suites [aria-current=true]", has_text="mnist").wait_for()
        assert page.locator("#suite").inner_text() == "mnist"


def test_an_address_of_nonsense_shows_the_first_board(visit, site):
    nonsense = "suite=constructor&sort=__proto__&norm=%FF&cost=toString&curve=valueOf&entry=nobody&verdict=%3Cscript%3E"
    with visit(f"{site}#{nonsense}") as page:
        assert titles(page) == [row.title for row in ROWS]
        assert page.locator(OPEN).count() == 0


def test_theme(visit, site):
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(253, 252, 250)", "rgb(20, 23, 27)"
    with visit(site, color_scheme="light") as page:
        toggle = page.locator("#theme")
        assert (page.evaluate(paper), toggle.get_attribute("aria-pressed")) == (light, "false")
        toggle.click()
        assert (page.evaluate(paper), toggle.get_attribute("aria-pressed")) == (dark, "true")
        toggle.click()
        assert page.evaluate(paper) == light
    with visit(site, color_scheme="dark") as page:
        assert (page.evaluate(paper), page.locator("#theme").get_attribute("aria-pressed")) == (dark, "true")
        page.emulate_media(media="print")
        assert page.evaluate(paper) == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 33, 39)"


def test_plots(visit, site):
    with visit(site) as page:
        clean, cost, curves, work = page.locator("#plots figure").all()
        assert clean.locator(".mark").count() == 24
        costs = [(row.cost.training_passes, row.attacked.acc, row) for row in ROWS if row.cost]
        assert cost.locator(".mark").count() == len(costs)
        reliable = sorted((each for each in costs if each[2].verdict != "unreliable"), key=lambda each: each[0])
        front = [row.title for x, y, row in reliable if all(y > other for cheaper, other, _ in reliable if cheaper < x)]
        assert f"from cheap to robust: {', '.join(front)}." in cost.inner_text()
        assert curves.locator(".mark").count() == 8
        assert "At eps 0.2, in %: " in curves.inner_text()
        assert work.locator(".mark").count() == 8
        assert work.inner_text().startswith("Robust against attack passes")
        page.locator("#attack").select_option("pgd-50")
        assert "Robust to pgd-50 after so many passes" in work.inner_text()
        assert state(page)["attack"] == "pgd-50"
        page.locator("#cost").select_option("seconds")
        assert "training time from" in cost.locator("figcaption").inner_text()
        assert state(page)["cost"] == "seconds"

        stop = clean.locator(".mark[tabindex='0']")
        assert stop.count() == 1
        stop.focus()
        leftmost = min(ROWS, key=lambda row: row.clean.acc)
        assert stop.get_attribute("aria-label").startswith(f"{leftmost.title}: clean {100 * leftmost.clean.acc:.1f} %")
        page.keyboard.press("ArrowRight")
        after = sorted(ROWS, key=lambda row: row.clean.acc)[1]
        assert clean.locator(".readout").inner_text().startswith(after.title)
        page.keyboard.press("Enter")
        assert page.locator(OPEN).get_by_role("heading", level=2).inner_text() == after.title
        page.keyboard.press("Escape")
        page.wait_for_selector(CLOSED, state="attached")
        assert page.evaluate("document.activeElement.dataset.entry") == after.name


def test_hostile_strings_are_text(visit, site):
    with visit(f"{site}#suite=hostile") as page:
        visible = [
            text.replace("\u202e", "[U+202E]").replace("\x00", "[U+0000]").replace("\x1b", "[U+001B]")
            for text in HOSTILE
        ]
        found = page.locator("#body .opener").evaluate_all("nodes => nodes.map(node => node.textContent)")
        assert found == visible
        for i, text in enumerate(visible):
            page.evaluate("entry => { location.hash = new URLSearchParams({ suite: 'hostile', entry }) }", f"entry-{i}")
            page.wait_for_selector(f'{OPEN}[data-shown="entry-{i}"]')
            body = page.locator("#entry").evaluate("node => node.textContent")
            assert body.count(text) >= 10
            assert page.locator("#entry a").count() == 0
            page.locator("#entry summary").evaluate_all("nodes => nodes.forEach(node => node.click())")
        assert page.evaluate("window.broken") is None
        blocks = 6  # three boards, a comparison, its images, and the script
        assert page.locator("script, img, iframe, [onerror], [onmouseover], [style]").count() == blocks
        assert page.locator("a:not([href^='#'], footer a)").count() == 0


@pytest.mark.parametrize("suite", ["digits", "hostile"])
def test_fits_a_phone(visit, site, suite):
    wide = "document.scrollingElement.scrollWidth"
    with visit(f"{site}#suite={suite}", width=360, height=740, is_mobile=True, has_touch=True) as page:
        assert page.evaluate(wide) == 360
        card = page.locator("#body tr").first.bounding_box()
        assert card["x"] >= 0
        assert card["x"] + card["width"] <= 360
        assert page.locator("#filters").is_hidden()
        page.locator("#filter-box > summary").tap()
        assert page.locator("#filters").is_visible()
        assert page.evaluate(wide) == 360
        page.locator("#body .opener").first.tap()
        page.wait_for_selector(OPEN)
        assert page.evaluate("document.querySelector('#entry').scrollWidth") == 360
        assert page.evaluate("document.querySelector('.body').scrollWidth") <= 360


def test_prints(visit, site):
    with visit(site) as page:
        page.emulate_media(media="print")
        for hidden in ("#theme", "#suites", "#filter-box", "#cost", ".copies", "#board td.pin >> nth=0"):
            assert page.locator(hidden).is_hidden(), hidden
        assert page.locator("#board").is_visible()
        assert page.locator("#rule").bounding_box()["height"] > 0
        assert page.pdf().startswith(b"%PDF")
        page.emulate_media(media="screen")
        page.locator("#body .opener").first.click()
        page.wait_for_selector(OPEN)
        page.emulate_media(media="print")
        assert page.locator("#main").is_hidden()
        assert page.locator("#entry pre").is_visible()


def test_moves_only_where_that_is_welcome(visit, site):
    name = "getComputedStyle(document.querySelector('#entry')).animationName"
    for wish, animation in (("no-preference", "enter"), ("reduce", "none")):
        with visit(f"{site}#entry=pgd-at", reduced_motion=wish) as page:
            assert page.evaluate(name) == animation


def test_says_where_the_entries_are_without_scripts(visit, site):
    with visit(site, java_script_enabled=False) as page:
        assert "boards.csv" in page.locator("noscript .notice").inner_text()
        assert page.locator("#main").is_hidden()


def test_without_boards(visit, tmp_path):
    with visit(write_page([], tmp_path).as_uri()) as page:
        assert page.locator("#suites").inner_text() == "There are no entries yet."


def test_what_the_data_forbids_does_not_stop_the_page(visit, tmp_path):
    uri = write_page([board(1), board(0, "empty")], tmp_path).as_uri()
    with visit(uri) as page:
        assert shown(page) == "1 of 1 entry shown"
    with visit(f"{uri}#suite=empty") as page:
        assert shown(page) == "0 of 0 entries shown"


PAINTED = "() => new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"
SORTED = """column => {
  const start = performance.now();
  document.querySelector(`[data-sort=${column}]`).click();
  document.body.getBoundingClientRect(); // the new order is laid out
  return performance.now() - start;
}"""


def test_five_hundred_entries(visit, tmp_path):
    """All are in one table; the printed times are for people (pytest -s)."""
    uri = write_page([board(500)], tmp_path).as_uri()
    with visit(uri) as page:
        times = {"opened": page.evaluate(PAINTED)}
        for column in ("clean", "title", "attacked", "bracket", "architecture", "rank"):
            times[f"sorted by {column}"] = page.evaluate(SORTED, column)
        assert shown(page) == "500 of 500 entries shown"
        assert len(titles(page)) == 500
        assert page.locator("#plots figure").first.locator(".mark").count() == 500
        print(json.dumps({what: f"{ms:.0f} ms" for what, ms in times.items()}))
