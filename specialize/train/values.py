"""Values of fields as one writes them on a command line, read by the field's type."""

import math
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from specialize.errors import ConfigError

_SAID = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    Path: "a path",
    type(None): "None",
}


def parse_value(text: str, hint: Any) -> Any:
    """A value of a field: a number, a word, a path, `None` where the field takes it, or `a+b` for several texts.

    Args:
        text: as it was written.
        hint: the type of the field.

    Raises:
        ConfigError: the text is no value of this type; the message begins with the text.
    """
    origin, options = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return parse_value(text, options[0])
    if origin in (Union, types.UnionType):
        # A text would take the word None for itself.
        for option in sorted(options, key=lambda option: option is not type(None)):
            try:
                return parse_value(text, option)
            except ConfigError:
                continue
    elif origin is Literal:
        if text in options:
            return text
    elif origin is tuple:
        return tuple(parse_value(part, options[0]) for part in text.split("+")) if text else ()
    elif hint is bool:
        if text in ("True", "False"):
            return text == "True"
    elif hint is type(None):
        if text == "None":
            return None
    elif hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            pass
    elif hint in (str, Path) and text:
        return hint(text)
    raise ConfigError(f"'{text}' is not {_said(hint)}.")


def write_value(value: Any) -> str:
    """A value as `parse_value` reads it back, to the same bits."""
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_finite(name: str, value: float, least: float = 0) -> None:
    """Checks a number of a configuration, which JSON is to hold.

    Args:
        name: of the field, for the message.
        value: of it.
        least: what it may be.

    Raises:
        ConfigError: it is less, NaN or infinite.
    """
    if not least <= value < math.inf:
        raise ConfigError(f"{name}={value}, but it must be at least {least:g}, and finite.")


def _said(hint: Any) -> str:
    """What a type takes, in words."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_said(option) for option in options)
    if origin is Literal:
        return " or ".join(map(str, options))
    if origin is tuple:
        return f"{_said(options[0])}, or several with + between them"
    return _SAID.get(hint, str(hint))
