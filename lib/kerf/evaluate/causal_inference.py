"""What a language model is asked in the measured process: probabilities, last words, continuations, its cache."""

import time
from pathlib import Path

import numpy as np

from kerf.core.finite import check_finite
from kerf.models.hooks import attached, on_outputs

PROMPTS, PROMPT, CONTINUED = 16, 32, 32  # continuations: how many, tokens before, tokens after


def answer(opened, request: dict, folder: Path) -> dict:
    """Write answers.safetensors (see `kerf.evaluate.likelihood`), in the order of the request. Returns seconds and speeds."""
    import torch
    from safetensors.torch import save_file

    chunks = torch.tensor(request["chunks"])
    base = Path(request["base"]) if "base" in request else None
    order = np.random.default_rng(request["seed"]).permutation(len(chunks))
    with torch.inference_mode():
        clock, forward = time.perf_counter(), []
        found = score(
            opened,
            chunks,
            order,
            max(1, request["batch_tokens"] // chunks.shape[1]),
            base or folder,
            base is None,
            forward,
        )
        seconds = time.perf_counter() - clock
        found["right"] = _last_words(opened, request["passages"], request["batch_tokens"])
        clock = time.perf_counter()
        found["continued"] = _continue(opened, chunks[:PROMPTS, :PROMPT])
        decode = time.perf_counter() - clock
        cache = [
            _cache(opened, chunks[:1, :length])
            for length in np.linspace(0, chunks.shape[1], 5, dtype=int)[1:].tolist()
        ]
    save_file(found, folder / "answers.safetensors")
    return {
        "encode_seconds": seconds,
        "forward_seconds": sum(forward),
        "prefill_tokens_per_second": chunks.numel() / sum(forward),
        "decode_tokens_per_second": found["continued"].numel() / decode,
        "cache": cache,
    }


def score(opened, chunks, order, size, base, first, forward) -> dict:
    """This model's answers to every scored token against the baseline's, in the order of the chunks.

    base: folder of the baseline's answers, which are written there if this is the baseline (`first`).
    forward: a list that takes the seconds of every forward pass.
    """
    import torch

    from kerf.evaluate import likelihood
    from kerf.evaluate.baseline_logits import BaselineLogits
    from kerf.evaluate.likelihood import EXACT, against, full_divergence, keep, log_probabilities

    half = chunks.shape[1] // 2
    scored, found = chunks.shape[1] - half, [None] * len(chunks)
    kept = (
        BaselineLogits(base, min(likelihood.TOP, len(opened.get_output_embeddings().weight)))
        if first
        else BaselineLogits(base)
    )
    for start in range(0, len(order), size):
        here = order[start : start + size].tolist()
        clock = time.perf_counter()
        logits = opened(chunks[here], use_cache=False, logits_to_keep=scored + 1).logits[:, :-1]
        forward.append(time.perf_counter() - clock)
        if not logits.isfinite().all():
            raise ValueError(
                f"the model gives NaN or infinity, from {_broken(opened, chunks[here])} on"
            )
        for place, each in zip(here, logits, strict=True):
            targets = chunks[place, half:]
            own = keep(each, targets, kept.top) if first else kept.read(place * scored, scored)
            if first:
                kept.write(place * scored, own)
            found[place] = against(own, each, targets)
            if place == 0:
                if first:
                    np.save(base / "exact.npy", log_probabilities(each[:EXACT]).numpy())
                full = full_divergence(torch.from_numpy(np.load(base / "exact.npy")), each[:EXACT])
    return {name: torch.cat([each[name] for each in found]) for name in found[0]} | {"full": full}


def _broken(opened, ids) -> str:
    """Name of the first layer that puts out NaN or infinity."""
    import torch

    found = []

    def look(name, _, output):
        output = output[0] if isinstance(output, tuple) else output
        if (
            isinstance(output, torch.Tensor)
            and output.is_floating_point()
            and not output.isfinite().all()
        ):
            found.append(name)

    leaves = {n: module for n, module in opened.named_modules() if not any(module.children())}
    with attached(on_outputs(leaves, look)):
        opened(ids, use_cache=False, logits_to_keep=1)
    return next(iter(found), "between two layers")


def _last_words(opened, passages, batch_tokens):
    """Whether every token of the last word is the most probable one, (passages,)."""
    import torch

    right, groups = torch.zeros(len(passages), dtype=torch.bool), {}
    for number, (ids, last) in enumerate(passages):  # of one length together: nothing is padded
        groups.setdefault((len(ids), last), []).append(number)
    for (length, last), numbers in sorted(groups.items()):
        for piece in torch.tensor(numbers).split(max(1, batch_tokens // length)):
            ids = torch.tensor([passages[number][0] for number in piece])
            logits = opened(ids, use_cache=False, logits_to_keep=last + 1).logits[:, :-1]
            check_finite(logits.cpu().numpy(), ids.tolist())
            best = logits.argmax(-1)
            right[piece] = (best == ids[:, -last:]).all(1)
    return right


def _continue(opened, prompts):
    """Tokens (prompts, CONTINUED) that the model gives greedily, fewer where it has no positions for them."""
    from kerf.models.families.lengths import positions

    most = positions(opened.config) or PROMPT + CONTINUED
    prompts = prompts[:, : most // 2]
    count = min(CONTINUED, most - prompts.shape[1])
    options = {
        "do_sample": False,
        "max_new_tokens": count,
        "min_new_tokens": count,
        "pad_token_id": 0,
    }
    return opened.generate(prompts, attention_mask=prompts.new_ones(prompts.shape), **options)[
        :, prompts.shape[1] :
    ].clone()


def _cache(opened, ids) -> dict:
    """Bytes of the keys and values that a text of so many tokens leaves behind."""
    kept = opened(ids, use_cache=True, logits_to_keep=1).past_key_values
    parts = [
        getattr(layer, name, None)
        for layer in getattr(kept, "layers", [])
        for name in ("keys", "values")
    ]
    return {
        "tokens": ids.shape[1],
        "bytes": sum(part.numel() * part.element_size() for part in parts if part is not None),
    }
