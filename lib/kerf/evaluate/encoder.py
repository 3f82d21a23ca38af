"""Encoders: embeddings of the same texts by baseline and candidate, and how they differ."""

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy import ndarray

from kerf.config import Evaluation
from kerf.core.finite import check_finite
from kerf.data import corpora
from kerf.evaluate import common, fidelity
from kerf.evaluate.common import KNOWN_BY, group
from kerf.evaluate.protocol import Comparison, Figures, Table
from kerf.models.families import causal, lengths

NEEDS_BASELINE = False


@dataclass(frozen=True)
class EncoderInputs:
    """All evaluation texts, and the slice of the list that each set of texts is."""

    all: list[str]
    where: dict[str, slice]
    documents: dict[str, ndarray]  # of each sentence, and of each passage
    human: dict[str, tuple[ndarray, ndarray, list[float]]]  # left, right, score of each pair
    left_out: int = 0  # texts without any token


@common.cached
def gather(folder: Path, spec: Evaluation) -> EncoderInputs:
    """Sentences, retrieval queries and passages, and human-rated texts that have a token. Raises InputError for too few."""
    tokenizer = causal.tokenizer(folder)
    sampled = corpora.evaluation_sentences(spec.texts, spec.sentences)
    cloze = corpora.cloze_pairs(spec.passages)
    sentences, sentence_documents = lengths.rows_with_tokens(
        tokenizer, "evaluation.sentences", *sampled
    )
    queries, passages, passage_documents = lengths.rows_with_tokens(
        tokenizer, "evaluation.passages", *cloze
    )
    sets, human = {"sentences": sentences, "queries": queries, "passages": passages}, {}
    for name, rated in corpora.human_pairs().items():
        sets[name], left, right, scores = _known_pairs(tokenizer, *rated)
        human[name] = (np.array(left), np.array(right), scores)
    texts = [text for texts in sets.values() for text in texts]
    ends = zip(sets, accumulate(map(len, sets.values())), strict=True)
    where = {name: slice(end - len(sets[name]), end) for name, end in ends}
    owners = {"sentences": np.array(sentence_documents), "passages": np.array(passage_documents)}
    left_out = len(sampled[0]) - len(sentences) + len(cloze[0]) - len(passages)
    return EncoderInputs(texts, where, owners, human, left_out)


def _known_pairs(
    tokenizer: Any, texts: list[str], left: list[int], right: list[int], scores: list[float]
) -> tuple[list[str], list[int], list[int], list[float]]:
    """Human-rated pairs of texts that both have a token, as indices into the remaining texts."""
    known = np.array(lengths.have_tokens(tokenizer, texts))
    both, index = known[left] & known[right], np.cumsum(known) - 1
    remaining = [text for text, has_token in zip(texts, known, strict=True) if has_token]
    pairs = (index[left], index[right], np.array(scores))
    return remaining, *(column[both].tolist() for column in pairs)


def about(inputs: EncoderInputs) -> str:
    """One line that describes the evaluation texts."""
    counts = {name: where.stop - where.start for name, where in inputs.where.items()}
    pairs = sum(len(scores) for _, _, scores in inputs.human.values())
    return f"{counts} texts; {pairs} human-rated pairs{lengths.left_out_note(inputs.left_out)}"


def documents(inputs: EncoderInputs) -> int:
    """Number of independent documents, the units of the bootstrap."""
    return min(len(np.unique(owners)) for owners in inputs.documents.values())


def inference_request(inputs: EncoderInputs, noise_floor: bool) -> dict:
    """JSON for `run_inference`; noise_floor: in other batches than the first measurement."""
    return common.batched_request(inputs.all, noise_floor)


def run_inference(opened: Any, request: dict, folder: Path) -> dict:
    """Write the outputs for all texts to `folder`; returns timings in seconds."""
    return common.run_shuffled(opened.encode, request, folder)


def latency_input(inputs: EncoderInputs) -> list[str]:
    """JSON of one batch for `predict_once`."""
    return inputs.all[inputs.where["sentences"]][: common.BATCH_SIZE]


def predict_once(opened: Any, sentences: list[str]) -> None:
    """One forward pass, which latency is measured on."""
    opened.encode(sentences, batch_size=common.BATCH_SIZE, show_progress_bar=False)


def compare(comparison: Comparison, inputs: EncoderInputs) -> tuple[list[dict], dict]:
    """Metric rows and histograms; scores of every sentence, query and pair go to items.parquet."""
    before, after = (_embeddings(path, inputs) for path in (comparison.base, comparison.other))
    owners = inputs.documents["sentences"], inputs.documents["passages"]
    wiki = (before["passages"], after["passages"], owners[1])
    base, candidate = ((rows["queries"], rows["passages"]) for rows in (before, after))
    retrieval, ranks = fidelity.retrieval(base, candidate, owners[1])
    rows = fidelity.cosines(before["sentences"], after["sentences"], owners[0], wiki)
    rows += fidelity.similarities(before["sentences"], after["sentences"], owners[0])
    rows += fidelity.human(inputs.human, before, after) + retrieval
    common.write_items(comparison.folder, _items(inputs, before, after, ranks))
    return rows, _histograms(before["sentences"], after["sentences"])


def _embeddings(encoding: Path, inputs: EncoderInputs) -> dict[str, ndarray]:
    """Embeddings of length one, by set of texts."""
    rows = common.read_outputs(encoding)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return {name: rows[where] for name, where in inputs.where.items()}


def _items(inputs: EncoderInputs, before: dict, after: dict, ranks: ndarray) -> list:
    """Groups of items.parquet. before, after: embeddings by name. ranks: reciprocal ranks (queries, 2), baseline first."""
    texts = {name: inputs.all[where] for name, where in inputs.where.items()}
    brief = [shorten(text, KNOWN_BY, placeholder=" …") for text in texts["passages"]]
    sentence = {"document": inputs.documents["sentences"], "text": texts["sentences"]}
    passages = {"document": inputs.documents["passages"]}
    cosine, wiki = ((before[name] * after[name]).sum(1) for name in ("sentences", "passages"))
    same = fidelity.overlap(before["sentences"], after["sentences"])
    reciprocal = {"candidate": ranks[:, 1], "baseline": ranks[:, 0], "text": texts["queries"]}

    def pairs(metric: str, name: str, left: ndarray, right: ndarray, **more: Any) -> Any:
        models = before[name], after[name]
        old, new = (np.einsum("pf,pf->p", rows[left], rows[right]) for rows in models)
        return group(metric, baseline=old, candidate=new, left=left, right=right, **more)

    groups = [
        group("cosine", candidate=cosine, baseline=np.ones(len(cosine)), **sentence),
        group("cosine_wiki", candidate=wiki, baseline=np.ones(len(wiki)), **passages, text=brief),
        group("neighbours", candidate=same, baseline=np.ones(len(same)), **sentence),
        group("reciprocal_rank", **reciprocal, **passages),
        pairs("similarity", "sentences", *np.triu_indices(len(cosine), 1)),
    ]
    for name, (left, right, scores) in inputs.human.items():
        brief = [shorten(text, KNOWN_BY // 2, placeholder=" …") for text in texts[name]]
        both = [f"{brief[a]} | {brief[b]}" for a, b in zip(left, right, strict=True)]
        groups.append(pairs(f"human_{name}", name, left, right, score=scores, text=both))
    return groups


def _histograms(before: ndarray, after: ndarray) -> dict:
    """Counts of pairwise sentence similarities of both models, over the same edges."""
    upper = np.triu_indices(len(before), 1)
    values = [(rows @ rows.T)[upper] for rows in (before, after)]
    edges = np.linspace(np.min(values), np.max(values) + 1e-9, 61)
    counts = [np.histogram(similarities, edges)[0].tolist() for similarities in values]
    return {"edges": edges.tolist(), "baseline": counts[0], "candidate": counts[1]}


def glance(before: Any, after: Any, source: str) -> dict[str, float]:
    """Cosines of an opened candidate's embeddings with the baseline's, on a few sentences of the evaluation part."""
    sentences = corpora.evaluation_sentences(source, common.GLANCE_SIZE)[0]
    options = {"normalize_embeddings": True, "show_progress_bar": False}
    base, candidate = (opened.encode(sentences, **options) for opened in (before, after))
    check_finite(np.stack([base, candidate], 1), sentences)
    cosine = (base * candidate).sum(1)
    lowest, mean = float(cosine.min()), float(cosine.mean())
    return {"mean cosine": mean, "lowest": lowest, "sentences": len(cosine)}


def draw(folder: Path, picture: dict) -> Figures:
    """Figures of a comparison with their alternative texts; picture: what `compare` returned beside the rows."""
    from kerf.charts import plots

    cosine = common.read_items(folder, "cosine").candidate.tolist()
    alt = "Histogram: cosine similarity of all pairs of sentences, baseline and candidate."
    other_alt = "Line: cosine of every sentence to the baseline, sorted."
    return [(plots.similarity_distributions(picture), alt), (plots.cosines(cosine), other_alt)]


def worst(model: str, folder: Path, picture: dict) -> Table:
    """Table of the items that changed most."""
    lowest = common.read_items(folder, "cosine").sort_values("candidate").head(5)
    rows, formats = lowest[["candidate", "text"]], {"candidate": "{:.4f}"}
    return common.table(rows, "Five sentences that moved farthest", formatter=formats)


def conclusion(values: dict[str, dict], picture: dict) -> str:
    """The result in sentences; values: metric rows by name."""
    mean = values["cosine_mean"]
    lines = [f"Mean cosine {fidelity.formatted(mean)} on {mean['n']} sentences."]
    qualities = (("Agreement with people", "human_spearman"), ("Retrieval (MRR)", "retrieval_mrr"))
    for label, name in qualities:
        loss = values[f"{name}_loss"]
        change = fidelity.formatted(loss, -1, plus=True)
        lines.append(f"{label} {fidelity.direction(loss)}: difference {change}.")
    return "\n".join(lines)
