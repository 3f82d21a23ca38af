"""Encoders: embeddings of the same texts by baseline and candidate, and how they differ."""

from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy import ndarray

from kerf.core.finite import check_finite
from kerf.data import corpora
from kerf.evaluate import common, fidelity, retrieval
from kerf.evaluate.choices import is_above
from kerf.evaluate.common import KNOWN_BY, group
from kerf.evaluate.encoder_inputs import EncoderInputs, Key
from kerf.evaluate.encoder_inputs import about as about
from kerf.evaluate.encoder_inputs import documents as documents
from kerf.evaluate.encoder_inputs import gather as gather
from kerf.evaluate.protocol import Comparison, Figures, Table
from kerf.models.families import encoder

NEEDS_BASELINE = False
# By the role of a text: a model may have a prompt for queries and another one for passages.
ENCODERS = {
    "query": encoder.encode_queries,
    "document": encoder.encode_documents,
    "": encoder.encode_texts,
}
Embedded = dict[Key, ndarray]  # rows of length one, by set of texts


def inference_request(inputs: EncoderInputs, noise_floor: bool, everything: bool) -> dict:
    """JSON for `run_inference`; noise_floor: in other batches than the first measurement."""
    texts = inputs.all if everything else inputs.all[: inputs.shared]
    pairs = list(zip(inputs.roles(), texts, strict=False))
    return common.batched_request(pairs, noise_floor)


def run_inference(opened: Any, request: dict, folder: Path) -> dict:
    """Write the outputs for all texts to `folder`; returns timings in seconds."""

    def predict(pairs: list[tuple[str, str]], **options: Any) -> ndarray:
        rows = np.empty((len(pairs), 0), np.float32)
        for role, encode in ENCODERS.items():
            places = [number for number, (own, _) in enumerate(pairs) if own == role]
            if not places:
                continue
            part = encode(opened, [pairs[number][1] for number in places], **options)
            rows = rows if rows.size else np.empty((len(pairs), part.shape[1]), np.float32)
            rows[places] = part
        return rows

    return common.run_shuffled(predict, request, folder)


def latency_input(inputs: EncoderInputs) -> list[str]:
    """JSON of one batch for `predict_once`."""
    first = inputs.names("sentences")[0]
    return inputs.all[inputs.where["sentences", first]][: common.BATCH_SIZE]


def predict_once(opened: Any, sentences: list[str]) -> None:
    """One forward pass, which latency is measured on."""
    opened.encode(sentences, batch_size=common.BATCH_SIZE, show_progress_bar=False)


def compare(comparison: Comparison, inputs: EncoderInputs) -> tuple[list[dict], dict]:
    """Metric rows and histograms; scores of every sentence, query and pair go to items.parquet."""
    sides = [_embeddings(path, inputs) for path in (comparison.base, comparison.other)]
    (before, after), rows, groups = sides, [], []
    for name in inputs.names("sentences"):
        own, table = _sentences(name, inputs, before, after)
        rows += common.of_domain(own, name)
        groups += table
    for name in inputs.names("compared"):
        own = fidelity.rated(*inputs.human["compared", name], *(s["compared", name] for s in sides))
        rows += common.of_domain(own, name)
    people = {name: inputs.human["rated", name] for name in inputs.names("rated")}
    rows += fidelity.human(people, *(_of_role("rated", side) for side in sides))
    groups += _rated(inputs, before, after)
    for name in inputs.names("queries"):
        own, table = _retrieval(name, inputs, before, after)
        rows += common.of_domain(own, name)
        groups += table
    for name in inputs.names("tested"):
        own, table = _classes(name, inputs, before, after)
        rows += common.of_domain(own, name)
        groups += table
    common.write_items(comparison.folder, groups)
    first = inputs.names("sentences")[0]
    return rows, _histograms(before["sentences", first], after["sentences", first])


def _embeddings(encoding: Path, inputs: EncoderInputs) -> Embedded:
    rows = common.read_outputs(encoding)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return {key: rows[where] for key, where in inputs.where.items() if where.stop <= len(rows)}


def _of_role(role: str, embedded: Embedded) -> dict[str, ndarray]:
    return {name: rows for (own, name), rows in embedded.items() if own == role}


def _sentences(name: str, inputs: EncoderInputs, before: Embedded, after: Embedded) -> tuple:
    """Metric rows and groups of items of the sentences of one source."""
    key = ("sentences", name)
    base, candidate, owners = before[key], after[key], inputs.documents[key]
    rows = fidelity.cosines(base, candidate, owners)
    rows += fidelity.similarities(base, candidate, owners)
    columns = {"document": owners, "text": inputs.all[inputs.where[key]], "domain": name}
    cosine, same = (base * candidate).sum(1), fidelity.overlap(base, candidate)
    left, right = np.triu_indices(len(base), 1)
    return rows, [
        group("cosine", candidate=cosine, baseline=np.ones(len(cosine)), **columns),
        group("neighbours", candidate=same, baseline=np.ones(len(same)), **columns),
        _pairs("similarity", base, candidate, left, right, domain=name),
    ]


def _pairs(
    metric: str, base: ndarray, candidate: ndarray, left: ndarray, right: ndarray, **more: Any
) -> Any:
    old, new = (np.einsum("pf,pf->p", rows[left], rows[right]) for rows in (base, candidate))
    return group(metric, baseline=old, candidate=new, left=left, right=right, **more)


def _rated(inputs: EncoderInputs, before: Embedded, after: Embedded) -> list:
    groups = []
    for key, (left, right, scores) in inputs.human.items():
        (role, name), texts = key, inputs.all[inputs.where[key]]
        brief = [shorten(text, KNOWN_BY // 2, placeholder=" …") for text in texts]
        both = [f"{brief[a]} | {brief[b]}" for a, b in zip(left, right, strict=True)]
        pairs = {"score": scores, "text": both, **({"domain": name} if role == "compared" else {})}
        metric = "human" if role == "compared" else f"human_{name}"
        groups.append(_pairs(metric, before[key], after[key], left, right, **pairs))
    return groups


def _retrieval(name: str, inputs: EncoderInputs, before: Embedded, after: Embedded) -> tuple:
    """Metric rows and groups of items of one collection; the index of the baseline has all its passages."""
    queries, relevant = ("queries", name), inputs.relevant[name]
    owners = inputs.documents[queries]
    text = np.array(inputs.all[inputs.where[queries]])
    index = np.concatenate([before["passages", name], before["other_passages", name]])
    similar = [side[queries] @ index.T for side in (before, after)]
    old, new = (retrieval.scores(own, relevant) for own in similar)
    overlap = retrieval.first_kept(*similar)
    rows = retrieval.drop_in(old, new, overlap, owners)
    known = {"document": owners, "text": text, "domain": name}
    ones = np.ones(len(overlap))
    groups = [
        group("drop_in_ndcg_10", candidate=new["ndcg_10"], baseline=old["ndcg_10"], **known),
        group("drop_in_overlap_10", candidate=overlap, baseline=ones, **known),
    ]
    chosen = retrieval.within(relevant, len(before["passages", name]))
    if not len(chosen):
        return rows, groups
    both = [side[queries][chosen] @ side["passages", name].T for side in (before, after)]
    old, new = (retrieval.scores(own, [relevant[q] for q in chosen]) for own in both)
    rows += retrieval.re_index(old, new, owners[chosen])
    known = {"document": owners[chosen], "text": text[chosen], "domain": name}
    return rows, groups + [group(m, candidate=new[m], baseline=old[m], **known) for m in old]


def _classes(name: str, inputs: EncoderInputs, before: Embedded, after: Embedded) -> tuple:
    """Metric rows and items of a linear probe: fitted to the baseline's embeddings, applied to both models'."""
    from sklearn.linear_model import LogisticRegression

    fitted, tested = ("fitted", name), ("tested", name)
    # Rows have length one, so weights have to be larger than at the default C of 1.
    probe = LogisticRegression(C=10, max_iter=1000).fit(before[fitted], inputs.labels[fitted])
    truth, text = np.array(inputs.labels[tested]), inputs.all[inputs.where[tested]]
    predicted = [probe.predict(side[tested]) for side in (before, after)]
    old, new = (classes == truth for classes in predicted)
    owners, changed = np.arange(len(truth)), (old != new).astype(float)
    rows = fidelity.mean_and_loss("probe_accuracy", old.astype(float), new.astype(float), owners)
    rows[0] |= fidelity.flips(old, new)
    rows.append(fidelity.mean("probe_flips", changed, owners, 0.0))
    largest = np.unique(truth, return_counts=True)[1].max()  # what guessing one class gets
    chance = float(largest / len(truth))
    rows = [{**row, "evidence": is_above(old, chance)} for row in rows]
    known = {"document": owners, "text": text, "domain": name}
    return rows, [
        group("probe_accuracy", candidate=new, baseline=old, **known, label=truth.tolist()),
        group("probe_flips", candidate=changed, baseline=np.zeros(len(owners)), **known),
    ]


def _histograms(before: ndarray, after: ndarray) -> dict:
    """Counts of pairwise sentence similarities of both models, over the same edges."""
    upper = np.triu_indices(len(before), 1)
    values = [(rows @ rows.T)[upper] for rows in (before, after)]
    edges = np.linspace(np.min(values), np.max(values) + 1e-9, 61)
    counts = [np.histogram(similarities, edges)[0].tolist() for similarities in values]
    return {"edges": edges.tolist(), "baseline": counts[0], "candidate": counts[1]}


def glance(before: Any, after: Any, source: corpora.Texts) -> dict[str, float]:
    """Cosines of an opened candidate's embeddings with the baseline's, on a few sentences of the evaluation part."""
    sentences = corpora.evaluation_sentences(corpora.names_of(source)[0], common.GLANCE_SIZE)[0]
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
    rows, formats = lowest[["candidate", "domain", "text"]], {"candidate": "{:.4f}"}
    return common.table(rows, "Five sentences that moved farthest", formatter=formats)


def conclusion(values: dict[str, dict], picture: dict) -> str:
    """The result in sentences; values: metric rows by name, of the worst domain."""
    mean = values["cosine_mean"]
    where = f"{mean['n']} sentences of {mean['domain']}"
    lines = [f"Mean cosine {fidelity.formatted(mean)} on {where}, the worst source."]
    qualities = (
        ("Agreement with people", "human_spearman_loss"),
        ("Retrieval (nDCG@10) with the baseline's index", "drop_in_ndcg_10_loss"),
        ("Retrieval (nDCG@10) with an index of its own", "ndcg_10_loss"),
        ("Accuracy of a linear probe", "probe_accuracy_loss"),
    )
    for label, name in qualities:
        if loss := values.get(name):
            domain = f" on {loss['domain']}" if loss.get("domain") else ""
            change = fidelity.formatted(loss, -1, plus=True)
            lines.append(f"{label}{domain} {fidelity.direction(loss)}: difference {change}.")
    return "\n".join(lines)
