"""Every format has the entries in the same order, and so has the page, which shows the rows of its data as they are."""

import csv
import io
import json
import re

from leaderboard.board_tables import render_boards
from leaderboard.build_board import build_board
from leaderboard.page import page_html
from tests.publish.published import flags, publish, table_of


def test_every_format_and_the_page_have_one_order(tmp_path):
    results = tmp_path / "results"
    for name, hits in (("a", (20, 22)), ("d", (80, 84)), ("c", (79, 85)), ("b", (50,))):
        publish(results, name, [table_of(flags(100, each)) for each in hits], defense=f"key-{name}")
        about = results / "digits" / name / "about.toml"
        about.write_text(about.read_text().replace("An entry", f"title-{name}"))
    boards = [build_board(results, "digits")]
    # c and d have the same accuracy, and b has one seed, so it has no rank
    order = ["title-c", "title-d", "title-a", "title-b"]
    for form in ("markdown", "latex"):
        assert re.findall(r"title-[a-d]", render_boards(boards, form)) == order, form
    assert [row["title"] for row in csv.DictReader(io.StringIO(render_boards(boards, "csv")))] == order
    assert [row["title"] for row in json.loads(render_boards(boards, "json"))[0]["rows"]] == order
    data = re.search(r'data-suite="digits">(.*?)</script>', page_html(boards), re.S)[1]
    assert [row["title"] for row in json.loads(data)["rows"]] == order
