"""Takes the screenshot of the boards in docs: `python -m tests.browser.screenshot` in the root of the repository."""

from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

from leaderboard.build_board import build_board
from leaderboard.page import write_page
from leaderboard.published_results import published_suites, results_folder
from tests.browser.conftest import launch


def main() -> None:
    results = results_folder()
    boards = [build_board(results, suite) for suite in published_suites(results)]
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1440, "height": 1100}, color_scheme="light")
        page.goto(write_page(boards, Path(folder)).as_uri())
        page.screenshot(path="docs/board/board.png")
        browser.close()


if __name__ == "__main__":
    main()
