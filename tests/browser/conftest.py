"""A real browser: Debian's chromium (or another that is installed), driven by playwright."""

import shutil
from contextlib import contextmanager

import pytest
from playwright.sync_api import sync_playwright

from leaderboard.page import write_page
from tests.leaderboard.boards import board, hostile
from tests.leaderboard.details import details

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def launch(playwright):
    """An installed chromium."""
    path = next((path for name in NAMES if (path := shutil.which(name))), None)
    if path is None:
        pytest.exit("the browser tests need chromium, and none is installed: apt-get install chromium", returncode=1)
    return playwright.chromium.launch(executable_path=path, args=FLAGS)


@pytest.fixture(scope="session")
def chromium():
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A page with three boards: an ordinary one with comparisons and images, another suite, and hostile strings."""
    first = board(24)
    boards = [first, board(40, "mnist", 1), hostile()]
    return write_page(boards, tmp_path_factory.mktemp("site"), [details(first, [(0, 3)])]).as_uri()


@pytest.fixture
def visit(chromium):
    """Open an address offline in a new window; a console message, an error or another request fails the test."""

    @contextmanager
    def visit(uri, width=1440, height=900, **settings):
        context = chromium.new_context(viewport={"width": width, "height": height}, **settings)
        context.set_offline(True)
        wrong = []
        context.on("request", lambda request: wrong.append(f"request: {request.url}"))
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        try:
            page.goto(uri)
            yield page
            itself = f"request: {uri.split('#')[0]}"
            assert wrong.count(itself) >= 1
            beside = f"request: {uri.rpartition('/')[0]}/images/"
            assert [each for each in wrong if each != itself and not each.startswith(("request: data:", beside))] == []
        finally:
            context.close()

    return visit
