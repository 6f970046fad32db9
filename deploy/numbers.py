"""Numbers as people write them, the same on the command line, in variables and in files: 1e6, 1_000_000, 1.0e3."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

import yaml

MOST = 2**63
"""Whole numbers are below this, so that 1e999999999 does not fill the memory."""
_EXPONENT = re.compile(r"[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 1.1, which PyYAML reads, takes 1e6, 1e-3 and 1.0e3 for texts."""


class _Dumper(yaml.SafeDumper):
    """Quotes texts that would be read as numbers, such as a run's name 12e4."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, [*"-+.0123456789"])


def read_yaml(text: str) -> Any:
    """Returns what a YAML document holds. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)


def write_yaml(value: Any, *, flow: bool = False) -> str:
    """Returns a YAML document that ``read_yaml`` reads back to the same; ``flow``: in one line, with braces."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=flow)


def whole(text: str) -> int:
    """Returns the whole number that is written so. Raises ValueError."""
    try:
        number = Decimal(text.strip())
        fits = -MOST < number < MOST
    except InvalidOperation:
        raise ValueError(f"{text!r} is no whole number, such as 1000000, 1_000_000 or 1e6") from None
    if not fits:
        raise ValueError(f"{text} is too big: whole numbers are below 2^63")
    if number != int(number):
        raise ValueError(f"{text} is not whole: the option takes whole numbers only, such as {int(number)}")
    return int(number)
