"""The files of runs without times and provenance, in which runs of the same request may differ."""

import json

from bench.core.record_files import records_below


def without_times(value):
    if isinstance(value, dict):
        left_out = ("seconds", "provenance", "digest")
        return {key: without_times(each) for key, each in value.items() if key not in left_out}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def contents(folder):
    """Path -> content of all files of the runs in a folder."""
    found = {}
    for path in (path for run in records_below(folder) for path in run.iterdir()):
        content = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            lines = [content] if path.suffix == ".json" else content.splitlines()
            content = [without_times(json.loads(line)) for line in lines]
        found[path.relative_to(folder)] = content
    return found
