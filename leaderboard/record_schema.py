"""The JSON Schema of a record; `python -m leaderboard.record_schema > leaderboard/record.schema.json` updates it."""

import json
from typing import Any

import msgspec

from bench.core.records import Record
from bench.core.sealed_json import DIGEST


def json_schema() -> dict[str, Any]:
    schema: dict[str, Any] = msgspec.json.schema(Record)
    schema["$defs"]["Record"]["properties"][DIGEST] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    return schema


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1))
