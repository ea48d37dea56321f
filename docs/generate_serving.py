"""Write the tables of docs/serving.md from the code: python docs/generate_serving.py (a test compares the two)."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from pixtral.server.protocol import REFUSED
from pixtral.server.settings import PREFIX, Settings, kind_of


def page(text: str) -> str:
    """The page with its tables written anew; what stands between their marks is replaced."""
    for name, table in {"flags": flags(), "refused": refused()}.items():
        begin, end = f"<!-- {name}: written by docs/generate_serving.py -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        assert len(pattern.findall(text)) == 1, name
        text = pattern.sub(lambda _, begin=begin, table=table, end=end: f"{begin}\n{table}\n{end}", text)
    return text


def flags() -> str:
    """Every setting with its names, meaning and default."""
    rows = ["| flag | environment | | default |", "|---|---|---|---|"]
    for field in dataclasses.fields(Settings):
        metavar = "" if kind_of(field) is bool else f" {field.metadata['metavar']}"
        flag = "`MODEL`" if field.name == "model" else f"`--{field.name.replace('_', '-')}{metavar}`"
        default = "" if field.default in (None, (), False) else f"`{field.default}`"
        help = field.metadata["help"].replace("|", "\\|")
        rows.append(f"| {flag} | `{PREFIX}{field.name.upper()}` | {help} | {default} |")
    rows.append(f"| `--config FILE` | `{PREFIX}CONFIG` | A TOML file with settings. | |")
    return "\n".join(rows)


def refused() -> str:
    """Fields of requests that are known and refused."""
    return "\n".join(["| field | |", "|---|---|", *(f"| `{name}` | {why} |" for name, why in sorted(REFUSED.items()))])


if __name__ == "__main__":
    path = Path(__file__).with_name("serving.md")
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
