"""Rules for the settings of a training: (whether a value is valid, what is allowed), for TrainingConfig.check."""

from bench.core.specs import Length, in_units


def not_negative(value: float) -> tuple[bool, str]:
    return value >= 0, "not negative"


def positive(value: Length) -> tuple[bool, str]:
    return in_units(value, 1.0) > 0, "positive"


def fraction_of_training(value: float) -> tuple[bool, str]:
    return 0 <= value <= 1, "a fraction of the training, in [0, 1]"
