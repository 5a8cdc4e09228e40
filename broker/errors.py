"""What can go wrong at a broker.

    BrokerError
    ├── Unavailable   no answer: the outcome is unknown, the same call may be repeated
    ├── Refused       an answer: no, and nothing was stored by this call
    └── Malformed     bytes that are not an envelope of ours

Errors of the client libraries stop at their adapter and leave as one of these.
"""


class BrokerError(Exception):
    """Anything a port raises."""


class Unavailable(BrokerError):
    """The server gave no answer in time; it may or may not have done what was asked."""


class Refused(BrokerError):
    """The server answered that it will not; nothing was stored by this call."""


class Malformed(BrokerError):
    """The bytes cannot be decoded as an envelope."""
