"""INT8 for integer kernels: linear layers with uint8 inputs and int8 weights, quantized layer by layer.

A kernel multiplies u (tokens, columns), 0 to 255, by c (rows, columns), -127 to 127, with one scale a row:

    W x + b  ~  scale_r sum_c c_rc u_c + bias_r,    u_c = round((x_c - low_c) / delta_c).

Static: each column has its own low and delta, which cost nothing at run time: W delta is what is rounded to codes, and W low
goes into the bias. As in SmoothQuant (Xiao et al. 2022, arXiv:2211.10438), delta_c = range_c^alpha / largest_weight_c^(1 - alpha)
up to a factor; alpha and the share of each range that is clipped have the least output error on calibration text. Codes come
from GPTQ (`kerf.quantize.gptq`) on centred inputs, with the output of the float layer on the float model's inputs as the target,
so that a layer compensates for its own rounded inputs and for the layers before it. The bias absorbs the mean error.

Dynamic: low and delta are those of each token, from its smallest and largest input (as in ZeroQuant, Yao et al. 2022,
arXiv:2206.01861), and stay in the sum: W x + b  ~  delta_t scale_r sum_c c_rc u_c + low_t scale_r sum_c c_rc + bias_r.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import linear

from kerf.backends.protocol import SMALLEST, TOP_INPUT, Int8Linear, IntegerLayers
from kerf.calibration import activations
from kerf.calibration.hessian import act_order, corrected, inverse_factor, moments, ordered
from kerf.calibration.layer import Calibrated
from kerf.calibration.sequential import layer_inputs
from kerf.models.linearized import EXPERT
from kerf.quantize.gptq import gptq

ALPHAS = (0.0, 0.25, 0.5, 0.65, 0.8, 0.9, 1.0)
TAILS = (0.0, 1e-3, 5e-3)  # share of a column's inputs that is clipped at either end
SAMPLE = 2048  # tokens that alpha and tail are chosen on, and that the error is measured on


def rounded(x: Tensor, low: Tensor | None, delta: Tensor | None) -> Tensor:
    """x (..., columns) rounded on the grid of its columns, or on that of each token where low is None."""
    if low is None or delta is None:
        low, high = x.aminmax(dim=-1, keepdim=True)
        delta = ((high - low) / TOP_INPUT).clamp_(min=SMALLEST)
    return ((x - low) / delta).round_().clamp_(0, TOP_INPUT).mul_(delta).add_(low)


@torch.no_grad()
def integers(text: Calibrated, dynamic: bool = False, bits: int = 8) -> dict[str, Int8Linear]:
    """Quantize every linear layer that the calibration text reaches, in its order, with earlier layers quantized.

    dynamic: inputs are rounded on the grid of their token. bits: 8, or 7 for a kernel whose sums of two products saturate at
    16 bits, which 255 * (64 + 64) never does. Returns the layers by name; the network stays as it is.
    """
    layers, networks = text.layers, (text.net, text.reference)
    quantized, once = _called_again(text, dynamic, bits)
    with emulated(layers, quantized):
        walks = (layer_inputs(network, once, text.batches) for network in networks)
        for (names, inputs), (_, originals) in zip(*walks, strict=True):
            X = torch.cat(list(inputs))
            # The float model may route other tokens to an expert.
            F = X if EXPERT.fullmatch(names[0]) else torch.cat(list(originals))
            if len(X):
                group = _group([layers[name] for name in names], X, F, dynamic, bits)
                quantized |= zip(names, group, strict=True)
            del X, F  # before the next layers run
    return quantized


def _called_again(
    text: Calibrated, dynamic: bool, bits: int
) -> tuple[dict[str, Int8Linear], list[list[str]]]:
    """The layers that run several times, quantized on all their calls in the float model, and the groups of the others."""
    quantized: dict[str, Int8Linear] = {}
    several = activations.called_again(text.net, text.batches[0])
    for names in (group for group in text.groups if group[0] in several):
        calls: list[Tensor] = []

        def keep(_: str, inputs: Tensor, calls: list[Tensor] = calls) -> None:
            calls.append(inputs)

        activations.each_call(text.net, names[:1], text.batches, keep)
        X, layers = torch.cat(calls), [text.layers[name] for name in names]
        quantized |= zip(names, _group(layers, X, X, dynamic, bits), strict=True)
    return quantized, [group for group in text.groups if group[0] not in several]


@contextmanager
def emulated(layers: Mapping[str, Module], quantized: IntegerLayers) -> Iterator[None]:
    """While it lasts, each of `layers` that is in `quantized` computes as its integer kernel would."""
    weights: dict[str, Tensor] = {}

    def forward(name: str, layer: Any, x: Tensor) -> Tensor:
        if name not in quantized:
            return linear(x, layer.weight, layer.bias)
        integer = quantized[name]
        if name not in weights:
            weights[name] = integer.weight()
        return linear(rounded(x, integer.low, integer.delta), weights[name], integer.bias)

    for name, layer in layers.items():
        layer.forward = partial(forward, name, layer)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward


def _group(
    layers: list[Linear], X: Tensor, F: Tensor, dynamic: bool = False, bits: int = 8
) -> list[Int8Linear]:
    """Quantize layers that share an input: X (tokens, columns) in the compressed model, F in the float model."""
    top = 2 ** (bits - 1) - 1  # largest code of a weight
    weight = torch.cat([layer.weight.data for layer in layers])
    low, delta = (None, None) if dynamic else _grid(weight, X, top)
    unit = torch.ones(1) if delta is None else delta
    inputs = rounded(X, low, delta)
    mean, float_mean = inputs.mean(0), F.mean(0)
    H, drift, tokens = moments(iter([(inputs - mean) / unit]), iter([(F - float_mean) / unit]))
    order = act_order(H)
    factor = inverse_factor(ordered(H, order))
    targets = corrected(weight * unit, H, drift, tokens).split([len(m.weight) for m in layers])
    quantized = []
    for layer, target in zip(layers, targets, strict=True):
        weight = layer.weight.data
        scale = (target.abs().amax(1, keepdim=True) / top).clamp(min=1e-12)
        zero = torch.full_like(scale, top + 1)
        result, _ = gptq(target, H, scale, zero, bits, order, True, factor, sweeps=1)
        if result is None:  # H cannot be factorized: round to nearest
            codes = (target / scale).round().clamp(-top, top)
        else:
            codes = result.codes.float() - (top + 1)
        values = codes * scale / unit
        bias = weight @ float_mean - values @ mean
        output = _sample(F) @ weight.T
        difference = _sample(inputs) @ values.T + bias - output
        error = float(difference.square().sum() / output.square().sum().clamp(min=1e-20))
        bias = bias if layer.bias is None else layer.bias.data + bias
        quantized.append(Int8Linear(low, delta, codes.to(torch.int8), scale[:, 0], bias, error))
    return quantized


def _grid(weight: Tensor, X: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """low and delta (columns,) of least output error on X (tokens, columns), with weight rounded to codes up to `top`."""
    sample = _sample(X)
    output, largest = sample @ weight.T, weight.abs().amax(0).clamp(min=1e-8)
    least, best = torch.inf, (X.amin(0), torch.ones_like(largest))
    for tail in TAILS:
        cuts = torch.tensor([tail, 1 - tail])
        low, high = torch.quantile(sample, cuts, dim=0) if tail else X.aminmax(dim=0)
        span = (high - low).clamp(min=1e-6)
        for alpha in ALPHAS:
            shape = span.pow(alpha) / largest.pow(1 - alpha)
            delta = shape * (span / shape).max() / TOP_INPUT
            scaled = weight * delta
            scale = scaled.abs().amax(1, keepdim=True).clamp(min=1e-12) / top
            rounded_weight = (scaled / scale).round_().mul_(scale) / delta
            difference = rounded(sample, low, delta) @ rounded_weight.T - output
            error = float((difference - difference.mean(0)).square().sum())
            if error < least:
                least, best = error, (low, delta)
    return best


def _sample(X: Tensor) -> Tensor:
    """At most SAMPLE rows of X, evenly spread, since texts are sorted by length."""
    return X[torch.linspace(0, len(X) - 1, min(SAMPLE, len(X))).long()]
