"""Small stateful ONNX models as somebody else would make them, for the tests of wrapping and of serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

FUSED = """
<ir_version: 8, opset_import: ["" : 17]>
fused (float[n,4] x, float[2,n,3] state) => (float[n,3] y, float[2,n,3] stateN)
<float[4,3] w, int64[1] zero = {0}>
{
  hidden, carried = Split<axis = 0>(state)
  h = Squeeze(hidden, zero)
  c = Squeeze(carried, zero)
  a = MatMul(x, w)
  c2 = Add(c, a)
  h2 = Tanh(c2)
  h3 = Unsqueeze(h2, zero)
  c3 = Unsqueeze(c2, zero)
  stateN = Concat<axis = 0>(h3, c3)
  y = Sub(h2, h)
}
"""
COUNTS = """
<ir_version: 8, opset_import: ["" : 17]>
counts (int64[b] x, int32[b,2] z, int64[b] total, bool[b] seen, float16[b,2] mean)
  => (int64[b] y, float16[b,2] m, int64[b] total_out, bool[b] seen_out, float16[b,2] mean_out)
<int64 five = {5}, float16 half>
{
  total_out = Add(x, total)
  big = Greater(total_out, five)
  seen_out = Or(big, seen)
  flag = Cast<to = 7>(seen)
  y = Add(total_out, flag)
  zf = Cast<to = 10>(z)
  old = Mul(mean, half)
  mean_out = Add(old, zf)
  m = Neg(mean_out)
}
"""
CONVOLVED = """
<ir_version: 8, opset_import: ["" : 17]>
convolved (float[1,3,1] frame, float[1,3,4] cache) => (float[1,2,1] y, float[1,3,4] new_cache)
<float[2,3,5] w, int64[1] first = {1}, int64[1] last = {9}, int64[1] axis = {2}>
{
  all = Concat<axis = 2>(cache, frame)
  y = Conv(all, w)
  new_cache = Slice(all, first, last, axis)
}
"""
RATED = """
<ir_version: 8, opset_import: ["" : 16]>
rated (float[p,q] input, float[2,r,3] state, int64 sr) => (float[s,u] output, float[v,w,z] stateN)
<int64 rate = {16000}, float[6,3] weight, int64[1] zero = {0}>
{
  fast = Equal(sr, rate)
  a = MatMul(input, weight)
  lifted = Unsqueeze(a, zero)
  stateN = If (fast) <
    then_branch = yes () => (float[e,f,g] s1) { half = Constant<value = float {0.5}>()
      kept = Mul(state, half)
      s1 = Add(kept, lifted) },
    else_branch = no () => (float[e,f,g] s2) { s2 = Add(state, lifted) }
  >
  output = ReduceSum<keepdims = 0>(stateN, zero)
}
"""
# Its rows are normalised among each other once there is more than one.
FIXED = """
<ir_version: 8, opset_import: ["" : 17]>
fixed (float[1,6] x, float[1,6] h) => (float[1,6] y, float[1,6] h_next)
<int64[2] folded = {2, 3}, int64[2] flat = {1, 6}>
{
  a = Reshape(x, folded)
  b = Softmax<axis = 0>(a)
  c = Reshape(b, flat)
  h_next = Add(c, h)
  y = Tanh(h_next)
}
"""
# A frame's two-dimensional convolutions and a cell, for one stream only.
FRAMED = """
<ir_version: 8, opset_import: ["" : 17]>
framed (float[1,3,40] x, float[1,8] h) => (float[1,8] y, float[1,8] h_out)
<float[16,1,3,3] w0, float[16,16,3,3] w1, float[1920,8] w2, int64[1] channel = {1}, int64[2] flat = {1, 1920}>
{
  image = Unsqueeze(x, channel)
  a = Conv<pads = [1, 1, 1, 1]>(image, w0)
  b = Relu(a)
  c = Conv<pads = [1, 1, 1, 1]>(b, w1)
  d = Tanh(c)
  e = Reshape(d, flat)
  f = MatMul(e, w2)
  g = Add(f, h)
  h_out = Tanh(g)
  y = Neg(h_out)
}
"""
# A cell whose batch of 1 is squeezed away, products added before the bias: a known batch lets a runtime fuse them.
FUSIBLE = """
<ir_version: 8, opset_import: ["" : 17]>
fusible (float[1,1,512] x, float[1,1,512] h) => (float[1,512] y, float[1,1,512] h_out)
<float[512,512] w, float[512,512] r, float[512] b, float[512,512] v, int64[1] one = {1}, int64[3] row = {1, 1, 512},
 int64[3] begin = {0, 0, 0}, int64[3] end = {999, 1, 999}, float tenth = {0.05}>
{
  x2 = Squeeze(x, one)
  h1 = Slice(h, begin, end)
  h2 = Squeeze(h1, one)
  a = MatMul(x2, w)
  c = MatMul(h2, r)
  d = Add(a, c)
  e = Add(d, b)
  small = Mul(e, tenth)
  f = Tanh(small)
  h_out = Reshape(f, row)
  y = MatMul(f, v)
}
"""
# A layer over the six bands of a frame, both ways, and a cell over time for each band.
BANDS = """
<ir_version: 8, opset_import: ["" : 17]>
bands (float[n,6,4] x, float[n,6,4] h) => (float[n,6,4] y, float[n,6,4] h_out)
<float[2,12,4] w, float[2,12,4] r, float[8,4] v, int64[3] folded = {0, 0, -1}>
{
  bands_first = Transpose<perm = [1, 0, 2]>(x)
  both, last = GRU<hidden_size = 4, direction = "bidirectional">(bands_first, w, r)
  stream_first = Transpose<perm = [2, 0, 1, 3]>(both)
  joined = Reshape(stream_first, folded)
  a = MatMul(joined, v)
  b = Add(a, h)
  h_out = Tanh(b)
  y = Add(a, h_out)
}
"""
# The same in graphs with a time axis: the bands' layer takes all frames of all streams as its batch.
TIMED_BANDS = """
<ir_version: 8, opset_import: ["" : 17]>
timed_bands (float[n,t,6,4] x, float[1,n,24] h) => (float[n,t,24] y, float[1,n,24] h_out)
<float[2,12,4] w, float[2,12,4] r, float[1,72,48] w2, float[1,72,24] r2, int64[3] frames = {-1, 6, 4},
 int64[1] two = {2}, int64[1] front = {1}, int64[1] wide = {48}, int64[1] zero = {0}>
{
  each = Reshape(x, frames)
  bands_first = Transpose<perm = [1, 0, 2]>(each)
  both, none = GRU<hidden_size = 4, direction = "bidirectional">(bands_first, w, r)
  frame_first = Transpose<perm = [2, 0, 1, 3]>(both)
  sizes = Shape(x)
  first = Slice(sizes, zero, two)
  shape = Concat<axis = 0>(first, wide)
  joined = Reshape(frame_first, shape)
  time_first = Transpose<perm = [1, 0, 2]>(joined)
  all, h_out = GRU<hidden_size = 24>(time_first, w2, r2, , , h)
  squeezed = Squeeze(all, front)
  y = Transpose<perm = [1, 0, 2]>(squeezed)
}
"""
RECURRENT = """
<ir_version: 8, opset_import: ["" : 17]>
recurrent (float[time,batch,5] x, float[1,batch,6] h0{more_in})
  => (float[time,batch,6] y, float[1,batch,6] hn{more_out})
<float[1,{rows},5] w, float[1,{rows},6] r, float[1,{biases}] b, int64[1] direction = {{1}}>
{{
  all, hn{given} = {op}<hidden_size = 6{attributes}>(x, w, r, b, , h0{taken})
  y = Squeeze(all, direction)
}}
"""


def parsed(text: str) -> ModelProto:
    """A model from its text; weights without values get random ones."""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    given = {name for node in model.graph.node for name in node.output}
    known = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.value_info:
        if value.name not in given | known:
            tensor = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            values = 0.5 * random.standard_normal([dim.dim_value for dim in tensor.shape.dim])
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), value.name))
    return model


def recurrent(op: str, attributes: str = "", *, peepholes: bool = False) -> ModelProto:
    """A model of one LSTM, GRU or RNN node, time first."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    cell = op == "LSTM"
    text = RECURRENT.format(
        op=op,
        rows=6 * gates,
        biases=12 * gates,
        attributes=attributes,
        more_in=", float[1,batch,6] c0" * cell,
        more_out=", float[1,batch,6] cn" * cell,
        given=", cn" * cell,
        taken=", c0" * cell + ", p" * peepholes,
    )
    return parsed(text.replace("<float[1,", "<float[1,18] p, float[1,", 1) if peepholes else text)


def save(model: ModelProto | str, path: Path) -> Path:
    """Write a model, given as such or as text."""
    onnx.save(parsed(model) if isinstance(model, str) else model, path)
    return path
