"""A constitution as a page that people read: Markdown for a change request, HTML as one file by itself."""

from collections.abc import Iterator
from html import escape

from cai.constitution import WORDINGS, Constitution, Principle
from cai.markdown import code, plain
from cai.texts import visible

# What each wording is for, in the words of somebody who does not run cai.
MEANINGS = {
    "statement": "What a good answer does",
    "rationale": "Why",
    "critique": "How an answer is criticised",
    "revision": "How it is rewritten",
    "comparison": "How two answers are compared",
}


def as_markdown(constitution: Constitution) -> str:
    """The whole constitution as Markdown."""
    return "\n".join(_markdown(constitution)) + "\n"


def _markdown(constitution: Constitution) -> Iterator[str]:
    yield from (f"# {plain(constitution.name)} {plain(constitution.version)}", "", plain(constitution.description), "")
    for name, text in _facts(constitution):
        yield from (f"**{name}:** {plain(text)}", "")
    for number, principle in enumerate(constitution.principles, start=1):
        yield from (f"## {number}. {principle.id}", "", ", ".join(_marks(principle)), "")
        for key in WORDINGS:
            yield from (f"**{MEANINGS[key]}**{_made(principle, key)}: {plain(getattr(principle, key))}", "")
        for example in principle.examples:
            yield from (f"- *Asked:* {plain(example.prompt)}", f"  - *Better:* {plain(example.better)}")
            yield f"  - *Worse:* {plain(example.worse)}"
        if principle.examples:
            yield ""
        for reference in principle.references:
            yield f"- See {plain(reference.framework)}, {plain(reference.clause)}"
        if principle.references:
            yield ""
    yield f"sha256 of the file: {code(constitution.sha)}"


def as_html(constitution: Constitution) -> str:
    """The whole constitution as one HTML file, without scripts and without anything from elsewhere."""
    return "\n".join(_html(constitution)) + "\n"


def _html(constitution: Constitution) -> Iterator[str]:
    title = f"{_text(constitution.name)} {_text(constitution.version)}"
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>"
    yield f"<h1>{title}</h1>\n<p>{_text(constitution.description)}</p>"
    yield "<dl>"
    yield from (f"<dt>{name}</dt><dd>{_text(text)}</dd>" for name, text in _facts(constitution))
    yield f"<dt>sha256 of the file</dt><dd><code>{constitution.sha}</code></dd>\n</dl>"
    yield '<nav aria-label="Principles"><ol>'
    yield from (f'<li><a href="#{one.id}">{one.id}</a></li>' for one in constitution.principles)
    yield "</ol></nav>"
    for number, principle in enumerate(constitution.principles, start=1):
        yield from _section(number, principle)
    yield "</main>\n</body>\n</html>"


def _section(number: int, principle: Principle) -> Iterator[str]:
    yield f'<section id="{principle.id}">\n<h2>{number}. {principle.id}</h2>'
    yield f'<p class="marks">{_text(", ".join(_marks(principle)))}</p>\n<dl>'
    for key in WORDINGS:
        yield f"<dt>{MEANINGS[key]}{_made(principle, key)}</dt><dd>{_text(getattr(principle, key))}</dd>"
    yield "</dl>"
    for example in principle.examples:
        yield f'<div class="example"><p><b>Asked</b> {_text(example.prompt)}</p>'
        yield f'<p class="better"><b>Better</b> {_text(example.better)}</p>'
        yield f'<p class="worse"><b>Worse</b> {_text(example.worse)}</p></div>'
    if principle.references:
        yield "<ul>"
        yield from (f"<li>{_text(one.framework)}, {_text(one.clause)}</li>" for one in principle.references)
        yield "</ul>"
    yield "</section>"


def _facts(constitution: Constitution) -> Iterator[tuple[str, str]]:
    if constitution.question is not None:
        yield "Asked about every answer", constitution.question
    if constitution.source is not None:
        source = constitution.source
        yield "Imported from", f"{source.name} (form {source.form}, sha256 {source.sha256})"
        if source.left_out:
            yield "Not imported", "; ".join(source.left_out)


def _marks(principle: Principle) -> Iterator[str]:
    yield f"weight {principle.weight:g}"
    if principle.tags:
        yield f"tags: {' '.join(principle.tags)}"
    if principle.refusal_is_fine:
        yield "a plain refusal never breaks it"


def _made(principle: Principle, key: str) -> str:
    return " (made up by cai, not in the source)" if key in principle.filled_in else ""


def _text(text: str) -> str:
    return escape(visible(" ".join(text.split())))


_STYLE = """
body { margin: 0; background: #fff; color: #1b1b1b; font: 1rem/1.55 system-ui, sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; border-top: 1px solid #c8c8c8; padding-top: 1rem; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0; }
.marks { color: #4a4a4a; }
.example { border: 1px solid #c8c8c8; border-radius: .3rem; padding: 0 .8rem; margin: .8rem 0; }
.better { border-left: .3rem solid #1a7f37; padding-left: .6rem; }
.worse { border-left: .3rem solid #b3261e; padding-left: .6rem; }
@media print { nav { display: none; } section { break-inside: avoid-page; } a { color: inherit; } }
"""
