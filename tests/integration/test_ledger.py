"""The checker finds every kind of fault, and none in a history that keeps the promises."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .ledger import Arrival, Message, Report, check


@dataclass
class History:
    """Two channels with three subscribers each; everything acknowledged and received."""

    published: dict[str, dict[Message, bool]]
    arrivals: dict[str, dict[str, list[Arrival]]]

    def check(self) -> Report:
        return check(self.published, self.arrivals)


def history() -> History:
    """A history that keeps the promises: two publishers a channel, interleaved."""
    published: dict[str, dict[Message, bool]] = {}
    arrivals: dict[str, dict[str, list[Arrival]]] = {}
    for channel in ("red", "blue"):
        order = [Message(publisher, number) for number in range(1, 6) for publisher in ("ann", "bob")]
        published[channel] = dict.fromkeys(order, True)
        received = [Arrival(message, f"{message.publisher}'s connection") for message in order]
        arrivals[channel] = {subscriber: list(received) for subscriber in ("x", "y", "z")}
    return History(published, arrivals)


def counts(report: Report) -> dict[str, int]:
    """The faults that were counted."""
    kinds = ("lost", "torn", "duplicated", "reordered", "disputed", "invented")
    return {kind: getattr(report, kind) for kind in kinds if getattr(report, kind)}


def test_keeps_the_promises() -> None:
    report = history().check()
    assert report.is_clean
    assert (report.published, report.acknowledged, report.delivered) == (20, 20, 60)
    assert report.faults == ()


def test_nothing_happened() -> None:
    assert check({}, {}).is_clean
    assert check({"red": {}}, {"red": {"x": []}}).is_clean


def test_lost_by_one_subscriber() -> None:
    it = history()
    del it.arrivals["red"]["y"][4]
    report = it.check()
    assert counts(report) == {"lost": 1}
    assert not report.is_clean
    assert report.faults == ("lost: ann #3 at y in red",)


def test_lost_by_all_subscribers() -> None:
    it = history()
    for received in it.arrivals["red"].values():
        del received[-1]
    assert counts(it.check()) == {"lost": 3}


def test_lost_with_a_subscriber_who_received_nothing() -> None:
    it = history()
    it.arrivals["blue"]["z"] = []
    assert counts(it.check()) == {"lost": 10}


def test_lost_with_a_channel_that_nobody_heard() -> None:
    it = history()
    del it.arrivals["blue"]["x"], it.arrivals["blue"]["y"]
    it.arrivals["blue"]["z"] = []
    assert counts(it.check()) == {"lost": 10}


def test_not_acknowledged_and_received_by_nobody_is_allowed() -> None:
    it = history()
    it.published["red"][Message("ann", 6)] = False
    report = it.check()
    assert report.is_clean
    assert (report.published, report.acknowledged) == (21, 20)


def test_not_acknowledged_and_received_by_all_is_allowed() -> None:
    it = history()
    it.published["red"][Message("ann", 3)] = False
    assert it.check().is_clean


def test_not_acknowledged_and_received_by_some() -> None:
    it = history()
    it.published["red"][Message("ann", 3)] = False
    del it.arrivals["red"]["y"][4]
    assert counts(it.check()) == {"torn": 1}


@pytest.mark.parametrize("was_acknowledged", [True, False])
def test_duplicated(was_acknowledged: bool) -> None:
    it = history()
    it.published["red"][Message("bob", 5)] = was_acknowledged
    it.arrivals["red"]["x"] += [it.arrivals["red"]["x"][-1]] * 2
    assert counts(it.check()) == {"duplicated": 2}


def test_duplicated_much_later_is_no_reordering() -> None:
    it = history()
    it.arrivals["red"]["x"].append(it.arrivals["red"]["x"][0])
    assert counts(it.check()) == {"duplicated": 1}


def test_one_subscriber_sees_another_order() -> None:
    it = history()
    received = it.arrivals["red"]["z"]
    received[2], received[3] = received[3], received[2]  # of two publishers
    report = it.check()
    assert counts(report) == {"disputed": 1}
    assert report.faults == ("disputed: ann #2 at z in red",)


def test_all_subscribers_see_a_connection_reordered() -> None:
    it = history()
    for received in it.arrivals["red"].values():
        received[2], received[4] = received[4], received[2]  # both ann's
    assert counts(it.check()) == {"reordered": 3}


def test_a_publisher_with_a_new_connection_may_be_overtaken() -> None:
    it = history()
    for received in it.arrivals["red"].values():
        received[4] = Arrival(received[4].message, "ann's next connection")
        received[2], received[4] = received[4], received[2]
    assert it.check().is_clean


def test_invented() -> None:
    it = history()
    it.arrivals["red"]["x"].append(Arrival(Message("eve", 1)))
    assert counts(it.check()) == {"invented": 1}


def test_delivered_in_another_channel() -> None:
    it = history()
    it.published["blue"][Message("ann", 6)] = True
    for received in it.arrivals["red"].values():
        received.append(Arrival(Message("ann", 6), "ann's connection"))
    assert counts(it.check()) == {"lost": 3, "invented": 3}


def test_faults_are_examples() -> None:
    it = history()
    it.arrivals["red"] = {subscriber: [] for subscriber in ("x", "y", "z")}
    report = it.check()
    assert report.lost == 30
    assert len(report.faults) == 10


@given(st.randoms(use_true_random=False), st.sampled_from(["drop", "repeat", "swap", "invent"]))
def test_any_single_fault_is_found(chance: random.Random, fault: str) -> None:
    it = history()
    channel, subscriber = chance.choice(["red", "blue"]), chance.choice(["x", "y", "z"])
    received = it.arrivals[channel][subscriber]
    index = chance.randrange(len(received) - 1)
    match fault:
        case "drop":
            del received[index]
        case "repeat":
            received.insert(chance.randrange(index, len(received)), received[index])
        case "swap":
            received[index], received[index + 1] = received[index + 1], received[index]
        case "invent":
            received.insert(index, Arrival(Message("ann", 99), "somebody"))
    report = it.check()
    assert not report.is_clean
    found = counts(report)
    kind = {"drop": "lost", "repeat": "duplicated", "swap": "disputed", "invent": "invented"}[fault]
    # When the subscriber whose order counts as the common one is at fault, the two others are said to differ.
    assert found[kind] == 1 or (fault == "swap" and found[kind] == 2)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())), st.integers(0, 4))
def test_any_common_order_is_clean(sent: list[tuple[str, bool]], subscribers: int) -> None:
    numbers = dict.fromkeys("abc", 0)
    published: dict[Message, bool] = {}
    order: list[Arrival] = []
    for publisher, is_known in sent:  # what is not acknowledged appears as often as not
        numbers[publisher] += 1
        message = Message(publisher, numbers[publisher])
        published[message] = is_known
        if is_known or numbers[publisher] % 2:
            order.append(Arrival(message, publisher))
    report = check({"red": published}, {"red": {str(index): order for index in range(subscribers)}})
    assert report.is_clean
    assert report.delivered == len(order) * subscribers
