"""Oracles of the number tasks: answers computed in plain Python from the text of a prompt."""

import re

DIGITS = "0123456789ABCDEF"


def in_base(number: int, base: int) -> str:
    """Return `number` as text in `base`."""
    if number < 0:
        return "-" + in_base(-number, base)
    rest, last = divmod(number, base)
    return (in_base(rest, base) if rest else "") + DIGITS[last]


def split_prompt(prompt: str, base: int) -> tuple[str, int, int]:
    """Return the question without bases, blanks and `=`, and its two bases."""
    assert prompt.endswith("=") and prompt.count("=") == 1
    a = b = base
    if ":" in prompt:
        bases, prompt = prompt.split(":")
        a, b = (int(x) for x in bases.split(">"))
    return prompt[:-1].replace("_", ""), a, b


def sequence(name: str, elements: list[int], amount: int, base: int, hops: int = 1) -> list[int]:
    """Return the elements of the answer of a sequence task."""
    n = len(elements)
    match name:
        case "copy":
            return elements
        case "reverse":
            return [elements[n - 1 - i] for i in range(n)]
        case "sort":
            return sorted(elements)
        case "rotate":
            return elements[amount:] + elements[:amount]
        case "shift":
            return elements[amount:] + [0] * amount
        case "jump":
            out = elements
            for _ in range(hops):
                out = [elements[place] for place in out]
            return out
        case "running_sum":
            return [sum(elements[: i + 1]) % base for i in range(n)]
    raise AssertionError(name)


def factors(number: int) -> dict[int, int]:
    """Return {prime: exponent}."""
    found: dict[int, int] = {}
    divisor = 2
    while number > 1:
        while number % divisor == 0:
            found[divisor] = found.get(divisor, 0) + 1
            number //= divisor
        divisor += 1
    return found


def solve(name: str, prompt: str, base: int = 10, hops: int = 1) -> str:
    """Return the answer to a prompt of the task `name`, in `base` if the prompt names no bases."""
    question, a, b = split_prompt(prompt, base)
    if name == "factorise":
        powers = factors(int(question, a)).items()
        return "*".join(in_base(p, b) + (f"^{in_base(e, b)}" if e > 1 else "") for p, e in powers)
    if name in ("add", "subtract", "multiply", "arithmetic"):
        spelled = re.sub("[0-9A-F]+", lambda run: str(int(run[0], a)), question)
        return in_base(eval(spelled), b)  # digits and + - * alone, from our own generator
    row, _, amount = question.partition(",")
    elements = [int(digit, a) for digit in row]
    width = len(in_base(a - 1, b))
    out = sequence(name, elements, int(amount or "0", a), a, hops)
    return "".join(in_base(x, b).rjust(width, "0") for x in out)
