"""Writes messages with a model's chat template."""

from collections.abc import Mapping, Sequence

from metasae.data.text.plain import Plain
from metasae.data.text.templates import written
from metasae.errors import UserError


def require_template(tokenizer, name: str) -> None:
    """Raises UserError where the tokenizer of the model `name` has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"'{name}' has no chat template; name an instruction-tuned model, whose tokenizer has one")


def chat_text(plain: Plain, messages: Sequence[Mapping[str, str]], name: str) -> str:
    """The messages up to where the assistant's answer begins, without thinking where the template knows of it, for
    `plain` to read: the template's own special tokens are marked, and those that a message contains are plain text.

    The template writes BOS itself where the model wants one. Raises UserError for a tokenizer without a template, and a
    template that fails.
    """
    require_template(plain.tokenizer, name)
    try:
        return written(plain, list(messages), add_generation_prompt=True, enable_thinking=False)
    except Exception as error:
        # a template raises an error of its own kind where it refuses a role
        why = " ".join(str(error).split())
        raise UserError(f"the chat template of '{name}' fails ({why}); name another model") from None
