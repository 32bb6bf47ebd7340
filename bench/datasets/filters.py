"""Options of every data set with a name: a choice of classes, the first examples, images of another size."""

from dataclasses import dataclass
from typing import Any, get_type_hints

import numpy as np

from bench.core.errors import UserError
from bench.core.registry import Registry
from bench.core.spec_text import split_spec
from bench.core.specs import Spec, options_of, parse_spec
from bench.datasets.arrays import Arrays


@dataclass(frozen=True, kw_only=True)
class Filters:
    """`mnist:classes=0+1:size=14:train=1000:test=500`. A data set's own option of one of these names takes precedence.

    classes: those to keep; the first becomes class 0. size: side of the square images (bilinear, antialiased). train,
    test: number of examples of a split that are kept, the first ones after the choice of classes.
    """

    classes: tuple[int, ...] = ()
    size: int | None = None
    train: int | None = None
    test: int | None = None

    def __call__(self, arrays: Arrays, name: str) -> Arrays:
        """The filtered data set under a new name; UserError if it lacks a class or has too few examples."""
        parts: dict[str, np.ndarray] = {}
        for split in ("train", "test"):
            x, y = getattr(arrays, f"x_{split}"), getattr(arrays, f"y_{split}")
            if self.classes:
                x, y = self._chosen(x, y, arrays.classes, name)
            wanted = getattr(self, split)
            if wanted is not None:
                if not 1 <= wanted <= len(y):
                    raise UserError(f"data set '{name}': {split} is {wanted}; there are 1 to {len(y)} examples")
                x, y = x[:wanted], y[:wanted]
            parts |= {f"x_{split}": x if self.size is None else self._resized(x), f"y_{split}": y}
        return Arrays(name, **parts)

    def _chosen(self, x: np.ndarray, y: np.ndarray, classes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        if len(set(self.classes)) != len(self.classes) or not set(self.classes) <= set(range(classes)):
            raise UserError(f"data set '{name}': classes must be different ones of 0 to {classes - 1}, joined by '+'")
        if len(self.classes) < 2:
            raise UserError(f"data set '{name}' keeps one class; give two or more, as in classes=0+1")
        number = np.full(classes, -1)
        number[list(self.classes)] = np.arange(len(self.classes))
        rows = number[y] >= 0
        return x[rows], number[y[rows]]

    def _resized(self, x: np.ndarray) -> np.ndarray:
        if self.size is None or not 1 <= self.size <= 4096:
            raise UserError(f"size is {self.size}; it must be 1 to 4096 pixels")
        import torch  # here, because reading a data set must not need torch (bench recheck)
        from torch.nn.functional import interpolate

        images = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).float()
        resized = interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def parse_filtered(text: str, registry: Registry) -> tuple[Spec, Filters | None]:
    """The spec of a data set (its text keeps the filters in their place), and the filters, or None.

    A file's function (FILE.py:FUNCTION) has only its own options.
    """
    name = split_spec(text).name
    own = options_of(registry.get(name)) if name in registry else None
    hints = get_type_hints(Filters)
    common: dict[str, tuple[Any, Any]] = {
        key: (hint, getattr(Filters(), key)) for key, hint in hints.items() if own is not None and key not in own
    }
    spec = parse_spec(text, registry, common)
    chosen = {key: spec.options.pop(key) for key in common if key in spec.options}
    filters = Filters(**chosen)
    return spec, None if filters == Filters() else filters
