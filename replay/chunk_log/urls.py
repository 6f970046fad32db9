"""URLs of servers: what of them may be shown, and which are none."""

from __future__ import annotations

import re

from replay.chunk_log.protocol import Refused

_SHOWN_OPTIONS = r"db|username|protocol|client_name|ssl_(?!password)\w+"
_SHOWN_URL = re.compile(
    r"(rediss?|unix|https?)://([\w.%+~-]*(:\*\*\*)?@)?(\[[0-9a-fA-F:.%]+\]|[\w.-]*)(:\d+)?(/[^?@#\s]*)?(\?[^@#\s]*)?"
)
"""What is left of a URL once its password is masked; anything else may have parts of it in the wrong place."""


def public_url(url: str) -> str:
    """``url`` without its password, for messages and files, also where the password has characters that split a URL."""
    masked = re.sub(rf"([?&](?!(?:{_SHOWN_OPTIONS})=)[^=&]*=)[^&]*", r"\1***", url)
    masked = re.sub(r"^(\w+://[^:/@]*):.*@", r"\1:***@", masked)
    before, _, after = url.partition("?")
    # with an @ on both sides of a ? nobody knows which of them ends the password
    if _SHOWN_URL.fullmatch(masked) and not ("@" in before and "@" in after):
        return masked
    scheme = re.match(r"(rediss?|unix)://", url)
    return f"{scheme[0] if scheme else ''}***"


class UrlError(Refused, ValueError):
    """A URL that names no server; the text shows what of it cannot be a password."""


def check_delimiters(url: str) -> None:
    """Raises UrlError where a password that was not percent-encoded has split the URL: what comes before would be asked
    for, and shown, as host and port."""
    place, query, options = url.partition("://")[2].partition("?")
    path = re.split(r"[/#]", place, maxsplit=1)[1:]
    if "#" in place or "@" in "".join(path) or (query and "@" in options and "password=" not in options):
        raise no_url(url)


def no_url(url: str) -> UrlError:
    return UrlError(
        f"{public_url(url)} is no Redis URL: it wants redis://, rediss:// or unix://, a numeric port, and special "
        "characters of the password percent-encoded"
    )
