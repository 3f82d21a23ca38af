"""Metrics of a language model from scores of its tokens: values, intervals over documents, and where it differs.

Tokens of one document are not independent, so every interval comes from drawing whole documents (`kerf.evaluate.stats`).
A maximum carries none.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
from scipy import stats

from kerf.core.cache import meta
from kerf.evaluate import stats as st
from kerf.evaluate.fidelity import drawn, row
from kerf.evaluate.per_item_scores import KNOWN_BY, group

QUANTILES = {"kl_median": 0.5, "kl_p90": 0.9, "kl_p99": 0.99, "kl_p999": 0.999}
REPLICATES = 1000
WINDOW, WORST = 24, 10  # tokens of a passage that is shown, and how many are


@dataclass(frozen=True)
class Scored:
    """Scores of every scored token, (tokens,) each, and of passages and continuations, of both models."""

    kl: np.ndarray
    loss: np.ndarray
    base_loss: np.ndarray
    top: np.ndarray
    same_top: np.ndarray
    targets: np.ndarray
    documents: np.ndarray
    positions: np.ndarray
    right: tuple[np.ndarray, np.ndarray]  # baseline, candidate
    passage_documents: np.ndarray
    continued: tuple[np.ndarray, np.ndarray]
    full: np.ndarray  # divergence over the whole vocabulary, of the first tokens
    speeds: tuple[dict, dict]

    @classmethod
    def read(cls, everything, base: Path, other: Path) -> "Scored":
        """The answers in two artifacts of `encode`, to the texts `everything`."""
        from safetensors.numpy import load_file

        before, after = (load_file(folder / "answers.safetensors") for folder in (base, other))
        scored = everything.scored
        places = np.broadcast_to(np.arange(everything.chunks.shape[1]), everything.chunks.shape)
        return cls(
            **{
                name: after[name] for name in ("kl", "loss", "base_loss", "top", "same_top", "full")
            },
            targets=everything.chunks[:, scored].ravel(),
            documents=everything.owners[:, scored].ravel(),
            positions=places[:, scored].ravel(),
            right=(before["right"], after["right"]),
            passage_documents=everything.passage_owners,
            continued=(before["continued"], after["continued"]),
            speeds=(meta(base)["result"], meta(other)["result"]),
        )

    def items(self, everything) -> list:
        """Groups of `kerf.evaluate.per_item_scores`: a token's divergence and losses, a passage's answers, how far continuations agree.

        everything: the texts that were asked; a token is known by the document it stands in.
        """
        known = np.array(
            [shorten(document, KNOWN_BY, placeholder=" …") for document in everything.all]
        )
        prefix, length = _alike(self.continued)
        return [
            group(
                "kl",
                document=self.documents,
                position=self.positions,
                text=known[self.documents],
                kl=self.kl,
                candidate=self.loss,
                baseline=self.base_loss,
                same_top=self.same_top,
            ),
            group(
                "last_word",
                document=self.passage_documents,
                text=everything.asked,
                candidate=self.right[1],
                baseline=self.right[0],
            ),
            group(
                "continuation",
                document=np.arange(len(prefix)),
                candidate=prefix,
                baseline=np.full(len(prefix), length),
            ),
        ]


def metrics(scored: Scored) -> list[dict]:
    """Every metric of a candidate as a row: name, value, low, high, baseline, n."""
    documents = st.Documents(scored.documents, REPLICATES)
    return [
        *_likelihood(scored, documents),
        *_divergence(scored, documents),
        *_probability(scored, documents),
        *_last_word(scored),
        *_continuations(scored),
    ]


def _likelihood(scored, documents) -> list[dict]:
    loss, base, n = scored.loss.astype(float), scored.base_loss.astype(float), len(scored.loss)
    with np.errstate(over="ignore"):  # beyond the largest float: the row says that it is undefined
        own, ratio = (documents.means(each).map(np.exp) for each in (loss, loss - base))
        usual = float(np.exp(base.mean()))
    return [
        drawn("perplexity", own, usual, n),
        drawn("perplexity_ratio", ratio, 1.0, n),
        drawn("loss_pearson", documents.correlations(loss, base), 1.0 if np.ptp(base) else None, n),
    ]


def _quantiles(documents, values, of: dict, n: int) -> list[dict]:
    return [drawn(name, documents.quantiles(values, q), 0.0, n) for name, q in of.items()]


def _divergence(scored, documents) -> list[dict]:
    kl, n = scored.kl.astype(float), len(scored.kl)
    return [
        drawn("kl_mean", documents.means(kl), 0.0, n),
        *_quantiles(documents, kl, QUANTILES, n),
        row("kl_max", float(kl.max()), None, None, 0.0, n),
        drawn("same_top", documents.means(scored.same_top.astype(float)), 1.0, n),
    ]


def _probability(scored, documents) -> list[dict]:
    """Change of the correct token's probability: mean, root mean square, 5th and 95th percentile."""
    change, n = (
        np.exp(-scored.loss.astype(float)) - np.exp(-scored.base_loss.astype(float)),
        len(scored.loss),
    )
    return [
        drawn("probability_change_mean", documents.means(change), 0.0, n),
        drawn("probability_change_rms", documents.means(change**2).map(np.sqrt), 0.0, n),
        *_quantiles(
            documents, change, {"probability_change_p05": 0.05, "probability_change_p95": 0.95}, n
        ),
    ]


def _last_word(scored) -> list[dict]:
    before, after = scored.right
    if not len(before):
        return []
    lost, gained, p_value = st.mcnemar(before, after)
    n = len(before)
    means = st.Documents(scored.passage_documents, REPLICATES).means(after.astype(float))
    accuracy = drawn("last_word_accuracy", means, float(before.mean()), n)
    told = {
        "lost": lost,
        "gained": gained,
        "mcnemar_p": p_value,
        "detectable": detectable(n, lost + gained),
    }
    return [
        accuracy | told,
        row("flips_lost", lost, None, None, 0, n),
        row("flips_gained", gained, None, None, 0, n),
    ]


def detectable(n: int, flips: int) -> float:
    """The smallest true difference in accuracy that n paired items, of which `flips` changed, would have shown.

    With 80 % power at the 5 % level, two-sided: (z + z') sqrt(flips) / n, where at least one flip is assumed
    (Connor 1987, Biometrics 43, the unconditional approximation for McNemar's test).
    """
    return float((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * math.sqrt(max(flips, 1)) / n)


def _continuations(scored) -> list[dict]:
    prefix, length = _alike(scored.continued)
    prompts, whole = (
        st.Documents(np.arange(len(prefix)), REPLICATES),
        (prefix == length).astype(float),
    )
    before, after = scored.speeds
    speeds = [
        row(name, after[name], None, None, before[name], 1)
        for name in ("prefill_tokens_per_second", "decode_tokens_per_second")
    ]
    return [
        drawn("continuation_prefix", prompts.means(prefix), float(length), len(prefix)),
        drawn("continuation_exact", prompts.means(whole), 1.0, len(prefix)),
        *speeds,
    ]


def _alike(continued) -> tuple[np.ndarray, int]:
    """How many tokens of each continuation are the same until one differs, and how many there are."""
    same = continued[0] == continued[1]
    return np.where(same.all(1), same.shape[1], same.argmin(1)).astype(float), same.shape[1]


def pictures(scored: Scored) -> dict:
    """Where the models differ: mean divergence by position and by how frequent a token is, and the worst stretches.

    `storage`: what keeping only the most probable tokens of the baseline costs the mean divergence.
    """
    edges = np.linspace(scored.positions.min(), scored.positions.max() + 1, 17)
    place = np.digitize(scored.positions, edges) - 1
    _, inverse, counts = np.unique(scored.targets, return_inverse=True, return_counts=True)
    rarity = np.digitize(counts[inverse], [2, 4, 16, 64, 256])
    names = ["once", "2 to 3 times", "4 to 15", "16 to 63", "64 to 255", "256 and more"]
    return {
        "by_position": [
            {"from": int(edges[i]), "kl": float(scored.kl[place == i].mean())}
            for i in range(16)
            if (place == i).any()
        ],
        "by_frequency": [
            {
                "count": names[i],
                "tokens": int((rarity == i).sum()),
                "kl": float(scored.kl[rarity == i].mean()),
            }
            for i in range(6)
            if (rarity == i).any()
        ],
        "worst": _worst(scored),
        "cache": scored.speeds[1].get("cache", []),
        "storage": {
            "tokens": len(scored.full),
            "kept": float(scored.kl[: len(scored.full)].mean()),
            "whole": float(scored.full.mean()),
        },
    }


def _worst(scored) -> list[dict]:
    """Stretches of WINDOW tokens with the highest mean divergence: tokens, and what each model would have said."""
    starts = np.arange(0, len(scored.kl) - WINDOW + 1, WINDOW)
    means = scored.kl[: len(starts) * WINDOW].reshape(-1, WINDOW).mean(1)
    rows = []
    for start in starts[np.argsort(-means)[:WORST]]:
        here = slice(start, start + WINDOW)
        rows.append(
            {
                "kl": float(scored.kl[here].mean()),
                "document": int(scored.documents[start]),
                "tokens": scored.targets[here].tolist(),
                "said": scored.top[here].tolist(),
                "changed": (~scored.same_top[here].astype(bool)).tolist(),
            }
        )
    return rows
