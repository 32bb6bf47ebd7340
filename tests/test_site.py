"""The site: its configuration is strict and local, and its pages list everything that is registered."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import api
from bench.core import registry

ROOT = Path(__file__).parents[1]


@pytest.fixture
def entries(monkeypatch):
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import entries

    return entries


def test_the_configuration_is_strict_and_needs_no_network():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "\nstrict: true\n" in text
    assert "\n  font: false" in text
    assert not re.search(r"https?://", text)
    assert {"not_found: warn", "anchors: warn", "omitted_files: warn"} <= {line.strip() for line in text.splitlines()}


def test_every_page_of_the_navigation_is_there_or_is_made(entries):
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = set(re.findall(r": (\S+\.md)$", nav, re.MULTILINE))
    made = {f"reference/{kind}.md" for kind in entries.KINDS} | {*entries.FILES, "studies/index.md", "reference/api.md"}
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert named == made | written
    assert not made & written


@pytest.mark.parametrize("kind", ["defenses", "attacks", "certifiers", "models", "datasets", "corruptions"])
def test_a_page_has_the_docstring_of_each_entry(entries, kind, monkeypatch):
    monkeypatch.setattr(entries.KINDS[kind], "_plugins", {})  # those of other tests
    where = entries.places(entries.KINDS[kind])
    assert set(where) == set(entries.KINDS[kind].names())
    for place in where.values():
        module, _, attribute = place.rpartition(".")
        source = ROOT / f"{module.replace('.', '/')}.py"
        assert re.search(rf"^(class|def) {attribute}\b", source.read_text(encoding="utf-8"), re.MULTILINE), place


def test_the_gallery_has_every_study_and_begins_with_the_pictures(entries):
    text = entries.page(entries.STUDIES, registry.study, entries.pictures())
    names = re.findall(r"^## (\S+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(registry.study.names())
    shown = {path.stem for path in (ROOT / "docs" / "studies").glob("*.png")}
    assert set(names[: len(shown)]) == shown
    assert set(re.findall(r"\((\S+)\.png\)", text)) == shown


def test_the_page_of_the_interface_has_every_name(entries):
    text = entries.api_page()
    assert set(re.findall(r"^## (\S+)$", text, re.MULTILINE)) == set(api.__all__) - {"registry"}
    assert "::: bench.core.threat.ThreatModel" in text
    assert "::: bench.api.evaluate" in text


@pytest.mark.slow
def test_the_site_builds_and_asks_nothing_of_a_network(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    loaded = r'<(?:script|img|iframe)[^>]*\ssrc="https?:|<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="https?:'
    for page in tmp_path.rglob("*.html"):
        assert not re.search(loaded, page.read_text(encoding="utf-8")), page
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?https?:|@import", style.read_text(encoding="utf-8")), style
