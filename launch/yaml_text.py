"""YAML that every reader reads alike.

PyYAML writes a text plain if PyYAML would read it as a text. Kubernetes reads by another version of YAML, to which
`1e-3` is a number; a command with `--hyper.learning-rate 1e-3` would be refused. Only words that nobody takes for
anything else are left plain here.
"""

import re
from typing import Any

import yaml

_PLAIN = re.compile(r"[A-Za-z/][-A-Za-z0-9_./]*[A-Za-z0-9/]")
_WORDS = frozenset(("true", "false", "yes", "no", "on", "off", "null", "inf", "nan"))


class _Dumper(yaml.SafeDumper):
    """Quotes what is not certainly a text, and writes several lines as lines."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else '"'
    if "\n" in text and re.fullmatch(r"[\x20-\x7e\n]*\n", text) and " \n" not in text:
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def yaml_text(data: dict[str, Any]) -> str:
    """The data as YAML, in their own order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
