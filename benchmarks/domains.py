"""What quantizing costs on a source family that calibration did not see: leave one family out, calibrate on the others.

MiniLM (word embeddings at 8 bits): nDCG@10 lost, in percent of the baseline's, where the candidate encodes queries and
passages (of `questions` and `docs`), and mean cosine of sentences. SmolLM2 (head in float): mean KL divergence and perplexity
ratio, the second half of every chunk scored. Its only copy lies on a 4-bit grid of group 32, so its channels are permuted: the
same function without the grid. GPTQ on uniform grids, with nothing trained. Intervals are over documents.

    python benchmarks/domains.py [--only minilm] [--bits 4 3 2] [--samples 1024] [--shrinkage 0 auto] [--left-out docs]
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from causal_peers import Judge, lost

from kerf.calibration import activations
from kerf.calibration.layer import Calibrated
from kerf.config import Calibration
from kerf.config.quantize import Gptq
from kerf.data import corpora, datasets
from kerf.evaluate import retrieval
from kerf.evaluate import stats as st
from kerf.models import families, registry
from kerf.quantize.compress import compress

SOURCES = ("questions", "news", "docs", "everyday")  # one of each family
LENGTH = {"minilm": 128, "smollm2": 256}
EMBEDDINGS = {"minilm": 8, "smollm2": 32}


def opened(model: str) -> torch.nn.Module:
    """The baseline; a language model with its channels permuted."""
    found = registry.open_model(model)
    if model == "smollm2":
        permute(found)
    return found


@torch.no_grad()
def permute(net: torch.nn.Module) -> None:
    """Permute the residual channels, the feed-forward neurons, and the value channels of each key-value head of a Llama."""
    drawn, config = torch.Generator().manual_seed(0), net.config
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    order = torch.randperm(config.hidden_size, generator=drawn)

    def move(modules: tuple, dimension: int, index: torch.Tensor) -> None:
        for module in modules:
            module.weight.data = module.weight.data.index_select(dimension, index)

    move((net.model.embed_tokens,), 1, order)
    move((net.model.norm,), 0, order)
    net.tie_weights()
    for block in net.model.layers:
        own, mlp = block.self_attn, block.mlp
        move((own.q_proj, own.k_proj, own.v_proj, mlp.gate_proj, mlp.up_proj), 1, order)
        norms = (block.input_layernorm, block.post_attention_layernorm)
        move((own.o_proj, mlp.down_proj, *norms), 0, order)
        neurons = torch.randperm(config.intermediate_size, generator=drawn)
        move((mlp.gate_proj, mlp.up_proj), 0, neurons)
        move((mlp.down_proj,), 1, neurons)
        values = [torch.randperm(width, generator=drawn) for _ in range(shared)]
        move((own.v_proj,), 0, torch.cat([v + n * width for n, v in enumerate(values)]))
        of_heads = [values[head * shared // heads] + head * width for head in range(heads)]
        move((own.o_proj,), 1, torch.cat(of_heads))


def quantized(model: str, spec: Calibration, step: Gptq) -> tuple[torch.nn.Module, float, float]:
    """The model, its linear bits, and seconds of quantizing."""
    result, reference = opened(model), registry.network(opened(model))
    net, clock = registry.network(result), time.perf_counter()
    batches = families.of_opened(result).batches(result, spec)
    groups = activations.groups_of(net, batches[0])
    text = Calibrated(net, reference, groups, batches)
    made = [part.quantized for part in compress(text, step, {}) if part.name in text.layers]
    bits = sum(each.stored_bits() for each in made) / sum(each.codes.numel() for each in made)
    return result, bits, time.perf_counter() - clock


def encoder(source: str, count: int) -> Callable[[torch.nn.Module], str]:
    """A function that says what an encoder lost on a source: nDCG@10 where there are judgements, and cosine."""
    sentences, owners = corpora.evaluation_sentences(source, 400)
    found = datasets.retrieval(source, count) if source in ("questions", "docs") else None
    texts = (sentences, found.queries, found.passages) if found else (sentences,)

    def measured(model: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
        options = {"normalize_embeddings": True, "show_progress_bar": False}
        first, *sides = (model.encode(own, **options) for own in texts)
        if not found:
            return first, np.zeros(0)
        return first, retrieval.scores(sides[0] @ sides[1].T, found.relevant)["ndcg_10"]

    before, right = measured(opened("minilm"))

    def lost_by(model: torch.nn.Module) -> str:
        after, gained = measured(model)
        cosine = st.mean_interval((before * after).sum(1), np.array(owners))
        line = "cosine {:.4f} ({:.4f} to {:.4f})".format(*cosine)
        if not found:
            return line
        loss = 100 / right.mean() * np.array(st.mean_interval(right - gained, found.documents))
        return "nDCG@10 lost {:.2f} % ({:.2f} to {:.2f}), ".format(*loss) + line

    return lost_by


def language(source: str, count: int) -> Callable[[torch.nn.Module], str]:
    """A function that says what a language model lost on a source."""
    folder = tempfile.TemporaryDirectory()  # removed with the function
    judge = Judge(count, Path(folder.name) / source, source)
    return lambda model, kept=folder: lost(judge, judge.score(model))


# Queries or chunks of 512 tokens that are measured; sentences or chunks of calibration text.
MEASURES = {"minilm": (encoder, 1500, 1024), "smollm2": (language, 24, 64)}


def calibrations(
    left_out: str, times: list[int], samples: int
) -> Iterator[tuple[str, Calibration]]:
    """The other families, each with an equal share, of several amounts of text; and `news` alone."""
    others = tuple(source for source in SOURCES if source != left_out)
    if left_out != "news":
        yield f"{samples} of news", Calibration(texts="news", samples=samples)
    for factor in times:
        name = f"{factor * samples} of {', '.join(others)}"
        yield name, Calibration(texts=others, samples=factor * samples)


def main() -> None:
    """Print a line for every model, left-out family, number of bits, amount of text and shrinkage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=LENGTH, nargs="+", default=list(LENGTH))
    parser.add_argument("--left-out", choices=SOURCES, nargs="+", default=list(SOURCES))
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group", type=int, default=64, help="weights of one scale")
    parser.add_argument("--shrinkage", nargs="+", default=["0", "auto"])
    parser.add_argument("--samples", type=int, help="sentences (1024) or chunks (64)")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 3], help="amounts of text")
    parser.add_argument("--items", type=int, help="queries (1500) or chunks (24) of a source")
    asked = parser.parse_args()
    for model, source in itertools.product(asked.only, asked.left_out):
        kind, items, samples = MEASURES[model]
        measure = kind(source, asked.items or items)
        specs = calibrations(source, asked.times, asked.samples or samples)
        for (name, spec), bits, share in itertools.product(specs, asked.bits, asked.shrinkage):
            spec = spec.model_copy(update={"max_length": LENGTH[model]})
            own = {"embeddings": EMBEDDINGS[model], "clip": "hessian", "group_size": asked.group}
            own["shrinkage"] = share if share == "auto" else float(share)
            made, linear_bits, seconds = quantized(model, spec, Gptq(bits=bits, **own))
            print(
                f"{model} on {source}, {linear_bits:.2f} linear bits, {name}, shrinkage {share}: "
                f"{measure(made)}; {seconds:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
