"""Compare what the README's first command printed with what the README shows: the same rows, similar accuracies."""

import re
import sys
from pathlib import Path

TOLERANCE = 4.0  # points: another processor rounds differently, and training amplifies the difference


def rows(text: str) -> dict[str, float | None]:
    """First column of the result table -> accuracy in percent."""
    cells = [re.split(r"\s*\|\s*", line.strip(" |\n")) for line in text.splitlines() if line.strip().startswith("|")]
    return {row[0]: float(row[1]) if row[1] else None for row in cells[2:]}


readme = Path("README.md").read_text()
shown = readme[readme.index("    atas on digits") : readme.index("    run folder:")]
printed = Path(sys.argv[1]).read_text()
ours, theirs = rows(shown), rows(printed[printed.index("atas on digits") :])
assert list(ours) == list(theirs), f"the README shows {list(ours)}, the command prints {list(theirs)}"
for name, accuracy in ours.items():
    if accuracy is not None:
        assert abs(accuracy - theirs[name]) <= TOLERANCE, f"{name}: the README shows {accuracy}, got {theirs[name]}"
for line in shown.splitlines():
    if line.strip().startswith("verdict"):
        assert line.strip() in printed, f"the README shows '{line.strip()}'"
