"""Names, headings, contrast, and the rules of axe-core, in both colour schemes and on all widths."""

import json
from itertools import pairwise

import pytest
from axe_playwright_python.sync_playwright import Axe

NAMELESS = """() => {
  const named = (node) => node.getAttribute("aria-label") || node.labels?.length || node.textContent.trim() ||
    document.getElementById(node.getAttribute("aria-labelledby"))?.textContent;
  const all = [...document.querySelectorAll("button, select, input, a, svg[role], [role=region], .mark, dialog[open]")];
  return all.filter(node => node.checkVisibility() && !named(node)).map(node => node.outerHTML.slice(0, 200));
}"""

HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3, h4")].filter(node => node.checkVisibility())
  .map(node => Number(node.tagName[1]))"""

# The contrast of two colours by the definition of WCAG 2, and the nearest background of an element that is opaque.
COLOURS = """
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => rgb(color).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    const color = getComputedStyle(node).backgroundColor;
    return rgb(color)[3] === 255 || !node.parentElement ? color : ground(node.parentElement);
  };
  const contrast = (one, other) => {
    const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
"""

# The elements that hold text of a contrast below 4.5.
TEXTS = f"""() => {{{COLOURS}
  const holds = (node) => [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
  const poor = new Set();
  for (const node of document.querySelectorAll("body *")) {{
    if (!holds(node) || !node.checkVisibility() || node.matches("script, option, noscript, title, :disabled")) continue;
    const style = getComputedStyle(node);
    const ink = node instanceof SVGElement ? style.fill : style.color;
    if (contrast(ink, ground(node)) < 4.5) poor.add(`${{node.className}} ${{node.textContent.slice(0, 30)}}`);
  }}
  return [...poor];
}}"""

# The kinds of marks that are visible, by their class, with the best contrast of their fill and stroke to the ground.
MARKS = f"""() => {{{COLOURS}
  const marks = ".span, .whisker, .end path, circle.clean, .marker, .line, .front, .stem, .survived, .fell, .part, " +
    ".estimate, .zero, .axis";
  const found = {{}};
  for (const node of document.querySelectorAll(marks)) {{
    if (!node.checkVisibility()) continue;
    const {{ fill, stroke }} = getComputedStyle(node);
    const inks = [fill, stroke].filter(ink => ink !== "none" && rgb(ink)[3] > 0);
    const best = Math.max(...inks.map(ink => contrast(ink, ground(node))));
    const name = `${{node.parentElement.getAttribute("class")}} ${{node.getAttribute("class")}}`;
    found[name] = Math.min(found[name] ?? Infinity, best);
  }}
  return found;
}}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_is_accessible(visit, site, scheme):
    with visit(site, color_scheme=scheme) as page:
        assert page.locator("html").get_attribute("lang") == "en"
        for entry in ("", "&entry=pgd-at"):
            page.evaluate("hash => { location.hash = hash }", f"suite=digits{entry}")
            assert page.evaluate(NAMELESS) == []
            levels = page.evaluate(HEADINGS)
            assert levels.count(1) == 1
            assert all(b <= a + 1 for a, b in pairwise(levels))
            assert page.evaluate(TEXTS) == []
            for table in page.locator("table").all():
                assert table.locator("caption").count() == 1
                assert table.locator("thead th:not([scope=col])").count() == 0
                assert table.locator("tbody tr:not(:has(th[scope=row]))").count() == 0
        assert (
            page.evaluate("new Set([...document.querySelectorAll('[id]')].map(n => n.id)).size")
            == page.locator("[id]").count()
        )


def test_the_table_is_one_to_a_screen_reader(visit, site):
    for width in (1440, 375):
        with visit(site, width=width) as page:
            table = page.get_by_role("table", name="Entries of digits")
            assert table.get_by_role("columnheader").count() == 15
            assert table.get_by_role("row").count() == 25
            assert table.get_by_role("rowheader").count() == 24
            assert table.get_by_role("cell").count() == 24 * 14


def test_the_first_stop_of_the_tab_key_skips_to_the_entries(visit, site):
    with visit(site) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "entries"
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


VIEWS = {
    "dialog:not([open]) + #entry:not([open])": "",
    "#entry[open]": "&entry=pgd-at",
    "#comparison[open]": "&pins=pgd-at,atas&view=compare&set=11",
}


def views(page):
    """Show one view after the other."""
    for shown, view in VIEWS.items():
        page.evaluate("hash => { location.hash = hash }", f"suite=digits{view}")
        page.wait_for_selector(shown, state="attached")
        yield view


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 1440), ("light", 834), ("dark", 390)])
def test_axe_finds_nothing(visit, site, scheme, width):
    with visit(site, color_scheme=scheme, width=width, reduced_motion="reduce") as page:
        for _ in views(page):
            found = Axe().run(page).response["violations"]
            assert found == [], json.dumps([[each["id"], each["nodes"][0]["html"]] for each in found], indent=1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_have_a_contrast_of_3(visit, site, scheme):
    with visit(site, color_scheme=scheme) as page:
        seen = {}
        for _ in views(page):
            seen |= page.evaluate(MARKS)
        some = {"bar span", "null marker no-warnings", "outcome fell", "share part", "forest estimate"}
        assert some <= set(seen), seen
        assert {name: round(best, 2) for name, best in seen.items() if best < 3} == {}
