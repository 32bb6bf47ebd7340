"""The options that the user gave, and the command that reproduces them."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.core.errors import UserError
from bench.core.spec_text import join_specs, split_spec
from bench.runs.loggers import LoggerName


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `bench run` or `bench eval`. None means the suite's value."""

    defense: str | None = None
    checkpoint: Path | None = None
    state_dict: str | None = None  # the key of the checkpoint's weights, if the file holds several state dicts
    origin: str | None = None  # of the checkpoint: hf:ORG/NAME/FILE@COMMIT; None for a file of this machine
    suite: str | None = None
    dataset: str | None = None
    model: str | None = None
    norm: str | None = None
    box: bool = True  # whether points are kept in [0, 1]
    eps: Sequence[float] | None = None  # the first is the threat model's; every attack also runs at the others
    attacks: Sequence[str] | None = None  # None with a bracket: only the bracket's
    certifiers: Sequence[str] = ()
    corruptions: Sequence[str] | None = None
    budget: int | None = None  # of the bracket: sub-problems for each example; None for no bracket
    time_limit: float | None = None  # of the bracket, in seconds
    n_examples: int | None = None
    eval_batch: int | None = None  # examples of a batch of the evaluation
    overrides: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    threads: int | None = None
    plugins: Sequence[Path] = ()
    trusted: Sequence[Path] = ()  # code files that a checkpoint may name
    data_dir: Path | None = None
    out: Path = Path("runs")
    reuse: bool = False  # return a finished run of other source code, with a note
    force: bool = False  # repeat a finished run
    patience: float = 0.0  # seconds to wait for another process that works on the same run or training
    log: LoggerName | None = None  # a dashboard that gets the figures of each epoch

    def command_line(self, seed: int) -> str:
        """A shell command. Options of one machine (data folder, device, --out, ...) are left out."""
        if self.checkpoint is None:
            words = ["bench", "run", "--defense", str(self.defense)]
        else:
            words = ["bench", "eval", "--checkpoint", self.origin or self.checkpoint.name]
        suite = self.suite if self.suite is None or not self.suite.endswith(".toml") else Path(self.suite).name
        options = [
            ("--state-dict", self.state_dict),
            ("--suite", suite),
            *((f"--{name}", getattr(self, name)) for name in ("dataset", "model", "norm")),
            ("--eps", None if self.eps is None else ",".join(map(repr, self.eps))),
            ("--box", None if self.box else "none"),
            *(("--set", f"{key}={text}") for key, text in self.overrides.items()),
            ("--attacks", None if self.attacks is None else join_specs(self.attacks) or "none"),
            ("--certifiers", join_specs(self.certifiers) or None),
            ("--corruptions", None if self.corruptions is None else ",".join(self.corruptions) or "none"),
        ]  # fmt: skip
        words += [word for option, value in options if value is not None for word in (option, value)]
        if self.budget is not None:
            words += ["--bracket", "--budget", str(self.budget)]
        if self.time_limit is not None:
            words += ["--time-limit", f"{self.time_limit!r}s"]
        if self.n_examples is not None:
            words += ["--n-examples", str(self.n_examples)]
        if self.eval_batch is not None:
            words += ["--eval-batch", str(self.eval_batch)]
        if self.threads is not None:
            words += ["--threads", str(self.threads)]
        words += [word for path in self.plugins for word in ("--plugin", path.name)]
        words += [word for path in self.trusted for word in ("--trust-code", path.name)]
        return shlex.join([*words, "--seeds", str(seed)])


def split_defense(text: str, overrides: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """`trades:beta=5` -> the name, and `overrides` with its settings; UserError if a setting is in both."""
    name, settings = split_spec(text)
    if both := overrides.keys() & settings.keys():
        raise UserError(f"'{min(both)}' is given in '{text}' and as a setting (--set) too; keep one")
    return name, {**overrides, **settings}
