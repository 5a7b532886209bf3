"""Plain prose out of docstrings, reStructuredText and Markdown: code, tables, licences and markup are left out."""

import inspect
import re

MIN_PARAGRAPH_WORDS = 8
MIN_PROSE_SHARE = 0.82

# One scan over Python source that steps over comments and strings, so that a quote inside one of them does not open a
# string. Parsing with `ast` finds the same docstrings 20 times slower.
_LEX = re.compile(r"""#[^\n]*|(["']{3})(.*?)\1|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL)

_COMMENT = re.compile(r"(?:^[ \t]*#[^\n]*\n){2,}", re.MULTILINE)
_COMMENT_MARK = re.compile(r"^[ \t]*#+:? ?", re.MULTILINE)

_FENCE = re.compile(r"^[ \t]*(```|~~~).*?(^[ \t]*\1[^\n]*$|\Z)", re.DOTALL | re.MULTILINE)
_DIRECTIVE = re.compile(r"^[ \t]*\.\. .*$", re.MULTILINE)
_UNDERLINED = re.compile(r"^[^\n]*\n[ \t]*([=\-~^\"'*+#`.:_])\1{2,}[ \t]*$", re.MULTILINE)
_RULE = re.compile(r"^[\s|+=\-*_#~]*$", re.MULTILINE)
_BLANK = re.compile(r"\n[ \t]*\n")
_ROLE = re.compile(r":[a-z:+]+:`[!~]?\.?([^`<]*?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"!?\[([^\]\n]*)\](?:\([^)\n]*\)|\[[^\]\n]*\])")
_RST_LINK = re.compile(r"`([^`<\n]+?)\s*<[^`>]*>`_{1,2}")
_TAG = re.compile(r"<[^<>\n]{1,300}>")
_URL = re.compile(r"(?:https?|ftp)://\S+")
_FIELD = re.compile(r"^:(?:param|type|return|returns|rtype|raises|raise|var|ivar|cvar)\b([^:\n]*):", re.MULTILINE)
_MARKS = re.compile(r"`+|\*\*+|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)|^#+ ", re.MULTILINE)
_SPACE = re.compile(r"\s+")
_NOT_PROSE = re.compile(r"[^A-Za-z ,.']")
_LICENCE = re.compile(
    r"copyright|licen[cs]e[ds]?\b|licen[cs]ing|warrant(?:y|ies)|rights reserved|redistribut|permission is hereby",
    re.IGNORECASE,
)
_CITATION = re.compile(r"\s*\[[\w#]+\]_")


def docstrings(source: str) -> list[str]:
    """The docstrings of a module's source: triple-quoted strings that open a module, a class or a function."""
    texts, opening, end = [], True, 0
    for match in _LEX.finditer(source):
        start, text = match.start(), match.group(2)
        opening = opening and not source[end:start].strip(" \t\r\n\ufeffrRuU")
        if text is not None and (opening or _follows_colon(source, start)):
            texts.append(inspect.cleandoc(text))
        opening = opening and text is None and source[start] == "#"
        end = match.end()
    return texts


def _follows_colon(source: str, start: int) -> bool:
    if source[start - 1] in "rRuU":
        start -= 1
    place = start - 1
    while place >= 0 and source[place] in " \t\r\n":
        place -= 1
    return place >= 0 and source[place] == ":" and "\n" in source[place:start]


def comments(source: str) -> list[str]:
    """The paragraphs of prose in a Python source's comments of more than one line."""
    blocks = (_COMMENT_MARK.sub("", block) for block in _COMMENT.findall(source))
    return [paragraph for block in blocks for paragraph in paragraphs(block)]


def paragraphs(text: str) -> list[str]:
    """The paragraphs of prose in a docstring or a documentation file, each on one line, without markup."""
    text = _FENCE.sub("", text.replace("\r", "").replace("\0", ""))
    text = _DIRECTIVE.sub(_keep_code_marker, text)
    text = _RULE.sub("", _UNDERLINED.sub("", text))
    kept, code_indent = [], None
    for block in _BLANK.split(text):
        indent = _indent(block)
        if code_indent is not None and indent > code_indent:
            continue  # the body of a literal block, until the indentation comes back
        code_indent = indent if block.rstrip().endswith("::") else None
        if ">>>" in block or "$ " in block:
            continue
        prose = plain(block)
        if is_prose(prose):
            kept.append(prose)
    return kept


def _keep_code_marker(match: re.Match) -> str:
    """A directive's line goes; where it opens a literal block, its `::` stays so that the block goes too."""
    line = match.group()
    indent = line[: len(line) - len(line.lstrip())]
    literal = re.search(
        r"(code|code-block|sourcecode|math|highlight|plot|ipython|testcode|doctest|csv-table|list-table|image|figure)::",
        line,
    )
    return f"\n{indent}::\n" if literal else ""


def _indent(block: str) -> int:
    return next((len(line) - len(line.lstrip()) for line in block.split("\n") if line.strip()), 0)


def plain(block: str) -> str:
    """One paragraph without links, roles, tags and emphasis, on one line."""
    block = _RST_LINK.sub(r"\1", _LINK.sub(r"\1", _ROLE.sub(r"\1", block)))
    block = _FIELD.sub(r"\1:", _URL.sub("", _TAG.sub("", _CITATION.sub("", block))))
    return _SPACE.sub(" ", _MARKS.sub("", block)).replace("::", ":").strip()


def is_prose(text: str) -> bool:
    """Long enough, mostly letters and plain punctuation, and no licence."""
    if text.count(" ") + 1 < MIN_PARAGRAPH_WORDS:
        return False
    return 1 - len(_NOT_PROSE.findall(text)) / len(text) >= MIN_PROSE_SHARE and not _LICENCE.search(text)
