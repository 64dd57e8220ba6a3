"""Oracle of the worked tasks: intermediate results in plain Python, from the text of a question."""

import re

from number_oracles import in_base


def products(number: int, other: str, base: int) -> list[str]:
    """Return the products of a number and each digit of another, the last digit first."""
    return [in_base(number * int(digit, base), base) for digit in reversed(other)]


def parse(question: str) -> tuple[list[str], list[str]]:
    return re.findall("[0-9A-F]+", question), re.findall(r"[+*-]", question)


def value(text: str, base: int) -> int:
    """Return the value of a chain; the digits and + - * come from our own generator."""
    return eval(re.sub("[0-9A-F]+", lambda run: str(int(run[0], base)), text))


def working(name: str, question: str, base: int = 10) -> dict[str, list[str]]:
    """Return the intermediate results of a question by name; empty where there are none."""
    numbers, operators = parse(question)
    if name == "multiply":
        return {"p": products(int(numbers[0], base), numbers[1], base)}
    order = question
    if len(operators) == 2 and operators[1] == "*" and operators[0] != "*":
        sign = "-" if operators[0] == "-" else ""
        order = f"{sign}{numbers[1]}*{numbers[2]}+{numbers[0]}"
    (x, y, *last), (first, *second) = parse(order.lstrip("-"))
    found = {"order": [order], "p": [], "t": [], "q": []}
    if first == "*":
        found["p"] = products(int(x, base), y, base)
    if second:
        t = value(order[: order.rindex(second[0])], base)
        found["t"] = [in_base(t, base)]
        if first == second[0] == "*":
            found["q"] = products(t, last[0], base)
    return found


def written(name: str, question: str, base: int = 10) -> str:
    """Return a question with its intermediate results and its answer."""
    parts = [part for parts in working(name, question, base).values() for part in parts]
    return f"{question}=" + ",".join([*parts, in_base(value(question, base), base)])


def digits(number: str, width: int) -> str:
    """Return `width` digits, the last one first."""
    return number.lstrip("-").rjust(width, "0")[::-1]


def registers(name: str, question: str, size: int, base: int = 10) -> list[tuple[str, int]]:
    """Return the text that each register holds, and its due step, for chains of two operators."""
    numbers, operators = parse(question)
    largest = base**size - 1
    width = len(in_base(largest * (base - 1), base))
    found = working(name, question, base)

    def products_of(key: str, width: int, due: int) -> list[tuple[str, int]]:
        padded = found[key] + ["0"] * (size - len(found[key]))
        return [(digit, due) for number in padded for digit in digits(number, width)]

    if name == "multiply":
        return products_of("p", width, 1)
    order = found["order"][0]
    sign = "-" if order[0] == "-" else "+"
    (x, y, *last), (first, *second) = parse(order.lstrip("-"))
    rest = (second[0] if second else "_") + digits(last[0] if last else "0", size)
    row = [(c, 1) for c in sign + digits(x, size) + first + digits(y, size) + rest]
    t = value(order[: order.rindex(second[0])] if second else order, base)
    wide = len(in_base(largest**2, base))
    t_row = [(c, 3) for c in ("-" if t < 0 else "+") + digits(in_base(abs(t), base), wide)]
    q_width = len(in_base((base**wide - 1) * (base - 1), base))
    return row + products_of("p", width, 2) + t_row + products_of("q", q_width, 4)
