"""The JSON Schema of a record; `python -m leaderboard.record_schema > leaderboard/record.schema.json` updates it."""

import json
from typing import Any

import msgspec

from bench.core.records import Record


def json_schema() -> dict[str, Any]:
    return msgspec.json.schema(Record)


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1))
