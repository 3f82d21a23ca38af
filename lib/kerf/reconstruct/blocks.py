"""A block of the network, or its embeddings, with the hidden states that enter it and those it should put out."""

import torch
from torch.func import functional_call
from torch.nn.functional import cosine_similarity, embedding

from kerf import models
from kerf.parking import park
from kerf.quantize.grid import Quantized
from kerf.reconstruct.learned import Learned

# Of Adam. Codes are in steps of the grid, scales relative to where they started.
LEARNING_RATES = {"codes": 0.02, "scale": 3e-3, "zero_point": 3e-3, "float": 5e-4}
# A token's vector has one right answer, to which its codes are the nearest already: learning would only let
# them swing around it. Scales and LayerNorm can still win.
EMBEDDING_RATES = {"codes": 0.0, "scale": 3e-4, "zero_point": 0.0, "float": 1e-3}
POOLED = 0.8  # share of the last block's loss that looks at what is made of its states


class Hidden:
    """Hidden states of a network for every batch, one block after another, in mapped files."""

    def __init__(self, net, batches: list[dict]) -> None:
        """The states start as what enters the first block."""
        self.batches, self.masks = batches, [batch["attention_mask"].bool() for batch in batches]
        self.enter(net)

    @torch.no_grad()
    def enter(self, net) -> None:
        """Take the states that enter the first block of `net`."""
        entries = [models.entry(net, batch) for batch in self.batches]
        self.states = [park(hidden) for hidden, _ in entries]
        self.options = [options for _, options in entries]

    @torch.no_grad()
    def advance(self, block) -> None:
        """Replace every state by what `block` makes of it."""
        for index, options in enumerate(self.options):  # one by one, so that each takes the place of the one before
            self.states[index] = park(models.run_block(block, self.states[index], options))


class Stage:
    """What is learned at once: a block, or the embeddings, of `net` against the states of the float network."""

    def __init__(self, net, name: str, weights: dict[str, Quantized], fit: Hidden, pool=None) -> None:
        """name: of a block, or empty for the embeddings; weights: every Quantized of the network by layer.

        pool(states, attention_mask): what is made of the last block's states, (texts, features).
        """
        self.net, self.name, self.block = net, name, net.get_submodule(name) if name else None
        self.pool = pool
        self.learned, inside = torch.nn.ModuleDict(), tuple(models.blocks(net))
        for layer, quantized in weights.items():
            if name and layer.startswith(f"{name}."):
                self.learned[layer.replace(".", "/")] = Learned(quantized)
            if not name and layer in models.embeddings(net):
                occurring = torch.unique(torch.cat([batch["input_ids"].flatten() for batch in fit.batches]))
                self.learned[layer.replace(".", "/")] = Learned(quantized, occurring)
        candidates = self.block.named_parameters() if name else net.named_parameters()
        self.floats = [p for n, p in candidates if p.ndim == 1 and (name or not n.startswith(inside))]

    def groups(self) -> list[dict]:
        """Parameters and their learning rates, for an optimizer."""
        rates = LEARNING_RATES if self.name else EMBEDDING_RATES
        groups = [{"params": self.floats, "lr": rates["float"]}]
        for part in ("codes", "scale", "zero_point"):
            parameters = [getattr(each, part) for each in self.learned.values()]
            groups.append({"params": [p for p in parameters if p.requires_grad], "lr": rates[part]})
        return groups

    def forward(self, states: Hidden, index: int) -> torch.Tensor:
        """Output for one batch, with the weights as they are learned so far."""
        if not self.name:
            return self._embed(states.batches[index])
        inside = {f"{n.replace('/', '.').removeprefix(self.name + '.')}.weight": w() for n, w in self.learned.items()}
        args, kwargs = states.options[index]
        output = functional_call(self.block, inside, (states.states[index], *args), kwargs)
        return output[0] if isinstance(output, tuple) else output

    def _embed(self, batch):
        hooks = []
        for name, learned in self.learned.items():
            place = torch.full((len(learned.start.codes),), -1)
            place[learned.rows] = torch.arange(len(learned.rows))

            def look_up(module, args, output, learned=learned, place=place):
                known = place[args[0]]
                return torch.where((known >= 0)[..., None], embedding(known.clamp(min=0), learned()), output)

            hooks.append(self.net.get_submodule(name.replace("/", ".")).register_forward_hook(look_up))
        try:
            return models.entry(self.net, batch)[0]
        finally:
            for hook in hooks:
                hook.remove()

    def loss(self, states: Hidden, target: Hidden, index: int) -> torch.Tensor:
        """Squared error over squared target of one batch's tokens; for pooled states mostly 1 - cosine."""
        output, wanted, mask = self.forward(states, index), target.states[index], target.masks[index]
        loss = (output - wanted)[mask].square().sum() / wanted[mask].square().sum()
        if self.pool:
            found, aim = (self.pool(each, target.batches[index]["attention_mask"]) for each in (output, wanted))
            loss = (1 - POOLED) * loss + POOLED * (1 - cosine_similarity(found, aim)).mean()
        return loss

    @torch.no_grad()
    def error(self, states: Hidden, target: Hidden) -> float:
        """Loss over all batches, by their number of texts."""
        counts = [len(batch["input_ids"]) for batch in states.batches]
        return sum(float(self.loss(states, target, i)) * count for i, count in enumerate(counts)) / sum(counts)

    def finish(self) -> dict[str, Quantized]:
        """Put what was learned into the network, and return it by layer."""
        found = {name.replace("/", "."): learned.quantized() for name, learned in self.learned.items()}
        for name, quantized in found.items():
            self.net.get_submodule(name).weight.data = park(quantized.dequantize())
        return found
