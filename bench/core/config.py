"""Typed, frozen configs of trainings, suites and runs. A suite is a TOML file with the rules of one leaderboard."""

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

from bench.core.errors import UserError
from bench.core.registry import did_you_mean, one_line, unknown
from bench.core.rules import not_negative, positive
from bench.core.specs import Length, OfEps, check_counts_and_lengths, parse_value

SUITES = Path(__file__).parents[1] / "suites"
CORRUPTIONS = "corruptions"  # in place of a norm
Schedule = Literal["piecewise", "triangular", "cosine", "constant"]
# settings of TrainingConfig that are newer than published records; configs omit them where they are off
OMITTED_AT_DEFAULT = (
    "lr_warm_up", "periods", "eps_growth", "eps_min", "eps_max", "swa", "awp", "awp_start", "label_smoothing", "cutout",
    "cutmix", "extra", "extra_share", "last_norm", "binary", "keep_losses", "keep_curves", "layout", "compiled",
    "norm_shares",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The settings that all defenses share. The defaults are usual for CIFAR-10; a suite replaces some of them.

    Points in time are fractions of the training. With `periods`, those of the learning rate and of the growth of eps
    (milestones, peak, lr_warm_up) are fractions of each period.
    """

    epochs: int = 30  # passes over the training set
    batch_size: int = 128  # examples of a batch
    optimizer: Literal["sgd", "adam"] = "sgd"  # SGD with momentum, or Adam
    lr: float = 0.1  # highest learning rate
    momentum: float = 0.9  # momentum of SGD
    weight_decay: float = 5e-4  # L2 penalty of the optimizer
    schedule: Schedule = "piecewise"  # schedule of the learning rate: see milestones and peak
    milestones: tuple[float, ...] = (24 / 30, 28 / 30)  # piecewise: lr is multiplied by `decay` at each
    decay: float = 0.1  # piecewise: the factor of the learning rate
    peak: float = 0.5  # triangular: lr rises from 0 until here, then falls to 0
    crop: int = 4  # pixels of zero padding for random crops; 0 for none
    flip: bool = True  # random horizontal flip
    validation: float = 0.0  # fraction of the training set that is held out for selection
    validation_seed: int = 0  # draws the validation split
    select: Literal["last", "best"] = "last"  # best: the epoch with the highest PGD accuracy on the validation split
    ema: float = 0.0  # decay of the weight average, 0 for none
    clip_grad: float = 0.0  # largest norm of the weights' gradient, 0 for none
    probe_every: int = 1  # epochs between two probes (FGSM and PGD accuracy, for the log); 0: only after the last epoch
    probe_examples: int = 128  # training examples of a probe; with a validation split, its examples
    amp: Literal["auto", "off", "bfloat16"] = "auto"  # auto: bfloat16 and channels_last on GPUs that support bfloat16
    lr_warm_up: float = 0.0  # fraction in which the learning rate rises from 0
    periods: tuple[float, ...] = ()  # fractions after which the learning rate and the growth of eps begin anew
    eps_growth: Literal["none", "linear", "cosine"] = "none"  # eps rises from eps_min to eps_max, at most to eps
    eps_min: Length = OfEps(0.0)  # see eps_growth
    eps_max: Length = OfEps(1.0)  # see eps_growth; with 2eps, eps is reached in the middle
    swa: float = 0.0  # fraction of the training after which weights are averaged, once an epoch; 0 for no average
    awp: float = 0.0  # gamma of adversarial weight perturbation: 0.01 for pgd-at, 0.005 for trades; 0 for none
    awp_start: float = 0.0  # fraction of the training after which awp begins
    label_smoothing: float = 0.0  # share of the label that is spread over all classes
    cutout: int = 0  # side of the square that is set to 0 in each training image, 0 for none
    cutmix: float = 0.0  # share of the batches whose images get a rectangle of another image: 0.5 for CIFAR-10
    extra: str = ""  # file of additional training data: .npz with x_extra (uint8) and y_extra
    extra_share: float = 0.5  # share of each batch that comes from `extra`
    last_norm: bool = False  # a batch norm over the logits (LBN), as the last layer of the model
    binary: bool = False  # BinaryConnect: linear and convolutional layers use the signs of their weights
    keep_losses: bool = False  # keep the loss of each training example in each epoch: losses.npz of the run
    keep_curves: int = 0  # training and test examples whose loss and error are logged after each epoch, 0 for none
    layout: Literal["auto", "contiguous", "channels_last"] = "auto"  # memory format of images and weights; see amp
    compiled: bool = False  # the model's passes by torch.compile
    norm_shares: int = 1  # equal parts of a batch with batch norm statistics of their own; 1 or the number of processes
    omitted_at_default: ClassVar[tuple[str, ...]] = ()  # settings of a subclass that as_json leaves out: see there

    def __post_init__(self) -> None:
        self.check(
            epochs=(self.epochs >= 1, "at least 1"),
            batch_size=(self.batch_size >= 2, "at least 2, for batch norm"),
            lr=positive(self.lr),
            momentum=(0 <= self.momentum < 1, "in [0, 1)"),
            weight_decay=not_negative(self.weight_decay),
            milestones=(all(0 <= m <= 1 for m in self.milestones), "fractions of the training, in [0, 1]"),
            decay=(0 < self.decay <= 1, "in (0, 1]"),
            peak=(0 < self.peak < 1, "in (0, 1)"),
            crop=not_negative(self.crop),
            validation=(0 <= self.validation < 1, "in [0, 1)"),
            validation_seed=not_negative(self.validation_seed),
            ema=(0 <= self.ema < 1, "in [0, 1)"),
            clip_grad=not_negative(self.clip_grad),
            lr_warm_up=(0 <= self.lr_warm_up < 1, "in [0, 1)"),
            periods=(
                all(0 < p < 1 for p in self.periods) and list(self.periods) == sorted(set(self.periods)),
                "increasing fractions of the training, in (0, 1)",
            ),
            eps_max=positive(self.eps_max),
            swa=(0 <= self.swa < 1 and not (self.swa and self.ema), "in [0, 1), and 0 with ema"),
            awp=not_negative(self.awp),
            awp_start=(0 <= self.awp_start < 1, "in [0, 1)"),
            label_smoothing=(0 <= self.label_smoothing < 1, "in [0, 1)"),
            cutout=not_negative(self.cutout),
            cutmix=(0 <= self.cutmix <= 1 and not (self.cutmix and self.extra), "a share, in [0, 1], and 0 with extra"),
            extra_share=(0 < self.extra_share < 1, "in (0, 1)"),
            keep_curves=not_negative(self.keep_curves),
            norm_shares=(1 <= self.norm_shares <= self.batch_size // 2, "1 to half of batch_size"),
            probe_every=not_negative(self.probe_every),
            probe_examples=(self.probe_examples >= 1, "at least 1"),
            select=(
                self.select == "last" or (self.validation > 0 and self.probe_every > 0),
                "last, unless there is a validation split (as validation=0.02) and probe_every is at least 1",
            ),
        )
        check_counts_and_lengths(self)

    def check(self, **rules: tuple[bool, str]) -> None:
        """UserError for the first setting that is not valid. rules: name=(whether it is valid, what is allowed)."""
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {allowed}")


@dataclass(frozen=True, kw_only=True)
class BoundsConfig(TrainingConfig):
    """Defaults for training with bounds on the network's output: the papers' settings for MNIST."""

    epochs: int = 100
    batch_size: int = 100
    optimizer: Literal["sgd", "adam"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    amp: Literal["auto", "off"] = "off"  # bounds in bfloat16 would not be sound


ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


def make_config(config_class: type[ConfigT], name: str, *layers: Mapping[str, Any]) -> ConfigT:
    """Build a config from layers of key -> value. Later layers take precedence; UserError if one is not valid."""
    hints = get_type_hints(config_class)
    hints = {field.name: hints[field.name] for field in dataclasses.fields(config_class)}
    values = {}
    for key, value in (pair for layer in layers for pair in layer.items()):
        if key not in hints:
            raise _unknown_key(key, name, hints)
        values[key] = parse_value(value, hints[key], f"{name}: {key}")
    return config_class(**values)


def _unknown_key(key: str, name: str, allowed: Mapping[str, Any]) -> UserError:
    hint = did_you_mean(key, allowed)
    return UserError(f"'{name}' has no setting '{key}': {hint}its settings are {', '.join(allowed)}")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The rules of one leaderboard: data, threat model, evaluation, and the settings of training."""

    name: str
    summary: str
    dataset: str
    model: str
    norm: str  # or `corruptions`: a board of accuracies under corruptions, without attacks and with an eps of 0
    eps: float
    attacks: tuple[str, ...]
    corruptions: tuple[str, ...] = ()
    eval_batch: int = 256
    board_examples: int | None = None  # the fewest test examples of an entry of its leaderboard; None for all
    board_attacks: tuple[str, ...] = ("autoattack", "bracket-attack")  # an entry needs one of these, or a bracket
    speedrun_targets: tuple[float, ...] = ()  # accuracies under attack, of `bench leaderboard --speedrun`
    training: Mapping[str, Any] = field(default_factory=dict)
    defenses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by defense, over `training`


@cache
def suites() -> dict[str, Suite]:
    """Return all suites by name, including those of add_suite. UserError, naming the suite, if one is malformed."""
    return {
        path.stem: _read_suite(path.stem, path.read_text(encoding="utf-8")) for path in sorted(SUITES.glob("*.toml"))
    }


def _read_suite(name: str, text: str) -> Suite:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"suite {name} is not valid TOML: {error}") from error
    hints = get_type_hints(Suite)
    for key in values:
        if key not in hints or key == "name":
            raise _unknown_key(key, f"suite {name}", hints)
    tables = {key: values.pop(key, {}) for key in ("training", "defenses")}
    read = {key: parse_value(value, hints[key], f"suite {name}: {key}") for key, value in values.items()}
    try:
        return Suite(name=name, **read, **tables)
    except TypeError as error:  # a missing key
        raise UserError(f"suite {name}: {error}") from error


def add_suite(path: Path) -> Suite:
    """Load a suite from FILE.toml and register it by its name; UserError if another suite has that name."""
    if not path.exists():
        raise UserError(f"suite {path} does not exist; give an existing TOML file, or a name from `bench list suites`")
    try:
        suite = _read_suite(path.stem, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"suite {path} cannot be read ({one_line(error)}); give a TOML file, or a name") from error
    if suites().setdefault(suite.name, suite) != suite:
        raise UserError(f"{path} differs from the suite {suite.name} that is there already; give it another name")
    return suite


def add_suites(folder: Path) -> None:
    """Call add_suite for each TOML file of a folder; UserError if it has none."""
    found = sorted(folder.glob("*.toml"))
    if not found:
        raise UserError(f"{folder} holds no suites; a suite is a file NAME.toml, as those of bench/suites")
    for path in found:
        add_suite(path)


def get_suite(name: str) -> Suite:
    """A suite by its name, or by the path of its TOML file."""
    if name.endswith(".toml"):
        return add_suite(Path(name))
    if name not in suites():
        raise unknown("suite", name, suites())
    return suites()[name]


OPTIONAL = ("state_dict", "certifiers", "corruptions", "budget", "time_limit", "bracket")  # fields of RunConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings except the seed that determine the result of a run. Their hash names the run folder.

    Exactly one of `defense` (trained here) and `checkpoint` (the SHA-256 of weights trained elsewhere) is set.
    """

    suite: str | None
    dataset: str
    data_hash: str
    model: str
    defense: str | None
    checkpoint: str | None
    norm: str
    eps: float
    attacks: tuple[str, ...]
    n_examples: int
    eval_batch: int
    training: Mapping[str, Any] = field(default_factory=dict)  # the defense's whole config, defaults included
    code: tuple[str, ...] = ()  # SHA-256 of each plugin and of the user's model file
    certifiers: tuple[str, ...] = ()
    corruptions: tuple[str, ...] = ()  # NAME if made here, or NAME:file=HASH if read from a file with this SHA-256
    budget: int | None = None  # of the bracket: sub-problems for each example; None for no bracket
    time_limit: float | None = None  # of the bracket, in seconds; None for none
    bracket: float | None = None  # the budget in seconds, in configs from before budgets were sub-problems
    box: bool = True  # whether points are kept in [0, 1]
    state_dict: str | None = None  # key of the state dict in a checkpoint that holds several; None if it holds one

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values. Published hashes stay valid, because empty fields of OPTIONAL and a box of
        [0, 1] are left out."""
        fields = {key: value for key, value in as_json(self).items() if value or key not in OPTIONAL}
        return {key: value for key, value in fields.items() if key != "box" or not value}

    @property
    def content_hash(self) -> str:
        return content_hash(self.as_json())


def content_hash(config: Mapping[str, Any]) -> str:
    """The first 12 digits of the SHA-256 of the canonical JSON of a run's config."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def as_json(config: TrainingConfig | RunConfig) -> dict[str, Any]:
    """Return a config as JSON values, from which make_config rebuilds the config of a defense.

    Settings in OMITTED_AT_DEFAULT are left out at their default, so that published hashes stay valid, unless the
    defense changes the default. `omitted_at_default` lists the settings of a defense's own config that are left out in
    the same way.
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    off = {
        field.name: field.default for field in dataclasses.fields(TrainingConfig) if field.name in OMITTED_AT_DEFAULT
    }
    own = {field.name: field.default for field in dataclasses.fields(config)}
    off |= {name: own[name] for name in getattr(config, "omitted_at_default", ())}
    fields = {name: v for name, v in fields.items() if name not in off or not v == own[name] == off[name]}
    plain: dict[str, Any] = json.loads(json.dumps(fields, default=str))  # str: of a length in units of eps
    return plain
