"""The merge of history and live, for arbitrary overlaps, holes and repetitions: whole, or LOST."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.envelope import CommittedGroup, Position, Publication
from gateway.recovery import LOST, Fault, Recovery, advance, continues, recover

MANY = 1_000_000
offsets = st.integers(0, 30)
epochs = st.sampled_from(["e", "f"])
positions = st.builds(Position, epochs, offsets)


def publication(offset: int) -> Publication:
    """The publication at this offset; its data says where it stands."""
    return Publication(b"%d" % offset, offset=offset)


def run(first: int, last: int) -> list[Publication]:
    """The publications from one offset to another, both included."""
    return [publication(offset) for offset in range(first, last + 1)]


def group(first: int, last: int, epoch: str = "e") -> CommittedGroup:
    return CommittedGroup("c", epoch, first, run(first, last))


def offsets_of(publications: Sequence[Publication]) -> list[int]:
    return [publication.offset for publication in publications]


# advance

ADVANCES: list[tuple[int, tuple[int, int], list[int] | Fault]] = [
    # position, group from … to, what continues
    (0, (1, 3), [1, 2, 3]),
    (3, (4, 4), [4]),
    (3, (1, 5), [4, 5]),
    (3, (3, 4), [4]),
    (3, (1, 3), []),
    (3, (1, 2), []),
    (3, (5, 6), Fault.GAP),
    (0, (2, 2), Fault.GAP),
    (3, (4, 3), []),
]


@pytest.mark.parametrize(("position", "bounds", "expected"), ADVANCES)
def test_group_advances_a_position(position: int, bounds: tuple[int, int], expected: list[int] | Fault) -> None:
    result = advance(Position("e", position), group(*bounds))
    assert (result if isinstance(result, Fault) else offsets_of(result)) == expected


@pytest.mark.parametrize("bounds", [(1, 1), (4, 4), (9, 9)])
def test_group_of_another_epoch_is_a_fault_wherever_it_stands(bounds: tuple[int, int]) -> None:
    assert advance(Position("e", 3), group(*bounds, epoch="f")) is Fault.EPOCH


@given(offsets, offsets, st.integers(0, 10))
def test_advance_gives_exactly_what_follows_or_names_the_fault(position: int, first: int, count: int) -> None:
    result = advance(Position("e", position), group(first, first + count - 1))
    if isinstance(result, Fault):
        assert result is Fault.GAP
        assert first > position + 1
    else:
        assert offsets_of(result) == list(range(position + 1, first + count))


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5)), max_size=30))
def test_advancing_over_any_groups_never_skips_repeats_or_reorders(bounds: list[tuple[int, int]]) -> None:
    position, seen = Position("e", 0), []
    for first, count in bounds:
        result = advance(position, group(first, first + count - 1))
        if not isinstance(result, Fault) and result:
            seen += offsets_of(result)
            position = Position("e", result[-1].offset)
    assert seen == list(range(1, position.offset + 1))


# continues

CONTINUATIONS: list[tuple[int, list[int], bool]] = [
    (3, [4, 5, 6], True),
    (3, [], True),
    (0, [1], True),
    (3, [5, 6], False),
    (3, [4, 6], False),
    (3, [3, 4], False),
    (3, [4, 4], False),
    (3, [5, 4], False),
]


@pytest.mark.parametrize(("position", "read", "expected"), CONTINUATIONS)
def test_what_was_read_continues_a_position_without_a_hole(position: int, read: list[int], expected: bool) -> None:
    assert continues(Position("e", position), [publication(offset) for offset in read]) is expected


@given(offsets, st.lists(offsets, max_size=8))
def test_continues_is_true_of_consecutive_offsets_only(position: int, read: list[int]) -> None:
    expected = read == list(range(position + 1, position + 1 + len(read)))
    assert continues(Position("e", position), [publication(offset) for offset in read]) is expected


# recover


def recovered(
    since: Position,
    history: Sequence[Publication],
    live: Sequence[Publication],
    until: Position,
    *,
    max_publications: int = MANY,
    max_bytes: int = MANY,
) -> Recovery:
    return recover(since, history, live, until, max_publications=max_publications, max_bytes=max_bytes)


RECOVERIES: list[tuple[int, list[Publication], list[Publication], int, bool]] = [
    # since, history, live, until, whether it is whole
    (3, [], [], 3, True),
    (3, run(4, 6), [], 6, True),
    (3, [], run(4, 6), 6, True),
    (3, run(4, 5), run(6, 7), 7, True),
    (3, run(4, 6), run(5, 7), 7, True),
    (3, run(1, 9), [], 6, True),
    (3, run(4, 4), run(6, 6), 6, False),
    (3, run(5, 6), [], 6, False),
    (3, run(4, 5), [], 6, False),
    (3, [], [], 4, False),
    (4, run(1, 3), [], 3, False),
]


@pytest.mark.parametrize(("since", "history", "live", "until", "is_whole"), RECOVERIES)
def test_recovery_is_whole_or_lost(
    since: int, history: list[Publication], live: list[Publication], until: int, is_whole: bool
) -> None:
    result = recovered(Position("e", since), history, live, Position("e", until))
    assert result.recovered is is_whole
    assert offsets_of(result.publications) == (list(range(since + 1, until + 1)) if is_whole else [])


def test_recovery_over_epochs_is_lost_even_where_nothing_was_missed() -> None:
    assert recovered(Position("e", 3), [], [], Position("f", 3)) == LOST
    assert recovered(Position("", 0), [], [], Position("f", 0)) == LOST


@pytest.mark.parametrize("since", [-1, -100, 2**70])
def test_impossible_position_is_lost(since: int) -> None:
    assert recovered(Position("e", since), run(1, 5), [], Position("e", 5)) == LOST


def test_recovery_is_bounded_in_publications_and_bytes() -> None:
    since, history, until = Position("e", 0), run(1, 9), Position("e", 9)
    assert recovered(since, history, [], until, max_publications=9, max_bytes=9).recovered
    assert recovered(since, history, [], until, max_publications=8) == LOST
    assert recovered(since, history, [], until, max_bytes=8) == LOST


@given(
    since=positions,
    until=positions,
    data=st.data(),
    max_publications=st.integers(0, 40),
    max_bytes=st.integers(0, 60),
)
def test_recovery_from_any_pieces_is_whole_and_in_order_or_lost(
    since: Position, until: Position, data: st.DataObject, max_publications: int, max_bytes: int
) -> None:
    # Pieces of one stream, each in order, with holes, overlapping, repeated, reaching past both ends.
    pieces = [
        [publication(offset) for offset in sorted(data.draw(st.lists(st.integers(1, 30), max_size=30)))]
        for _ in range(2)
    ]
    history, live = pieces
    result = recovered(since, history, live, until, max_publications=max_publications, max_bytes=max_bytes)
    wanted = list(range(since.offset + 1, until.offset + 1))
    there = {one.offset for piece in pieces for one in piece}
    size = sum(len(b"%d" % offset) for offset in wanted)
    is_possible = (
        since.epoch == until.epoch
        and since.offset <= until.offset
        and set(wanted) <= there
        and len(wanted) <= max_publications
        and size <= max_bytes
    )
    if is_possible:
        assert result.recovered
        assert offsets_of(result.publications) == wanted
        assert [one.data for one in result.publications] == [b"%d" % offset for offset in wanted]
    else:
        assert result == LOST


@given(since=offsets, sources=st.lists(st.sampled_from(["history", "live", "both"]), max_size=12), data=st.data())
def test_what_is_there_in_either_piece_is_recovered_in_order(
    since: int, sources: list[str], data: st.DataObject
) -> None:
    missed = list(enumerate(sources, since + 1))
    until = since + len(sources)
    before = st.lists(st.integers(1, since), max_size=3, unique=True) if since else st.just([])
    past = st.lists(st.integers(until + 1, until + 5), max_size=3, unique=True)
    history, live = (
        sorted([*data.draw(before), *[offset for offset, one in missed if one in (source, "both")], *data.draw(past)])
        for source in ("history", "live")
    )
    result = recovered(
        Position("e", since),
        [publication(offset) for offset in history],
        [publication(offset) for offset in live],
        Position("e", until),
    )
    assert result.recovered
    assert offsets_of(result.publications) == list(range(since + 1, until + 1))


def test_where_history_and_live_overlap_either_will_do_and_history_is_taken() -> None:
    history, live = run(1, 2), run(2, 3)
    result = recovered(Position("e", 0), history, live, Position("e", 3))
    assert result.publications[1] is history[1]
    assert result.publications[2] is live[1]


def test_lost_says_nothing_was_recovered() -> None:
    assert Recovery(recovered=False, publications=[]) == LOST
