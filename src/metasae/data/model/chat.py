"""Messages as a model's chat template writes them."""

from collections.abc import Mapping, Sequence

from metasae.errors import UserError


def require_template(tokenizer, name: str) -> None:
    """Raises UserError where the tokenizer of the model `name` has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"'{name}' has no chat template; name an instruction-tuned model, whose tokenizer has one")


def chat_text(tokenizer, messages: Sequence[Mapping[str, str]], name: str) -> str:
    """The messages up to where the assistant's answer begins, without thinking where the template knows of it.

    The template writes BOS itself where the model wants one, so the text is to be tokenized without special tokens.
    Raises UserError for a tokenizer without a template, and a template that fails.
    """
    require_template(tokenizer, name)
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except Exception as error:
        # a template raises an error of its own kind where it refuses a role
        why = " ".join(str(error).split())
        raise UserError(f"the chat template of '{name}' fails ({why}); name another model") from None
