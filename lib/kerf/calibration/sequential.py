"""One forward pass in which every batch waits at each layer until all batches have reached it.

Methods that calibrate layers in order need, at each layer, the inputs that all the calibration text produces *after* the
layers before it were changed. Here each batch is a greenlet: it runs the model's own forward, stops in front of a layer, and
continues once the caller has changed that layer. A whole model is compressed in one forward pass, whatever its architecture,
and no layer runs twice. The activations of a waiting batch are offloaded to a file (`kerf.calibration.offload`), so anonymous
memory does not grow with the number of batches.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

from kerf.calibration.offload import park, trim
from kerf.models.hooks import attached
from kerf.tensors.matmul_precision import rounded_products


def layer_inputs(
    net: Any, groups: list[list[str]], batches: list[dict], rounded: bool = False
) -> Iterator[tuple[list[str], Iterator[Tensor]]]:
    """Yield (names, inputs) for each group of layers that share an input, in the order they run.

    groups: names of linear layers, as `calibrate` collected them. inputs: an iterator over (tokens, in_features) tensors, one a
    batch, without padding. The caller may change the layers of the group before it asks for the next one. A group that no
    batch reaches is not yielded, and each is yielded once: for layers that the model calls again, `activations.all_calls`.
    rounded: products between the stops as in `kerf.tensors.matmul_precision`.
    """
    order = {group[0]: index for index, group in enumerate(groups)}
    main, modules = getcurrent(), dict(net.named_modules())
    read: dict[
        greenlet, list[weakref.ref]
    ] = {}  # tensors that layers of a batch read since its last stop

    def forward(batch: dict) -> None:
        net(**batch)  # the output is dropped

    def remember(
        _: Any, args: tuple
    ) -> None:  # a later layer may read the tensor again, as a residual
        tensors = [weakref.ref(tensor) for tensor in args if isinstance(tensor, Tensor)]
        read.setdefault(getcurrent(), []).extend(tensors)

    def stop(name: str, inputs: Tensor) -> None:
        for reference in read.pop(getcurrent(), ()):
            tensor = reference()
            if tensor is not None and tensor.is_floating_point():
                park(tensor)
        main.switch(name, inputs)

    def advance(run: greenlet, *batch: dict) -> Any:
        # Around the model alone: the caller's loop may need gradients.
        with torch.no_grad(), rounded_products(rounded):
            return run.switch(*batch)

    leaves = [module for module in modules.values() if not any(module.children())]
    hooks = [module.register_forward_pre_hook(remember) for module in leaves]
    stops = {
        name: modules[name].register_forward_pre_hook(
            lambda _, args, name=name: stop(name, args[0])
        )
        for name in order
    }
    with attached([*hooks, *stops.values()]):
        waiting = [
            (run, batch, advance(run, batch))
            for run, batch in ((greenlet(forward), b) for b in batches)
        ]
        while waiting := [entry for entry in waiting if not entry[0].dead]:
            first = min((name for _, _, (name, _) in waiting), key=order.__getitem__)
            stopped = [entry for entry in waiting if entry[2][0] == first]
            yield (
                groups[order[first]],
                (_labelled(inputs, batch) for _, batch, (_, inputs) in stopped),
            )
            stops[first].remove()
            waiting = [
                (run, batch, advance(run) if place[0] == first else place)
                for run, batch, place in waiting
            ]
            trim()


def _labelled(inputs: Tensor, batch: dict) -> Tensor:
    """`rows` of a batch, whose attribute `source` is the batch's."""
    found = rows(inputs, batch["attention_mask"])
    found.source = getattr(batch, "source", 0)  # type: ignore[attr-defined]
    return found


def rows(inputs: Tensor, attention_mask: Tensor) -> Tensor:
    """Inputs of a layer as (tokens, features) without padding; as they are where rows are not tokens, or some of them."""
    flat = inputs.reshape(-1, inputs.shape[-1])
    if len(flat) != attention_mask.numel() or attention_mask.all():
        return flat
    return flat.index_select(0, attention_mask.flatten().nonzero()[:, 0])  # faster than a mask
