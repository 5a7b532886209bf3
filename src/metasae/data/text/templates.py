"""What a tokenizer makes of chats and of token ids, with an error of one line where it cannot."""

from jinja2 import TemplateError

from metasae.data.text.hub import reason
from metasae.data.text.records import Chat, TokenIds
from metasae.errors import UserError


def as_text(tokenizer, document: str | Chat) -> str:
    """A text as it is; a chat as the tokenizer's template writes it, special tokens included, with nothing after it.

    Raises UserError where there is no template or it refuses the chat.
    """
    if isinstance(document, str):
        return document
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{document.where} is a chat and the model's tokenizer has no chat template; "
            "take a model trained on chats, or give text"
        )
    try:
        return tokenizer.apply_chat_template(list(document.messages), tokenize=False, add_generation_prompt=False)
    except (TemplateError, ValueError, TypeError) as error:
        raise UserError(
            f"{document.where} does not fit the model's chat template ({reason(error)}); mend it or leave it out"
        ) from None


def known_ids(document: TokenIds, most: int) -> list[int]:
    """The ids of a document. most: the largest that the tokenizer knows. Raises UserError for a larger one."""
    ids = document.ids.tolist()
    if max(ids) > most:
        raise UserError(
            f"{document.where} holds token id {max(ids)}, and the model's tokenizer ends at {most}; "
            "give ids of this very tokenizer, or text"
        )
    return ids
