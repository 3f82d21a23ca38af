"""One forward pass in which every batch waits at each layer until all batches are there.

Methods that calibrate layers in order need, at each layer, the inputs that all the calibration text
produces *after* the layers before it were changed. Here each batch is a greenlet: it runs the model's
own forward, stops in front of a layer, and goes on once the caller has changed that layer. So a whole
model is compressed in one forward pass, whatever its architecture, and no layer is ever run twice.

While a batch waits, its activations lie in a file (`kerf.calibration.offload`), so anonymous memory does not grow with the
number of batches.
"""

import weakref
from collections.abc import Iterator

import torch
from greenlet import getcurrent, greenlet

from kerf.calibration.offload import park, trim
from kerf.models.hooks import attached
from kerf.tensors.matmul_precision import rounded_products


def layer_inputs(
    net, groups: list[list[str]], batches: list[dict], rounded: bool = False
) -> Iterator[tuple[list[str], Iterator]]:
    """Yield (names, inputs) for each group of layers that share an input, in the order they run.

    groups: names of linear layers, as `calibrate` found them. inputs: an iterator over (tokens,
    in_features) tensors, one a batch, padding left out. The layers of the group may be changed before
    the next one is asked for. A group that no batch reaches is not yielded, and each is yielded once: a
    layer that the model calls again is not stopped at again. rounded: as `kerf.tensors.matmul_precision` says, between the stops.
    """
    order = {group[0]: index for index, group in enumerate(groups)}
    main, seen = getcurrent(), {}
    modules = dict(net.named_modules())

    def forward(batch):
        net(**batch)  # what it returns is dropped

    def remember(_, args):  # what a layer reads may be needed again after it, as a residual
        seen.setdefault(getcurrent(), []).extend(
            weakref.ref(a) for a in args if isinstance(a, torch.Tensor)
        )

    def wait(name, inputs):
        for tensor in (reference() for reference in seen.pop(getcurrent(), ())):
            if tensor is not None and tensor.is_floating_point():
                park(tensor)
        main.switch(name, inputs)

    leaves = [module for module in modules.values() if not any(module.children())]
    hooks = [module.register_forward_pre_hook(remember) for module in leaves]
    stops = {
        n: modules[n].register_forward_pre_hook(lambda _, args, n=n: wait(n, args[0]))
        for n in order
    }

    def advance(run, *batch):
        with (
            torch.no_grad(),
            rounded_products(rounded),
        ):  # around the model alone: the caller's loop may want gradients
            return run.switch(*batch)

    with attached([*hooks, *stops.values()]):
        runs = [(greenlet(forward), batch) for batch in batches]
        waiting = {run: (advance(run, batch), batch) for run, batch in runs}
        while waiting := {run: stop for run, stop in waiting.items() if not run.dead}:
            first = min((stop[0] for stop, _ in waiting.values()), key=order.__getitem__)
            here = {run: stop for run, stop in waiting.items() if stop[0][0] == first}
            yield (
                groups[order[first]],
                (rows(stop[1], batch["attention_mask"]) for stop, batch in here.values()),
            )
            stops[first].remove()
            waiting.update({run: (advance(run), batch) for run, (_, batch) in here.items()})
            trim()


def rows(inputs: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Inputs of a layer as (tokens, features) without padding; one row a text where there is no length."""
    if inputs.ndim == 3 and inputs.shape[:2] == attention_mask.shape:
        flat = inputs.flatten(0, 1)  # picking whole rows by number is much faster than by a mask
        return (
            flat
            if attention_mask.all()
            else flat.index_select(0, attention_mask.flatten().nonzero()[:, 0])
        )
    return inputs.reshape(-1, inputs.shape[-1])
