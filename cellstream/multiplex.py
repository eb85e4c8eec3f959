"""Many streams in one call, for threads: steps of many of them in one message, for gateways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from cellstream._link import Link
from cellstream._multiplex import MultiplexCore, MultiplexView, as_key
from cellstream._requests import Gathered
from cellstream._rows import join, row_counts
from cellstream._rpc import CLOSE_SECONDS, JOIN_SECONDS, time_limit, warn_dropped
from cellstream._tensors import Values
from cellstream._view import finish_timeout, open_timeout, step_timeout


class Multiplex(MultiplexView):
    """A call that carries many streams of one model, each with its own state. Made by `Client.multiplex`.

    Streams are named by keys (0 … 2**32 - 1) that the caller chooses. Threads may share it.
    """

    def __init__(self, core: MultiplexCore, link: Link, forget: Callable[[Link], None], address: str) -> None:
        super().__init__(core)
        self._link = link
        self._forget = forget
        self._address = address

    def begin(self) -> None:
        """Begin the call; for `Client`."""
        self._link.begin()

    def open(self, *keys: int, timeout: float = 30.0) -> None:
        """Open a stream for each key. Raises the first refusal; the keys that weren't refused are open then."""
        self.open_named(dict.fromkeys(map(as_key, keys), ""), timeout=timeout)

    def open_named(self, stream_ids: Mapping[int, str], *, timeout: float = 30.0) -> None:
        """Open a stream for each key, with the name that the server's logs know it by."""
        keys, limit = tuple(stream_ids), time_limit(timeout)
        self._link.change(lambda: self._core.open(stream_ids))
        if not self._link.wait(lambda: self._core.settled(keys), limit):
            raise open_timeout(timeout)
        with self._link.changed:
            self._core.check_opened(keys)

    def finish(self, *keys: int, timeout: float = 30.0) -> None:
        """End these streams once what was sent to them is answered; their keys are free then."""
        limit = time_limit(timeout)
        self._link.change(lambda: self._core.finish_streams(keys))
        if not self._link.wait(lambda: self._core.gone(keys), limit):
            raise finish_timeout(timeout)

    def step(self, inputs: Mapping[int, Any], *, timeout: float | None = None) -> dict[int, Values]:
        """One step ([*shape]) or chunk ([T, *shape]) of each of many streams: outputs by key, in the same form.

        Raises InvalidInput, LimitReached or StreamClosed (for a key that isn't open) before anything is sent;
        PartialFailure if some streams ended, with the outputs of the others; StepTimeout as Stream.step does; and
        StreamLost and its like if the call is over, and every stream with it.
        """
        keys, counts, single, request = join(self._core.signature, inputs)
        gathered = self._ask(keys, counts, request, single, timeout)
        return gathered.outputs(single=single)

    def step_rows(self, keys: Iterable[int], values: Any, *, timeout: float | None = None) -> Values:
        """The same in columns, the fast form: [K, *shape] or [K, T, *shape], row i being stream keys[i]'s.

        Gives [K, *shape] or [K, T, *shape] of each output. A dict by name where the model has several. Raises as
        `step` does.
        """
        order = tuple(keys)
        request = self._core.signature.encode(values, streams=len(order))
        counts, shape = row_counts(len(order), request)
        return self._ask(order, counts, request, not request.chunk, timeout).answer.rows(slice(None), shape)

    def close(self, *, timeout: float = CLOSE_SECONDS) -> None:
        """End every stream once what was sent is answered, within `timeout` seconds; then cancel them. Idempotent."""
        limit = time_limit(timeout)
        if self._link.maker.here:
            with self._link.changed:
                self._core.finish()
            self._link.drain(limit)
            self._link.join(JOIN_SECONDS)
            self._forget(self._link)

    def cancel(self) -> None:
        """End every stream at once, within a second. Idempotent."""
        self._link.cancel()
        self._link.join(JOIN_SECONDS)
        self._forget(self._link)

    def __del__(self) -> None:
        link = getattr(self, "_link", None)
        if link is None or not link.maker.here:
            return
        self._forget(link)
        if not self._core.ended:
            link.abandon()
            warn_dropped(self, self._address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.cancel()

    def _ask(self, keys: Any, counts: Any, request: Any, single: Any, timeout: float | None) -> Gathered:
        timeout = time_limit(timeout)
        gathered = self._link.change(lambda: self._core.push(keys, counts, request))
        if not self._link.wait(lambda: self._core.ready(gathered), timeout):
            raise step_timeout(request.steps, timeout)
        with self._link.changed:
            self._core.check_complete(gathered, single=single)
        return gathered
