"""Records of earlier schemas can be read; those of later ones are refused in one line."""

import json
from importlib.resources import files

import msgspec
import pytest

from bench.core import records
from bench.core.errors import UserError
from bench.core.migrations import SCHEMA, STEPS
from leaderboard.schema import json_schema
from tests.core.test_records import make_record

# what each schema did not have yet
LATER = {1: ("parameters",)}


def written(folder, schema):
    """A record as a version of that schema wrote it."""
    raw = msgspec.to_builtins(make_record()) | {"schema": schema}
    for version in range(schema, SCHEMA):
        for field in LATER.get(version, ()):
            del raw[field]
    (folder / records.RECORD).write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize("schema", range(1, SCHEMA + 1))
def test_a_record_of_every_schema_can_be_read(tmp_path, schema):
    record = records.read_record(written(tmp_path, schema))
    wanted = make_record() if schema == SCHEMA else msgspec.structs.replace(make_record(), parameters=None)
    assert record == wanted


def test_there_is_a_step_from_every_schema():
    assert sorted(STEPS) == list(range(1, SCHEMA))


@pytest.mark.parametrize("schema", [0, SCHEMA + 1, -1])
def test_an_unknown_schema_is_refused_in_one_line(tmp_path, schema):
    with pytest.raises(UserError, match=rf"\A.*schema {schema} is none of 1 to {SCHEMA}.*\Z"):
        records.read_record(written(tmp_path, schema))


def test_the_published_json_schema_is_that_of_the_code():
    """`python -m leaderboard.schema > leaderboard/record.schema.json` writes it anew."""
    published = files("leaderboard").joinpath("record.schema.json").read_text(encoding="utf-8")
    assert json.loads(published) == json_schema()
