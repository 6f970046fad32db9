"""How the command line reads values that tyro would not: 1e6 for a whole number, one YAML mapping for a free one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_origin

import tyro
import yaml
from pydantic import BaseModel, ValidationError

from deploy.config.errors import OptionsError
from deploy.config.explain import explain
from deploy.config.models import sections
from deploy.config.numbers import parse_whole, problem_of, read_yaml, write_yaml


def as_written() -> tyro.constructors.ConstructorRegistry:
    """Returns what teaches tyro to take a free mapping (env.kwargs) as one YAML value, and 1e6 for a whole number, and
    to leave what pydantic finds wrong with a section to qherd's own words."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def whole_number(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
        if info.type is not int:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda given: parse_whole(given[0]),
            is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def mapping(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[dict[str, Any]] | None:
        if get_origin(info.type) is not dict:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="YAML",
            instance_from_str=lambda given: _yaml_mapping(given[0]),
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [write_yaml(value, flow=True).strip()],
        )

    names, asked = dict(sections()), set[Any]()

    @registry.struct_rule
    def section(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
        if info.type in asked or not (isinstance(info.type, type) and issubclass(info.type, BaseModel)):
            return None
        asked.add(info.type)  # tyro's own rule is asked next, through this one
        spec = registry.get_struct_spec(info)
        asked.remove(info.type)
        if not isinstance(spec, tyro.constructors.StructConstructorSpec):
            return None
        make, name = spec.instantiate, names.get(info.type, "")

        def instantiate(**options: Any) -> Any:
            try:
                return make(**options)
            except ValidationError as error:
                raise OptionsError(explain(error, "command line", name)) from None

        instantiate.__doc__ = make.__doc__  # for the help
        return replace(spec, instantiate=instantiate)

    return registry


def _yaml_mapping(text: str) -> dict[str, Any]:
    why = ""
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        value, why = None, f": {problem_of(error)}"
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is no YAML mapping like '{{gravity: -9}}'{why}")
    return value
