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
CORRUPTED = ("corruptions_acc", "corruptions_acc_2d", "corruptions_acc_3d")  # the first that is present counts
MEAN_ERRORS = ("corruptions_mce", "corruptions_mce_2d", "corruptions_mce_3d")
ACCURACIES = ("clean_acc", "reported", "autoattack_acc", "external", *CORRUPTED)
GENERATED = r"\b(synthetic|generated|DDPM|EDM|diffusion)\b"
SYNTHETIC = re.compile(GENERATED, re.IGNORECASE)
AMOUNT = re.compile(r"([0-9][0-9.]* ?[kMB]|[0-9]+ million)\b[^.;]{0,40}?" + GENERATED, re.IGNORECASE)


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
    corruptions_acc: str | float | None = None  # mean over common corruptions: CIFAR-10-C, CIFAR-100-C
    corruptions_acc_2d: str | float | None = None  # ImageNet-C
    corruptions_acc_3d: str | float | None = None  # ImageNet-3DCC
    corruptions_mce: str | float | None = None  # mean corruption error in percent of AlexNet's; may exceed 100
    corruptions_mce_2d: str | float | None = None
    corruptions_mce_3d: str | float | None = None

    def __post_init__(self) -> None:
        for key in ACCURACIES:
            _fraction(getattr(self, key), key)
        if not 0.01 < self.clean <= 1:  # one list has a clean accuracy as a fraction
            raise ValueError(f"clean_acc {self.clean_acc!a} is not an accuracy in percent, from 1 to 100")
        if self.threat_eps is not None and not 0 < self.threat_eps < 1e6:
            raise ValueError(f"eps {self.eps!a} is not the size of a perturbation; it must be positive")

    @classmethod
    def read(cls, path: Path) -> ModelInfo:
        """Read a model_info; UserError if the file is missing or not valid."""
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
        return self._lowest[0]

    @property
    def attacked_by(self) -> str:
        """Who measured `attacked`: AutoAttack, a third party or the authors."""
        return self._lowest[1]

    @property
    def _lowest(self) -> tuple[float | None, str]:
        by = {"AutoAttack": "autoattack_acc", "a third party": "external"}
        measured = {who: _fraction(getattr(self, key), key) for who, key in by.items()}
        known = [(acc, who) for who, acc in measured.items() if acc is not None]
        return min(known, default=(_fraction(self.reported, "reported"), "the authors"))

    @property
    def corrupted(self) -> float | None:
        """The mean accuracy under common corruptions (for ImageNet, the 2D ones); None if there is none."""
        known = (_fraction(getattr(self, key), key) for key in CORRUPTED)
        return next((acc for acc in known if acc is not None), None)

    @property
    def corruption_note(self) -> str | None:
        """The further figures about corruptions, in a sentence."""
        names = {
            "corruptions_acc_3d": "accuracy in 3D",
            **dict(zip(MEAN_ERRORS, ("mCE", "mCE", "mCE in 3D"), strict=True)),
        }
        parts = [
            f"{name} {getattr(self, key)} %" for key, name in names.items() if getattr(self, key) not in (None, "")
        ]
        return f"Corruptions: {', '.join(parts)}." if parts else None

    @property
    def data(self) -> str:
        """The additional training data: `none`, `synthetic, 50M` (with the amount, if stated), or `real`.

        RobustBench's `additional_data` does not include generated images; only the footnote mentions them.
        """
        amount = AMOUNT.search(self.note or "")
        synthetic = f"synthetic, {amount[1]}" if amount else "synthetic" if SYNTHETIC.search(self.note or "") else ""
        if self.additional_data:
            return f"real and {synthetic}" if synthetic else "real"
        return synthetic or "none"

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
