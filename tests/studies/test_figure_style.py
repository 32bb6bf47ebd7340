import pytest

from bench.core.errors import UserError
from bench.studies.figure_style import COLOURS, LINES, check_figure, new_figure

pytest.importorskip("matplotlib")


def test_lines_differ_in_colour_and_style_and_the_style_ends_with_the_figure(tmp_path):
    import matplotlib

    before = matplotlib.rcParams["pdf.fonttype"]
    with new_figure(str(tmp_path / "a.svg"), 3, 2) as canvas:
        lines = canvas.add_subplot().plot([[0.0] * 7, [1.0] * 7])
        assert len({line.get_color() for line in lines}) == len(COLOURS) == 7
        assert len({line.get_linestyle() for line in lines[:4]}) == 4
    assert len(set(LINES)) == len(LINES) == len(COLOURS)
    assert matplotlib.rcParams["pdf.fonttype"] == before


def test_a_pdf_holds_outlines_that_editors_can_read(tmp_path):
    with new_figure(str(tmp_path / "a.pdf"), 3, 2) as canvas:
        canvas.add_subplot().set_title("title")
    assert b"/FontType 42" in (tmp_path / "a.pdf").read_bytes() or b"/CIDFontType2" in (tmp_path / "a.pdf").read_bytes()
    assert b"/Type3" not in (tmp_path / "a.pdf").read_bytes()


@pytest.mark.parametrize(("file", "fact"), [("a.txt", "must end"), ("none/a.png", "no folder"), ("d.png", "a folder")])
def test_a_figure_that_cannot_be_written_is_refused(file, fact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.png").mkdir()
    with pytest.raises(UserError, match=fact):
        check_figure(file)
