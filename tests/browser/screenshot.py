"""Takes the pictures of README.md: `python -m tests.browser.screenshot` in the root of the repository.

docs/board/board.png is the page of the first published board, docs/board/bracket.png the bracket of one of its entries:
the one of which the most is both certified and open.
"""

import io
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright

from leaderboard.build_board import build_board
from leaderboard.page import write_page
from leaderboard.published_results import published_suites, results_folder
from tests.browser.conftest import launch

DOCS = Path("docs/board")
COLOURS = 128  # of a picture, so that it is small
PATIENCE = 300_000  # ms, for a busy machine


def main() -> None:
    results = results_folder()
    boards = [build_board(results, suite) for suite in published_suites(results)]
    bracketed = [row for row in boards[0].rows if row.certified and row.attacked]
    chosen = max(bracketed, key=lambda row: min(row.certified.acc, row.attacked.acc - row.certified.acc))
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = launch(playwright)
        address = write_page(boards, Path(folder)).as_uri()
        page = browser.new_page(viewport={"width": 1360, "height": 900}, color_scheme="light")
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.locator("#filter-box > summary").click()  # closed, so that there is more of the table
        _write("board.png", page.screenshot())
        size = {"width": 640, "height": 600}
        page = browser.new_page(viewport=size, device_scale_factor=2, color_scheme="light", reduced_motion="reduce")
        page.set_default_timeout(PATIENCE)
        page.goto(f"{address}#suite={boards[0].suite}&entry={chosen.name}")
        box = page.locator("#entry section").first.bounding_box()  # the first one is the bracket
        clip = {"x": 0, "y": 0, "width": 640, "height": box["y"] + box["height"] + 16}
        _write("bracket.png", page.screenshot(clip=clip, animations="disabled"))
        browser.close()


def _write(name: str, picture: bytes) -> None:
    with Image.open(io.BytesIO(picture)) as image:
        few = image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(DOCS / name, optimize=True)
    print(f"{DOCS / name}: {(DOCS / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
