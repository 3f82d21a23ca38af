"""A smaller encoder by torch-pruning: python structured_with_torchpruning.py REQUEST.json OUT_DIR, in its own environment.

A request names model (a directory), texts, max_length, batch_size, neurons and heads (shares that go) and
importance (magnitude or activation). OUT_DIR gets weights.safetensors, every tensor of the smaller network, and
figures.json. Biases follow their rows; nothing makes up for what went: the library has no such step.
"""

import json
from contextlib import nullcontext

import torch
import torch_pruning as tp
from common import Job
from safetensors.torch import save_file

IMPORTANCE = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "activation": tp.importance.ActivationImportance,
}


def pruner(net, asked: dict, importance, example: dict):
    """Neurons of every block's feed-forward part, and whole heads; the stream between blocks stays as wide as it is."""
    attentions = [layer.attention for layer in net.encoder.layer]
    heads = {
        linear: each.self.num_attention_heads
        for each in attentions
        for linear in (each.self.query, each.self.key, each.self.value)
    }
    if not asked["heads"]:
        ignored = [
            net.embeddings,
            net.pooler,
            *attentions,
            *(layer.output.dense for layer in net.encoder.layer),
        ]
    else:
        ignored = [
            net.embeddings,
            net.pooler,
            *(each.output.dense for each in attentions),
            *(layer.output.dense for layer in net.encoder.layer),
        ]
    return tp.pruner.BasePruner(
        net,
        example,
        importance,
        pruning_ratio=asked["neurons"],
        num_heads=heads if asked["heads"] else {},
        prune_num_heads=bool(asked["heads"]),
        prune_head_dims=False,
        head_pruning_ratio=asked["heads"],
        ignored_layers=ignored,
        round_to=None,
    )


def main() -> None:
    """Prune once, by scores from one pass over the texts."""
    job = Job()
    asked = job.asked
    importance = IMPORTANCE[asked["importance"]]()
    watching = (
        importance.compute_importance(job.net)
        if asked["importance"] == "activation"
        else nullcontext()
    )
    everything = dict(
        job.tokenizer(
            asked["texts"],
            padding=True,
            truncation=True,
            max_length=asked["max_length"],
            return_tensors="pt",
        )
    )
    with watching, torch.no_grad():
        job.net(**everything)  # one batch: each replaces the scores of the one before
    example = {key: value[:2, :16] for key, value in everything.items()}
    pruner(job.net, asked, importance, example).step()
    save_file(
        {name: value.contiguous() for name, value in job.net.state_dict().items()},
        job.out / "weights.safetensors",
    )
    (job.out / "figures.json").write_text(
        json.dumps(
            job.figures(
                "torch-pruning", {key: asked[key] for key in ("neurons", "heads", "importance")}
            )
        )
    )


if __name__ == "__main__":
    main()
