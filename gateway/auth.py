"""Who a client is, and which pages may connect. Pure: the clock is injected."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import jwt
import msgspec

_ALGORITHMS = ["HS256"]


class InvalidTokenError(Exception):
    """The token is not one of ours."""


class ExpiredTokenError(Exception):
    """The token was ours, and its time is over."""


@dataclass(frozen=True)
class Identity:
    """Who is connected. `info` is JSON that goes with what they publish; `expires` is Unix seconds, 0 for never."""

    user: str = ""
    info: bytes = b""
    expires: float = 0.0


ANONYMOUS = Identity()


class Authenticator:
    """Turns a `connect` command's token into an Identity. `clock` gives Unix seconds."""

    def __init__(self, secret: str, *, allow_anonymous: bool, token_max_bytes: int, clock: Callable[[], float]) -> None:
        self._secret = secret
        self._allow_anonymous = allow_anonymous
        self._token_max_bytes = token_max_bytes
        self._clock = clock

    def authenticate(self, token: str) -> Identity:
        """Return who presents the token. Raises InvalidTokenError or ExpiredTokenError."""
        if not token:
            if not self._allow_anonymous:
                raise InvalidTokenError("a token is required")
            return ANONYMOUS
        if not self._secret:
            raise InvalidTokenError("tokens are not configured")
        if len(token) > self._token_max_bytes:
            raise InvalidTokenError(f"the token is longer than {self._token_max_bytes} bytes")
        try:
            # Times are checked below, against the injected clock.
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=_ALGORITHMS,
                options={"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False},
            )
        except (jwt.PyJWTError, ValueError) as error:
            raise InvalidTokenError(str(error)) from None
        return self._identity(claims)

    def _identity(self, claims: dict[str, Any]) -> Identity:
        user, expires, not_before = claims.get("sub", ""), claims.get("exp", 0), claims.get("nbf", 0)
        if not isinstance(user, str):
            raise InvalidTokenError("claim sub must be a string")
        for name, value in (("exp", expires), ("nbf", not_before)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidTokenError(f"claim {name} must be a number")
        now = self._clock()
        if not_before > now:
            raise InvalidTokenError("claim nbf: the token is not valid yet")
        if "exp" in claims and expires <= now:
            raise ExpiredTokenError
        info = msgspec.json.encode(claims["info"]) if claims.get("info") is not None else b""
        return Identity(user, info, float(expires))


def make_token(secret: str, user: str, expires: float | None = None, info: object = None) -> str:
    """Make an HS256 connection token. `expires` is Unix seconds."""
    claims: dict[str, object] = {"sub": user}
    if expires is not None:
        claims["exp"] = int(expires)
    if info is not None:
        claims["info"] = info
    return jwt.encode(claims, secret, algorithm=_ALGORITHMS[0])


def allows_origin(origin: str | None, host: str | None, allowed: Sequence[str]) -> bool:
    """Tell whether a page of `origin` may connect to `host` (the Host header).

    Clients that are not browsers send no Origin, and gain nothing from a forged one. With no list, only pages of the
    gateway's own host may.
    """
    if origin is None or "*" in allowed:
        return True
    if allowed:
        return origin.rstrip("/").lower() in (entry.rstrip("/").lower() for entry in allowed)
    try:
        return bool(host) and urlsplit(origin).netloc.lower() == (host or "").lower()
    except ValueError:  # not a URL
        return False
