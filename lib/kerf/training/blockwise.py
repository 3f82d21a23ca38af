"""Blockwise reconstruction: train codes, scales and zero points, block by block, against the float model's outputs.

Each part of the compressed network (word embeddings first, then block by block) is trained to map the outputs of the
compressed blocks before it to the output of the float block (BRECQ, arXiv:2102.05426; all parameters of a block at once:
EfficientQAT, arXiv:2407.11062). Then all blocks are trained together against the float model's last hidden states and its
outputs, since a block alone cannot know which of its errors later blocks would compensate. Biases and LayerNorm, which
stay float, are trained too. No labels are needed: the text is the calibration sample and augmented copies of it. Held-out
calibration text selects the best checkpoint of every block; a block that is not better on it than its start is dropped.
"""

import math
import time
from collections.abc import Callable

import torch

from kerf.config import Reconstruct
from kerf.models import architecture
from kerf.training.blocks import HiddenStates, ReconstructionUnit, Weight
from kerf.training.training_data import TrainingData

CHECKS = 8  # evaluations of a block on held-out text
WARM_UP = 20  # steps

States = tuple[HiddenStates, HiddenStates]  # of the compressed network, and of the float one


def learn(
    unit: ReconstructionUnit,
    fit: States,
    held_out: States,
    steps: int,
    seconds: float,
    generator: torch.Generator,
) -> tuple[float, float, int]:
    """Train for `steps`, or for as many as `seconds` allow, and end with the parameters that were best on `held_out`.

    Returns the error on `held_out` before and after, and the number of steps done.
    """
    started, done = time.perf_counter(), 0
    optimizer = torch.optim.Adam(unit.parameter_groups(), betas=(0.9, 0.95), fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    queue: list[int] = []
    errors: list[float] = []
    while True:
        progress, elapsed = done / steps, (time.perf_counter() - started) / seconds
        if elapsed > progress + 0.02:  # only if time runs out first, or no two runs would be alike
            progress = elapsed
        if progress >= 1 or done % max(1, steps // CHECKS) == 0:
            errors.append(unit.error(*held_out))
            if len(errors) == 1 or errors[-1] < min(errors[:-1]):
                best = [parameter.detach().clone() for parameter in unit.parameters()]
        if progress >= 1:
            break
        queue = queue or torch.randperm(len(fit[0].batches), generator=generator).tolist()
        schedule = min(1, (done + 1) / WARM_UP) * (1 + math.cos(math.pi * progress)) / 2
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule
        optimizer.zero_grad()
        unit.loss(*fit, queue.pop()).backward()
        optimizer.step()
        for learned in unit.learned.values():
            learned.clamp_codes()
        done += 1
    with torch.no_grad():
        for parameter, value in zip(unit.parameters(), best, strict=True):
            parameter.copy_(value)
    return errors[0], min(errors), done


def reconstruct(
    net: torch.nn.Module,
    reference: torch.nn.Module,
    weights: dict[str, Weight],
    given: TrainingData,
    step: Reconstruct,
    seed: int,
    report: Callable = lambda **_: None,
) -> dict[str, Weight]:
    """Train `weights` of `net` in place, so that its blocks reproduce the outputs of those of `reference`; returns them by layer.

    report(block=, before=, after=, steps=, seconds=) is called after each block, and after all together.
    Raises InputError for a network that is not a plain sequence of blocks.
    """
    generator = torch.Generator().manual_seed(seed)
    architecture.check_blocks(reference, given.held_out[0])
    for parameter in (*net.parameters(), *reference.parameters()):
        parameter.requires_grad_(parameter.ndim == 1)
    fit, held_out = (
        (HiddenStates(net, batches), HiddenStates(reference, batches))
        for batches in (given.fit, given.held_out)
    )
    result, deadline = dict(weights), time.perf_counter() + 60 * step.minutes
    names = list(architecture.blocks(net))
    plan = [([], step.steps), *(([name], step.steps) for name in names)]
    if step.joint_steps and len(names) > 1:
        plan.append((names, step.joint_steps))
    costs = [steps * max(1, len(blocks)) for blocks, steps in plan]
    for number, (blocks, steps) in enumerate(plan):
        if len(blocks) == 1:  # the target is the float block's output for the float states
            for _, target in (fit, held_out):
                target.advance(reference.get_submodule(blocks[0]))
        output_loss = given.output_loss if names[-1] in blocks else None
        unit = ReconstructionUnit(net, blocks, result, fit[0], output_loss)
        if unit.learned:
            clock = time.perf_counter()
            seconds = max((deadline - clock) * costs[number] / sum(costs[number:]), 1e-9)
            before, after, done = learn(unit, fit, held_out, steps, seconds, generator)
            result |= unit.finish()
            title = "all blocks" if unit.whole else (*blocks, "embeddings")[0]
            taken = time.perf_counter() - clock
            report(block=title, before=before, after=after, steps=done, seconds=taken)
        if names[-1] not in blocks:
            for states, _ in (fit, held_out):
                states.advance(unit.blocks[0]) if blocks else states.enter(net)
    return result
