"""The merge of history and live. Pure.

A hub follows a channel from offset to offset; what does not continue where it stands is a fault to repair.

A subscriber that recovers reads the stream while live publications keep arriving; both are cut together here into one
run without hole or repetition, or it is said that this is not possible.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from broker.envelope import CommittedGroup, Position, Publication


class Fault(Enum):
    """Why a live group cannot be delivered."""

    GAP = auto()
    """Publications between the position and the group were not heard."""
    EPOCH = auto()
    """The group is of another epoch: the stream began anew."""


def advance(position: Position, group: CommittedGroup) -> Sequence[Publication] | Fault:
    """Return what of a live group continues `position` (nothing, when all of it is known), or why none does."""
    if group.epoch != position.epoch:
        return Fault.EPOCH
    if group.offset > position.offset + 1:
        return Fault.GAP
    return group.publications[position.offset + 1 - group.offset :]


def continues(position: Position, publications: Sequence[Publication]) -> bool:
    """Tell whether publications read from the stream follow on from `position` without a hole."""
    return all(publication.offset == offset for offset, publication in enumerate(publications, position.offset + 1))


@dataclass(frozen=True)
class Recovery:
    """What a subscriber missed: everything up to the hub's position, or nothing and `recovered` False."""

    recovered: bool
    publications: list[Publication] = field(default_factory=list)


LOST = Recovery(recovered=False)


def recover(
    since: Position,
    history: Sequence[Publication],
    live: Sequence[Publication],
    until: Position,
    *,
    max_publications: int,
    max_bytes: int,
) -> Recovery:
    """Return every publication after `since` up to `until`, the position from which the subscriber goes on live.

    `history` was read from the stream, `live` heard meanwhile; both in order, they may overlap and may reach past
    `until`. The result is whole or LOST: also when more than `max_publications`, or `max_bytes` of data, were missed.
    """
    if since.epoch != until.epoch or not 0 <= until.offset - since.offset <= max_publications:
        return LOST
    merged: dict[int, Publication] = {}
    for publication in (*history, *live):
        if since.offset < publication.offset <= until.offset:
            merged.setdefault(publication.offset, publication)
    if len(merged) != until.offset - since.offset:
        return LOST
    if sum(len(publication.data) for publication in merged.values()) > max_bytes:
        return LOST
    return Recovery(recovered=True, publications=[merged[offset] for offset in sorted(merged)])
