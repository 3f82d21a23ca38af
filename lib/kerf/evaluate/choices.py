"""Tasks with several choices for language models: which choice is the most probable, before and after.

Accuracy alone says little: a destroyed model is "equivalent" to one that guesses. So a task counts only where the baseline is
clearly above chance, and exchanged answers and the probability of the right answer stand beside it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray
from scipy import stats

from kerf.data import datasets
from kerf.evaluate import common, fidelity
from kerf.evaluate.stats import LEVEL

ABOVE_CHANCE = 0.05  # that the lower bound of the baseline's accuracy must exceed chance by

Sequence = tuple[list[int], int]  # tokens, and how many of them, at the end, are the choice


@dataclass(frozen=True)
class Question:
    """A question of a task; its choices are the sequences from number `first` on."""

    task: str
    prompt: str
    text: str  # with the right answer
    first: int
    count: int
    answer: int


def gather(
    tokenizer: Any, names: Iterable[str], count: int, most: int | None
) -> tuple[list[Question], list[Sequence]]:
    """Questions of the tasks, and a sequence for each choice; without those that are longer than `most` tokens."""
    questions: list[Question] = []
    sequences: list[Sequence] = []
    for name in names:
        for item in datasets.task(name, count):
            prompt = tokenizer(item.prompt)["input_ids"]
            choices = tokenizer(item.choices, add_special_tokens=False)["input_ids"]
            longest = len(prompt) + max(map(len, choices))
            if not prompt or not all(choices) or most is not None and longest > most:
                continue
            questions.append(
                Question(name, item.prompt, item.text, len(sequences), len(choices), item.answer)
            )
            sequences += [(prompt + choice, len(choice)) for choice in choices]
    return questions, sequences


def compare(
    questions: list[Question], before: ndarray, after: ndarray
) -> tuple[list[fidelity.Row], list]:
    """Metric rows and groups of items of every task. before, after: log-probability of each sequence's choice."""
    rows, groups = [], []
    for name in dict.fromkeys(question.task for question in questions):
        own = [question for question in questions if question.task == name]
        old, new = (_right(own, logp) for logp in (before, after))
        answers = [question.first + question.answer for question in own]
        task_rows = _metrics(old, new, after[answers] - before[answers])
        chance = float(np.mean([1 / question.count for question in own]))
        evidence = is_above(old, chance)
        rows += common.of_domain([{**row, "evidence": evidence} for row in task_rows], name)
        known = {"document": np.arange(len(own)), "domain": name}
        known["text"] = [question.prompt for question in own]
        logp = {"candidate": after[answers], "baseline": before[answers]}
        groups.append(common.group("task", candidate=new, baseline=old, **known))
        groups.append(common.group("task_logp", **logp, **known))
    return rows, groups


def _right(questions: list[Question], logp: ndarray) -> ndarray:
    """Whether the right answer is the most probable choice, (questions,)."""
    slices = [logp[question.first : question.first + question.count] for question in questions]
    chosen = np.array([values.argmax() for values in slices])
    return chosen == np.array([question.answer for question in questions])


def _metrics(old: ndarray, new: ndarray, change: ndarray) -> list[fidelity.Row]:
    items = np.arange(len(old))
    accuracy, loss = fidelity.mean_and_loss(
        "task_accuracy", old.astype(float), new.astype(float), items
    )
    flips = fidelity.mean("task_flips", (old != new).astype(float), items, 0.0)
    logp = fidelity.mean("task_logp_change", change, items, 0.0)
    return [accuracy | fidelity.flips(old, new), loss, flips, logp]


def is_above(right: ndarray, chance: float) -> bool:
    """Whether the lower bound (Clopper-Pearson) of the share of right answers lies clearly above chance."""
    test = stats.binomtest(int(right.sum()), len(right))
    return float(test.proportion_ci(LEVEL).low) >= chance + ABOVE_CHANCE
