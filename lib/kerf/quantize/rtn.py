"""Round to nearest: each weight goes to the closest point of its grid, independently of the others."""

from kerf.calibration.layer import Layer
from kerf.quantize.rounding import nearest
from kerf.tensors.quantized import Quantized


def quantize_layer(layer: Layer) -> tuple[Quantized, str]:
    """The layer on its grid, and no note; H weights the columns in the search of `clip: hessian`."""
    return nearest(layer)
