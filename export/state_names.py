"""What names of tensors say of states: which are called so, and which output is called as an input's successor.

Owns those words. A name proposes and never decides: `pairs` asks the graph for evidence.
"""

from __future__ import annotations

import re

# Words that tell before from after, or say nothing.
_SIDES = frozenset(
    re.findall(
        r"\w+",
        "in out input output next new prev previous old past present initial init final last current cur updated"
        " x y o i",
    )
)
_WEAK_SIDES = frozenset({"n", "t"})  # likewise, but a name of their own where nothing else is left
_LETTER_AND_SIDE = re.compile(r"([hcs])[ntxyio]")  # hn, cx, …
_STATE = re.compile(
    r"h|c|s|hc|hh|kv|past|mem|carry|carries|buf|ctx|context|hist|history|histories|recurrent|rnn|lstm|gru|ssm|cached"
    r"|memories|\w*(hidden|cell|state|cache|memory|buffer)s?"
)
_HIDDEN = re.compile(
    r"h|c|hc|hh|carry|carries|rnn|lstm|gru|\w*(hidden|cell|memory)s?"
)  # not state: that may be an observation
_RUNNING = re.compile(
    r"total|sum|acc|accum\w*|count\w*|mean|avg|average|var|variance|std|ema|seen|running|moving|integral|offset|position"
    r"|pos|step|steps|len|lens|processed|[b-hj-np-tvw]"
)


def words(name: str) -> list[str]:
    """The words and numbers of a name, in lower case."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[a-z]+|\d+", spaced.lower())


def stem(name: str) -> tuple[str, ...]:
    """What is left of a name without the words that tell before from after: h_in, h_out and hn are all h.

    Empty where no word is left: numbers alone name nothing.
    """
    plain = [_LETTER_AND_SIDE.sub(r"\1", word) if len(word) == len("hn") else word for word in words(name)]
    left = tuple(word for word in plain if word not in _SIDES)
    left = tuple(word for word in left if word not in _WEAK_SIDES) or left
    return () if all(word.isdecimal() for word in left) else left


def stem_without_number(name: str) -> tuple[str, ...]:
    """h0 and hn are both h."""
    return tuple(word for word in stem(name) if not word.isdecimal())


def like_a_state(name: str) -> bool:
    """Whether a name says state, in one of the words that are usual."""
    return any(_STATE.fullmatch(word) for word in (*words(name), *stem(name)))


def like_a_hidden_state(name: str) -> bool:
    """Whether a name says a recurrent layer's state, in a word that is used for nothing else."""
    return any(_HIDDEN.fullmatch(word) for word in (*words(name), *stem(name)))


def like_a_running_value(name: str) -> bool:
    """Whether a name says something that is added up from step to step, or is a letter that doesn't say data."""
    return any(_RUNNING.fullmatch(word) for word in words(name))
