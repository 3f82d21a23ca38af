"""A quick look: embeddings of tokenized batches, and their mean cosine to others, in this process."""

import torch

from kerf import models
from kerf.kinds import encoder


@torch.no_grad()
def embed(opened, batches: list[dict]) -> torch.Tensor:
    """Embeddings (texts, features) of tokenized batches, rows of length one."""
    net = models.network(opened)
    pooled = [encoder.pool(opened, net(**batch).last_hidden_state, batch["attention_mask"]) for batch in batches]
    return torch.nn.functional.normalize(torch.cat(pooled), dim=-1)


def fidelity(embeddings: torch.Tensor, aim: torch.Tensor) -> float:
    """Mean cosine of rows of length one."""
    return float((embeddings * aim).sum(1).mean())
