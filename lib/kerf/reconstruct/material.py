"""What is learned from: the calibration sample, and splices of it. The float model has an answer to any text."""

import torch

TOKENS = 512  # of a batch


def splices(sequences: list[list[int]], times: int, generator: torch.Generator) -> list[list[int]]:
    """The sequences, and `times` - 1 more for each: its beginning joined to the end of another one."""
    result = list(sequences)
    for _ in range(times - 1):
        for first in sequences:
            second = sequences[int(torch.randint(len(sequences), (), generator=generator))]
            cut = [int(torch.randint(1, len(each), (), generator=generator)) for each in (first, second)]
            joined = first[: cut[0]] + second[cut[1] :]
            result.append(joined if 4 < len(joined) <= max(len(first), len(second)) else first)
    return result


def batched(sequences: list[list[int]], opened) -> list[dict]:
    """Batches of about TOKENS tokens, sequences of like length together."""
    batches, current, padding = [], [], opened.tokenizer.pad_token_id
    for sequence in sorted(sequences, key=len):
        if current and (len(current) + 1) * len(sequence) > TOKENS:
            batches.append(_pad(current, padding))
            current = []
        current.append(sequence)
    return [*batches, _pad(current, padding)]


def _pad(sequences, padding):
    width = max(map(len, sequences))
    ids = [sequence + [padding] * (width - len(sequence)) for sequence in sequences]
    mask = [[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
