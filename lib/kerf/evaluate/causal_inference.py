"""Inference on a causal language model in the measured process: token scores, last words, continuations, KV cache."""

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerf.core.finite import check_finite
from kerf.models.families.lengths import positions
from kerf.models.hooks import attached, on_outputs

if TYPE_CHECKING:
    import torch

PROMPTS, PROMPT, CONTINUED = 16, 32, 32  # continuations: number, tokens of the prompt, new tokens


def run_inference(opened: Any, request: dict, folder: Path) -> dict:
    """Write answers.safetensors (see `kerf.evaluate.likelihood`) in the order of the request. Returns seconds and speeds."""
    import torch
    from safetensors.torch import save_file

    chunks, batch_tokens = torch.tensor(request["chunks"]), request["batch_tokens"]
    order = np.random.default_rng(request["seed"]).permutation(len(chunks))
    batch_size = max(1, batch_tokens // chunks.shape[1])
    is_baseline = "base" not in request
    base = folder if is_baseline else Path(request["base"])
    with torch.inference_mode():
        clock = time.perf_counter()
        outputs, forward_seconds = score(opened, chunks, order, batch_size, base, is_baseline)
        seconds = time.perf_counter() - clock
        outputs["right"] = _last_words(opened, request["passages"], batch_tokens)
        outputs["choices"] = _choices(opened, request["choices"], batch_tokens)
        clock = time.perf_counter()
        outputs["continued"] = _continue(opened, chunks[:PROMPTS, :PROMPT])
        decode_seconds = time.perf_counter() - clock
        lengths = np.linspace(0, chunks.shape[1], 5, dtype=int)[1:].tolist()
        cache = [_kv_cache(opened, chunks[:1, :length]) for length in lengths]
    save_file(outputs, folder / "answers.safetensors")
    return {
        "encode_seconds": seconds,
        "prefill_tokens_per_second": chunks.numel() / forward_seconds,
        "decode_tokens_per_second": outputs["continued"].numel() / decode_seconds,
        "cache": cache,
    }


def last_logits(opened: Any, ids: "torch.Tensor", count: int) -> "torch.Tensor":
    """Logits (texts, count, vocabulary) that predict the last `count` tokens of ids (texts, tokens), on the model's device."""
    import torch

    ids = ids.to(opened.device)
    logits = opened(ids, use_cache=False, logits_to_keep=count + 1).logits[:, :-1]
    if ids.device.type != "cpu":
        torch.accelerator.synchronize()  # the caller may be timing this
    return logits


def score(
    opened: Any, chunks: "torch.Tensor", order: np.ndarray, size: int, base: Path, is_baseline: bool
) -> tuple[dict[str, "torch.Tensor"], float]:
    """Scores of every scored token against the baseline, in the order of the chunks, and the seconds of all forward passes.

    The model reads the chunks in `order`, `size` at a time. base: folder of the baseline's outputs, which are written there
    if the model is the baseline.
    """
    import torch

    from kerf.evaluate import likelihood

    half = chunks.shape[1] // 2
    count, forward_seconds = chunks.shape[1] - half, 0.0
    top = min(likelihood.TOP, len(opened.get_output_embeddings().weight)) if is_baseline else None
    stored, exact = likelihood.BaselineLogits(base, top), base / "exact.npy"
    scores: dict[int, dict[str, torch.Tensor]] = {}
    for start in range(0, len(order), size):
        numbers = order[start : start + size].tolist()
        clock = time.perf_counter()
        batch = last_logits(opened, chunks[numbers], count)
        forward_seconds += time.perf_counter() - clock
        if not batch.isfinite().all():
            layer = _first_broken_layer(opened, chunks[numbers])
            raise ValueError(f"the model gives NaN or infinity, from {layer} on")
        for number, logits in zip(numbers, batch, strict=True):
            targets, head = chunks[number, half:], logits[: likelihood.EXACT]
            if is_baseline:
                stored.write(
                    number * count, likelihood.top_log_probabilities(logits, targets, stored.top)
                )
            if is_baseline and number == 0:
                np.save(exact, likelihood.log_probabilities(head).cpu().numpy())
            baseline = stored.read(number * count, count)
            scores[number] = likelihood.compare_to_baseline(baseline, logits, targets)
            if number == 0:
                full = likelihood.full_divergence(torch.from_numpy(np.load(exact)), head)
    outputs = likelihood.joined([scores[number] for number in range(len(chunks))])
    return {**outputs, "full": full}, forward_seconds


def _first_broken_layer(opened: Any, ids: "torch.Tensor") -> str:
    """Name of the first layer whose output holds NaN or infinity."""
    import torch

    broken = []

    def look(name: str, _: tuple, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        is_float = isinstance(output, torch.Tensor) and output.is_floating_point()
        if is_float and not output.isfinite().all():
            broken.append(name)

    leaves = {n: module for n, module in opened.named_modules() if not any(module.children())}
    with attached(on_outputs(leaves, look)):
        last_logits(opened, ids, 1)
    return broken[0] if broken else "between two layers"


def _last_words(opened: Any, passages: list, batch_tokens: int) -> "torch.Tensor":
    """Whether every token of the last word is the most probable one, (passages,). passages: (tokens, tokens of the last word)."""
    import torch

    right = torch.zeros(len(passages), dtype=torch.bool)
    for batch, logits, targets in _last_tokens(opened, passages, batch_tokens):
        right[batch] = (logits.argmax(-1) == targets).all(1)
    return right


def _choices(opened: Any, sequences: list, batch_tokens: int) -> "torch.Tensor":
    """Log-probability (sequences,) of the last tokens after those before them. sequences: (tokens, number of last tokens)."""
    import torch

    logp = torch.zeros(len(sequences))
    for batch, logits, targets in _last_tokens(opened, sequences, batch_tokens):
        of_targets = logits.float().log_softmax(-1).gather(2, targets[:, :, None])
        logp[batch] = of_targets.sum((1, 2))
    return logp


def _last_tokens(
    opened: Any, sequences: list, batch_tokens: int
) -> "Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]":
    """Batches of sequences (tokens, number of last tokens): their numbers, and logits and ids of the last tokens."""
    import torch

    groups = defaultdict(list)
    for number, (ids, last) in enumerate(sequences):  # equal lengths share a batch: no padding
        groups[len(ids), last].append(number)
    for (length, last), numbers in sorted(groups.items()):
        for batch in torch.tensor(numbers).split(max(1, batch_tokens // length)):
            inputs = torch.tensor([sequences[number][0] for number in batch])
            logits = last_logits(opened, inputs, last).cpu()
            check_finite(logits.numpy(), inputs.tolist())
            yield batch, logits, inputs[:, -last:]


def _continue(opened: Any, prompts: "torch.Tensor") -> "torch.Tensor":
    """CONTINUED new tokens (prompts, tokens) by greedy decoding, fewer where the model lacks positions for them."""
    limit = positions(opened.config) or PROMPT + CONTINUED
    inputs = prompts[:, : limit // 2].to(opened.device)
    count = min(CONTINUED, limit - inputs.shape[1])
    options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
    mask = inputs.new_ones(inputs.shape)
    tokens = opened.generate(inputs, attention_mask=mask, pad_token_id=0, **options)
    return tokens[:, inputs.shape[1] :].cpu().clone()


def _kv_cache(opened: Any, ids: "torch.Tensor") -> dict[str, int]:
    """Bytes of keys and values after a text of so many tokens."""
    cache = opened(ids.to(opened.device), use_cache=True, logits_to_keep=1).past_key_values
    layers = getattr(cache, "layers", [])
    tensors = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return {"tokens": ids.shape[1], "bytes": sum(t.nbytes for t in tensors if t is not None)}
