"""Damage to files: flipped bits, truncation, zeroed ranges, swapped parts."""

import random


def flipped(content, rng):
    damaged = bytearray(content)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(content, rng):
    return content[: rng.randrange(len(content))]


def zeroed(content, rng):
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.choice([1, 64, 4096]))
    if not any(content[start:stop]):
        return cut(content, rng)
    return content[:start] + bytes(stop - start) + content[stop:]


def swapped(content, rng):
    length = min(64, len(content) // 2)
    start, other = rng.randrange(len(content) - length), rng.randrange(len(content) - length)
    if content[start : start + length] == content[other : other + length]:
        return flipped(content, rng)
    damaged = bytearray(content)
    damaged[start : start + length] = content[other : other + length]
    return bytes(damaged)


DAMAGES = (flipped, cut, zeroed, swapped)


def count_outcomes(exported, answers, expected, count, error):
    """Damage each file of an export in turn, open it, and restore the file.

    Args:
        exported: A file or a folder.
        answers: Opens it and returns its predictions as bytes.
        expected: The predictions of the intact export.
        count: How often to damage each file.
        error: The expected exception, with a one-line message.

    Returns:
        How often damage was refused, was harmless, and changed predictions unnoticed.
    """
    rng, refused, same, wrong = random.Random(0), 0, 0, []
    for file in sorted(exported.iterdir()) if exported.is_dir() else [exported]:
        content = file.read_bytes()
        for number in range(count):
            damage = DAMAGES[number % len(DAMAGES)]
            file.write_bytes(damage(content, rng))
            try:
                found = answers(exported)
            except error as message:
                refused += 1
                if "\n" in str(message):
                    wrong.append((file.name, "several lines", number))
                continue
            if found == expected:
                same += 1
            else:
                wrong.append((file.name, damage.__name__, number))
        file.write_bytes(content)
    return refused, same, wrong
