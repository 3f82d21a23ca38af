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
from kerf.core.errors import listed, refuse
from kerf.data import corpora, segmentation
from kerf.evaluate import choices, common
from kerf.evaluate.causal_inference import CONTINUED, PROMPTS
from kerf.evaluate.causal_inference import run_inference as run_inference
from kerf.evaluate.causal_metrics import (
    CausalInputs,
    Scored,
    metrics,
    other_metrics,
    pictures,
)
from kerf.evaluate.fidelity import formatted
from kerf.evaluate.layer_ablation import by_layer
from kerf.evaluate.protocol import Comparison, Figures, Table
from kerf.models import registry
from kerf.models.families import causal, lengths

NEEDS_BASELINE = True  # only the baseline's probabilities are stored; a candidate's are compared during inference
WORDS = 40  # at least, in a passage whose last word is predicted
SPARE = 2  # times the words that chunks are cut from: a token is rarely more than a word
BATCH_TOKENS = 1024


@common.cached
def gather(folder: Path, spec: Evaluation) -> CausalInputs:
    """Chunks, passages and questions of the evaluation part. Raises InputError for too few chunks, and for too long ones."""
    max_tokens = lengths.of_folder(folder)
    lengths.check_positions("evaluation.seq_len", spec.seq_len, max_tokens)
    tokenizer, names = causal.tokenizer(folder), corpora.names_of(spec.texts)
    texts: list[str] = []
    first: list[str] = []
    samples = []
    for name in names:
        documents, chunks, owners = _sample(tokenizer, name, spec)
        samples.append((chunks, np.where(owners < 0, owners, owners + len(texts))))
        texts += documents
        first = first or documents
    chunks, owners = (np.concatenate(arrays) for arrays in zip(*samples, strict=True))
    rows = list(islice(_passages(tokenizer, first, max_tokens), spec.passages))
    passages, numbers, ends = ([row[column] for row in rows] for column in range(3))
    left_out = lengths.have_tokens(tokenizer, texts, special=False).count(False)
    questions, sequences = choices.gather(tokenizer, spec.tasks, spec.items, max_tokens)
    return CausalInputs(
        chunks,
        owners,
        np.repeat(list(map(corpora.label, names)), [len(sample) for sample, _ in samples]),
        passages,
        np.array(numbers, int),
        ends,
        texts,
        left_out,
        tuple(questions),
        tuple(sequences),
    )


def _sample(
    tokenizer: Any, source: str, spec: Evaluation
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Documents of a source in random order, a sample of chunks of them, and the document of each token (-1: BOS)."""
    bos, length = causal.begins_with(tokenizer), spec.seq_len
    chunks = np.empty((0, length), int)
    for words in (SPARE * spec.num_chunks * length, None):
        documents = corpora.evaluation_documents(source, words, SPARE * spec.num_chunks)
        tokens, owners = causal.stream(tokenizer, documents)
        chunks = causal.chunks(tokens, length, bos)
        if len(chunks) >= spec.num_chunks:
            break
    if spec.num_chunks > len(chunks):
        accepted = f"1 to {len(chunks)}, the chunks of {length} tokens that {source} has for it"
        raise refuse("evaluation.num_chunks", spec.num_chunks, accepted)
    members = causal.chunks(owners, length, None if bos is None else -1)
    sample = np.sort(np.random.default_rng(0).permutation(len(chunks))[: spec.num_chunks])
    return documents, chunks[sample], members[sample]


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
    sources = listed(dict.fromkeys(inputs.sources.tolist()), "and")
    chunks = f"{count} chunks of {seq_len} tokens from {sources}, the second half of each scored"
    passages = f"{len(inputs.passages)} passages whose last word is predicted"
    passages += f"; {len(inputs.questions)} questions with several choices"
    continuations = f"{min(PROMPTS, count)} greedy continuations of {CONTINUED} tokens"
    return f"{chunks}; {passages}; {continuations}{lengths.left_out_note(inputs.left_out)}"


def documents(inputs: CausalInputs) -> int:
    """Number of independent documents, the units of the bootstrap."""
    return len(np.unique(inputs.owners[:, inputs.scored]))


def inference_request(inputs: CausalInputs, noise_floor: bool, everything: bool) -> dict:
    """JSON for `run_inference`; noise_floor: in other batches than the first measurement."""
    size = BATCH_TOKENS // 2 if noise_floor else BATCH_TOKENS
    texts = {"passages": inputs.passages, "choices": inputs.choices, "batch_tokens": size}
    return {"chunks": inputs.chunks.tolist(), **texts}


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
    tasks, groups = choices.compare(list(inputs.questions), *scored.choices)
    common.write_items(comparison.folder, [*scored.items(inputs), *groups])
    rows = []
    for source in dict.fromkeys(inputs.sources.tolist()):
        rows += common.of_domain(metrics(scored.of(source)), source)
    chunks, layers = inputs.chunks[: comparison.spec.restored], []
    if comparison.candidate and len(chunks):
        layers = by_layer(comparison.model, comparison.candidate, chunks, comparison.base)
    rows += other_metrics(scored) + tasks
    return rows, pictures(scored) | {"restored": layers}


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
    change += f" of {ratio['domain']}, the worst source"
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
