"""Compare what the README's first command printed with what the README shows: the same rows, similar accuracies."""

import re
import sys
from pathlib import Path

TOLERANCE = 4.0  # points: another processor rounds differently, and training amplifies the difference


def rows(text: str) -> dict[str, float | None]:
    """First column of the result table -> accuracy in percent. The line of dashes shows where the columns are."""
    lines = text.splitlines()
    rule = next(number for number, line in enumerate(lines) if re.fullmatch(r"[\s|]*-{5}[-\s|]*", line))
    columns = [match.span() for match in re.finditer("-+", lines[rule])]
    table = lines[rule + 1 : lines.index("", rule)]
    cells = [[line[start:end].strip() for start, end in columns] for line in table]
    return {row[0]: float(row[1]) if row[1] else None for row in cells}


readme = Path("README.md").read_text()
printed = Path(sys.argv[1]).read_text()
ours, theirs = rows(readme[readme.index("    atas on digits") :]), rows(printed[printed.index("atas on digits") :])
assert list(ours) == list(theirs), f"the README shows {list(ours)}, the command prints {list(theirs)}"
for name, accuracy in ours.items():
    if accuracy is not None:
        assert abs(accuracy - theirs[name]) <= TOLERANCE, f"{name}: the README shows {accuracy}, got {theirs[name]}"
assert re.search(r"^verdict: ", printed, re.MULTILINE), "the command prints no verdict"
