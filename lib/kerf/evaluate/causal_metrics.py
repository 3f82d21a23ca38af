"""Metrics of a language model from scores of its tokens: values, intervals over documents, and where it differs.

Tokens of one document are not independent, so intervals resample whole documents (`kerf.evaluate.stats`). A maximum has none.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy import ndarray
from scipy import stats

from kerf.core.cache import meta
from kerf.evaluate import stats as st
from kerf.evaluate.choices import Question, Sequence
from kerf.evaluate.common import KNOWN_BY, group
from kerf.evaluate.fidelity import Row, drawn, row

SCORE_COLUMNS = ("kl", "acceptance", "loss", "base_loss", "top", "same_top")
TOKEN_COLUMNS = (*SCORE_COLUMNS, "targets", "documents", "positions", "sources")
KL_QUANTILES = {"kl_median": 0.5, "kl_p90": 0.9, "kl_p99": 0.99, "kl_p999": 0.999}
CHANGE_QUANTILES = {"probability_change_p05": 0.05, "probability_change_p95": 0.95}
SPEEDS = ("prefill_tokens_per_second", "decode_tokens_per_second")
REPLICATES = 1000
WINDOW, WORST = 24, 10  # tokens of a stretch that is shown, and number of stretches
FREQUENCIES = ("once", "2 to 3 times", "4 to 15", "16 to 63", "64 to 255", "256 and more")


@dataclass(frozen=True)
class CausalInputs:
    """Chunks (chunks, seq_len) of all sources, the document of each of their tokens, passages of the first source (tokens, tokens
    of the last word), and questions of tasks with the sequences of their choices."""

    chunks: ndarray
    owners: ndarray
    sources: ndarray  # name of each chunk's source
    passages: list[tuple[list[int], int]]
    passage_owners: ndarray
    passage_ends: list[str]  # by which a reader recognizes a passage
    documents: list[str]
    left_out: int = 0  # documents without any token
    questions: tuple[Question, ...] = ()
    choices: tuple[Sequence, ...] = ()

    @property
    def all(self) -> list[str]:
        """Every text: documents, and questions with their right answers."""
        return [*self.documents, *(question.text for question in self.questions)]

    @property
    def scored(self) -> slice:
        """Positions of a chunk that are scored."""
        return slice(self.chunks.shape[1] // 2, None)


@dataclass(frozen=True)
class Scored:
    """Scores of every scored token, (tokens,) each, and of passages and continuations, of both models."""

    kl: ndarray
    acceptance: ndarray
    loss: ndarray
    base_loss: ndarray
    top: ndarray
    same_top: ndarray
    targets: ndarray
    documents: ndarray
    positions: ndarray
    sources: ndarray
    right: tuple[ndarray, ndarray]  # baseline, candidate
    passage_documents: ndarray
    continued: tuple[ndarray, ndarray]
    full: ndarray  # divergence over the whole vocabulary, of the first tokens
    speeds: tuple[dict, dict]
    choices: tuple[ndarray, ndarray]

    def of(self, source: str) -> "Scored":
        """The scores of one source's tokens."""
        mask = self.sources == source
        return replace(self, **{name: getattr(self, name)[mask] for name in TOKEN_COLUMNS})

    @classmethod
    def read(cls, inputs: CausalInputs, base: Path, other: Path) -> "Scored":
        """The outputs in two artifacts of `encode`."""
        from safetensors.numpy import load_file

        before, after = (load_file(folder / "answers.safetensors") for folder in (base, other))
        names, scored = (*SCORE_COLUMNS, "full"), inputs.scored
        positions = np.broadcast_to(np.arange(inputs.chunks.shape[1]), inputs.chunks.shape)
        return cls(
            **{name: after[name] for name in names},
            targets=inputs.chunks[:, scored].ravel(),
            documents=inputs.owners[:, scored].ravel(),
            positions=positions[:, scored].ravel(),
            sources=np.repeat(inputs.sources, positions[:, scored].shape[1]),
            right=(before["right"], after["right"]),
            passage_documents=inputs.passage_owners,
            continued=(before["continued"], after["continued"]),
            speeds=(meta(base)["result"], meta(other)["result"]),
            choices=(before["choices"], after["choices"]),
        )

    def items(self, inputs: CausalInputs) -> list:
        """Groups of items.parquet: tokens, known by their document; last words; lengths of common prefixes."""
        brief = [shorten(text, KNOWN_BY, placeholder=" …") for text in inputs.documents]
        text = np.array(brief)[self.documents]
        known = {"document": self.documents, "position": self.positions, "text": text}
        scores = {"candidate": self.loss, "baseline": self.base_loss, "same_top": self.same_top}
        scores |= {"kl": self.kl, "acceptance": self.acceptance}
        tokens = []
        for source in dict.fromkeys(self.sources.tolist()):
            mask = self.sources == source
            columns = {name: values[mask] for name, values in (known | scores).items()}
            tokens.append(group("kl", **columns, domain=source))
        passages = {"document": self.passage_documents, "text": inputs.passage_ends}
        base_right, right = self.right
        prefix, length = _common_prefix(*self.continued)
        prompts, lengths = np.arange(len(prefix)), np.full(len(prefix), length)
        return [
            *tokens,
            group("last_word", **passages, candidate=right, baseline=base_right),
            group("continuation", document=prompts, candidate=prefix, baseline=lengths),
        ]


def metrics(scored: Scored) -> list[Row]:
    """Perplexity, KL divergence and change of the correct token's probability, on one source's tokens."""
    tokens, n = st.Documents(scored.documents, REPLICATES), len(scored.kl)
    columns = (scored.kl, scored.loss, scored.base_loss, scored.same_top)
    kl, loss, base_loss, same_top = (column.astype(float) for column in columns)
    change = np.exp(-loss) - np.exp(-base_loss)
    with np.errstate(over="ignore"):  # beyond the largest float: the row is undefined
        perplexity, ratio = (tokens.means(x).map(np.exp) for x in (loss, loss - base_loss))
        base_perplexity = float(np.exp(base_loss.mean()))
    correlation = tokens.correlations(loss, base_loss)
    rms = tokens.means(change**2).map(np.sqrt)
    return [
        drawn("perplexity", perplexity, base_perplexity, n),
        drawn("perplexity_ratio", ratio, 1.0, n),
        drawn("loss_pearson", correlation, 1.0 if np.ptp(base_loss) else None, n),
        drawn("kl_mean", tokens.means(kl), 0.0, n),
        *(drawn(name, tokens.quantiles(kl, q), 0.0, n) for name, q in KL_QUANTILES.items()),
        row("kl_max", float(kl.max()), None, None, 0.0, n),
        drawn("same_top", tokens.means(same_top), 1.0, n),
        drawn("speculative_acceptance", tokens.means(scored.acceptance.astype(float)), 1.0, n),
        drawn("probability_change_mean", tokens.means(change), 0.0, n),
        drawn("probability_change_rms", rms, 0.0, n),
        *(drawn(name, tokens.quantiles(change, q), 0.0, n) for name, q in CHANGE_QUANTILES.items()),
    ]


def other_metrics(scored: Scored) -> list[Row]:
    """Last words and continuations."""
    return [*_last_words(scored), *_continuations(scored)]


def _last_words(scored: Scored) -> list[Row]:
    before, after = scored.right
    n = len(before)
    if not n:
        return []
    means = st.Documents(scored.passage_documents, REPLICATES).means(after.astype(float))
    paired = flips(before, after)
    return [
        drawn("last_word_accuracy", means, float(before.mean()), n) | paired,
        row("flips_lost", paired["lost"], None, None, 0, n),
        row("flips_gained", paired["gained"], None, None, 0, n),
    ]


def flips(before: ndarray, after: ndarray) -> dict[str, float]:
    """Paired yes/no items (items,): lost, gained, McNemar's exact p, and the smallest detectable difference."""
    lost, gained, p_value = st.mcnemar(before, after)
    smallest = detectable(len(before), lost + gained)
    return {"lost": lost, "gained": gained, "mcnemar_p": p_value, "detectable": smallest}


def detectable(n: int, flips: int) -> float:
    """The smallest true difference in accuracy that n paired items, of which `flips` changed, would have shown.

    With 80 % power at the 5 % level, two-sided: (z + z') sqrt(flips) / n, where at least one flip is assumed
    (Connor 1987, Biometrics 43, the unconditional approximation for McNemar's test).
    """
    return float((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * math.sqrt(max(flips, 1)) / n)


def _continuations(scored: Scored) -> list[Row]:
    prefix, length = _common_prefix(*scored.continued)
    count, whole = len(prefix), (prefix == length).astype(float)
    prompts = st.Documents(np.arange(count), REPLICATES)
    before, after = scored.speeds
    return [
        drawn("continuation_prefix", prompts.means(prefix), float(length), count),
        drawn("continuation_exact", prompts.means(whole), 1.0, count),
        *(row(name, after[name], None, None, before[name], 1) for name in SPEEDS),
    ]


def _common_prefix(before: ndarray, after: ndarray) -> tuple[ndarray, int]:
    """Tokens of each continuation before the first that differs, (prompts,), and the length of all."""
    same = before == after
    length = same.shape[1]
    return np.where(same.all(1), length, same.argmin(1)).astype(float), length


def pictures(scored: Scored) -> dict[str, Any]:
    """Where the models differ: mean KL by position and by frequency of a token, and the WORST stretches of WINDOW tokens.

    `storage`: mean KL from the stored most probable tokens of the baseline, and over the whole vocabulary.
    """
    kl, positions = scored.kl, scored.positions
    edges = np.linspace(positions.min(), positions.max() + 1, 17)
    by_position = _by_bin(kl, np.digitize(positions, edges) - 1)
    _, inverse, counts = np.unique(scored.targets, return_inverse=True, return_counts=True)
    by_frequency = _by_bin(kl, np.digitize(counts[inverse], [2, 4, 16, 64, 256]))
    columns = (kl, scored.documents, scored.targets, scored.top, scored.same_top == 0)
    stretches = [x[: len(x) // WINDOW * WINDOW].reshape(-1, WINDOW) for x in columns]
    worst = []
    for i in np.argsort(-stretches[0].mean(1))[:WORST]:
        _, documents, tokens, predicted, changed = (column[i].tolist() for column in stretches)
        stretch = {"kl": float(stretches[0][i].mean()), "document": documents[0], "tokens": tokens}
        worst.append(stretch | {"predicted": predicted, "changed": changed})
    stored, whole = float(kl[: len(scored.full)].mean()), float(scored.full.mean())
    return {
        "by_position": [{"from": int(edges[i]), "kl": mean} for i, _, mean in by_position],
        "by_frequency": [
            {"count": FREQUENCIES[i], "tokens": n, "kl": mean} for i, n, mean in by_frequency
        ],
        "worst": worst,
        "cache": scored.speeds[1].get("cache", []),
        "storage": {"tokens": len(scored.full), "kept": stored, "whole": whole},
    }


def _by_bin(kl: ndarray, bins: ndarray) -> list[tuple[int, int, float]]:
    """(bin, tokens, mean KL) of the bins that hold tokens."""
    tokens = {int(index): kl[bins == index] for index in np.unique(bins)}
    return [(index, len(values), float(values.mean())) for index, values in tokens.items()]
