"""Which encoder an observation gets, and why; what each of several encoders gets of it. Without torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from learner.networks.config import NetworkConfig

if TYPE_CHECKING:
    from replay.chunk import ObsEntry, Schema

LEAST = {"minatar": 3, "nature": 36, "impala": 3}
"""Height and width of a picture from which all of an encoder's convolutions have something to look at."""
AUTO = NetworkConfig()
NAMED = 4
"""Entries that a message names; of more it has the number."""


class Choice(NamedTuple):
    """An encoder's name, and why it is that one, in words."""

    encoder: str
    why: str


class Part(NamedTuple):
    """What one of several encoders gets: the numbers of the flat observations that are its own, as observations of
    ``schema``."""

    encoder: str
    schema: Schema
    where: tuple[slice, ...]


def encoder_of(config: NetworkConfig, schema: Schema) -> str:
    """Returns the encoder's name, ``auto`` resolved by the observation's shape."""
    if config.encoder != "auto":
        return config.encoder
    if schema.entries:
        return "entries" if any(_of_array(_alone(entry, schema)) != "mlp" for entry in schema.entries) else "mlp"
    return _of_array(schema)


def _of_array(schema: Schema) -> str:
    picture = schema.picture_shape
    if picture is None or min(picture[1:]) < LEAST["minatar"]:
        return "mlp"
    return "nature" if min(picture[1:]) >= LEAST["nature"] else "minatar"


def _alone(entry: ObsEntry, schema: Schema) -> Schema:
    """Returns the schema of observations that are this entry and nothing else. They come to it scaled."""
    return replace(
        schema,
        obs_shape=entry.shape,
        obs_dtype=entry.dtype,
        obs_divisor=1,
        channels_last=entry.channels_last,
        extras=(),
        entries=(),
    )


def parts_of(schema: Schema) -> tuple[Part, ...]:
    """Returns a part for each entry that is a picture, with the encoder that ``auto`` chooses for it alone, and one
    with the encoder ``mlp`` for all other entries together, as one vector.

    Raises ValueError where no entry is a picture.
    """
    pictures, others, end = list[Part](), list[slice](), 0
    for entry in schema.entries:
        begin, end = end, end + entry.size
        alone = _alone(entry, schema)
        if (encoder := _of_array(alone)) != "mlp":
            pictures.append(Part(encoder, alone, (slice(begin, end),)))
        elif others and others[-1].stop == begin:  # neighbours are one slice
            others[-1] = slice(others[-1].start, end)
        else:
            others.append(slice(begin, end))
    if not pictures:
        raise ValueError(
            f"the encoder entries wants a Dict or Tuple with a picture of at least {LEAST['minatar']} x "
            f"{LEAST['minatar']} pixels, got {described(schema)}; {remedy(schema)}"
        )
    if not others:
        return tuple(pictures)
    numbers = sum(each.stop - each.start for each in others)
    vector = replace(schema, obs_shape=(numbers,), obs_divisor=1, extras=(), entries=())
    return (*pictures, Part("mlp", vector, tuple(others)))


def choice_of(config: NetworkConfig, schema: Schema) -> Choice:
    """Returns the encoder of these observations, and why it is that one: by what ``auto`` goes, or as configured."""
    encoder, auto = encoder_of(config, schema), encoder_of(AUTO, schema)
    if encoder != auto:
        return Choice(encoder, f"as configured, for {described(schema)}; auto would choose {auto}")
    return Choice(encoder, f"as auto chooses for {described(schema)}: {_reason(encoder, schema)}")


def _reason(encoder: str, schema: Schema) -> str:
    """Returns what ``auto`` goes by."""
    if encoder == "entries":
        found = [_of_array(_alone(entry, schema)) for entry in schema.entries]
        named = zip(schema.entries, found, strict=True)
        pictures = [f"{each} for {entry.name}" for entry, each in named if each != "mlp"]
        return ", ".join([*_few(pictures), *(["mlp for the rest"] if "mlp" in found else [])])
    if encoder == "mlp":
        least = f"{LEAST['minatar']} x {LEAST['minatar']}"
        if schema.entries:
            return f"no entry is a picture of at least {least}"
        return f"pictures below {least}" if schema.picture_shape is not None else "they are no pictures"
    assert schema.picture_shape is not None
    _, height, width = schema.picture_shape
    side = LEAST["nature"]
    return f"pictures of {height} x {width}, {'from' if encoder == 'nature' else 'below'} {side} x {side}"


def described(schema: Schema) -> str:
    """Returns what the network sees, for messages: "observations of shape (4,)"."""
    what = f"stacks of {schema.stack} observations" if schema.stack > 1 else "observations"
    if schema.entries:
        return f"{what} with the entries {', '.join(_few([f'{each.name} {each.shape}' for each in schema.entries]))}"
    return f"{what} of shape {schema.obs_shape}"


def remedy(schema: Schema) -> str:
    """Returns what to do where an encoder does not fit."""
    auto = encoder_of(AUTO, schema)
    no_picture = auto == "mlp" and schema.picture_shape is None
    return f"use {auto}{' (pictures have three axes, or two of bytes)' if no_picture else ''}"


def _few(texts: list[str]) -> list[str]:
    return texts if len(texts) <= NAMED else [*texts[: NAMED - 1], f"{len(texts) - NAMED + 1} more"]
