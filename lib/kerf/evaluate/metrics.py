"""The metrics: names, what they mean, and which direction is better. Names keep their meaning for ever.

`perfect` is the value of a candidate that lost nothing; grades are shares of the way from it to a
threshold. `gated` is False for what carries no interval by nature (a minimum).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric as reports and criteria know it."""

    label: str
    doc: str
    better: str = "higher"
    unit: str = ""
    perfect: float | None = None
    gated: bool = True


METRICS = {
    "cosine_mean": Metric("mean cosine", "Cosine of each sentence's embedding to the baseline's, mean.", perfect=1.0),
    "cosine_p01": Metric("cosine, 1st percentile", "Cosine that 99 % of sentences exceed.", perfect=1.0),
    "cosine_min": Metric("cosine, minimum", "The worst sentence. No interval, never gated.", gated=False),
    "cosine_mean_wiki": Metric("mean cosine on wiki", "The same on passages of another domain.", perfect=1.0),
    "similarity_spearman": Metric(
        "similarity Spearman",
        "Spearman correlation of all pairwise sentence similarities, candidate against baseline.",
        perfect=1.0,
    ),
    "neighbours_10": Metric(
        "nearest 10 kept", "Share of a sentence's ten nearest neighbours that are the baseline's.", perfect=1.0
    ),
    "human_spearman": Metric(
        "human Spearman", "Spearman correlation to human similarity scores, mean of Lee, WordSim and SimLex."
    ),
    "human_spearman_lee": Metric("human Spearman, Lee", "1,225 pairs of news items rated by people."),
    "human_spearman_wordsim": Metric("human Spearman, WordSim", "353 pairs of words rated by people."),
    "human_spearman_simlex": Metric("human Spearman, SimLex", "999 pairs of words rated by people."),
    "human_spearman_loss": Metric(
        "human Spearman lost", "Baseline's human Spearman minus the candidate's, paired.", "lower", perfect=0.0
    ),
    "retrieval_mrr": Metric("retrieval MRR", "Mean reciprocal rank of a query's own passage (inverse cloze)."),
    "retrieval_mrr_loss": Metric(
        "retrieval MRR lost", "Baseline's MRR minus the candidate's, paired.", "lower", perfect=0.0
    ),
    "retrieval_recall_1": Metric("retrieval recall@1", "Share of queries whose own passage comes first."),
    "ndcg_10": Metric("nDCG@10", "Of shortlists that a reranker puts in order, one right passage in each."),
    "ndcg_10_loss": Metric("nDCG@10 lost", "Baseline's nDCG@10 minus the candidate's, paired.", "lower", perfect=0.0),
    "mrr": Metric("MRR of the reranker", "Mean reciprocal rank of the right passage of a shortlist."),
    "mrr_loss": Metric("MRR lost", "Baseline's MRR minus the candidate's, paired.", "lower", perfect=0.0),
    "same_first": Metric("same first passage", "Share of shortlists of which both models put the same passage first.", perfect=1.0),
    "first_right": Metric("right passage first", "Share of shortlists whose right passage comes first."),
    "top_3_kept": Metric("first 3 kept", "Share of a shortlist's first three passages that are the baseline's.", perfect=1.0),
    "order_kendall": Metric("order kept", "Kendall's tau of the order of a shortlist, candidate against baseline, mean.", perfect=1.0),
    "score_change_rms": Metric("change of score, RMS", "Root mean square over all pairs.", "lower", perfect=0.0),
    "score_spearman": Metric(
        "score Spearman", "Spearman correlation of the scores of all pairs, candidate against baseline.", perfect=1.0
    ),
    "perplexity": Metric("perplexity", "exp of the mean loss of a token, second half of each chunk.", "lower"),
    "perplexity_ratio": Metric(
        "perplexity ratio", "Candidate's perplexity over the baseline's, same tokens, paired.", "lower", perfect=1.0
    ),
    "loss_pearson": Metric("correlation of losses", "Pearson correlation of both models' loss of a token.", perfect=1.0),
    "kl_mean": Metric("mean KL divergence", "KL(baseline || candidate) of the next token, nats, mean.", "lower", perfect=0.0),
    "kl_median": Metric("median KL divergence", "Of half the tokens it is less.", "lower", perfect=0.0),
    "kl_p90": Metric("KL divergence, 90 %", "Of 90 % of the tokens it is less.", "lower", perfect=0.0),
    "kl_p99": Metric("KL divergence, 99 %", "Of 99 % of the tokens it is less.", "lower", perfect=0.0),
    "kl_p999": Metric("KL divergence, 99.9 %", "Of 99.9 % of the tokens it is less.", "lower", perfect=0.0),
    "kl_max": Metric("KL divergence, maximum", "The worst token. No interval, never gated.", "lower", gated=False),
    "same_top": Metric("same top token", "Share of tokens for which both models find the same one most probable.", perfect=1.0),
    "probability_change_mean": Metric("change of probability", "Of the token that really came, mean.", perfect=0.0),
    "probability_change_rms": Metric(
        "change of probability, RMS", "Root mean square over tokens.", "lower", perfect=0.0
    ),
    "probability_change_p05": Metric("change of probability, 5 %", "Its 5th percentile: what was lost.", perfect=0.0),
    "probability_change_p95": Metric("change of probability, 95 %", "Its 95th percentile: what was gained.", perfect=0.0),
    "last_word_accuracy": Metric("last words", "Share of passages whose last word is the most probable one."),
    "flips_lost": Metric("last words lost", "Right before, wrong after. A count, never gated.", "lower", gated=False),
    "flips_gained": Metric("last words gained", "Wrong before, right after. A count, never gated.", gated=False),
    "continuation_prefix": Metric("tokens continued alike", "Of a greedy continuation, until the first that differs."),
    "continuation_exact": Metric("continuations kept", "Share of greedy continuations that are the same.", perfect=1.0),
    "prefill_tokens_per_second": Metric("prefill", "Tokens a second, reading and scoring. One run, never gated.", gated=False),
    "decode_tokens_per_second": Metric("decode", "Tokens a second, continuing greedily. One run, never gated.", gated=False),
    "rss_peak_bytes": Metric(
        "peak resident memory", "Of a fresh process that loads the model and encodes.", "lower", "bytes"
    ),
    "speedup": Metric("times faster", "Baseline's seconds over the candidate's: one batch, in turn, in one process; median."),
    "load_seconds": Metric("load time", "Warm median of fresh processes, imports apart.", "lower", "s"),
    # Figures of a candidate itself: exact, or measured once.
    "bytes_on_disk": Metric("weight files", "Bytes of the weight files.", "lower", "bytes"),
    "bits_per_weight": Metric("bits per weight", "8 x bytes on disk over the baseline's parameters.", "lower"),
    "linear_bits": Metric("bits per linear weight", "Codes, scales and zeros of the linear layers.", "lower"),
    "compression_ratio": Metric("compression ratio", "Baseline's weight bytes over the candidate's."),
    "compress_seconds": Metric("time to compress", "Load, quantize, pack and write; imports apart.", "lower", "s"),
    "compress_peak_rss_bytes": Metric("peak memory to compress", "Of the compressing process.", "lower", "bytes"),
}
FIGURES = ("bytes_on_disk", "bits_per_weight", "linear_bits", "compression_ratio", "compress_seconds",
           "compress_peak_rss_bytes")  # fmt: skip
