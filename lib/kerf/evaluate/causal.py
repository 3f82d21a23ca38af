"""Causal language models: probabilities of the same tokens under baseline and candidate, and how they differ.

The second half of every chunk of `seq_len` tokens is scored. Last words (as in LAMBADA, arXiv:1606.06031): a passage is
right when every token of its last word is the most probable one. Continuations are greedy.
"""

from collections.abc import Iterator
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kerf.config import Evaluation
from kerf.core.errors import refuse
from kerf.data import corpora, segmentation
from kerf.evaluate import common
from kerf.evaluate.causal_inference import CONTINUED, PROMPTS
from kerf.evaluate.causal_inference import run_inference as run_inference
from kerf.evaluate.causal_metrics import CausalInputs, Scored, metrics, pictures
from kerf.evaluate.fidelity import formatted
from kerf.evaluate.layer_ablation import by_layer
from kerf.evaluate.protocol import Comparison, Figures, Table
from kerf.models import registry
from kerf.models.families import causal, lengths

NEEDS_BASELINE = True  # only the baseline's probabilities are stored; a candidate's are compared during inference
WORDS = 40  # at least, in a passage whose last word is predicted
BATCH_TOKENS = 1024


@common.cached
def gather(folder: Path, spec: Evaluation) -> CausalInputs:
    """Chunks and passages of the evaluation part. Raises InputError for too few chunks, and for too long ones."""
    max_tokens = lengths.of_folder(folder)
    lengths.check_positions("evaluation.seq_len", spec.seq_len, max_tokens)
    tokenizer, texts = causal.tokenizer(folder), corpora.evaluation_documents(spec.texts)
    chunks, owners = _sample(tokenizer, texts, spec)
    rows = list(islice(_passages(tokenizer, texts, max_tokens), spec.passages))
    passages, numbers, ends = ([row[column] for row in rows] for column in range(3))
    left_out = lengths.have_tokens(tokenizer, texts, special=False).count(False)
    return CausalInputs(chunks, owners, passages, np.array(numbers, int), ends, texts, left_out)


def _sample(tokenizer: Any, texts: list[str], spec: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """A random sample of chunks in the order of the text, and the document of each token (-1: BOS)."""
    tokens, owners = causal.stream(tokenizer, texts)
    bos = causal.begins_with(tokenizer)
    chunks, length = causal.chunks(tokens, spec.seq_len, bos), f"{spec.seq_len} tokens"
    if spec.num_chunks > len(chunks):
        accepted = f"1 to {len(chunks)}, the chunks of {length} that {spec.texts} has for it"
        raise refuse("evaluation.num_chunks", spec.num_chunks, accepted)
    sample = np.sort(np.random.default_rng(0).permutation(len(chunks))[: spec.num_chunks])
    return chunks[sample], causal.chunks(owners, spec.seq_len, None if bos is None else -1)[sample]


def _passages(tokenizer: Any, texts: list[str], max_tokens: int | None) -> Iterator[tuple]:
    """Rows (tokens up to the last word, tokens of the last word), document, end of the passage; without punctuation."""
    for number, text in enumerate(texts):
        for passage in stretches(text):
            before, last = segmentation.last_word(passage)
            ids = tokenizer(before)["input_ids"] if last else []
            word = tokenizer(f" {last}", add_special_tokens=False)["input_ids"]
            has_positions = max_tokens is None or len(ids + word) <= max_tokens
            if ids and word and has_positions:
                end = "… " + passage[-common.KNOWN_BY :].partition(" ")[2]
                yield (ids + word, len(word)), number, end


def stretches(document: str) -> list[str]:
    """Stretches of whole sentences of at least WORDS words."""
    passages: list[str] = []
    words: list[str] = []
    for sentence in corpora.sentences(document):
        words += sentence.split()
        if len(words) >= WORDS:
            passages.append(" ".join(words))
            words = []
    return passages


def about(inputs: CausalInputs) -> str:
    """One line that describes the evaluation texts."""
    count, seq_len = inputs.chunks.shape
    chunks = f"{count} chunks of {seq_len} tokens, the second half of each scored"
    passages = f"{len(inputs.passages)} passages whose last word is predicted"
    continuations = f"{min(PROMPTS, count)} greedy continuations of {CONTINUED} tokens"
    return f"{chunks}; {passages}; {continuations}{lengths.left_out_note(inputs.left_out)}"


def documents(inputs: CausalInputs) -> int:
    """Number of independent documents, the units of the bootstrap."""
    return len(np.unique(inputs.owners[:, inputs.scored]))


def inference_request(inputs: CausalInputs, noise_floor: bool) -> dict:
    """JSON for `run_inference`; noise_floor: in other batches than the first measurement."""
    size = BATCH_TOKENS // 2 if noise_floor else BATCH_TOKENS
    return {"chunks": inputs.chunks.tolist(), "passages": inputs.passages, "batch_tokens": size}


def latency_input(inputs: CausalInputs) -> list[int]:
    """JSON of one batch for `predict_once`."""
    return inputs.chunks[0].tolist()


def predict_once(opened: Any, tokens: list[int]) -> None:
    """One forward pass, which latency is measured on."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([tokens], device=opened.device)
        opened(ids, use_cache=False, logits_to_keep=1).logits.cpu()


def compare(comparison: Comparison, inputs: CausalInputs) -> tuple[list[dict], dict]:
    """Metric rows and data of the figures; scores of every token and passage go to items.parquet.

    With `restored` chunks in the spec, also the KL that remains with each block restored to float.
    """
    scored = Scored.read(inputs, comparison.base, comparison.other)
    common.write_items(comparison.folder, scored.items(inputs))
    chunks, layers = inputs.chunks[: comparison.spec.restored], []
    if comparison.candidate and len(chunks):
        layers = by_layer(comparison.model, comparison.candidate, chunks, comparison.base)
    return metrics(scored), pictures(scored) | {"restored": layers}


def draw(folder: Path, picture: dict) -> Figures:
    """Figures of a comparison with their alternative texts; picture: what `compare` returned beside the rows."""
    from kerf.charts import plots

    alt = "Mean KL divergence: a line by position in the chunk, bars by how often the token occurs in the text."
    figures = [(plots.divergence(picture), alt)]
    if picture.get("restored"):
        alt = "Mean KL divergence that remains when one layer is float again; the line is that of the whole candidate."
        figures.append((plots.layer_ablation(picture["restored"]), alt))
    return figures


def worst(model: str, folder: Path, picture: dict) -> Table:
    """Table of the items that changed most."""
    import pandas as pd

    tokenizer = causal.tokenizer(registry.resolve(model))
    rows = []
    for stretch in picture["worst"]:
        columns, text = (stretch["tokens"], stretch["predicted"], stretch["changed"]), ""
        for token, predicted, changed in zip(*columns, strict=True):
            old, new = (escape(tokenizer.decode([number])) for number in (token, predicted))
            text += f"<mark>{old} [{new.strip()}]</mark>" if changed else old
        rows.append({"mean KL": stretch["kl"], "text": text})
    caption = "Where the models differ most; marked: tokens whose top prediction changed, with the new prediction in brackets"
    return common.table(pd.DataFrame(rows), caption, formatter={"mean KL": "{:.3f}"})


def conclusion(values: dict[str, dict], picture: dict) -> str:
    """The result in sentences; values: metric rows by name."""
    own, ratio, kl = (values[name] for name in ("perplexity", "perplexity_ratio", "kl_mean"))
    perplexities = (own["baseline"], own["value"])
    shown = ["beyond any number" if x is None else f"{x:.2f}" for x in perplexities]
    change = f"from {shown[0]} to {shown[1]}: times {formatted(ratio)} on {ratio['n']:,} tokens"
    same = f"the same token comes first for {values['same_top']['value']:.1%}"
    lines = [f"Perplexity went {change}.", f"Mean KL divergence, in nats: {formatted(kl)}; {same}."]
    if row := values.get("last_word_accuracy"):
        counts = f"{row['lost']} lost, {row['gained']} gained of {row['n']} (McNemar p = {row['mcnemar_p']:.3f})"
        power = f"a difference under {row['detectable']:.3f} would have gone unseen"
        lines.append(f"Last words: {counts}; {power}.")
    layers = picture.get("restored") or []
    best = min(layers, key=lambda row: row["kl"], default=None)
    if best and best["layer"] != "none":
        left = f"{best['kl']:.4f} of {layers[0]['kl']:.4f} on {layers[0]['contexts']} contexts"
        most = f"Most is won by layer {best['layer']}: in float, it leaves {left}"
        lines.append(f"{most}, too few for an interval.")
    if cache := picture.get("cache"):
        size = f"{cache[-1]['tokens']} tokens take {cache[-1]['bytes'] / 1e6:.1f} MB"
        lines.append(f"Keys and values of {size}, as the baseline's do.")
    cost = picture["storage"]
    stored = f"on {cost['tokens']} tokens that gives a mean KL of {cost['kept']:.5f}"
    whole = f"over the whole vocabulary it is {cost['whole']:.5f}"
    lines.append(f"Only the most probable tokens of the baseline are stored: {stored}, {whole}.")
    return "\n".join(lines)
