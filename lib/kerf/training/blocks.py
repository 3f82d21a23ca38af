"""A block of the network, its embeddings or all of it, with the states that enter and those it should put out."""

import torch
from torch.func import functional_call
from torch.nn.functional import embedding

from kerf.calibration.offload import park
from kerf.models import architecture
from kerf.models.hooks import attached
from kerf.tensors.quantized import Quantized
from kerf.training.learnable_quantizer import LearnableMasked, LearnableQuantizer

# Of Adam. Codes are in steps of the grid, scales relative to where they started.
BLOCK_RATES = {"codes": 0.02, "scale": 3e-3, "zero_point": 3e-3, "float": 5e-4, "weight": 3e-4}
# A token's vector has one right answer, to which its codes are the nearest already: learning would only let
# them swing around it. Scales and LayerNorm can still win.
EMBEDDING_RATES = {"codes": 0.0, "scale": 3e-4, "zero_point": 0.0, "float": 1e-3, "weight": 0.0}
JOINT_RATES = {"codes": 0.02, "scale": 1e-3, "zero_point": 1e-3, "float": 2e-4, "weight": 1e-4}
ENDS = 0.8  # weight of the output-level loss in the final block


class Hidden:
    """Hidden states of a network for every batch, one block after another, in mapped files."""

    def __init__(self, net, batches: list[dict]) -> None:
        """The states start as what enters the first block."""
        self.batches, self.masks = batches, [batch["attention_mask"].bool() for batch in batches]
        self.enter(net)

    @torch.no_grad()
    def enter(self, net) -> None:
        """Take the states that enter the first block of `net`."""
        entries = [architecture.entry(net, batch) for batch in self.batches]
        self.states = [park(hidden) for hidden, _ in entries]
        self.options = [options for _, options in entries]

    @torch.no_grad()
    def advance(self, block) -> None:
        """Replace every state by what `block` makes of it."""
        for index, options in enumerate(
            self.options
        ):  # one by one, so that each takes the place of the one before
            self.states[index] = park(architecture.run_block(block, self.states[index], options))


class Stage:
    """What is learned at once against the states of the float network: embeddings, a block, or all together."""

    def __init__(
        self, net, names: list[str], weights: dict[str, Quantized], fit: Hidden, ends=None
    ) -> None:
        """names: of blocks that follow one another; none for the embeddings, all for the whole network.

        weights: every Quantized of the network, or pruned float weight, by layer; fit: the states that enter the first of the
        blocks; ends(states, wanted, batch): loss of the last block's states, by what the model makes of them.
        """
        every = architecture.blocks(net)
        self.net, self.names, self.ends = net, names, ends
        self.whole = len(names) == len(every) > 1
        self.learned, self.blocks = torch.nn.ModuleDict(), [every[name] for name in names]
        for layer, start in weights.items():
            if layer.startswith(tuple(f"{name}." for name in names)):
                self.learned[layer.replace(".", "/")] = (
                    LearnableQuantizer(start)
                    if isinstance(start, Quantized)
                    else LearnableMasked(start)
                )
            if not names and layer in architecture.embeddings(net):
                occurring = torch.unique(
                    torch.cat([batch["input_ids"].flatten() for batch in fit.batches])
                )
                self.learned[layer.replace(".", "/")] = LearnableQuantizer(start, occurring)
        outside = {id(p) for block in every.values() for p in block.parameters()}
        around = (
            []
            if names and not self.whole
            else [p for p in net.parameters() if id(p) not in outside]
        )
        self.floats = [
            p for p in (*around, *(p for b in self.blocks for p in b.parameters())) if p.ndim == 1
        ]

    def groups(self) -> list[dict]:
        """Parameters and their learning rates, for an optimizer."""
        rates = JOINT_RATES if self.whole else BLOCK_RATES if self.names else EMBEDDING_RATES
        groups = [{"params": self.floats, "lr": rates["float"]}]
        for part in ("codes", "scale", "zero_point", "weight"):
            parameters = [
                getattr(each, part) for each in self.learned.values() if hasattr(each, part)
            ]
            groups.append({"params": [p for p in parameters if p.requires_grad], "lr": rates[part]})
        return groups

    def forward(self, states: Hidden, index: int) -> torch.Tensor:
        """Output for one batch, with the weights as they are learned so far."""
        if not self.names:
            return self._embed(states.batches[index])
        hidden, options = states.states[index], states.options[index]
        if self.whole:  # what surrounds the blocks is learned too
            hidden, options = architecture.entry(self.net, states.batches[index])
        weights = {
            f"{name.replace('/', '.')}.weight": learned() for name, learned in self.learned.items()
        }
        for name, block in zip(self.names, self.blocks, strict=True):
            inside = {
                w.removeprefix(f"{name}."): value
                for w, value in weights.items()
                if w.startswith(f"{name}.")
            }
            hidden = architecture.run_block(_with(block, inside), hidden, options)
        return hidden

    def _embed(self, batch):
        hooks = []
        for name, learned in self.learned.items():
            place = torch.full((len(learned.start.codes),), -1)
            place[learned.rows] = torch.arange(len(learned.rows))

            def look_up(module, args, output, learned=learned, place=place):
                known = place[args[0]]
                return torch.where(
                    (known >= 0)[..., None], embedding(known.clamp(min=0), learned()), output
                )

            hooks.append(
                self.net.get_submodule(name.replace("/", ".")).register_forward_hook(look_up)
            )
        with attached(hooks):
            return architecture.entry(self.net, batch)[0]

    def loss(self, states: Hidden, target: Hidden, index: int) -> torch.Tensor:
        """Squared error over squared target of one batch's tokens; for the last states mostly what `ends` says."""
        output, wanted, mask = (
            self.forward(states, index),
            target.states[index],
            target.masks[index],
        )
        loss = (output - wanted)[mask].square().sum() / wanted[mask].square().sum()
        if self.ends:
            loss = (1 - ENDS) * loss + ENDS * self.ends(output, wanted, target.batches[index])
        return loss

    @torch.no_grad()
    def error(self, states: Hidden, target: Hidden) -> float:
        """Loss over all batches, by their number of texts."""
        counts = [len(batch["input_ids"]) for batch in states.batches]
        return sum(
            float(self.loss(states, target, i)) * count for i, count in enumerate(counts)
        ) / sum(counts)

    def finish(self) -> dict[str, Quantized | torch.Tensor]:
        """Put what was learned into the network, and return it by layer."""
        found = {name.replace("/", "."): learned.result() for name, learned in self.learned.items()}
        for name, value in found.items():
            weight = value.dequantize() if isinstance(value, Quantized) else value.clone()
            self.net.get_submodule(name).weight.data = park(weight)
        return found


def _with(block, weights: dict[str, torch.Tensor]):
    """`block` as a function, with `weights` in place of its own."""
    return lambda *args, **kwargs: functional_call(block, weights, args, kwargs)
