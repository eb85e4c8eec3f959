"""The LSTM as a PyTorch module with explicit state, and the spec that says which one.

Owns the architecture: an optional encoder in front (an embedding for tokens, a linear map for vectors), layers of
torch.nn.LSTM, an optional linear head behind. Knows no files and no ONNX.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from model.cell import EXACT, Arithmetic, LayerWeights, State, linear, unroll
from model.weights import WeightsError, check_finite, check_shapes, core_spec, normalize

BLOCK = 2**22  # elements of a head that are converted to another dtype at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Which LSTM: sizes in the axis letters, everything that its weights don't say by themselves.

    Exactly one of `input_size` (vectors of F floats) and `vocabulary` (integer tokens below it) is given. An encoder
    turns the input into vectors of `encoder_size`; a vocabulary needs one. Without `output_size` there is no head
    and the outputs are the last layer's h. With `proj_size` h has P features instead of H (as in torch.nn.LSTM).
    """

    hidden_size: int
    layers: int = 1
    bias: bool = True
    input_size: int | None = None
    vocabulary: int | None = None
    encoder_size: int | None = None
    output_size: int | None = None
    proj_size: int | None = None

    def __post_init__(self) -> None:
        if (self.input_size is None) == (self.vocabulary is None):
            raise WeightsError("a spec has either an input_size (vectors) or a vocabulary (tokens)")
        if self.vocabulary is not None and self.encoder_size is None:
            raise WeightsError("a vocabulary needs an encoder_size: tokens go through an embedding")
        for name, size in asdict(self).items():
            if size is not None and name != "bias" and (not isinstance(size, int) or size < 1):
                raise WeightsError(f"{name} is {size!r}, and must be an integer of at least 1")
        if self.proj_size is not None and self.proj_size >= self.hidden_size:
            raise WeightsError(f"proj_size is {self.proj_size}, and must be below hidden_size, {self.hidden_size}")

    @property
    def core_size(self) -> int:
        """Features that the first LSTM layer takes."""
        return self.encoder_size or self.input_size or 0

    @property
    def outputs(self) -> int:
        """O: features of one output."""
        return self.output_size or self.state_size

    @property
    def state_size(self) -> int:
        """Features of h: P with a projection, H without; c always has H."""
        return self.proj_size or self.hidden_size

    def to_json(self) -> str:
        """The spec as JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Spec:
        """Read a spec from JSON text; raises WeightsError where it isn't one."""
        try:
            return Spec(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise WeightsError(f"not a spec: {error}") from error


class LSTM(nn.Module):
    """`forward(x, state) -> (y, state)`: x [B, T, F] or tokens [B, T] give y [B, T, O]; h and c are [B, L, H].

    With a projection h is [B, L, P].
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder: nn.Embedding | nn.Linear | None = None
        if spec.vocabulary is not None and spec.encoder_size is not None:
            self.encoder = nn.Embedding(spec.vocabulary, spec.encoder_size)
        elif spec.input_size is not None and spec.encoder_size is not None:
            self.encoder = nn.Linear(spec.input_size, spec.encoder_size)
        sizes = (spec.core_size, spec.hidden_size, spec.layers)
        self.lstm = nn.LSTM(*sizes, bias=spec.bias, batch_first=True, proj_size=spec.proj_size or 0)
        self.head = None if spec.output_size is None else nn.Linear(spec.state_size, spec.output_size)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], spec: Spec | None = None) -> Self:
        """Build from the weights of any torch.nn.LSTM, or of this module: sizes are inferred unless `spec` says them.

        Weights are taken as float32. Keys may share one prefix (`rnn.weight_ih_l0`). Raises WeightsError, with the
        keys in question, for what can't be an LSTM, and UnsupportedLSTMError for one that isn't supported.
        """
        weights = normalize(state_dict)
        spec = spec or infer_spec(weights)
        with torch.device("meta"):
            module = cls(spec)
        check_shapes(weights, {name: tuple(value.shape) for name, value in module.state_dict().items()})
        check_finite(weights)
        module.load_state_dict({name: value.float().contiguous() for name, value in weights.items()}, assign=True)
        return module.requires_grad_(requires_grad=False)

    def zero_state(self, batch: int) -> State:
        """A new stream's state for `batch` streams: zeros [B, L, H], in the module's dtype."""
        spec, weight = self.spec, self.lstm.all_weights[0][1]
        sizes = (spec.state_size, spec.hidden_size)
        return State(*(weight.new_zeros(batch, spec.layers, size) for size in sizes))

    def in_double(self) -> Self:
        """The same module for float64, its embedding and its head converted where they are used.

        The two can be most of a language model, so no float64 copy of them is kept.
        """
        with torch.device("meta"):
            module = type(self)(self.spec)
        module.lstm = copy.deepcopy(self.lstm).double()
        module.encoder = copy.deepcopy(self.encoder).double() if isinstance(self.encoder, nn.Linear) else self.encoder
        module.head = self.head
        return module

    def forward(self, x: Tensor, state: State | None = None, columns: Tensor | None = None) -> tuple[Tensor, State]:
        """Run all steps of x from `state` (None: zeros); the state given is left as it is.

        `columns`: which of the O outputs are computed (None: all).
        """
        h, c = state if state is not None else self.zero_state(x.shape[0])
        encoded = x if self.encoder is None else self.encoder(x).to(h.dtype)
        # nn.LSTM keeps layers in front of the batch even when batch_first is set: [L, B, H].
        with nullcontext() if self.spec.proj_size is None else _without_a_warning():
            y, (h, c) = self.lstm(encoded, (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous()))
        # y comes with its axes swapped in memory, which costs a wide head three times its time.
        return self._headed(y.contiguous(), columns), State(h.transpose(0, 1), c.transpose(0, 1))

    def _headed(self, y: Tensor, columns: Tensor | None, arithmetic: Arithmetic | None = None) -> Tensor:
        """The outputs [B, T, O] of the last layer's h [B, T, H], in its dtype, or those of these columns."""
        if self.head is None:
            return y if columns is None else y[..., columns]
        weight: Tensor = self.head.weight
        bias: Tensor = self.head.bias
        if columns is not None:
            weight, bias = weight[columns], bias[columns]
        product = nn.functional.linear if arithmetic is None else partial(linear, arithmetic=arithmetic)
        if weight.dtype == y.dtype:
            return product(y, weight, bias)
        rows = max(1, BLOCK // weight.shape[1])
        pieces = zip(torch.split(weight, rows), torch.split(bias, rows), strict=True)
        made = [product(y, rows_of.to(y.dtype), bias_of.to(y.dtype)) for rows_of, bias_of in pieces]
        return torch.cat(made, dim=-1)

    def layer_weights(self) -> list[LayerWeights]:
        """Each layer's weights, for the reference cell and for the exporter."""
        layers = []
        for weights in self.lstm.all_weights:  # w_ih, w_hh, the biases if there are any, w_hr if there is one
            w_ih, w_hh, *biases = weights
            w_hr = None if self.spec.proj_size is None else biases.pop()
            b_ih, b_hh = biases or (None, None)
            layers.append(LayerWeights(w_ih, w_hh, b_ih, b_hh, w_hr))
        return layers

    def reference(
        self, x: Tensor, state: State, arithmetic: Arithmetic = EXACT, columns: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """What `forward` gives, by the reference cell and in the dtype of the state: slow, and in float64 the truth."""
        dtype = state.h.dtype

        def cast(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(dtype)

        if isinstance(self.encoder, nn.Embedding):
            encoded = self.encoder.weight[x].to(dtype)
        elif self.encoder is not None:
            encoded = linear(x.to(dtype), self.encoder.weight.to(dtype), cast(self.encoder.bias), arithmetic)
        else:
            encoded = x.to(dtype)
        layers = [
            LayerWeights(w_ih.to(dtype), w_hh.to(dtype), cast(b_ih), cast(b_hh), cast(w_hr))
            for w_ih, w_hh, b_ih, b_hh, w_hr in self.layer_weights()
        ]
        y, state = unroll(layers, encoded, state, arithmetic)
        return self._headed(y, columns, arithmetic), state


@contextmanager
def _without_a_warning() -> Iterator[None]:
    """PyTorch says that oneDNN has no projections: it takes its own kernel then, which is only slower."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield


def infer_spec(weights: Mapping[str, Tensor]) -> Spec:
    """The spec of normalized weights, all sizes read from their shapes.

    An encoder with a bias is taken as a linear map, one without as an embedding.
    """
    core = core_spec(weights)
    encoder, head = weights.get("encoder.weight"), weights.get("head.weight")
    spec = Spec(
        hidden_size=core.hidden_size,
        layers=core.layers,
        bias=core.bias,
        input_size=core.input_size,
        proj_size=core.proj_size,
    )
    if encoder is not None and encoder.ndim == 2:
        if "encoder.bias" in weights:
            spec = replace(spec, input_size=encoder.shape[1], encoder_size=encoder.shape[0])
        elif encoder.shape[0] == encoder.shape[1]:
            raise WeightsError(
                f"encoder.weight has shape {tuple(encoder.shape)} and no bias: it may be an embedding's or a linear"
                " map's; `python -m export module FILE.py:CLASS` takes the module that says which"
            )
        else:
            spec = replace(spec, input_size=None, vocabulary=encoder.shape[0], encoder_size=encoder.shape[1])
    return spec if head is None else replace(spec, output_size=head.shape[0])
