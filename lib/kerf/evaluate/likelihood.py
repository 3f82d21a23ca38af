"""How a candidate's next-token probabilities q differ from the baseline's p, token by token.

The baseline's answer is kept once, for every candidate: of each token the TOP most probable next tokens
with their log-probabilities, and that of the token which really came. What is left over is one more
outcome, so the divergence that comes out is

    KL = sum over top of p log(p / q) + r log(r / s),    r = 1 - sum p, s = 1 - sum q over the same tokens,

which is never more than the full sum (data processing inequality); for EXACT tokens all log-probabilities
are kept too, to say by how much. Logits are looked at SLICE tokens at a time, never the whole vocabulary
for all tokens at once.
"""

import torch

TOP, EXACT, SLICE = 1024, 64, 64
_LEAST = 1e-12  # of a remainder: float32 sums of probabilities are no more exact than this


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Log-softmax in float32 of logits (tokens, vocabulary). Raises ValueError for NaN or infinity."""
    found = torch.log_softmax(logits.float(), -1)
    if not found.isfinite().all():
        raise ValueError("the model gives logits with NaN or infinity")
    return found


def keep(logits: torch.Tensor, targets: torch.Tensor, top: int = TOP) -> dict[str, torch.Tensor]:
    """The baseline's answer. logits: (tokens, vocabulary); targets: (tokens,) what really came.

    Returns ids (int32) and logp (float32), each (tokens, top), most probable first, and target (tokens,).
    """
    pieces = []
    for part, wanted in zip(logits.split(SLICE), targets.split(SLICE), strict=True):
        logp = log_probabilities(part)
        best = logp.topk(min(top, logp.shape[1]))
        pieces.append((best.indices.int(), best.values, logp.gather(1, wanted[:, None])[:, 0]))
    return dict(
        zip(("ids", "logp", "target"), map(torch.cat, zip(*pieces, strict=True)), strict=True)
    )


def against(
    kept: dict[str, torch.Tensor], logits: torch.Tensor, targets: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Each (tokens,): kl, loss of both models (base_loss, loss), top token of the candidate and whether it is the same."""
    pieces = []
    for start in range(0, len(targets), SLICE):
        here = slice(start, start + SLICE)
        logq = log_probabilities(logits[here])
        ids, logp = kept["ids"][here].long(), kept["logp"][here]
        kl = divergence(logp, logq.gather(1, ids))
        top = logq.argmax(1)
        pieces.append(
            (
                kl,
                -kept["target"][here],
                -logq.gather(1, targets[here, None])[:, 0],
                top,
                top == ids[:, 0],
            )
        )
    names = ("kl", "base_loss", "loss", "top", "same_top")
    return dict(zip(names, map(torch.cat, zip(*pieces, strict=True)), strict=True))


def divergence(logp: torch.Tensor, logq: torch.Tensor) -> torch.Tensor:
    """KL (tokens,) in nats from the log-probabilities (tokens, top) of both models for the same tokens."""
    p, q = logp.double().exp(), logq.double().exp()
    r, s = ((1 - each.sum(1)).clamp(min=_LEAST) for each in (p, q))
    return ((p * (logp.double() - logq.double())).sum(1) + r * (r / s).log()).clamp(min=0).float()


def full_divergence(logp: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL (tokens,) from all log-probabilities (tokens, vocabulary) of the baseline and the candidate's logits."""
    return torch.nn.functional.kl_div(
        log_probabilities(logits), logp, log_target=True, reduction="none"
    ).sum(1)
