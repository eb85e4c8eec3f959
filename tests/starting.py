"""Small models that are told whether a sequence starts, for tests of wrapping and of serving; plain runs of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Arrays = dict[str, npt.NDArray[Any]]
HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
# Triton's example of sequences: no state but START.
SIMPLE = f"""{HEADER}
simple (int32[n,1] INPUT, int32[n,1] START) => (int32[n,1] OUTPUT) {{ OUTPUT = Add(INPUT, START) }}
"""
READY = f"""{HEADER}
ready (int32[n,1] INPUT, int32[n,1] START, int32[n,1] READY) => (int32[n,1] OUTPUT) {{
  told = Add(INPUT, START)
  OUTPUT = Mul(told, READY)
}}
"""
ENDING = f"""{HEADER}
ending (int32[n,1] INPUT, int32[n,1] START, int32[n,1] END, int32[n,1] READY) => (int32[n,1] OUTPUT) {{
  told = Sub(START, END)
  here = Mul(told, READY)
  OUTPUT = Add(INPUT, here)
}}
"""
FLAGGED = f"""{HEADER}
flagged (float[n,4] x, bool[n,1] START, float[n,4] sum) => (float[n,4] y, float[n,4] sum_out) {{
  total = Add(x, sum)
  sum_out = Where(START, x, total)
  y = Neg(sum_out)
}}
"""
FLAT = f"""{HEADER}
flat (float[n,4] x, float[n] START, float[n,4] h) => (float[n,4] y, float[n,4] h_out)
<int64[1] last = {{1}}, float unit = {{1}}> {{
  wide = Unsqueeze(START, last)
  go_on = Sub(unit, wide)
  kept = Mul(h, go_on)
  h_out = Add(x, kept)
  y = Sub(h_out, wide)
}}
"""
CONTROLLED = f"""{HEADER}
controlled (float[n,4] x, KIND[n,1] START, float[n,4] h) => (float[n,4] y, float[n,4] h_out) <float unit = {{1}}> {{
  told = Cast<to = 1>(START)
  go_on = Sub(unit, told)
  kept = Mul(h, go_on)
  h_out = Add(x, kept)
  y = Sub(h_out, told)
}}
"""
BARE = f"""{HEADER}
bare (float[4] x, float[1] START, float[4] h) => (float[4] y, float[4] h_out) <float unit = {{1}}> {{
  go_on = Sub(unit, START)
  kept = Mul(h, go_on)
  h_out = Add(x, kept)
  y = Sub(h_out, START)
}}
"""
STATELESS = f"{HEADER} stateless (float[4] x, float[1] START) => (float[4] y) {{ y = Sub(x, START) }}"
# Not for several streams at once: an If wants one value.
BRANCHED = f"""{HEADER}
branched (float[1,4] x, bool[1] START, float[1,4] h) => (float[1,4] y, float[1,4] h_out) {{
  h_out = If (START) <
    then_branch = first () => (float[1,4] a) {{ a = Neg(x) }},
    else_branch = later () => (float[1,4] b) {{ b = Add(x, h) }}
  >
  y = Neg(h_out)
}}
"""
SCALAR = f"{HEADER} scalar (float[1,4] x, float START) => (float[1,4] y) {{ y = Sub(x, START) }}"
# Every step of a run hears of a start: several steps in one are something else than one by one.
TIMED = f"""{HEADER}
timed (float[n,t,4] x, int32[n,1] START, float[n,1,4] h) => (float[n,t,4] y, float[n,1,4] h_out)
<int64[1] axis = {{1}}, int64[1] last = {{-1}}, int64[1] end = {{9223372036854775807}}> {{
  told = Cast<to = 1>(START)
  wide = Unsqueeze(told, axis)
  sums = CumSum(x, axis)
  all = Add(sums, h)
  y = Add(all, wide)
  h_out = Slice(all, last, end, axis)
}}
"""
# An LSTM as Triton can serve it, batch first, whose states START puts back to zero.
RESET = f"""{HEADER}
reset (float[n,t,5] x, float[n,1] START, float[n,1,6] h, float[n,1,6] c)
  => (float[n,t,6] y, float[n,1,6] h_out, float[n,1,6] c_out)
<float[1,24,5] w, float[1,24,6] r, float[1,48] b, int64[1] last = {{2}}, int64[1] axis = {{1}}, float unit = {{1}}> {{
  go_on = Sub(unit, START)
  wide = Unsqueeze(go_on, last)
  kept_h = Mul(h, wide)
  kept_c = Mul(c, wide)
  first_h = Transpose<perm = [1, 0, 2]>(kept_h)
  first_c = Transpose<perm = [1, 0, 2]>(kept_c)
  xs = Transpose<perm = [1, 0, 2]>(x)
  all, last_h, last_c = LSTM<hidden_size = 6>(xs, w, r, b, , first_h, first_c)
  ys = Squeeze(all, axis)
  y = Transpose<perm = [1, 0, 2]>(ys)
  h_out = Transpose<perm = [1, 0, 2]>(last_h)
  c_out = Transpose<perm = [1, 0, 2]>(last_c)
}}
"""
# Two states whose successors would sort otherwise than they do, if START's were called START_next, which is taken too.
NAMES = f"""{HEADER}
names (int32[n,1] INPUT, int32[n,1] START, int32[n,1] A) => (int32[n,1] OUTPUT, int32[n,1] Z) {{
  Z = Add(INPUT, A)
  START_next = Neg(INPUT)
  OUTPUT = Add(START_next, START)
}}
"""
# START has a value of its own, and its successor's obvious name is taken.
DEFAULT = f"""{HEADER}
default (float[n,4] x, float[1,1] START) => (float[n,4] y) <float[1,1] START = {{0}}> {{
  START_next = Neg(x)
  y = Add(START_next, START)
}}
"""
# Only its shape tells that q is a state, and START has that shape, too.
SHAPED = f"""{HEADER}
shaped (float[n,2] x, float[n,1] START, float[n,1] q) => (float[n,3] y, float[n,1] z) <float[2,3] w> {{
  z = Add(q, START)
  wide = MatMul(x, w)
  y = Add(wide, z)
}}
"""
TABLE = f"{HEADER} table (float[n,3] x, float[n,1] START, float[3] k) => (float[n,3] y) {{ y = Sum(x, START, k) }}"
_KINDS = {"tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(bool)": np.bool_}


def plainly(path: Path, steps: Iterable[Arrays], states: dict[str, str], output: str) -> list[npt.NDArray[Any]]:
    """One sequence's answers by plain ONNX Runtime calls of the file: START says 1, then 0; READY says 1."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    values = {value.name: value for value in session.get_inputs()}
    shapes = {name: [d if isinstance(d, int) else 1 for d in value.shape] for name, value in values.items()}
    carried = {name: np.zeros(shapes[name], np.float32) for name in states}
    found = []
    for place, step in enumerate(steps):
        told = {name: 1 for name in ("READY",) if name in values} | {"START": int(place == 0)}
        feeds: Arrays = {name: np.full(shapes[name], said, _KINDS[values[name].type]) for name, said in told.items()}
        feeds |= {name: value.reshape(shapes[name]) for name, value in step.items()} | carried
        answer, *news = session.run([output, *states.values()], feeds)
        carried = dict(zip(states, news, strict=True))
        found.append(answer)
    return found
