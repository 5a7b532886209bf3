"""Prepares chats and token ids for a tokenizer, with an error of one line where that fails."""

from jinja2 import TemplateError

from metasae.data.text.hub import reason
from metasae.data.text.plain import MARK, Plain
from metasae.data.text.records import Chat, TokenIds
from metasae.errors import UserError


def as_text(plain: Plain, document: str | Chat) -> str:
    """The text that `plain` reads for a document: a text as it is; a chat as the tokenizer's template writes it, with
    nothing after it and with the template's own special tokens marked.

    Raises UserError where there is no template or it refuses the chat.
    """
    if isinstance(document, str):
        return document.replace(MARK, "")
    if not getattr(plain.tokenizer, "chat_template", None):
        raise UserError(
            f"{document.where} is a chat and the model's tokenizer has no chat template; "
            "take a model trained on chats, or give text"
        )
    try:
        return written(plain, list(document.messages), add_generation_prompt=False)
    except (TemplateError, ValueError, TypeError) as error:
        raise UserError(
            f"{document.where} does not fit the model's chat template ({reason(error)}); mend it or leave it out"
        ) from None


def written(plain: Plain, messages: list[dict[str, str]], **options) -> str:
    """Messages as the tokenizer's template writes them, with the template's own special tokens marked for `plain`.
    Special tokens that a message contains are then read as plain text.

    Raises what the template raises, and ValueError where a message contains special tokens and the template changes the
    message or the tokenizer is not a fast one.
    """
    options |= {"tokenize": False}
    as_given = plain.tokenizer.apply_chat_template(messages, **options)
    shielded = [{key: plain.shielded(value) for key, value in message.items()} for message in messages]
    if shielded == messages:
        return plain.marked(as_given)
    text = plain.tokenizer.apply_chat_template(shielded, **options)
    if text.replace(MARK, "") != as_given or not plain.tokenizer.is_fast:
        why = "the template changes the message" if plain.tokenizer.is_fast else "the tokenizer is not a fast one"
        raise ValueError(
            f"a message contains special tokens that cannot be told apart from the template's own, because {why}"
        )
    return plain.marked(text)


def known_ids(document: TokenIds, most: int) -> list[int]:
    """The ids of a document. most: the largest that the tokenizer knows. Raises UserError for a larger one."""
    ids = document.ids.tolist()
    if max(ids) > most:
        raise UserError(
            f"{document.where} holds token id {max(ids)}, and the model's tokenizer ends at {most}; "
            "give ids of this very tokenizer, or text"
        )
    return ids
