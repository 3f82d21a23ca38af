"""Experiment files that were mutated at random, from a seed: each is read as something sound, or refused in one line."""

import math
import random
import time

import pytest
import yaml

from kerf.config import parse
from kerf.core.errors import CONTROL, LINE, InputError
from kerf.core.paths import root
from kerf.workbench.run import experiment

SHIPPED = sorted((root() / "notebooks" / "experiments").glob("*.yaml"))
BOMB = "\n".join(
    f"b{level}: &b{level} [{', '.join([f'*b{level - 1}'] * 9)}]" for level in range(1, 9)
)
ODD = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2.5,
    1e300,
    float("inf"),
    float("-inf"),
    float("nan"),
    10**30,
    -(10**30),
    "",
    " ",
    "a",
    "x" * 5000,
    "~nosuchuser/x",
    "a\0b",
    "\x1b[31mred",
    "a\nb",
    "\u202eevil",
    "index.html",
    "history",
    "../..",
    "/dev/zero",
    [],
    [[]],
    [None],
    {},
    {"a": 1},
    {"": {}},
    [True],
    "2:4",
    "0:0",
    "99:1",
    "1.6",
    "mixed",
    1.6,
    16,
    32,
    32.0,
]
SCALARS = [
    "2020-99-99",
    "2020-01-01",
    "!!int foo",
    "!!float x",
    "!!timestamp 1",
    "!!binary x",
    "!!python/object/apply:os.system [ls]",
    "!!set {a}",
    "1:30",
    "020",
    "0x1F",
    "1_000",
    "0b11",
    "1e999",
    "-1e999",
    ".nan",
    ".inf",
    "9" * 5000,
    "yes",
    "off",
    "~",
    "*nothing",
    "&a [*a]",
    "[" * 3000,
    "{" * 3000,
    "- " * 3000,
    '"\\ud800"',
    '"\\e[2J"',
    '"\\0"',
    "'",
    '"',
    "|",
    ">",
    "%",
    "@",
    "`",
    "? [a]",
    "<<",
    "!",
    "!!str 5",
    "x" * 100_000,
]


def _places(value, path=()):
    """Every place in nested data: (container, key)."""
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner, (*path, key))


def _value(text, draw):
    """Another value, or another key, somewhere in the data."""
    data = yaml.load(text, yaml.CSafeLoader)
    for _ in range(draw.randint(1, 3)):
        container, key = draw.choice(list(_places(data)) or [(data, "model")])
        if isinstance(container, dict) and draw.random() < 0.3:
            renamed = draw.choice(
                [*(str(o) for o in ODD), "bits", "model", "samples", 3, None, True]
            )
            container[renamed] = container.pop(key, None)
        else:
            container[key] = draw.choice(ODD)
    return yaml.dump(
        data, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=draw.random() < 0.5
    )


def _scalar(text, draw):
    """An odd scalar in the place of one that follows a colon."""
    places = [
        place
        for place, character in enumerate(text)
        if character == ":" and text[place : place + 2] == ": "
    ]
    place = draw.choice(places) + 2
    stop = min(
        (text.find(end, place) for end in ",}]\n" if text.find(end, place) > 0), default=len(text)
    )
    return text[:place] + draw.choice(SCALARS) + text[stop:]


def _twice(text, draw):
    """A line, or a key of a mapping in braces, a second time."""
    lines = text.splitlines()
    place = draw.randrange(len(lines))
    line = lines[place]
    if "{" in line and draw.random() < 0.5:
        inner = line[line.index("{") + 1 :].split(",")[0].rstrip("}]")
        lines[place] = line.replace("{", f"{{{inner}, ", 1)
    else:
        lines.insert(place, line)
    return "\n".join(lines)


def _bytes(text, draw):
    """Bytes changed, taken out, or put in."""
    content = bytearray(text.encode())
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(len(content))
        content[place : place + draw.randint(0, 2)] = draw.randbytes(draw.randint(0, 2))
    return bytes(content)


def _cut(text, draw):
    """A file that ends too soon, or holds one part twice."""
    place, other = draw.randrange(len(text)), draw.randrange(len(text))
    return text[:place] if draw.random() < 0.7 else text[:place] + text[other:]


def _aliases(text, draw):
    """Anchors, aliases, merge keys and what grows from them."""
    added = [
        BOMB,
        "x: &x {<<: *x}",
        "evaluation: &e {texts: news}\ncalibration: {<<: *e, <<: *e}",
        "resources: {<<: [1]}",
        "resources: &r {threads: *r}",
    ]
    return text + "\n" + draw.choice(added) + "\n"


MUTATORS = (_value, _value, _value, _scalar, _scalar, _twice, _bytes, _cut, _aliases)


def _sound(made):
    """What was accepted has its types: it can be read again as it is, and every number is one to reckon with."""
    parameters = [made.calibration, made.evaluation, *([made.resources] if made.resources else [])]
    parameters += [step.parameters for chain in made.candidates.values() for step in chain]
    for each in parameters:
        assert parse(type(each), each.model_dump(), "again") == each
        numbers = [value for value in each.model_dump().values() if isinstance(value, int | float)]
        assert all(math.isfinite(number) and abs(number) <= 1e15 for number in numbers)
    assert made.model.strip() and not CONTROL.search(made.model)
    assert all(map(experiment.is_available, made.candidates)) and set(made.release) <= set(
        made.candidates
    )
    assert len(set(made.release)) == len(made.release)


@pytest.mark.parametrize("seed", range(12))
def test_a_mutated_experiment_is_sound_or_refused_in_one_line(seed, tmp_path):
    draw, path = random.Random(seed), tmp_path / "mutated.yaml"
    outcomes = {"accepted": 0, "refused": 0}
    for number in range(150):
        text = draw.choice(SHIPPED).read_text(encoding="utf-8")
        mutated = draw.choice(MUTATORS)(text, draw)
        path.write_bytes(
            mutated if isinstance(mutated, bytes) else mutated.encode("utf-8", "surrogatepass")
        )
        clock = time.process_time()
        try:
            _sound(experiment.read(str(path)))
            outcomes["accepted"] += 1
        except InputError as refusal:
            line = str(refusal)
            assert line.isprintable() and 0 < len(line) <= LINE, (
                f"seed {seed}, file {number}: {line!r}"
            )
            outcomes["refused"] += 1
        assert time.process_time() - clock < 5, f"seed {seed}, file {number} took too long"
    assert outcomes["refused"] > 40 and outcomes["accepted"] > 0, outcomes
