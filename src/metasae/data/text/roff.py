"""The running text of a manual page: a small reader of man and mdoc, the two languages of manual pages.

Nothing is typeset. Lines of text and words in another typeface are kept, examples and tables are dropped, and every
other request ends a paragraph.
"""

import re

# name of a request -> the one that ends the stretch without prose that it opens
_SKIPPED = {"nf": "fi", "EX": "EE", "TS": "TE", "Bd": "Ed", "de": ".", "ig": "."}
# man: words in another type; where the name has two letters, its arguments stand in turn without a space
_TYPES = {"B", "I", "R", "SM", "SB"}
_TYPES_IN_TURN = {"BR", "RB", "IR", "RI", "BI", "IB"}
# mdoc: those that begin something new. All others of its kind stand inside a sentence.
_BREAKS = {"Sh", "Ss", "Pp", "It", "Dd", "Dt", "Os", "Bl", "El", "Nd"}
_MDOC = re.compile(r"[A-Z][a-z]")
_REQUEST = re.compile(r"[.'][ \t]*(\S+)[ \t]*(.*)")
_ARGUMENT = re.compile(r'"([^"]*)"|(\S+)')
_CHARACTER = re.compile(r"\\(?:\((..)|\[([^\]]*)\])")
_CHARACTERS = {"aq": "'", "oq": "'", "cq": "'", "dq": '"', "lq": '"', "rq": '"', "em": " - ", "en": "-", "hy": "-"}
_ESCAPE = re.compile(r"\\(?:[fmMsFn*](?:\[[^\]]*\]|\(..|[-+]?.)|[hvwlLobD]'[^']*'|[&|^/,:%cpdu)!{}])")
_BEFORE_PUNCTUATION = re.compile(r" +(?=[,.;:)](?:\s|$))")


def running_text(page: str) -> str:
    """A page's text, paragraphs apart by blank lines, as `metasae.data.text.prose.paragraphs` reads it."""
    lines, end, name, label = [], "", "", False
    for line in page.split("\n"):
        request = _REQUEST.match(line)
        if end:
            end = "" if request and request[1] == end else end
        elif line.startswith(('.\\"', "'\\\"")):
            continue
        elif request is None:
            # a label, as that of an option, is no part of the sentence under it
            lines += [_plain(line), ""] if label else [_plain(line)]
            label = False
        else:
            macro, arguments = request[1], [quoted or bare for quoted, bare in _ARGUMENT.findall(request[2])]
            end = _SKIPPED.get(macro, "")
            if macro == "Nm":
                name = name or " ".join(arguments)
                arguments = arguments or [name]
            words = _words(macro, arguments)
            lines += [words or "", ""] if label and words else [words or ""]
            label = macro in ("TP", "TQ") or (label and not words)
    return "\n".join(lines)


def _words(macro: str, arguments: list[str]) -> str | None:
    """The words of a request that stands inside a sentence; None of one that ends a paragraph."""
    if macro in _TYPES_IN_TURN:
        return _plain("".join(arguments))
    if macro in _TYPES:
        return _plain(" ".join(arguments))
    if not _MDOC.fullmatch(macro) or macro in _BREAKS | _SKIPPED.keys():
        return None
    words = " ".join(word for word in arguments if not _MDOC.fullmatch(word))
    return _plain(_BEFORE_PUNCTUATION.sub("", words))


def _plain(text: str) -> str:
    """Without comments and escapes, with the characters that they stand for."""
    text = _CHARACTER.sub(lambda match: _CHARACTERS.get(match[1] or match[2], ""), text.partition('\\"')[0])
    return _ESCAPE.sub("", text).replace("\\~", " ").replace("\\e", "\\ ").replace("\\", "")
