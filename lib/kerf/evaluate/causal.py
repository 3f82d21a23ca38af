"""Causal language models: the probabilities of the same tokens under both models, and everything that differs.

The protocol: chunks of `seq_len` tokens from a stream of documents, of which the second half is scored, so
that every scored token has at least half a chunk before it. Last words: passages that end with a sentence,
right when every token of the last word is the most probable one. Continuations are greedy.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from kerf.config import Evaluation
from kerf.core.errors import refuse
from kerf.data import corpora, segmentation
from kerf.evaluate import per_item_scores
from kerf.evaluate.causal_inference import CONTINUED, PROMPTS, answer
from kerf.evaluate.causal_metrics import Scored, metrics, pictures
from kerf.evaluate.fidelity import formatted
from kerf.models import registry
from kerf.models.families import causal, lengths

__all__ = [
    "about",
    "answer",
    "ask",
    "compare",
    "conclusion",
    "documents",
    "draw",
    "gather",
    "request",
    "restored",
    "sample",
    "stretches",
    "worst",
]
NEEDS_BASE = (
    True  # a candidate's probabilities are compared as they come; only the baseline's are kept
)
WORDS = 40  # of a passage whose last word is asked for, at least
BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Texts:
    """Chunks (chunks, context) and the document of each token; passages as (tokens, how many are the last word)."""

    chunks: np.ndarray
    owners: np.ndarray
    passages: list[tuple[list[int], int]]
    passage_owners: np.ndarray
    asked: list[str]  # passages as a reader knows them
    all: list[str]  # the documents
    left_out: int = 0  # documents without any token

    @property
    def scored(self) -> slice:
        """Positions that are scored."""
        return slice(self.chunks.shape[1] // 2, None)


def gather(model: str, spec: Evaluation) -> Texts:
    """Chunks and passages of the evaluation part. Raises InputError for too few."""
    return _gather(
        model, registry.weights_digest(registry.resolve(model)), spec, corpora.digest(spec.texts)
    )


@lru_cache(maxsize=2)
def _gather(model: str, _weights: str, spec: Evaluation, _texts: str) -> Texts:
    folder = registry.resolve(model)
    most = lengths.of_folder(folder)
    lengths.check_positions("evaluation.seq_len", spec.seq_len, most)
    reader = causal.tokenizer(folder)
    documents = corpora.evaluation_documents(spec.texts)
    tokens, owners = causal.stream(reader, documents)
    first = causal.begins_with(reader)
    found = causal.chunks(tokens, spec.seq_len, first)
    if spec.num_chunks > len(found):
        accepted = (
            f"1 to {len(found)}, the chunks of {spec.seq_len} tokens that {spec.texts} has for it"
        )
        raise refuse("evaluation.num_chunks", spec.num_chunks, accepted)
    chosen = np.sort(np.random.default_rng(0).permutation(len(found))[: spec.num_chunks])
    owned = causal.chunks(owners, spec.seq_len, None if first is None else -1)[chosen]
    passages = [
        (number, passage, *_last_word(reader, passage))
        for number, d in enumerate(documents)
        for passage in stretches(d)
    ]
    passages = [each for each in passages if each[3] and len(each[2]) <= (most or len(each[2]))][
        : spec.passages
    ]
    left_out = lengths.with_tokens(reader, documents, special=False).count(False)
    return Texts(
        found[chosen],
        owned,
        [(ids, last) for *_, ids, last in passages],
        np.array([number for number, *_ in passages], int),
        [_end(passage) for _, passage, *_ in passages],
        documents,
        left_out,
    )


def stretches(document: str) -> list[str]:
    """Stretches of whole sentences of at least WORDS words."""
    found, current = [], []
    for sentence in corpora.sentences(document):
        current += sentence.split()
        if len(current) >= WORDS:
            found.append(" ".join(current))
            current = []
    return found


def _end(passage: str) -> str:
    """The end of a passage, by which a reader knows it: its last word is what is asked."""
    return "… " + passage[-per_item_scores.KNOWN_BY :].partition(" ")[2]


def _last_word(reader, passage: str) -> tuple[list[int], int]:
    """Tokens of a passage up to its last word, punctuation dropped, and how many of them are the last word; 0: none."""
    before, last = segmentation.last_word(passage)
    if not last:
        return [], 0
    ids, word = (
        reader(before)["input_ids"],
        reader(f" {last}", add_special_tokens=False)["input_ids"],
    )
    return (ids + word, len(word)) if ids else ([], 0)


def about(everything: Texts) -> str:
    """What is measured on, in a line for a reader."""
    count, context = everything.chunks.shape
    return (
        f"{count} chunks of {context} tokens, the second half of each scored; {len(everything.passages)} passages "
        f"whose last word is asked for; {min(PROMPTS, count)} greedy continuations of {CONTINUED} tokens{lengths.said(everything.left_out)}"
    )


def documents(everything: Texts) -> int:
    """Independent documents of the scored tokens."""
    return len(np.unique(everything.owners[:, everything.scored]))


def request(everything: Texts, again: bool) -> dict:
    """What the measured process is asked; `again`: other batches."""
    return {
        "chunks": everything.chunks.tolist(),
        "passages": everything.passages,
        "batch_tokens": BATCH_TOKENS if not again else BATCH_TOKENS // 2,
    }


def sample(everything: Texts) -> list[int]:
    """Tokens of a chunk, for `ask`."""
    return everything.chunks[0].tolist()


def ask(opened, tokens: list[int]) -> None:
    """Read a chunk and say what comes next, for its time."""
    import torch

    with torch.inference_mode():
        opened(torch.tensor([tokens]), use_cache=False, logits_to_keep=1)


def compare(folder: Path, everything: Texts, base: Path, other: Path) -> tuple[list[dict], dict]:
    """Metric rows and what is drawn; scores of every token and passage go to items.parquet."""
    scored = Scored.read(everything, base, other)
    per_item_scores.write(folder / "items.parquet", scored.items(everything))
    return metrics(scored), pictures(scored)


def restored(model: str, candidate: str | Path, spec: Evaluation, base: Path) -> list[dict]:
    """By layer: the mean divergence that is left when it is float again; none with `restored` 0."""
    from kerf.evaluate.layer_ablation import by_layer

    everything = gather(model, spec)
    return (
        by_layer(model, candidate, everything.chunks[: spec.restored], base)
        if spec.restored
        else []
    )


def draw(folder: Path, picture: dict) -> list[tuple]:
    """(figure, alt text) of a comparison."""
    from kerf.charts import plots

    alt = "Mean KL divergence: a line by position in the chunk, bars by how often the token occurs in the text."
    drawn = [(plots.divergence(picture), alt)]
    if picture.get("restored"):
        alt = "Mean KL divergence that is left when one layer is float again; the line is that of the whole candidate."
        drawn.append((plots.layer_ablation(picture["restored"]), alt))
    return drawn


def worst(model: str, folder: Path, picture: dict):
    """Table of the stretches of text where the models differ most; what changed is marked, with what is now said."""
    import pandas as pd

    reader = causal.tokenizer(registry.resolve(model))
    rows = [{"mean KL": each["kl"], "text": _marked(reader, each)} for each in picture["worst"]]
    return (
        pd.DataFrame(rows)
        .style.format({"mean KL": "{:.3f}"})
        .hide(axis="index")
        .set_caption(
            "Where the models differ most; marked: the most probable token is another one now, given in brackets"
        )
    )


def _marked(reader, stretch: dict) -> str:
    from html import escape

    pieces = []
    for token, said, changed in zip(
        stretch["tokens"], stretch["said"], stretch["changed"], strict=True
    ):
        text = escape(reader.decode([token]))
        pieces.append(
            f"<mark>{text} [{escape(reader.decode([said]).strip())}]</mark>" if changed else text
        )
    return "".join(pieces)


def _places(perplexity: float | None) -> str:
    return "beyond any number" if perplexity is None else f"{perplexity:.2f}"


def conclusion(values: dict[str, dict], picture: dict) -> str:
    """What a comparison says, in sentences. values: metric rows by name."""
    ratio, kl, same = (values[name] for name in ("perplexity_ratio", "kl_mean", "same_top"))
    own = values["perplexity"]
    lines = [
        f"Perplexity went from {_places(own['baseline'])} to {_places(own['value'])}: times {formatted(ratio)} on {ratio['n']:,} tokens.",
        f"Mean KL divergence, in nats: {formatted(kl)}; "
        f"the same token comes first for {same['value']:.1%}.",
    ]
    if row := values.get("last_word_accuracy"):
        lines.append(
            f"Last words: {row['lost']} lost, {row['gained']} gained of {row['n']} (McNemar p = {row['mcnemar_p']:.3f}); "
            f"a difference under {row['detectable']:.3f} would have gone unseen."
        )
    layers = picture.get("restored") or []
    best = min(layers, key=lambda row: row["kl"], default=None)
    if best and best["layer"] != "none":
        lines.append(
            f"Most is won by layer {best['layer']}: in float, it leaves {best['kl']:.4f} of {layers[0]['kl']:.4f} on "
            f"{layers[0]['contexts']} contexts, too few for an interval."
        )
    if cache := picture.get("cache"):
        lines.append(
            f"Keys and values of {cache[-1]['tokens']} tokens take {cache[-1]['bytes'] / 1e6:.1f} MB, as the baseline's do."
        )
    cost = picture["storage"]
    lines.append(
        f"Only the most probable tokens of the baseline are kept: on {cost['tokens']} tokens that gives a mean "
        f"KL of {cost['kept']:.5f}, over the whole vocabulary it is {cost['whole']:.5f}."
    )
    return "\n".join(lines)
