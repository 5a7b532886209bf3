"""The source `machine`: manual pages, plain text and comments beside the documents of `docs`."""

import gzip

import pytest

from metasae.data.text import documentation, machine
from metasae.data.text.prose import comments, paragraphs
from metasae.data.text.roff import running_text

WORDS = "This program reads its input with care and says what it has read in plain words. "


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture
def places(tmp_path, monkeypatch):
    """(the one root of Python packages, the one folder of manuals)"""
    root, share = tmp_path / "root", tmp_path / "share"
    docstring = "".join(f"This module number {number} explains itself to its readers. " for number in range(8))
    written(root / "a.py", f'"""{docstring}"""\n')
    monkeypatch.setattr(documentation, "roots", lambda: [root])
    monkeypatch.setattr(machine, "shares", lambda: [share] if share.exists() else [])
    return root, share


def test_without_more_than_docs_it_is_docs(places):
    assert list(machine.documents()) == list(documentation.documents())


def test_manuals_texts_and_comments_come_once_each_in_one_order(places):
    root, share = places
    written(share / "man" / "man1" / "read.1.gz", f".TH READ 1\n.SH NAME\n.PP\nOf pages. {WORDS * 4}\n")
    written(share / "man" / "de" / "man1" / "read.1", f".PP\nAuf Deutsch. {WORDS * 4}\n")
    written(share / "doc" / "read" / "README.gz", f"Of texts. {WORDS * 4}\n\nThe second one. {WORDS * 4}\n")
    written(share / "doc" / "read" / "again.txt", f"The second one. {WORDS * 4}\n")
    written(share / "doc" / "read" / "changelog.gz", f"Of changes. {WORDS * 4}\n")
    written(share / "doc" / "read" / "code.c", f"Of code. {WORDS * 4}\n")
    written(root / "b.py", "".join(f"# Comment. {WORDS}\n" for _ in range(4)) + "x = 1\n")
    (share / "doc" / "read" / "broken.txt.gz").write_bytes(b"\x1f\x8b no gzip at all")
    (share / "doc" / "read" / "folder.txt").mkdir()
    documents = list(machine.documents())
    assert documents == list(machine.documents())
    whole = "\n\n".join(documents)
    for beginning in ("This module", "Of pages", "Of texts", "The second one", "Comment."):
        assert whole.count(beginning) == (4 if beginning == "Comment." else 8 if beginning == "This module" else 1)
    for left_out in ("Deutsch", "Of changes", "Of code"):
        assert left_out not in whole


MAN = r"""
.\" a comment that no reader of the page will ever get to see
.TH LS 1
.SH DESCRIPTION
List information about the \fIFILE\fRs (the current directory by default)
.B and
sort entries
.BR alphabetically (1),
said\(emas\~one\-does.
.TP
.B \-a
do not ignore entries that start with a dot, as one would otherwise
.nf
this is an example that is as long as a sentence would be here
.fi
.PP
The last paragraph of the page has enough words to be kept as it is.
"""
MDOC = r"""
.Dd May 1
.Sh NAME
.Nm cat
.Nd concatenate files
.Sh DESCRIPTION
The
.Nm
utility reads files in turn and writes them to the standard output ,
and
.Ar file
operands are read in the order of the command line
.Pq see Xr ls 1 .
"""


def test_running_text_of_both_languages_of_manual_pages():
    assert paragraphs(running_text(MAN)) == [
        "List information about the FILEs (the current directory by default) and sort entries alphabetically(1), "
        "said - as one-does.",
        "do not ignore entries that start with a dot, as one would otherwise",
        "The last paragraph of the page has enough words to be kept as it is.",
    ]
    (described,) = paragraphs(running_text(MDOC))
    assert described.startswith("The cat utility reads files in turn") and described.endswith("see ls 1.")


def test_comments_of_more_than_one_line():
    source = (
        "#: What follows is said over two lines of a comment,\n    # and read as one sentence by whoever comes along.\n"
        "x = 1  # this stands behind code and is left out whatever it says\n"
        "# a single line is no paragraph even where it is long enough for one\ny = 2\n"
    )
    assert comments(source) == [
        "What follows is said over two lines of a comment, and read as one sentence by whoever comes along."
    ]
