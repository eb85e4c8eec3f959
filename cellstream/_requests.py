"""The requests of a Multiplex call that are under way, and the putting together of their answers.

Owns which step of which stream goes where. Answers come in any partition and order of streams; everything here takes
them by the message and not by the key. Knows no messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cellstream._streams import Ints, Lineup, Streams
from cellstream._tensors import Answer, Array, Values
from cellstream.errors import CellstreamError

Runs = tuple[Ints, Ints, Ints]  # first steps, how many, and where they begin in the slices


@dataclass(slots=True)
class Gathered:
    """One request's answers: `answer` holds all keys' steps one after the other, in the order of `keys`."""

    lineup: Lineup
    counts: Ints  # steps of each key
    starts: Ints  # where each key's steps begin
    lasts: Ints  # each key's last step
    answer: Answer
    missing: int  # steps that are neither answered nor lost
    errors: dict[int, CellstreamError] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[int, ...]:
        """The keys, in the order of the request."""
        return self.lineup.keys

    def outputs(self, *, single: Mapping[int, bool] | bool) -> dict[int, Values]:
        """The outputs of every key that didn't fail; `single` tells which keys (or that all) had one bare step."""
        bare = dict.fromkeys(self.keys, single) if isinstance(single, bool) else single
        return {
            key: self.answer.rows(start if bare[key] else slice(start, start + count))
            for key, start, count in zip(self.keys, self.starts.tolist(), self.counts.tolist(), strict=True)
            if key not in self.errors
        }

    def fill(self, places: Ints, sources: Ints, counts: Ints, slices: Sequence[Array]) -> None:
        """Runs of `counts` steps each, from `sources` in `slices` to `places`; the sources ascend."""
        steps = len(slices[0]) if len(places) == len(slices[0]) else int(counts.sum())
        if len(places) < steps:
            places, sources = _spread(places, counts), _spread(sources, counts)
        if steps < len(slices[0]):
            slices = [part[sources] for part in slices]
        self.answer.fill(_run(places), steps, slices)
        self.missing -= steps


class Requests:
    """What is sent and not wholly answered, oldest first."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._pushed = 0
        self._under_way: dict[int, Gathered] = {}  # by number

    def __bool__(self) -> bool:
        return bool(self._under_way)

    def push(self, gathered: Gathered) -> None:
        """A request that is on its way."""
        streams, slots = self._streams, gathered.lineup.slots
        self._pushed += 1
        self._under_way[self._pushed] = gathered
        idle = streams.answered[slots] == streams.sent[slots]
        streams.sent[slots] = gathered.lasts
        self._lead(self._pushed, gathered, slice(None) if idle.all() else np.flatnonzero(idle))

    def take_run(self, slots: Ints, firsts: Ints, slices: Sequence[Array]) -> bool:
        """The usual answer: the next step of some streams in the order in which one request has them.

        False: it's another one, and nothing is taken.
        """
        _, sent, answered, heads, ends, shifts = self._streams.columns(slots)
        places = firsts + shifts
        number, at, size = int(heads[0]), int(places[0]), len(slots)
        # Places that follow one another are of different streams, too.
        right = (firsts == answered + 1) & (firsts <= ends) & (heads == number) & (places == np.arange(at, at + size))
        if not right.all():
            return False
        self._streams.answered[slots] = firsts
        gathered = self._under_way[number]
        gathered.answer.fill(slice(at, at + size), size, slices)
        gathered.missing -= size
        self._forget(number, gathered)
        self._hand_on(number, slots[(firsts == ends) & (firsts < sent)])
        return True

    def take(self, slots: Ints, runs: Runs, slices: Sequence[Array]) -> int | None:
        """Take any answer in which each stream stands once.

        Gives the place of the first stream whose steps nobody asked for, and then takes none; None: all is right.
        """
        firsts, counts, sources = runs
        _, sent, answered, heads, ends, shifts = self._streams.columns(slots)
        lasts = answered + counts
        wrong = (firsts != answered + 1) | (lasts > sent) | (counts < 1)
        if wrong.any():
            return int(wrong.argmax())
        now = np.minimum(lasts, ends)
        self._streams.answered[slots] = now
        done = now == ends
        for number, mine in _groups(heads):
            gathered = self._under_way[number]
            gathered.fill((firsts + shifts)[mine], sources[mine], (now - answered)[mine], slices)
            self._forget(number, gathered)
            self._hand_on(number, slots[mine][(done & (now < sent))[mine]])
        if (lasts > now).any():  # some go on in a later request
            more = lasts > now
            self.take(slots[more], (now[more] + 1, (lasts - now)[more], (sources + now - answered)[more]), slices)
        return None

    def lose(self, key: int, slot: int, error: CellstreamError) -> None:
        """A stream's steps that are under way won't be answered."""
        answered, oldest = int(self._streams.answered[slot]), int(self._streams.head[slot])
        for number, gathered in tuple(self._under_way.items()):
            at = int(gathered.lineup.find(np.array([slot]))[0]) if number >= oldest else -1
            if at >= 0:
                gathered.errors[key] = error
                gathered.missing -= min(int(gathered.counts[at]), int(gathered.lasts[at]) - answered)
                self._forget(number, gathered)

    def _hand_on(self, number: int, slots: Ints) -> None:
        """The next answers of these streams are for later requests than `number`."""
        if not len(slots):
            return
        for later, gathered in self._under_way.items():
            if later > number and len(slots):
                at = gathered.lineup.find(slots)
                self._lead(later, gathered, at[at >= 0])
                slots = slots[at < 0]

    def _lead(self, number: int, gathered: Gathered, at: slice | Ints) -> None:
        """The next answers of these of its streams are for this request."""
        streams, slots, lasts = self._streams, gathered.lineup.slots[at], gathered.lasts[at]
        streams.head[slots] = number
        streams.ends[slots] = lasts
        streams.shift[slots] = gathered.starts[at] + gathered.counts[at] - 1 - lasts

    def _forget(self, number: int, gathered: Gathered) -> None:
        if not gathered.missing:
            del self._under_way[number]


def _groups(numbers: Ints) -> Iterator[tuple[int, slice | Array]]:
    """Each number with where it stands."""
    if (numbers == numbers[0]).all():
        yield int(numbers[0]), slice(None)
        return
    for number in np.unique(numbers).tolist():
        yield number, numbers == number


def _spread(starts: Ints, counts: Ints) -> Ints:
    """Every number of each run."""
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def _run(places: Ints) -> slice | Ints:
    """As a slice, which is copied faster, where one follows the other."""
    first, last = int(places[0]), int(places[-1])
    ascending = last - first == len(places) - 1 and (places[1:] > places[:-1]).all()
    return slice(first, last + 1) if ascending else places
