"""Sphinx extension that documents the options of an argparse parser.

On all pages, options of ``bids_harmony`` in code spans become links to their descriptions.
"""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from bids_harmony.cli.parser import build_parser


class ParserOptions(SphinxDirective):
    """``{parser-options} MODULE:FUNCTION``; the function returns an ``ArgumentParser``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Describe the options in Markdown, and return the parsed nodes."""
        module, _, function = self.arguments[0].partition(":")
        parser: argparse.ArgumentParser = getattr(import_module(module), function)()
        text = [f"```{{program}} {parser.prog}\n```"]
        for group in parser._action_groups:
            if group._group_actions:
                text.append(f"### {heading(group.title or 'options')}")
                text.append(group.description or "")
                text += [described(action, parser) for action in group._group_actions]
        return self.parse_text_to_nodes("\n\n".join(text), allow_section_headings=True)


def heading(title: str) -> str:
    """Capitalize the first letter."""
    return title[0].upper() + title[1:]


def described(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """Return the Markdown description of one argument: names, value and help."""
    formatter = parser._get_formatter()
    help_text = formatter._expand_help(action) if action.help else ""
    text = re.sub(r"([*_`<>{}\[\]\\])", r"\\\1", help_text)
    if not action.option_strings:
        name = action.metavar or action.dest
        return f"```{{describe}} {name}\n{text}\n```"
    takes = "" if action.nargs == 0 else f" {formatter._format_args(action, action.dest.upper())}"
    return (
        f"```{{option}} {', '.join(name + takes for name in action.option_strings)}\n{text}\n```"
    )


def link_options(app: Sphinx, doctree: nodes.document) -> None:
    """Turn code spans that begin with an option into links."""
    program = build_parser()
    known = {name for action in program._actions for name in action.option_strings}
    for span in list(doctree.findall(nodes.literal)):
        name = span.astext().partition(" ")[0]
        if name not in known or isinstance(span.parent, nodes.reference | addnodes.pending_xref):
            continue
        link = addnodes.pending_xref(
            "", refdomain="std", reftype="option", reftarget=name, refexplicit=True, refwarn=True,
            refdoc=app.env.docname, **{"std:program": program.prog},
        )  # fmt: skip
        span.replace_self(link)
        link += span


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive and the event handler."""
    app.add_directive("parser-options", ParserOptions)
    app.connect("doctree-read", link_options)
    return {"parallel_read_safe": True}
