"""Parameters: what is refused, in one line that names the parameter, its value and what is accepted."""

import pytest

from kerf.config import STEPS, Calibration, check_divides, parse
from kerf.core.errors import InputError

BITS = "a whole number from 2 to 8, 1.6 (ternary) or mixed"
GROUP_SIZE = "a divisor of every layer's columns"
EMBEDDINGS = "2 to 8, 32 (left in float) or same (as bits)"
OLD = {"floor": "min_cosine", "floats": "unquantized_dtype", "compute": "compute_dtype"}
TOGETHER = "group together with a group_size, or another without one"

WRONG = [
    *[
        ({"bits": value}, "bits", value, BITS)
        for value in (0, 1, 9, 3.5, 4.0, "two", "4", "a\nb", True, None)
    ],
    *[
        ({"group_size": value}, "group_size", value, GROUP_SIZE)
        for value in (0, -64, 1, 2.5, True, "64")
    ],
    *[
        ({"embeddings": value}, "embeddings", value, EMBEDDINGS)
        for value in (1, 33, "sames", True, None)
    ],
    ({"bitz": 4}, "bitz", 4, "no such key; did you mean bits?"),
    ({"groupsize": 64}, "groupsize", 64, "did you mean group_size"),
    ({"percdamp": 1}, "percdamp", 1, "no such key; accepted: allow_partial, bits, budget_bytes"),
    (
        {"method": "gtpq"},
        "method",
        "gtpq",
        "rtn, gptq, checkpoint, gptqmodel, static, dynamic, weight_only or bfloat16",
    ),
    ({"sweeps": 1}, "sweeps", 1, "no key of method rtn; gptq has it"),
    (
        {"method": "gptq", "compute_dtype": "bfloat16"},
        "compute_dtype",
        "bfloat16",
        "no key of method gptq; static and weight_only have it",
    ),
    *[({old: 1}, old, 1, f"{new}, which it is called now") for old, new in OLD.items()],
    ({"method": "weights"}, "method", "weights", "weight_only, which it is called now"),
    ({"granularity": "row"}, "granularity", "row", "tensor, channel or group"),
    ({"clip": "max"}, "clip", "max", "none, mse or hessian"),
    ({"symmetric": 1}, "symmetric", 1, "true or false"),
    ({"scale_dtype": "float8"}, "scale_dtype", "float8", "float16 or float32"),
    ({"granularity": "group"}, "granularity", "group", TOGETHER),
    ({"granularity": "channel", "group_size": 64}, "granularity", "channel", TOGETHER),
    ({"granularity": "tensor", "group_size": 64}, "granularity", "tensor", TOGETHER),
]


def refusal(function, *arguments):
    """The message of the refusal, which must be one line."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "key", "value", "accepted"), WRONG, ids=[str(case[0]) for case in WRONG]
)
def test_a_wrong_value_is_refused_with_its_path_and_what_is_accepted(values, key, value, accepted):
    message = refusal(parse, STEPS["quantize"], values, "int4.1.quantize")
    assert message.startswith(f"int4.1.quantize.{key} = {value!r}: ") and accepted in message


@pytest.mark.parametrize("values", [None, [], "rtn", 4])
def test_what_is_no_mapping_is_refused(values):
    assert refusal(parse, STEPS["quantize"], values, "int4.1").startswith(
        f"int4.1 = {values!r}: keys and values"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("samples", 0),
        ("samples", 1.5),
        ("samples", True),
        ("max_length", 3),
        ("seed", -1),
        ("texts", 3),
    ],
)
def test_calibration_is_checked_alike(key, value):
    assert refusal(parse, Calibration, {key: value}, "calibration").startswith(
        f"calibration.{key} = {value!r}: "
    )


def test_a_long_value_is_shortened():
    assert len(refusal(parse, STEPS["quantize"], {"bits": "9" * 5000}, "quantize")) < 250


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_number_of_bits_from_2_to_8_is_accepted(bits):
    step = parse(STEPS["quantize"], {"bits": bits, "embeddings": "same"}, "quantize")
    assert step.bits == step.embedding_bits() == bits


@pytest.mark.parametrize(("embeddings", "bits"), [("same", 3), (5, 5), (32, 32)])
def test_embeddings_follow_bits_or_have_their_own_or_stay_float(embeddings, bits):
    assert (
        parse(STEPS["quantize"], {"bits": 3, "embeddings": embeddings}, "quantize").embedding_bits()
        == bits
    )


def test_a_group_size_implies_groups():
    assert parse(STEPS["quantize"], {"group_size": 64}, "quantize").granularity == "group"


def test_values_do_not_change_after_validation():
    with pytest.raises(ValueError, match="frozen"):
        parse(STEPS["quantize"], {}, "quantize").bits = 2


LINEARS = {"narrow": [8, 384], "wide": [8, 1536], "odd": [8, 96]}


@pytest.mark.parametrize("group_size", [8, 16, 32, 96])
def test_a_group_size_that_divides_every_layer_passes(group_size):
    check_divides(group_size, LINEARS, "group_size")


@pytest.mark.parametrize(("group_size", "layer"), [(7, "narrow"), (128, "odd"), (1536, "narrow")])
def test_a_group_size_that_does_not_divide_is_refused_with_those_that_do(group_size, layer):
    message = refusal(check_divides, group_size, LINEARS, "int4.1.quantize.group_size")
    assert (
        message.startswith(f"int4.1.quantize.group_size = {group_size}: ")
        and f"columns of {layer}" in message
    )
    offered = [int(size) for size in message.partition("these divide: ")[2].split(", ")]
    assert offered == [4, 6, 8, 12, 16, 24, 32, 48, 96]
