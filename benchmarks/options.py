"""Checks of options that several commands have. Each raises ValueError with one line for the user."""

from collections.abc import Sequence

Number = int | float
Numbers = Number | Sequence[Number] | None


def at_least(lowest: int, **options: Numbers) -> None:
    """Require that each option, or each number of it, is at least `lowest`; None stands for an option not given."""
    for name, value in options.items():
        if value is not None and not min(value if isinstance(value, Sequence) else [value]) >= lowest:
            raise ValueError(f"{_option(name)}: expected at least {lowest}; received {listed(value)}")


def more_than_zero(**options: float | None) -> None:
    """Require that each option that is given is more than 0, and a number."""
    for name, value in options.items():
        if value is not None and not value > 0:
            raise ValueError(f"{_option(name)}: expected more than 0; received {value}")


def distinct(lowest: int = 1, **options: Sequence[int]) -> None:
    """Require that each option has numbers, all different and at least `lowest`."""
    for name, values in options.items():
        if not values or len(set(values)) < len(values) or min(values) < lowest:
            raise ValueError(f"{name}: expected distinct numbers of at least {lowest}; received {listed(values)}")


def some_of(known: Sequence[str], **options: Sequence[str] | None) -> None:
    """Require that each option that is given has names, all of them known."""
    for name, values in options.items():
        unknown = [value for value in values or () if value not in known]
        if unknown or (values is not None and not values):
            raise ValueError(f"{name}: expected some of {', '.join(known)}; received {listed(unknown)}")


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """The numbers of an option such as "1,50,500"."""
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ValueError(f"{name}: expected whole numbers separated by commas; received {text!r}")
    return tuple(int(part) for part in text.split(","))


def names(text: str | None) -> tuple[str, ...] | None:
    """The names of an option such as "iu,asmg-gru-multi"; None where it is not given."""
    return None if text is None else tuple(name.strip() for name in text.split(","))


def listed(values: object) -> str:
    """A value, or several separated by commas, as an error message shows them."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        return str(values)
    return ", ".join(map(str, values)) or "none"


def _option(name: str) -> str:
    """The name of a parameter as the command line has it."""
    return name.replace("_", "-")
