"""What can go wrong, named by whose fault it is.

Owns the error types and their machine-readable reasons. Knows no gRPC code: the services translate, in one table.
Every message is for the client's eyes: it names the value and the limit, and nothing internal.
"""

from __future__ import annotations


class ConfigError(ValueError):
    """The operator's fault: an option or an artifact that can't be served.

    `public` is the reason without paths and other servers' words, for answers to clients; the log has all of it.
    """

    def __init__(self, text: str, *, public: str = "it can't be served; the server's log says why") -> None:
        super().__init__(text)
        self.public = public


class Refusal(Exception):  # noqa: N818  a refusal is an answer, not a malfunction
    """Something asked for that isn't done; `reason` is its machine-readable name."""

    reason = "refused"


class InvalidInput(Refusal):
    """The caller's fault: a message or tensor that doesn't fit the contract."""

    reason = "invalid_input"


class OutOfOrder(Refusal):
    """The caller's fault: a step number that leaves a gap."""

    reason = "step_gap"


class WrongPhase(Refusal):
    """The caller's fault: a message that doesn't belong at this point of a stream's life."""

    reason = "wrong_phase"


class UnknownModel(Refusal):
    """The caller's fault: no such model or version is served."""

    reason = "unknown_model"


class CannotResume(Refusal):
    """The caller's hope: a resume token that this server can't honour."""

    reason = "state_lost"


class NoSequence(Refusal):
    """The caller's fault: a request that goes on with a sequence that isn't live."""

    reason = "sequence_not_started"


class SequenceEnded(NoSequence):
    """The caller's fault: the sequence has had its END."""

    reason = "sequence_ended"


class SequenceExpired(NoSequence):
    """Nobody's fault: the sequence was idle for longer than it may be, or its client had vanished."""

    reason = "sequence_expired"


class SequenceEvicted(NoSequence):
    """The operator's will."""

    reason = "sequence_evicted"


class SequenceLost(NoSequence):
    """The server's fault: the sequence's state couldn't be kept."""

    reason = "sequence_lost"


class Unsupported(Refusal):
    """Something of the protocol that this server doesn't do."""

    reason = "unsupported"


class TooLarge(Refusal):
    """The caller's fault: a message above the limits on steps or bytes."""

    reason = "message_too_large"


class MetadataTooLarge(TooLarge):
    """The caller's fault: more metadata than a call may have."""

    reason = "metadata_too_large"


class TooManyCalls(Refusal):
    """The caller's fault, or its neighbours': too many calls are open that have asked for nothing, or wait."""

    reason = "calls_limit"


class NothingSent(Refusal):
    """The caller's fault: a call that has sent no message for too long."""

    reason = "nothing_sent"


class TooManyStreams(Refusal):
    """Nobody's fault: every place for a stream is taken."""

    reason = "stream_limit"


class Overloaded(Refusal):
    """Nobody's fault: too many steps are waiting."""

    reason = "waiting_steps_limit"


class ComputeFailed(Refusal):
    """The model's fault: it can't compute this stream's step."""

    reason = "compute_failed"


class Unavailable(Refusal):
    """The server's fault: the engine or the loop doesn't work."""

    reason = "unavailable"


class ShuttingDown(Refusal):
    """Nobody's fault: the server is going away."""

    reason = "shutting_down"
