"""Lockstep: the inputs of every layer are those of a plain forward pass of the model as it is by then."""

import pytest
import torch

from kerf.calibration.sequential import layer_inputs

GROUPS = [["left", "right"], ["never"], ["middle"], ["head"]]
REACHED = [["left", "right"], ["middle"], ["head"]]


class Net(torch.nn.Module):
    """Two layers that share an input, one that no batch reaches, one on the first token alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(20, 6)
        self.left, self.right = torch.nn.Linear(6, 5), torch.nn.Linear(6, 5)
        self.never, self.middle, self.head = (
            torch.nn.Linear(5, 5),
            torch.nn.Linear(5, 4),
            torch.nn.Linear(4, 3),
        )

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids)
        x = self.left(x).tanh() * self.right(x)
        x = self.middle(x).relu() * attention_mask[..., None]
        return {"pooled": self.head(x.sum(1))}


def make_batches():
    """Three batches of different sizes, with padding right, left and not at all."""
    generator = torch.Generator().manual_seed(1)
    masks = [[[1, 1, 1, 0], [1, 1, 0, 0]], [[0, 1, 1], [1, 1, 1], [0, 0, 1]], [[1, 1, 1, 1, 1]]]
    masks = [torch.tensor(mask) for mask in masks]
    return [
        {"input_ids": torch.randint(20, m.shape, generator=generator), "attention_mask": m}
        for m in masks
    ]


def plain(net, batches, name):
    """Inputs of one layer in a forward pass with nothing but a hook: a tensor a batch, padding left out."""
    seen = []
    hook = dict(net.named_modules())[name].register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    with torch.no_grad():
        for batch in batches:
            net(**batch)
    hook.remove()
    if seen[0].ndim == 2:
        return seen
    masks = [batch["attention_mask"].flatten() for batch in batches]
    tokens = [zip(x.flatten(0, 1), mask, strict=True) for x, mask in zip(seen, masks, strict=True)]
    return [torch.stack([token for token, real in pairs if real]) for pairs in tokens]


def equal(found, expected):
    found = list(found)
    return len(found) == len(expected) and all(
        torch.equal(a, b) for a, b in zip(found, expected, strict=True)
    )


def hooked(net):
    return [name for name, module in net.named_modules() if module._forward_pre_hooks]


def test_unchanged_every_layer_sees_what_a_plain_forward_pass_shows():
    net, batches, order = Net(), make_batches(), []
    for names, inputs in layer_inputs(net, GROUPS, batches):
        order.append(names)
        inputs = list(inputs)
        assert all(equal(inputs, plain(Net(), batches, name)) for name in names)
    assert order == REACHED
    assert not hooked(net)


def test_a_changed_layer_changes_what_later_layers_see():
    net, batches, changed, order = Net(), make_batches(), Net(), []
    for names, inputs in layer_inputs(net, GROUPS, batches):
        order.append(names)
        inputs = list(inputs)
        for name in names:
            assert equal(inputs, plain(changed, batches, name))
            for model in (net, changed):
                getattr(model, name).weight.data.mul_(10).round_().div_(10)
    assert order == REACHED
    assert not equal(plain(changed, batches, "head"), plain(Net(), batches, "head"))


def test_the_models_own_forward_runs_once_a_batch():
    net, batches, calls = Net(), make_batches(), []
    net.words.register_forward_hook(lambda *_: calls.append(1))
    assert len(list(layer_inputs(net, GROUPS, batches))) == len(REACHED)
    assert len(calls) == len(batches)


def test_a_layer_that_only_some_batches_reach_is_yielded_with_their_inputs():
    class Branching(Net):
        def forward(self, input_ids, attention_mask):
            x = self.words(input_ids)
            x = self.left(x) if len(input_ids) == 1 else self.right(x)
            return {"x": self.middle(x)}

    steps = layer_inputs(Branching(), [["left"], ["right"], ["middle"]], make_batches())
    seen = {names[0]: [len(x) for x in inputs] for names, inputs in steps}
    assert seen == {"left": [5], "right": [5, 6], "middle": [5, 6, 5]}


def test_a_network_may_return_a_bare_tensor():
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    net.forward = lambda x, attention_mask: net[1](net[0](x))
    batches = [{"x": torch.ones(1, 2, 3), "attention_mask": torch.ones(1, 2)}] * 2
    assert [names for names, _ in layer_inputs(net, [["0"], ["1"]], batches)] == [["0"], ["1"]]


def test_without_batches_nothing_is_yielded():
    assert list(layer_inputs(Net(), GROUPS, [])) == []


def stopped_by_an_exception(net):
    with pytest.raises(ZeroDivisionError):
        for _ in layer_inputs(net, GROUPS, make_batches()):
            raise ZeroDivisionError


def stopped_by_close(net):
    steps = layer_inputs(net, GROUPS, make_batches())
    next(steps)
    assert set(hooked(net)) >= {"left", "never", "middle", "head"}
    steps.close()


def stopped_by_break(net):
    for _ in layer_inputs(net, GROUPS, make_batches()):
        break


def stopped_by_the_network(net):
    batches = make_batches()
    batches[1]["input_ids"] = batches[1]["input_ids"] + 100
    with pytest.raises(IndexError):
        list(layer_inputs(net, GROUPS, batches))


@pytest.mark.parametrize(
    "stop", [stopped_by_an_exception, stopped_by_close, stopped_by_break, stopped_by_the_network]
)
def test_after_an_early_stop_no_hook_is_left_and_the_network_works(stop):
    net, batches = Net(), make_batches()
    stop(net)
    assert not hooked(net)
    assert torch.is_grad_enabled()
    assert equal(plain(net, batches, "head"), plain(Net(), batches, "head"))


def test_products_are_rounded_between_the_stops_alone_and_as_before_in_the_end():
    net, seen, before = Net(), [], torch.get_float32_matmul_precision()
    net.register_forward_pre_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    for rounded, inside in ((True, "medium"), (False, before)):
        for _ in layer_inputs(net, GROUPS, make_batches(), rounded):
            assert torch.get_float32_matmul_precision() == before
        assert set(seen) == {inside}
        seen.clear()
    steps = layer_inputs(net, GROUPS, make_batches(), rounded=True)
    next(steps)
    steps.close()
    assert torch.get_float32_matmul_precision() == before == "highest"
