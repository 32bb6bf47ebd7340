"""Changing a record as somebody would who makes its digest right again."""

import json
from contextlib import suppress

from bench.core.sealed_json import DIGEST, digest


def change_record(run, change, name="record.json"):
    plain = json.loads((run / name).read_text())
    plain.pop(DIGEST, None)
    change(plain)
    (run / name).write_text(json.dumps(plain | {DIGEST: digest(plain)}))


def replace_in_record(run, old, new):
    """Replace text; what json.loads does not read gets no digest."""
    text = (run / "record.json").read_text()
    assert old in text
    text = text.replace(old, new, 1)
    with suppress(ValueError):
        plain = json.loads(text)
        text = text.replace(plain.pop(DIGEST), digest(plain))
    (run / "record.json").write_text(text)
