"""The parts of a network that reconstruction trains together, and the hidden states that enter and leave them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import embedding

from kerf.calibration.offload import park
from kerf.models import architecture
from kerf.models.hooks import attached
from kerf.tensors.quantized import Quantized
from kerf.training.learnable_quantizer import LearnableMasked, LearnableQuantizer

# Adam's learning rates. Codes are in steps of the grid, scales relative to their start.
BLOCK_RATES = {"codes": 0.02, "scale": 3e-3, "zero_point": 3e-3, "float": 5e-4, "weight": 3e-4}
# The target of a token's embedding is known, and its codes already are the nearest to it: training would only make
# them oscillate. Scales and LayerNorm can still improve.
EMBEDDING_RATES = {"codes": 0.0, "scale": 3e-4, "zero_point": 0.0, "float": 1e-3, "weight": 0.0}
JOINT_RATES = {"codes": 0.02, "scale": 1e-3, "zero_point": 1e-3, "float": 2e-4, "weight": 1e-4}
OUTPUT_LOSS_WEIGHT = 0.8  # of the output-level loss in the final block

Weight = Quantized | Tensor  # as stored: quantized, or a pruned float weight
OutputLoss = Callable[[Tensor, Tensor, dict], Tensor]


class HiddenStates:
    """Hidden states (texts, tokens, features) of a network for every batch, block by block, in memory-mapped files."""

    def __init__(self, net: nn.Module, batches: list[dict]) -> None:
        self.batches, self.masks = batches, [batch["attention_mask"].bool() for batch in batches]
        self.enter(net)

    @torch.no_grad()
    def enter(self, net: nn.Module) -> None:
        """Compute the states that enter the first block of `net`."""
        entries = [architecture.entry(net, batch) for batch in self.batches]
        self.states = [park(hidden) for hidden, _ in entries]
        self.options = [options for _, options in entries]

    @torch.no_grad()
    def advance(self, block: nn.Module) -> None:
        """Run `block` on every state; one by one, so that each output replaces its input."""
        for index, options in enumerate(self.options):
            self.states[index] = park(architecture.run_block(block, self.states[index], options))


class ReconstructionUnit:
    """Parameters trained together: those of the embeddings, of one block, or of the whole network.

    names: of consecutive blocks; none for the embeddings, all for the whole network. weights: every compressed weight of
    the network, by layer. fit: the states that enter the first of the blocks. output_loss(states, target, batch):
    output-level loss of the last block's states.
    """

    def __init__(
        self,
        net: nn.Module,
        names: list[str],
        weights: dict[str, Weight],
        fit: HiddenStates,
        output_loss: OutputLoss | None = None,
    ) -> None:
        blocks = architecture.blocks(net)
        self.net, self.names, self.output_loss = net, names, output_loss
        self.whole = len(names) == len(blocks) > 1
        self.blocks = [blocks[name] for name in names]
        self.learned: dict[str, Any] = {}  # LearnableQuantizer or LearnableMasked, by layer
        for layer, start in weights.items():
            if layer.startswith(tuple(f"{name}." for name in names)):
                if isinstance(start, Quantized):
                    self.learned[layer] = LearnableQuantizer(start)
                else:
                    self.learned[layer] = LearnableMasked(start)
            if not names and isinstance(start, Quantized) and layer in architecture.embeddings(net):
                tokens = torch.cat([batch["input_ids"].flatten() for batch in fit.batches])
                self.learned[layer] = LearnableQuantizer(start, torch.unique(tokens))
        in_blocks = {id(p) for block in blocks.values() for p in block.parameters()}
        parameters = [p for block in self.blocks for p in block.parameters()]
        if self.whole or not names:
            parameters += [p for p in net.parameters() if id(p) not in in_blocks]
        self.floats = [p for p in parameters if p.ndim == 1]

    def parameters(self) -> list[torch.nn.Parameter]:
        """Everything that is trained."""
        return [*(p for module in self.learned.values() for p in module.parameters()), *self.floats]

    def parameter_groups(self) -> list[dict]:
        """Parameters with their learning rates, for an optimizer."""
        block_rates = BLOCK_RATES if self.names else EMBEDDING_RATES
        rates = JOINT_RATES if self.whole else block_rates
        groups: dict[str, dict] = {part: {"params": [], "lr": rate} for part, rate in rates.items()}
        groups["float"]["params"] = self.floats
        for module in self.learned.values():
            for part, parameter in module.named_parameters():
                if parameter.requires_grad:
                    groups[part]["params"].append(parameter)
        return list(groups.values())

    def forward(self, states: HiddenStates, index: int) -> Tensor:
        """Output for one batch, with the weights as trained so far."""
        if not self.names:
            return self._embed(states.batches[index])
        hidden, options = states.states[index], states.options[index]
        if self.whole:  # the embeddings are trained too
            hidden, options = architecture.entry(self.net, states.batches[index])
        for name, block in zip(self.names, self.blocks, strict=True):
            weights = {
                f"{layer.removeprefix(f'{name}.')}.weight": module()
                for layer, module in self.learned.items()
                if layer.startswith(f"{name}.")
            }
            hidden = architecture.run_block(_with_weights(block, weights), hidden, options)
        return hidden

    def _embed(self, batch: dict) -> Tensor:
        """States that enter the first block; only tokens of the training text have trained embeddings."""
        hooks = []
        for layer, learned in self.learned.items():
            rows = learned.rows
            positions = rows.new_full((len(learned.start.codes),), -1)  # of each token in `rows`
            positions[rows] = torch.arange(len(rows), device=rows.device)

            def look_up(
                module: nn.Module,
                args: tuple[Tensor],
                output: Tensor,
                learned: LearnableQuantizer = learned,
                positions: Tensor = positions,
            ) -> Tensor:
                row = positions[args[0]]
                trained = embedding(row.clamp(min=0), learned())
                return torch.where((row >= 0)[..., None], trained, output)

            hooks.append(self.net.get_submodule(layer).register_forward_hook(look_up))
        with attached(hooks):
            return architecture.entry(self.net, batch)[0]

    def loss(self, states: HiddenStates, target: HiddenStates, index: int) -> Tensor:
        """Squared error of one batch's tokens relative to their squared target; in the final block mostly the output loss."""
        output, reference = self.forward(states, index), target.states[index]
        mask = target.masks[index]
        loss = (output - reference)[mask].square().sum() / reference[mask].square().sum()
        if self.output_loss is None:
            return loss
        output_loss = self.output_loss(output, reference, target.batches[index])
        return (1 - OUTPUT_LOSS_WEIGHT) * loss + OUTPUT_LOSS_WEIGHT * output_loss

    @torch.no_grad()
    def error(self, states: HiddenStates, target: HiddenStates) -> float:
        """Mean loss over all batches, weighted by their number of texts."""
        counts = [len(batch["input_ids"]) for batch in states.batches]
        losses = [float(self.loss(states, target, index)) for index in range(len(counts))]
        return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)

    def finish(self) -> dict[str, Weight]:
        """Put the trained weights into the network, and return them by layer."""
        trained = {layer: module.result() for layer, module in self.learned.items()}
        for layer, value in trained.items():
            weight = value.dequantize() if isinstance(value, Quantized) else value.clone()
            self.net.get_submodule(layer).weight.data = park(weight)
        return trained


def _with_weights(block: nn.Module, weights: dict[str, Tensor]) -> Callable:
    """`block` as a function that computes with `weights` in place of its own."""
    return lambda *args, **kwargs: functional_call(block, weights, args, kwargs)
