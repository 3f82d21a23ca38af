"""INT8 for integer kernels: every linear layer's inputs as unsigned and weights as signed bytes, found layer by layer.

A kernel multiplies u (tokens, columns), 0 to 255, with c (rows, columns), -127 to 127, and knows one scale a row:

    W x + b  ~  scale_r sum_c c_rc u_c + bias_r,    u_c = round((x_c - low_c) / delta_c).

Each column has its own low and delta, since both fold away: W delta is what is rounded to codes, W low goes into
the bias. Even columns make coarse weights, even weights make coarse columns; as in SmoothQuant (Xiao et al. 2022,
arXiv:2211.10438) delta_c = range_c^alpha / largest_weight_c^(1 - alpha) up to a factor, and alpha and the share of
each range that is cut off are those of least output error on calibration text. Codes come from GPTQ on centred
inputs (`kerf.quantize.gptq`), aimed at what the float model's layer puts out on the float model's inputs, so that a
layer compensates for its own rounded inputs and for the layers before it. The bias takes up the mean of what is left.

Where inputs are rounded dynamically, low and delta are not of a column but of a token, from its smallest to its largest
input as it comes (as in ZeroQuant, Yao et al. 2022, arXiv:2206.01861), and nothing folds:

    W x + b  ~  delta_t scale_r sum_c c_rc u_c + low_t scale_r sum_c c_rc + bias_r.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kerf.calibration.hessian import act_order, corrected, inverse_factor, moments, ordered
from kerf.calibration.sequential import layer_inputs
from kerf.models import architecture
from kerf.quantize.gptq import gptq

TOP_INPUT, ZERO = 255, 128  # of an input
SMALLEST = 1e-8  # delta of a token whose inputs are all the same
ALPHAS = (0.0, 0.25, 0.5, 0.65, 0.8, 0.9, 1.0)
TAILS = (0.0, 1e-3, 5e-3)  # share of a column's inputs that is cut off at either end
LOOKED_AT = 2048  # tokens that choose between them, and that the error is of


@dataclass(frozen=True)
class Int8Linear:
    """A layer. low, delta: (columns,), or None where each token has its own; codes: int8 (rows, columns); scale, bias: (rows,),
    the bias for inputs in their own units.

    error: squared error of its output over its squared output, on calibration text.
    """

    low: torch.Tensor | None
    delta: torch.Tensor | None
    codes: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor
    error: float

    def weight(self) -> torch.Tensor:
        """(rows, columns) float32, for inputs in their own units."""
        return self.codes.float() * self.scale[:, None] / (1 if self.delta is None else self.delta)


def rounded(x: torch.Tensor, low: torch.Tensor | None, delta: torch.Tensor | None) -> torch.Tensor:
    """x (..., columns) on the grid of its columns, or where there is none on that of each token."""
    if low is None:
        low, high = x.aminmax(dim=-1, keepdim=True)
        delta = ((high - low) / TOP_INPUT).clamp_(min=SMALLEST)
    return ((x - low) / delta).round_().clamp_(0, TOP_INPUT).mul_(delta).add_(low)


@torch.no_grad()
def integers(
    net,
    reference,
    groups: list[list[str]],
    batches: list[dict],
    dynamic: bool = False,
    bits: int = 8,
) -> dict[str, Int8Linear]:
    """Every linear layer that the calibration text reaches, by name.

    net, reference: the same network twice; the first computes as the integer one would while it is looked at.
    dynamic: inputs are rounded on the grid of their token. bits: 8, or 7 for a kernel whose sums of two products
    saturate at 16 bits, which 255 * (64 + 64) never does.
    """
    found: dict[str, Int8Linear] = {}
    layers = architecture.linears(net)
    with computing(layers, found):
        pairs = zip(
            *(layer_inputs(each, groups, batches) for each in (net, reference)), strict=True
        )
        for (names, inputs), (_, originals) in pairs:
            weights = [layers[name].weight.data for name in names]
            made = _group(
                weights,
                [layers[name].bias for name in names],
                torch.cat(list(inputs)),
                torch.cat(list(originals)),
                dynamic,
                bits,
            )
            found |= dict(zip(names, made, strict=True))
    return found


@contextmanager
def computing(layers: dict, found: dict[str, Int8Linear]) -> Iterator[None]:
    """While it lasts, a layer that is found computes as its kernel would."""
    weights: dict[str, torch.Tensor] = {}

    def forward(name, layer, x):
        if name not in found:
            return torch.nn.functional.linear(x, layer.weight, layer.bias)
        here = found[name]
        if name not in weights:
            weights[name] = here.weight()
        return torch.nn.functional.linear(
            rounded(x, here.low, here.delta), weights[name], here.bias
        )

    for name, layer in layers.items():
        layer.forward = lambda x, name=name, layer=layer: forward(name, layer, x)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward


def _group(weights, biases, X, F, dynamic: bool = False, bits: int = 8) -> list[Int8Linear]:
    """Layers that share an input. X, F: (tokens, columns) here and in the float model."""
    weight = torch.cat(weights)
    low, delta = (None, None) if dynamic else grid(weight, X, _top(bits))
    unit = torch.ones(1) if dynamic else delta
    inputs = rounded(X, low, delta)
    here, there = inputs.mean(0), F.mean(0)
    H, drift, tokens = moments(iter([(inputs - here) / unit]), iter([(F - there) / unit]))
    aim = corrected(weight * unit, H, drift, tokens)
    order = act_order(H)
    factor = inverse_factor(ordered(H, order))
    made, rows = [], [len(each) for each in weights]
    for weight, target, bias in zip(weights, aim.split(rows), biases, strict=True):
        scale = (target.abs().amax(1) / _top(bits)).clamp(min=1e-12)
        codes = _codes(target, H, scale, order, factor, bits)
        whole = codes.float() * scale[:, None] / unit
        mean = weight @ there - whole @ here
        wanted = _some(F) @ weight.T
        off = _some(inputs) @ whole.T + mean - wanted
        error = float(off.square().sum() / wanted.square().sum().clamp(min=1e-20))
        made.append(
            Int8Linear(low, delta, codes, scale, mean if bias is None else bias.data + mean, error)
        )
    return made


def _top(bits: int) -> int:
    """Largest code of a weight; the smallest is one further from 0."""
    return 2 ** (bits - 1) - 1


def _codes(aim, H, scale, order, factor, bits: int) -> torch.Tensor:
    """int8 (rows, columns) by GPTQ, rounded to nearest where its numbers do not hold."""
    zero = _top(bits) + 1
    found, _ = gptq(
        aim,
        H,
        scale[:, None],
        torch.full((len(aim), 1), float(zero)),
        bits,
        order,
        True,
        factor,
        sweeps=1,
    )
    if found is None:
        return (aim / scale[:, None]).round().clamp(1 - zero, zero - 1).to(torch.int8)
    return (found.codes.short() - zero).to(torch.int8)


def grid(
    weight: torch.Tensor, X: torch.Tensor, top: int = 127
) -> tuple[torch.Tensor, torch.Tensor]:
    """low and delta (columns,) of least output error, weights rounded to nearest. weight: (rows, columns); X: (tokens, columns).

    top: largest code of a weight.
    """
    some = _some(X)
    wanted, largest = some @ weight.T, weight.abs().amax(0).clamp(min=1e-8)
    best = (torch.inf, None, None)
    for tail in TAILS:
        low, high = (
            (X.amin(0), X.amax(0))
            if not tail
            else torch.quantile(some, torch.tensor([tail, 1 - tail]), dim=0)
        )
        span = (high - low).clamp(min=1e-6)
        for alpha in ALPHAS:
            shape = span.pow(alpha) / largest.pow(1 - alpha)
            delta = shape * (span / shape).max() / TOP_INPUT
            scaled = weight * delta
            scale = scaled.abs().amax(1, keepdim=True).clamp(min=1e-12) / top
            off = (
                rounded(some, low, delta) @ ((scaled / scale).round_().mul_(scale) / delta).T
                - wanted
            )
            lost = float((off - off.mean(0)).square().sum())
            if lost < best[0]:
                best = (lost, low, delta)
    return best[1:]


def _some(X: torch.Tensor) -> torch.Tensor:
    """LOOKED_AT rows, evenly spread: texts are sorted by length."""
    return X[torch.linspace(0, len(X) - 1, min(LOOKED_AT, len(X))).long()]
