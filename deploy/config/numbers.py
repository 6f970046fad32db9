"""Numbers as people write them, the same on the command line, in variables and in files: 1e6, 1_000_000, 1.0e3."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

import yaml

from replay.options import MAX_WHOLE

MAX_DEPTH, MAX_VALUES = 32, 10_000
"""Bounds of a YAML document: options nest five levels deep, and env.kwargs may add some."""
_MARKS = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")
"""The keys << and =, which stand for no value."""
_EXPONENT = re.compile(r"[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 1.1, which PyYAML reads, takes 1e6, 1e-3 and 1.0e3 for texts. Documents are bounded, and a
    mapping has each key once, where PyYAML keeps the last of two in silence."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """See ``yaml.composer.Composer``."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"it nests more than {MAX_DEPTH} levels deep", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """See ``yaml.composer.Composer``. What is merged in by << is none of the mapping's own keys."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines = dict[Any, int]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                written = key.value if key.tag in _MARKS else self.construct_object(key)
                if written in lines:
                    told = f"it has the key {key.value[:50]!r} in line {lines[written]} already"
                    raise yaml.composer.ComposerError(None, None, told, key.start_mark)
                lines[written] = key.start_mark.line + 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        """See ``yaml.composer.Composer``."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _count_values(node, {}) > MAX_VALUES:
            raise yaml.composer.ComposerError(
                None, None, f"it has more than {MAX_VALUES:,} values, aliases written out", node.start_mark
            )
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes texts that would be read as numbers, such as a run's name 12e4."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, [*"-+.0123456789"])


def read_yaml(text: str) -> Any:
    """Returns what a YAML document holds. Raises yaml.YAMLError, also for one that nests too deeply, that aliases
    blow up, or in which a mapping has a key twice."""
    try:
        return yaml.load(text, _Loader)
    except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:  # a tag with a wrong value
        raise yaml.MarkedYAMLError(problem=f"a value that is none: {error}"[:200]) from None


def problem_of(error: yaml.YAMLError) -> str:
    """Returns what is wrong with a document, without the lines around it, which may hold a password."""
    return str(getattr(error, "problem", None) or "damaged")


def _count_values(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Returns how many values a node stands for, once its aliases are written out.

    Raises:
        ComposerError: an alias is within what it names.
    """
    if node in known:
        if not known[node]:
            raise yaml.composer.ComposerError(None, None, "an alias stands within what it names", node.start_mark)
        return known[node]
    known[node] = 0
    inner = node.value if isinstance(node, yaml.CollectionNode) else ()
    each = (part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,)))
    known[node] = 1 + sum(_count_values(part, known) for part in each)
    return known[node]


def write_yaml(value: Any, *, flow: bool = False) -> str:
    """Returns a YAML document that ``read_yaml`` reads back to the same; ``flow``: in one line, with braces."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=flow)


def parse_whole(text: str) -> int:
    """Returns the whole number that is written so. Raises ValueError."""
    try:
        number = Decimal(text.strip())
        fits = -MAX_WHOLE < number < MAX_WHOLE
    except InvalidOperation:
        raise ValueError(f"{text!r} is no whole number, such as 1000000, 1_000_000 or 1e6") from None
    if not fits:
        raise ValueError(f"{text} is too big: whole numbers are below 2^63")
    if number != int(number):
        raise ValueError(f"{text} is not whole: the option takes whole numbers only, such as {int(number)}")
    return int(number)
