"""The capacity table of docs/python.md, computed from the measured speeds of benchmarks/python.md.

    capacity.py            prints the table
    capacity.py --check    fails if docs/python.md has another one

The rows of an hour on a node are 3600 / (prompt / prefill + answer / batch): `prefill` and `batch` are
the measured tokens per second, of a prompt and of decoding a batch.
"""

import argparse
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[3]
MEASURED = ROOT / "benchmarks/python.md"
DOCS = ROOT / "docs/python.md"
# Tokens of a row's prompt and answer.
ROWS = [(128, 32), (512, 8), (1024, 256)]
HEAD = """\
| prompt, answer (tokens) | rows an hour, a node | a million rows | a thousand million rows | nodes for these in 30 days |
|---|---|---|---|---|
"""


def speeds(text):
    """Tokens per second by name, from the lines `| capacity: NAME | NUMBER |`."""
    found = re.findall(r"^\| capacity: (\w+) \| ([0-9.]+) \|$", text, re.MULTILINE)
    return {name: float(number) for name, number in found}


def rows_per_hour(speed, prompt, answer):
    return 3600 / (prompt / speed["prefill"] + answer / speed["batch"])


def table(speed):
    lines = []
    for prompt, answer in ROWS:
        hourly = rows_per_hour(speed, prompt, answer)
        million, thousand_million = 1e6 / hourly, 1e9 / hourly
        nodes = -(-thousand_million // (30 * 24))
        lines.append(
            f"| {prompt}, {answer} | {hourly:,.0f} | {million:,.0f} node hours "
            f"| {thousand_million:,.0f} node hours | {nodes:,.0f} |\n"
        )
    return HEAD + "".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    computed = table(speeds(MEASURED.read_text()))
    if parser.parse_args().check:
        if computed not in DOCS.read_text():
            sys.exit(f"{DOCS} has another table than the measured speeds give:\n{computed}")
    else:
        print(computed, end="")


if __name__ == "__main__":
    main()
