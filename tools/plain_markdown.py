"""MyST to plain Markdown, for the student edition: Colab and JupyterLab know no directives."""

from __future__ import annotations

import re
from collections.abc import Callable

FENCE = re.compile(r"^(?P<marks>`{3,}|:{3,})\{(?P<name>[\w:-]+)\}[ \t]*(?P<argument>.*?)[ \t]*$")
ROLE = re.compile(r"\{(?P<name>[\w:-]+)\}`(?P<text>[^`]+)`")
EQUATION_LABEL = re.compile(r"(?P<close>\$\$)[ \t]+\((?P<label>eq-[\w-]+)\)[ \t]*$", re.M)
COMMENT_OR_TARGET = re.compile(r"^(%.*|\([\w-]+\)=)\n?", re.M)
KEPT_WORDS = {"note", "tip", "important", "warning", "caution", "hint", "seealso", "danger"}


def _role(match: re.Match[str]) -> str:
    name, text = match["name"], match["text"]
    title, _, target = text.partition(" <")
    if name == "math":
        return f"${text}$"
    if name == "eq":
        return f"({text})"
    if name.startswith("cite"):
        return f"[{text}]"
    if name in ("numref", "ref", "doc", "term", "prf:ref") and not target:
        return text.rsplit("/", 1)[-1]
    return title if target else text


def _quote(title: str, body: list[str]) -> list[str]:
    return [f"> **{title}**", ">", *(f"> {line}".rstrip() for line in body)]


def _directive(name: str, argument: str, body: list[str]) -> list[str]:
    """A directive as plain Markdown; `body` is converted already and has no options."""
    if name in ("exercise", "exercise-start"):
        return [f"### Exercise: {argument}" if argument else "### Exercise", "", *body]
    if name == "dropdown":
        return ["<details>", f"<summary>{argument}</summary>", "", *body, "", "</details>"]
    if name == "admonition":
        return _quote(argument, body)
    if name in KEPT_WORDS:
        return _quote(argument or name.capitalize(), body)
    if name == "math":
        return ["$$", *body, "$$"]
    if name in ("code-block", "code"):
        return [f"```{argument}", *body, "```"]
    if name in ("exercise-end", "solution-start", "solution-end", "solution"):
        return []
    return [*([f"**{argument}**", ""] if argument else []), *body]


def _options_end(body: list[str]) -> int:
    end = 0
    while end < len(body) and re.match(r"^:[\w-]+:", body[end]):
        end += 1
    return end


def _convert(lines: list[str]) -> list[str]:
    done: list[str] = []
    position = 0
    while position < len(lines):
        opening = FENCE.match(lines[position])
        position += 1
        if opening is None:
            done.append(lines[position - 1])
            continue
        closing: Callable[[str], bool] = lambda line, marks=opening["marks"]: line.rstrip() == marks  # noqa: E731
        end = next((i for i in range(position, len(lines)) if closing(lines[i])), None)
        if end is None:
            raise ValueError(f"the directive {opening[0]!r} is not closed")
        body = lines[position:end]
        body = body[_options_end(body) :]
        while body and not body[0].strip():
            body = body[1:]
        done += _directive(opening["name"], opening["argument"], _convert(body))
        position = end + 1
    return done


def plain_markdown(text: str) -> str:
    r"""Directives become headings, quotes and details; roles become their text.

    `$$ ... $$ (eq-name)` keeps its name as `\tag{eq-name}`, where `(eq-name)` in the text finds it.
    """
    text = COMMENT_OR_TARGET.sub("", text)
    text = EQUATION_LABEL.sub(lambda m: rf"\tag{{{m['label']}}}{m['close']}", text)
    converted = "\n".join(_convert(text.split("\n")))
    return ROLE.sub(_role, converted).strip("\n")
