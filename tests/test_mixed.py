"""Mixed widths: the assignment is the best there is, and what comes out keeps its limit."""

import itertools

import numpy as np
import pytest
from support.small import write_model

from kerf import pipeline
from kerf.calibration.allocation import allocate, frontier
from kerf.calibration.candidate import StepContext
from kerf.config import STEPS, Calibration, parse
from kerf.core.cache import meta
from kerf.core.errors import InputError
from kerf.models import architecture, manifest, registry
from kerf.quantize import mixed_precision
from kerf.tensors import parquet

SPEC = Calibration(samples=32, max_length=32)
GRID = {"method": "gptq", "group_size": 32, "clip": "hessian"}


def tables(seed, layers=5, widths=3):
    """Costs that fall and bytes that grow with the width."""
    generator = np.random.default_rng(seed)
    costs = np.sort(generator.uniform(0, 1, (layers, widths)), axis=1)[:, ::-1]
    return costs, np.sort(generator.integers(1, 50, (layers, widths)), axis=1).astype(float)


def every(costs, sizes):
    """(cost, bytes) of every assignment there is."""
    rows = np.arange(len(costs))
    for chosen in itertools.product(range(costs.shape[1]), repeat=len(costs)):
        yield costs[rows, list(chosen)].sum(), sizes[rows, list(chosen)].sum()


@pytest.mark.parametrize("seed", range(8))
def test_no_assignment_is_better_within_the_budget_or_the_loss(seed):
    costs, sizes = tables(seed)
    budget, most = float(sizes.mean(1).sum()), float(costs.mean(1).sum())
    _, cost, size = allocate(costs, sizes, budget=budget)
    assert size <= budget and cost == pytest.approx(
        min(c for c, s in every(costs, sizes) if s <= budget)
    )
    _, cost, size = allocate(costs, sizes, most=most)
    assert cost <= most + 1e-9 and size == pytest.approx(
        min(s for c, s in every(costs, sizes) if c <= most)
    )


def test_a_limit_that_nothing_meets_has_no_answer():
    costs, sizes = tables(0)
    assert allocate(costs, sizes, budget=float(sizes.min(1).sum()) - 1) is None
    assert allocate(costs, sizes, most=float(costs.min(1).sum()) / 2) is None


def test_along_the_frontier_more_bytes_never_lose_more():
    points = frontier(*tables(1), points=12)
    assert all(
        a["cost"] >= b["cost"] and a["bytes"] <= b["bytes"] + 49
        for a, b in itertools.pairwise(points)
    )
    assert points[0]["cost"] > points[-1]["cost"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("mixed") / "model"))


@pytest.fixture(scope="module")
def table(model):
    return mixed_precision.read(
        mixed_precision.sensitivity(model, parse(STEPS["quantize"], GRID, "q"), SPEC)
    )


def context(model, source=None):
    return StepContext("quantize", model, parse(STEPS["quantize"], GRID, "q"), SPEC, source)


def test_the_table_has_every_layer_and_the_embeddings_and_wide_layers_lose_little(model, table):
    net = registry.network(registry.open_model(model))
    assert set(table["layers"]) == {*architecture.linears(net), *architecture.embeddings(net)}
    costs, sizes = np.array(table["costs"]), np.array(table["bytes"])
    assert costs.shape == sizes.shape == (len(table["layers"]), len(table["widths"]))
    assert (costs[:, 0] >= costs[:, -1] - 1e-6).all() and costs[:, -1].max() < 1e-3 < costs[
        :, 0
    ].max()
    assert (np.diff(sizes, axis=1) > 0).all()


def test_a_budget_in_bytes_is_kept_by_the_file(model, table):
    sizes = np.array(table["bytes"])
    budget = int(sizes[:, 2].sum() + table["rest_bytes"]["float32"])
    folder = pipeline.build(
        model, [{"quantize": {**GRID, "bits": "mixed", "budget_bytes": budget}}], SPEC
    )
    made = meta(folder)["result"]
    assert (folder / parquet.WEIGHTS).stat().st_size == made["bytes_on_disk"] <= budget
    assert len(set(made["assignment"].values())) > 1
    stored = dict(parquet.read_tensors(folder / parquet.WEIGHTS))
    assert {name: stored[f"{name}.weight"].bits for name in made["assignment"]} == made[
        "assignment"
    ]


def test_a_floor_in_fidelity_is_kept_on_text_held_back(model):
    folder = pipeline.build(
        model, [{"quantize": {**GRID, "bits": "mixed", "min_cosine": 0.97}}], SPEC
    )
    made = meta(folder)["result"]
    assert made["held_back"] >= 0.97
    assert made["held_back"] == pytest.approx(
        mixed_precision.held_out_cosine(context(model), folder), abs=1e-6
    )
    assert manifest.verify(folder)["steps"] == made["steps"]  # whole, however many attempts it took
    wide = pipeline.build(model, [{"quantize": {**GRID, "bits": 8}}], SPEC)
    assert made["bytes_on_disk"] < meta(wide)["result"]["bytes_on_disk"]


@pytest.mark.parametrize(
    "first",
    [{"method": "neurons", "sparsity": 0.25}, {"method": "sparsegpt", "sparsity": 0.5}],
    ids=["neurons", "zeros"],
)
def test_widths_after_pruning_are_those_of_what_pruning_left(model, table, first):
    source = pipeline.build(model, [{"prune": first}], SPEC)
    left = mixed_precision.read(
        mixed_precision.sensitivity(model, parse(STEPS["quantize"], GRID, "q"), SPEC, source)
    )
    assert left["layers"] == table["layers"]
    smaller = np.array(left["bytes"]) < np.array(table["bytes"])
    assert smaller[
        [".output.dense" in name and "attention" not in name for name in left["layers"]], 3:
    ].all()
    budget = int(np.array(left["bytes"])[:, 3].sum() + left["rest_bytes"]["float32"])
    made = meta(
        pipeline.build(
            model,
            [{"prune": first}, {"quantize": {**GRID, "bits": "mixed", "budget_bytes": budget}}],
            SPEC,
        )
    )["result"]
    assert (
        made["predicted"]["bytes"] == pytest.approx(made["bytes_on_disk"], rel=0.03)
        and made["bytes_on_disk"] <= budget
    )
    reached = mixed_precision.held_out_cosine(context(model, source), source)
    with pytest.raises(
        InputError,
        match=f"min_cosine = 0.99999: at most {reached:.4f}, which is what the steps before left",
    ):
        pipeline.build(
            model,
            [{"prune": first}, {"quantize": {**GRID, "bits": "mixed", "min_cosine": 0.99999}}],
            SPEC,
        )


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"budget_bytes": 1000}, "budget_bytes = 1000: at least about"),
        ({"min_cosine": 0.9999999}, "min_cosine = 0.9999999: at most"),
    ],
)
def test_a_limit_that_cannot_be_met_is_refused_with_what_can(model, limit, said):
    with pytest.raises(InputError, match=said):
        pipeline.build(model, [{"quantize": {**GRID, "bits": "mixed", **limit}}], SPEC)


def test_word_embeddings_take_part_unless_they_have_a_width_of_their_own(model):
    step = {**GRID, "bits": "mixed", "budget_bytes": 1_500_000}
    assert parse(STEPS["quantize"], step, "q").embeddings == "same"
    made = meta(pipeline.build(model, [{"quantize": {**step, "embeddings": 5}}], SPEC))["result"]
    assert (
        made["assignment"]["embeddings.word_embeddings"] == 5 and made["bytes_on_disk"] <= 1_500_000
    )
    stored = dict(
        parquet.read_tensors(
            pipeline.build(model, [{"quantize": {**step, "embeddings": 5}}], SPEC) / parquet.WEIGHTS
        )
    )
    assert stored["embeddings.word_embeddings.weight"].bits == 5
    with pytest.raises(
        InputError, match="embeddings = 7: same, or one of 1.6, 2, 3, 4, 5, 6, 8 with mixed bits"
    ):
        pipeline.build(model, [{"quantize": {**step, "embeddings": 7}}], SPEC)


@pytest.mark.parametrize(
    "values",
    [
        {"bits": "mixed"},
        {"bits": 4, "min_cosine": 0.9},
        {"bits": "mixed", "min_cosine": 0.9, "budget_bytes": 9},
    ],
)
def test_mixed_takes_exactly_one_limit(values):
    with pytest.raises(
        InputError, match=r"q.bits = .*: mixed together with either budget_bytes or min_cosine"
    ):
        parse(STEPS["quantize"], values, "q")
