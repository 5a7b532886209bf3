import itertools

from metasae.data.text import documentation
from metasae.data.text.prose import docstrings, is_prose, paragraphs

BEGINNING = 150


def test_the_same_documents_every_time_and_no_paragraph_twice():
    first = list(itertools.islice(documentation.documents(), BEGINNING))
    assert first == list(itertools.islice(documentation.documents(), BEGINNING))
    paragraphs_read = [paragraph.lower() for document in first for paragraph in document.split("\n\n")]
    assert len(paragraphs_read) == len(set(paragraphs_read))
    assert all(len(document.split()) >= documentation.MIN_WORDS * 0.9 for document in first)


def test_the_beginning_is_prose():
    beginning = "".join(itertools.islice(documentation.documents(), BEGINNING))
    assert sum(letter.isalpha() or letter in " ,.\n" for letter in beginning) / len(beginning) > 0.9
    assert ">>>" not in beginning and "\0" not in beginning and "Copyright" not in beginning


def test_packages_are_read_but_not_imported(tmp_path, monkeypatch):
    words = "This module explains at length what it does for its readers. " * 8
    (tmp_path / "loud.py").write_text(f'"""{words}"""\nraise RuntimeError("imported")\n')
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "hidden.py").write_text(
        '"""' + "Nobody should read this sentence about the tests at all. " * 8 + '"""'
    )
    (tmp_path / "broken.py").write_bytes(b'"""\xff\xfe unfinished')
    monkeypatch.setattr(documentation, "roots", lambda: [tmp_path])
    documents = list(documentation.documents())
    assert any("explains at length" in document for document in documents)
    assert not any("about the tests" in document for document in documents)


def test_docstrings_are_those_of_ast():
    source = '''# a comment with a "quote
"""Module."""
TABLE = """not a docstring"""
text = "a # b"


class A:
    r"""Class \\d."""

    def f(self, x='"""'):
        """Function

            indented
        """
        return """no"""
'''
    assert docstrings(source) == ["Module.", "Class \\d.", "Function\n\nindented"]


def test_paragraphs_drop_code_tables_and_licences():
    text = """\
Title of it
===========

This paragraph says :func:`something <x.y>` useful about `the function <http://a.b>`_ and its **many** options.

An example of code follows this sentence, which is itself long enough::

    x = compute(everything) if the_world is not None else nothing_at_all

>>> compute(1) is a doctest that nobody wants to read as prose at all

Permission to use it is Copyright (c) someone, all rights reserved, and so on and on.

+----+----+----+----+----+----+----+----+
| a1 | b2 | c3 | d4 | e5 | f6 | g7 | h8 |

.. code-block:: python

    for everything in the world do something quite long and winding here

```
fenced code that reads like a sentence with quite many words in it
```

The last paragraph comes after all blocks and must be kept as it stands."""
    assert paragraphs(text) == [
        "This paragraph says something useful about the function and its many options.",
        "An example of code follows this sentence, which is itself long enough:",
        "The last paragraph comes after all blocks and must be kept as it stands.",
    ]


def test_short_or_symbolic_text_is_no_prose():
    assert not is_prose("Too short.")
    assert not is_prose("x[0] = {1: (2, 3)} && y | z << 4 == 5 % 6 # 7")
