"""The tokenizer of a model alone: reading the weights would take longer than what its caller does."""

from metasae.data.model.loading import quiet, refusal
from metasae.data.model.model_folder import local_folder
from metasae.data.text import hub
from metasae.recipe import recipe


def load_tokenizer(model: recipe.Model):
    """The Hugging Face tokenizer of a recipe's model. Raises UserError with one line where it cannot be had."""
    import transformers

    folder = local_folder(model)
    unreachable = "" if folder is not None else hub.unreachable()
    options = {"trust_remote_code": model.trust_remote_code, "local_files_only": bool(folder or unreachable)}
    if folder is None and model.revision:
        options["revision"] = model.revision
    with quiet():
        try:
            return transformers.AutoTokenizer.from_pretrained(str(folder or model.source), **options)
        except Exception as error:
            # transformers, the hub's client and a tokenizer's own code raise errors of every kind
            raise refusal(error, model, unreachable) from error
