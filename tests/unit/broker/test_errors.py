"""The errors of a broker are one tree."""

import pytest

from broker.errors import BrokerError, Malformed, Refused, Unavailable


@pytest.mark.parametrize("error", [Unavailable, Refused, Malformed])
def test_every_error_of_a_port_is_a_broker_error(error: type[Exception]) -> None:
    assert issubclass(error, BrokerError)


def test_no_error_of_a_port_is_another() -> None:
    kinds = (Unavailable, Refused, Malformed)
    assert not [(one, other) for one in kinds for other in kinds if one is not other and issubclass(one, other)]
