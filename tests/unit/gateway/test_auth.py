"""Who gets in: tokens that are ours and in time, and pages of origins that may."""

import base64
import json

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.auth import (
    ANONYMOUS,
    Authenticator,
    ExpiredTokenError,
    Identity,
    InvalidTokenError,
    allows_origin,
    make_token,
)
from tests.unit.doubles import SettableClock

SECRET = "a secret of at least 64 bytes, as RFC 7518 section 3.2 wants it of HS512"
NOW = 1_763_800_000.0


def authenticator(*, secret: str = SECRET, allow_anonymous: bool = False, token_max_bytes: int = 8192) -> Authenticator:
    """An Authenticator whose clock stands at NOW."""
    clock = SettableClock(NOW)
    return Authenticator(secret, allow_anonymous=allow_anonymous, token_max_bytes=token_max_bytes, clock=clock)


def token(claims: object, *, secret: str = SECRET, algorithm: str = "HS256") -> str:
    """A signed token with arbitrary claims."""
    return jwt.encode(claims, secret, algorithm=algorithm)  # type: ignore[arg-type]


def unsigned(header: dict[str, object], claims: dict[str, object], signature: bytes = b"") -> str:
    """A token made by hand."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


# Tokens that are good.

GOOD: list[tuple[dict[str, object], Identity]] = [
    ({"sub": "42"}, Identity("42")),
    ({}, Identity("")),
    ({"sub": ""}, Identity("")),
    ({"sub": "42", "exp": NOW + 1}, Identity("42", b"", NOW + 1)),
    ({"sub": "42", "exp": int(NOW) + 60, "iat": NOW - 5, "nbf": NOW}, Identity("42", b"", NOW + 60)),
    ({"sub": "42", "iat": NOW + 1000}, Identity("42")),  # another clock may be ahead
    ({"sub": "42", "info": {"name": "é"}}, Identity("42", '{"name":"é"}'.encode())),
    ({"sub": "42", "info": None}, Identity("42")),
    ({"sub": "42", "info": 0}, Identity("42", b"0")),
    ({"sub": "42", "aud": "gateway", "iss": "shop", "jti": "1", "channels": ["a"], "meta": {}}, Identity("42")),
]


@pytest.mark.parametrize(("claims", "identity"), GOOD)
def test_good_token_says_who_it_is(claims: dict[str, object], identity: Identity) -> None:
    assert authenticator().authenticate(token(claims)) == identity


def test_token_made_here_is_taken_here() -> None:
    made = make_token(SECRET, "42", NOW + 60.9, {"name": "n"})
    assert authenticator().authenticate(made) == Identity("42", b'{"name":"n"}', NOW + 60)
    assert authenticator().authenticate(make_token(SECRET, "42")) == Identity("42")


# Tokens in the wrong time.


@pytest.mark.parametrize("expires", [NOW, NOW - 1, 0, -5, NOW - 0.001])
def test_expired_token_is_told_apart_so_that_the_client_refreshes_it(expires: float) -> None:
    with pytest.raises(ExpiredTokenError):
        authenticator().authenticate(token({"sub": "42", "exp": expires}))


def test_token_not_valid_yet_is_refused() -> None:
    with pytest.raises(InvalidTokenError, match="nbf"):
        authenticator().authenticate(token({"sub": "42", "nbf": NOW + 1}))


def test_expired_token_of_another_is_just_wrong() -> None:
    forged = token({"sub": "42", "exp": NOW - 1}, secret="another secret, of at least 32 bytes too")
    with pytest.raises(InvalidTokenError):
        authenticator().authenticate(forged)


# Tokens that are not ours.

_rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RSA_PRIVATE = _rsa.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
RSA_PUBLIC = (
    _rsa.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
)

FORGED = {
    "another secret": token({"sub": "42"}, secret="another secret, of at least 32 bytes too"),
    "HS384 with the secret": token({"sub": "42"}, algorithm="HS384"),
    "HS512 with the secret": token({"sub": "42"}, algorithm="HS512"),
    "RS256 with a key of the forger": token({"sub": "42"}, secret=RSA_PRIVATE, algorithm="RS256"),
    "RS256 said of an HS256 signature": "",
    "no algorithm": unsigned({"alg": "none"}, {"sub": "42"}),
    "no algorithm, with capitals": unsigned({"alg": "NONE", "typ": "JWT"}, {"sub": "42"}),
    "no header field alg": unsigned({}, {"sub": "42"}),
    "no signature": token({"sub": "42"}).rpartition(".")[0] + ".",
    "no third part": token({"sub": "42"}).rpartition(".")[0],
    "other claims under the signature": "",
    "claims that are a list": unsigned({"alg": "HS256"}, [1]),  # type: ignore[arg-type]
    "header that is a list": unsigned([], {"sub": "42"}),  # type: ignore[arg-type]
    "critical header": unsigned({"alg": "HS256", "crit": ["x"], "x": 1}, {"sub": "42"}),
    "words": "let me in",
    "dots": "..",
    "many dots": "." * 100,
    "not ASCII": "é.é.é",
    "half a surrogate pair": "\ud800",
    "a null": "\x00",
    "white space": " ",
}
_header, _claims, _signature = token({"sub": "42"}).split(".")
FORGED["RS256 said of an HS256 signature"] = ".".join(
    [unsigned({"alg": "RS256", "typ": "JWT"}, {}).split(".")[0], _claims, _signature]
)
FORGED["other claims under the signature"] = ".".join(
    [_header, unsigned({}, {"sub": "admin"}).split(".")[1], _signature]
)


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_token_that_is_not_ours_is_refused(forged: str) -> None:
    with pytest.raises(InvalidTokenError):
        authenticator().authenticate(forged)


def test_every_token_is_refused_while_the_secret_is_a_public_key() -> None:
    # PyJWT takes no PEM for an HMAC secret: whoever has the public key could sign.
    with pytest.raises(InvalidTokenError):
        authenticator(secret=RSA_PUBLIC).authenticate(token({"sub": "42"}))


# Tokens whose claims are wrong.

WRONG_CLAIMS: list[tuple[str, dict[str, object]]] = [
    ("sub", {"sub": 42}),
    ("sub", {"sub": None}),
    ("sub", {"sub": ["42"]}),
    ("sub", {"sub": {"id": 42}}),
    ("exp", {"sub": "42", "exp": "tomorrow"}),
    ("exp", {"sub": "42", "exp": "1763800001"}),
    ("exp", {"sub": "42", "exp": True}),
    ("exp", {"sub": "42", "exp": None}),
    ("exp", {"sub": "42", "exp": [NOW + 1]}),
    ("exp", {"sub": "42", "exp": float("inf")}),
    ("exp", {"sub": "42", "exp": float("nan")}),
    ("nbf", {"sub": "42", "nbf": "yesterday"}),
    ("nbf", {"sub": "42", "nbf": False}),
]


@pytest.mark.parametrize(("claim", "claims"), WRONG_CLAIMS)
def test_claim_of_the_wrong_type_is_refused_by_name(claim: str, claims: dict[str, object]) -> None:
    signed = jwt.api_jws.encode(json.dumps(claims).encode(), SECRET, "HS256")
    with pytest.raises(InvalidTokenError, match=f"(?i){claim}|subject"):
        authenticator().authenticate(signed)


def test_token_that_is_too_long_is_not_looked_at() -> None:
    long = token({"sub": "x" * 200})
    with pytest.raises(InvalidTokenError, match="longer than 64 bytes"):
        authenticator(token_max_bytes=64).authenticate(long)
    assert authenticator(token_max_bytes=len(long)).authenticate(long).user == "x" * 200


def test_no_message_shows_the_token_or_the_secret() -> None:
    for forged in FORGED.values():
        with pytest.raises(InvalidTokenError) as caught:
            authenticator().authenticate(forged)
        assert SECRET not in str(caught.value)
        assert len(forged) < 10 or forged not in str(caught.value)


# Nobody.


def test_client_without_a_token_is_nobody_where_anyone_may_connect() -> None:
    assert authenticator(allow_anonymous=True).authenticate("") == ANONYMOUS == Identity("", b"", 0.0)


def test_client_without_a_token_is_refused_elsewhere() -> None:
    with pytest.raises(InvalidTokenError, match="a token is required"):
        authenticator(allow_anonymous=False).authenticate("")


def test_bad_token_is_refused_even_where_anyone_may_connect() -> None:
    with pytest.raises(InvalidTokenError):
        authenticator(allow_anonymous=True).authenticate("let me in")


@pytest.mark.parametrize("secret_of_forger", ["", SECRET])
def test_every_token_is_refused_without_a_secret(secret_of_forger: str) -> None:
    forged = unsigned({"alg": "HS256"}, {"sub": "42"}) if not secret_of_forger else token({"sub": "42"})
    with pytest.raises(InvalidTokenError, match="not configured"):
        authenticator(secret="", allow_anonymous=True).authenticate(forged)


# Origins.

OWN = "gateway.example:8000"
ORIGINS: list[tuple[str | None, str | None, tuple[str, ...], bool]] = [
    # No list: pages of the own host.
    (None, OWN, (), True),
    ("http://gateway.example:8000", OWN, (), True),
    ("https://gateway.example:8000", OWN, (), True),
    ("HTTP://Gateway.Example:8000", OWN, (), True),
    ("http://gateway.example:8000", "GATEWAY.example:8000", (), True),
    ("https://gateway.example", "gateway.example", (), True),
    ("http://gateway.example", OWN, (), False),
    ("http://gateway.example:8001", OWN, (), False),
    ("http://evil.example", OWN, (), False),
    ("http://gateway.example:8000.evil.example", OWN, (), False),
    ("http://evil.example/gateway.example:8000", OWN, (), False),
    ("http://evil.example?gateway.example:8000", OWN, (), False),
    ("http://evil.example#gateway.example:8000", OWN, (), False),
    ("http://gateway.example:8000@evil.example", OWN, (), False),
    ("null", OWN, (), False),
    ("", OWN, (), False),
    ("file://", OWN, (), False),
    ("http://gateway.example:8000", None, (), False),
    ("http://", "", (), False),
    ("null", "", (), False),
    # A list.
    ("https://a.example", OWN, ("https://a.example",), True),
    ("https://A.example/", OWN, ("https://a.EXAMPLE",), True),
    ("https://a.example", OWN, ("https://b.example", "https://a.example/"), True),
    ("https://a.example", None, ("https://a.example",), True),
    ("http://a.example", OWN, ("https://a.example",), False),
    ("https://a.example:444", OWN, ("https://a.example",), False),
    ("https://sub.a.example", OWN, ("https://a.example",), False),
    ("https://a.example.evil.example", OWN, ("https://a.example",), False),
    ("http://gateway.example:8000", OWN, ("https://a.example",), False),
    ("null", OWN, ("https://a.example",), False),
    (None, OWN, ("https://a.example",), True),
    # Anyone.
    ("http://evil.example", OWN, ("*",), True),
    ("null", OWN, ("https://a.example", "*"), True),
]


@pytest.mark.parametrize(("origin", "host", "allowed", "expected"), ORIGINS)
def test_origin(origin: str | None, host: str | None, allowed: tuple[str, ...], expected: bool) -> None:
    assert allows_origin(origin, host, allowed) is expected


@pytest.mark.parametrize("origin", ["http://[evil", "http://evil]", "http://[::1", "https://[v1.x"])
def test_origin_that_is_no_url_is_foreign(origin: str) -> None:
    assert allows_origin(origin, OWN, ()) is False
