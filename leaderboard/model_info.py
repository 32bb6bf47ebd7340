"""RobustBench's model_info: one JSON file of its lists describes a model. Accuracies are percent, mostly as text."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import msgspec

from bench.core.errors import UserError

LARGEST = 64 * 1024  # bytes of a file
NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]{1,17})?")
ACCURACIES = ("clean_acc", "reported", "autoattack_acc", "external")


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One model, with the field names and units of RobustBench. Other keys are ignored.

    An accuracy is a percentage ("93.68", 93.68) or missing (absent, null, ""); msgspec.ValidationError if it is not.
    """

    name: str  # the paper's title
    dataset: str
    clean_acc: str | float
    link: str | None = None
    authors: str | None = None
    venue: str | None = None
    architecture: str | None = None
    additional_data: bool = False
    number_forward_passes: int = 1
    eps: str | float | None = None  # "8/255", "0.5", or a number
    reported: str | float | None = None  # by the authors
    autoattack_acc: str | float | None = None
    external: str | float | None = None  # the lowest accuracy that a third party measured
    footnote: str | None = None  # HTML
    unreliable: bool = False  # AutoAttack is known to overestimate its robustness

    def __post_init__(self) -> None:
        for key in ACCURACIES:
            _fraction(getattr(self, key), key)
        if not 0.01 < self.clean <= 1:  # one list has a clean accuracy as a fraction
            raise ValueError(f"clean_acc {self.clean_acc!a} is not an accuracy in percent, from 1 to 100")
        if self.threat_eps is not None and not 0 < self.threat_eps < 1e6:
            raise ValueError(f"eps {self.eps!a} is not the size of a perturbation; it must be positive")

    @classmethod
    def read(cls, path: Path) -> ModelInfo:
        """UserError if the file is missing or not a model_info."""
        try:
            if path.stat().st_size > LARGEST:
                raise UserError(f"{path} has more than {LARGEST} bytes; a model_info of RobustBench is smaller")
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is not a model_info of RobustBench: {error}") from error

    def as_json(self) -> dict[str, Any]:
        """The content of the file, without missing values."""
        return {key: value for key, value in msgspec.to_builtins(self).items() if value is not None}

    @property
    def clean(self) -> float:
        """The clean accuracy as a fraction."""
        return _fraction(self.clean_acc, "clean_acc") or 0.0

    @property
    def attacked(self) -> float | None:
        """The lowest measured accuracy under attack; if RobustBench measured none, the one that the authors report."""
        measured = [_fraction(self.autoattack_acc, "autoattack_acc"), _fraction(self.external, "external")]
        return min((acc for acc in measured if acc is not None), default=_fraction(self.reported, "reported"))

    @property
    def threat_eps(self) -> float | None:
        """eps in the scale of images in [0, 1]; None if the file has none (corruptions)."""
        if self.eps is None or self.eps == "":
            return None
        above, slash, below = str(self.eps).partition("/")
        try:
            return float(above) / float(below) if slash else float(above)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"eps {self.eps!a} is not a number such as 8/255 or 0.5") from error

    @property
    def note(self) -> str | None:
        """The footnote as plain text."""
        lines = re.sub(r"<br\s*/?>", "; ", self.footnote or "", flags=re.IGNORECASE)
        return " ".join(html.unescape(re.sub(r"<[^<>]*>", "", lines)).split()) or None


def _fraction(percentage: str | float | None, key: str) -> float | None:
    if percentage is None or percentage == "":
        return None
    if not NUMBER.fullmatch(str(percentage)) or float(percentage) > 100:
        raise ValueError(f"{key} {percentage!a} is not a percentage from 0 to 100")
    return float(f"{percentage}e-2")  # exact: dividing 93.68 by 100 does not give 0.9368
