"""Reconstruct: learn codes, scales and zero points block by block against the float model's outputs.

Each block of the compressed network (word embeddings first, then layer by layer) is trained to turn what
the compressed blocks before it produce into what the float block puts out. Codes are learned as real
numbers v that the forward pass rounds, with the gradient going straight through:

    weight = (clamp(round(v), 0, top) - zero_point) * scale

(block-wise: BRECQ, arXiv:2102.05426; everything in a block at once: EfficientQAT, arXiv:2407.11062).
Then all blocks together, against the float model's last states and what it makes of them: a block alone
cannot know which of its errors the blocks after it would forgive. Biases and LayerNorm, which stay float anyway, are learned too.
No labels: the text is the calibration sample, and splices of it, for the float model has an answer to any
text. Text of the calibration part outside the sample is held back: it picks the best moment of every block,
and a block, or a whole result, that is not better on it than its start is dropped.
"""

import math
import time

import torch

from kerf.config import Reconstruct
from kerf.models import architecture
from kerf.training.blocks import Hidden, Stage
from kerf.training.training_data import TrainingData

CHECKS = 8  # how often a block is measured on the text held back


def learn(
    stage: Stage, fit, held, steps: int, seconds: float, generator: torch.Generator
) -> tuple[float, float, int]:
    """Train a stage. fit, held: (states of the network, states of the float one).

    Ends with the parameters that were best on `held`. Returns its error there before and after, and the
    number of steps that `seconds` allowed.
    """
    started, done = time.perf_counter(), 0
    optimizer = torch.optim.Adam(stage.groups(), betas=(0.9, 0.95), fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    before = best = stage.error(*held)
    kept = _snapshot(stage)
    queue: list[int] = []
    while (progress := _progress(done / steps, (time.perf_counter() - started) / seconds)) < 1:
        queue = queue or torch.randperm(len(fit[0].batches), generator=generator).tolist()
        index = queue.pop()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (done + 1) / 20) * (1 + math.cos(math.pi * progress)) / 2
        optimizer.zero_grad()
        stage.loss(*fit, index).backward()
        optimizer.step()
        for learned in stage.learned.values():
            learned.keep_in_reach()
        done += 1
        if done % max(1, steps // CHECKS) == 0 and (found := stage.error(*held)) < best:
            best, kept = found, _snapshot(stage)
    if (found := stage.error(*held)) >= best:
        _restore(stage, kept)
    return before, min(best, found), done


def _progress(steps: float, seconds: float) -> float:
    """Share of the work done, by steps; by the clock only where it runs out first, or no two runs would be alike."""
    return seconds if seconds > steps + 0.02 else steps


def _snapshot(stage):
    return [part.detach().clone() for part in (*stage.learned.parameters(), *stage.floats)]


@torch.no_grad()
def _restore(stage, kept):
    for part, value in zip((*stage.learned.parameters(), *stage.floats), kept, strict=True):
        part.copy_(value)


def reconstruct(
    net,
    reference,
    weights: dict,
    given: TrainingData,
    step: Reconstruct,
    seed: int,
    report=lambda **_: None,
) -> dict:
    """Learn `weights` of `net`, in place, so that its blocks put out what those of `reference` do; returns them.

    weights: by layer, Quantized or a pruned float tensor.

    report(block=, before=, after=, steps=, seconds=) is called after each block, and after all together.
    Raises InputError for a network that is not its blocks one after another.
    """
    generator = torch.Generator().manual_seed(seed)
    architecture.check_blocks(reference, given.judge[0])
    for parameter in (*net.parameters(), *reference.parameters()):
        parameter.requires_grad_(parameter.ndim == 1)
    sides = [
        (Hidden(net, batches), Hidden(reference, batches)) for batches in (given.fit, given.judge)
    ]
    blocks, result, ends = (
        architecture.blocks(net),
        dict(weights),
        time.perf_counter() + 60 * step.minutes,
    )
    plan = [
        ([], step.steps, 1),
        *(([name], step.steps, 1) for name in blocks),
    ]  # names, steps, what a step costs
    if step.joint_steps and len(blocks) > 1:
        plan.append(([*blocks], step.joint_steps, len(blocks)))
    for number, (names, most, _) in enumerate(plan):
        if len(names) == 1:  # the target is what the float block makes of the float states
            for _, target in sides:
                target.advance(reference.get_submodule(names[0]))
        stage = Stage(
            net, names, result, sides[0][0], given.ends if list(blocks)[-1] in names else None
        )
        if stage.learned:
            clock, costs = time.perf_counter(), [count * cost for _, count, cost in plan[number:]]
            allowed = max((ends - clock) * costs[0] / sum(costs), 1e-9)
            before, after, done = learn(stage, *sides, most, allowed, generator)
            result |= stage.finish()
            title = "all blocks" if stage.whole else names[0] if names else "embeddings"
            report(
                block=title,
                before=before,
                after=after,
                steps=done,
                seconds=time.perf_counter() - clock,
            )
        if names != [*blocks][-1:] and not stage.whole:  # no block comes after the last
            for states, _ in sides:
                states.advance(stage.blocks[0]) if names else states.enter(net)
    return result
