"""URLs of servers: what of them may be shown, and which are none."""

from __future__ import annotations

import re

from replay.chunk_log.protocol import UnusableServer

_SHOWN_OPTIONS = r"db|username|protocol|client_name|ssl_(?!password)\w+"
_SHOWN_URL = re.compile(
    r"(rediss?|unix|https?)://([\w.%+~-]*(:\*\*\*)?@)?(\[[0-9a-fA-F:.%]+\]|[\w.-]*)(:\d+)?(/[^?@#\s]*)?(\?[^@#\s]*)?"
)
"""What is left of a URL once its password is masked; anything else may have parts of it in the wrong place."""


def public_url(url: str) -> str:
    """Returns ``url`` without its password, for messages and files, also where characters of the password split it."""
    masked = re.sub(rf"([?&](?!(?:{_SHOWN_OPTIONS})=)[^=&]*=)[^&]*", r"\1***", url)
    masked = re.sub(r"^(\w+://[^:/@]*):.*@", r"\1:***@", masked)
    before, _, after = url.partition("?")
    # With an @ on both sides of a ? it is not known which of them ends the password.
    if _SHOWN_URL.fullmatch(masked) and not ("@" in before and "@" in after):
        return masked
    scheme = re.match(r"(rediss?|unix)://", url)
    return f"{scheme[0] if scheme else ''}***"


class UrlError(UnusableServer, ValueError):
    """A URL that names no server; the text shows what of it cannot be a password."""


def check_delimiters(url: str) -> None:
    """Raises UrlError where a password that was not percent-encoded has split the URL: what comes before would be asked
    for, and shown, as host and port."""
    address, query, options = url.partition("://")[2].partition("?")
    path = re.split(r"[/#]", address, maxsplit=1)[1:]
    if "#" in address or "@" in "".join(path) or (query and "@" in options and "password=" not in options):
        raise no_url(url)


def no_url(url: str) -> UrlError:
    return UrlError(
        f"{public_url(url)} is no Redis URL: it wants redis://, rediss:// or unix://, a numeric port, and special "
        "characters of the password percent-encoded"
    )
