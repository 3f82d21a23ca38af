"""How a candidate's next-token probabilities q differ from the baseline's p, token by token.

The baseline's TOP most probable next tokens are stored, and the rest of the vocabulary counts as one more outcome:

    KL = sum over top of p log(p / q) + r log(r / s),    r = 1 - sum p, s = 1 - sum q over the same tokens,

which is never more than the full sum (data processing inequality); for EXACT tokens all log-probabilities are stored,
to report the difference. Logits may be on any device; what is stored and returned is on the CPU.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TOP, EXACT = 1024, 64
SLICE = 64  # tokens whose softmax is taken at once, to bound its memory
_MIN_REMAINDER = 1e-12  # float32 sums of probabilities are no more exact than this


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax in float32 of logits (tokens, vocabulary). Raises ValueError for NaN or infinity."""
    logp = torch.log_softmax(logits.float(), -1)
    if not logp.isfinite().all():
        raise ValueError("the model gives logits with NaN or infinity")
    return logp


def top_log_probabilities(logits: Tensor, targets: Tensor, top: int = TOP) -> dict[str, Tensor]:
    """The baseline's record of tokens. logits: (tokens, vocabulary); targets: (tokens,) the actual next tokens.

    Returns ids (int32) and logp (float32), each (tokens, top), most probable first, and target (tokens,) log-probabilities.
    """
    pieces = []
    for part, part_targets in zip(logits.split(SLICE), targets.split(SLICE), strict=True):
        logp = log_probabilities(part)
        best = logp.topk(min(top, logp.shape[1]))
        record = {"ids": best.indices.int(), "logp": best.values}
        pieces.append(record | {"target": _at(logp, part_targets)})
    return joined(pieces)


def compare_to_baseline(
    kept: dict[str, Tensor], logits: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """Each (tokens,): kl, acceptance, base_loss, loss, the candidate's top token, and same_top; kept: what `keep` gave for the baseline."""
    pieces = []
    for start in range(0, len(targets), SLICE):
        tokens = slice(start, start + SLICE)
        logq, ids = log_probabilities(logits[tokens]), kept["ids"][tokens].long()
        same = kept["logp"][tokens], logq.gather(1, ids.to(logq.device)).cpu()
        kl, accepted = divergence(*same), acceptance(*same)
        losses = {"base_loss": -kept["target"][tokens], "loss": -_at(logq, targets[tokens])}
        top = logq.argmax(1).cpu()
        pieces.append(
            {"kl": kl, "acceptance": accepted, **losses, "top": top, "same_top": top == ids[:, 0]}
        )
    return joined(pieces)


def _at(logp: Tensor, targets: Tensor) -> Tensor:
    return logp.gather(1, targets[:, None].to(logp.device))[:, 0]


def joined(pieces: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Columns of consecutive tokens as one."""
    return {name: torch.cat([piece[name] for piece in pieces]).cpu() for name in pieces[0]}


def divergence(logp: Tensor, logq: Tensor) -> Tensor:
    """KL (tokens,) in nats from the log-probabilities (tokens, top) of both models for the same tokens."""
    logp, logq = logp.double(), logq.double()
    r, s = ((1 - values.exp().sum(1)).clamp(min=_MIN_REMAINDER) for values in (logp, logq))
    return ((logp.exp() * (logp - logq)).sum(1) + r * (r / s).log()).clamp(min=0).float()


def acceptance(logp: Tensor, logq: Tensor) -> Tensor:
    """Probability (tokens,) that p accepts a token drafted by q: the sum of min(p, q) (Leviathan et al. 2023), arguments as above."""
    p, q = logp.double().exp(), logq.double().exp()
    rest = torch.minimum(1 - p.sum(1), 1 - q.sum(1)).clamp(min=0)
    return (torch.minimum(p, q).sum(1) + rest).clamp(max=1).float()


def full_divergence(logp: Tensor, logits: Tensor) -> Tensor:
    """KL (tokens,) from all log-probabilities (tokens, vocabulary) of the baseline and the candidate's logits."""
    logq = log_probabilities(logits).cpu()
    return torch.nn.functional.kl_div(logq, logp.cpu(), log_target=True, reduction="none").sum(1)


class BaselineLogits:
    """A file of what `keep` gave for all scored tokens, in the order of the text; read and written a few tokens at a time."""

    def __init__(self, folder: Path, top: int | None = None) -> None:
        """top: tokens in a record, to begin a new file; None: open the existing one."""
        self.path, header = folder / "baseline.bin", folder / "baseline.json"
        if top is not None:
            header.write_text(json.dumps({"top": top}))
            self.path.touch()
        self.top: int = json.loads(header.read_text())["top"]
        fields = [("ids", "<i4", (self.top,)), ("logp", "<f4", (self.top,)), ("target", "<f4")]
        self.record = np.dtype(fields)

    def write(self, start: int, baseline: dict[str, Tensor]) -> None:
        """Write records from number `start` on."""
        records = np.empty(len(baseline["target"]), self.record)
        for name, values in baseline.items():
            records[name] = values.numpy()
        with self.path.open("r+b") as file:
            file.seek(start * self.record.itemsize)
            records.tofile(file)

    def read(self, start: int, count: int) -> dict[str, Tensor]:
        """`count` records from number `start` on."""
        records = np.fromfile(self.path, self.record, count, offset=start * self.record.itemsize)
        return {name: torch.tensor(records[name]) for name in ("ids", "logp", "target")}
