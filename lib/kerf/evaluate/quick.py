"""A quick look: embeddings of tokenized batches, and their mean cosine to others, in this process."""

import torch

from kerf.kinds import encoder


@torch.no_grad()
def embed(opened, batches: list[dict]) -> torch.Tensor:
    """Embeddings (texts, features) of tokenized batches, rows of length one."""
    return torch.nn.functional.normalize(torch.cat([encoder.answers(opened, batch) for batch in batches]), dim=-1)


def fidelity(embeddings: torch.Tensor, aim: torch.Tensor) -> float:
    """Mean cosine of rows of length one."""
    return float((embeddings * aim).sum(1).mean())
