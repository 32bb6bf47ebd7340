import json

import pytest

from bench.core.bounded_text import DEEPEST, MOST, MOST_PARTS, check_json, check_safetensors_header, check_toml
from bench.core.errors import UserError


@pytest.mark.parametrize("text", [
    b"[" * DEEPEST + b"]" * DEEPEST, b'{"a": "[[[[[[[[[[[[[[[[[[[[["}', b'"\\"[[[[[[[[[[[[[[[[[[[["', b"",
    json.dumps([[1, {"a": []}]] * 1000).encode(), b"{}{}[]]]]]",
])  # fmt: skip
def test_json_within_the_limits_passes(text):
    check_json(text, "it")


@pytest.mark.parametrize(("text", "said"), [
    (b"[" * (DEEPEST + 1), "nested too deep"),
    (b'{"a":' * (DEEPEST + 1), "nested too deep"),
    (b'"\\\\"' + b"[" * (DEEPEST + 1), "nested too deep"),
    (b"[],[]," * MOST, "lists and objects"),
])  # fmt: skip
def test_deep_and_large_json_is_refused(text, said):
    with pytest.raises(UserError, match=f"^it .*{said}"):
        check_json(text, "it")


@pytest.mark.parametrize("text", [
    b"title = 'a.b.c.d.e.f.g'", b'title = "a.b.c.d.e.f # [[[[[[[[[[[[[[[[[[[["', b"# a.b.c.d.e.f.g\nx = 1.5",
    b'note = """\na.b.c.d.e.f\n""\\" """', b"note = '''\na.b.c.d.e ''x'''", b"a.b.c = 1", b"x = 1.5\ny = 1.5\nz = 2.5",
    b'x = [1.5, 2.5, 3.5, 4.5, 5.5, 6.5]\nurl = "https://a.b.c.d.e.f/"',
])  # fmt: skip
def test_toml_within_the_limits_passes(text):
    check_toml(text, "it")


@pytest.mark.parametrize("text", [
    b".".join([b"a"] * 30_000) + b" = 1", b"[" + b".".join([b"a"] * 30_000) + b"]", b"x = {" + b"a." * 9000 + b"b = 1}",
    b". ".join([b'"a"'] * (MOST_PARTS + 1)) + b" = 1", b" . ".join([b"''"] * 30) + b" = 1", b"x = " + b"[" * 30_000,
    b"x = 'a'\n'y'.b.c.d.e.f = 1", b'x = """a"""\n"""y"""' + b".b" * 99 + b" = 1", b"x" + b"\t.\t y" * 9 + b" = 1",
])  # fmt: skip
def test_toml_keys_of_many_parts_are_refused(text):
    with pytest.raises(UserError, match=r"^it (has a key of more than|is nested too deep)"):
        check_toml(text, "it")


@pytest.mark.parametrize("text", [b'"' + b'\\"' * 10**6, b'"""' + b'\\"""' * 10**5, b"'" * 10**6, b'"\n' * 10**6])
def test_strings_without_an_end_take_one_pass(text):
    """They take hours otherwise."""
    check_json(text, "it")
    check_toml(text, "it")


@pytest.mark.parametrize("content", [
    b"", b"\xff" * 8, (2**40).to_bytes(8, "little"), (10).to_bytes(8, "little") + b"{}",
    (200).to_bytes(8, "little") + b"[" * 200,
])  # fmt: skip
def test_headers_of_weights_are_bounded(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"header (has|of x.safetensors is)"):
        check_safetensors_header(path)
