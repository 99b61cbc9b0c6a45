"""A model of transformers as a folder that `from_pretrained` opens, as `save_pretrained` writes it."""

from pathlib import Path

from safetensors import SafetensorError

from nmt.checkpoint import Checkpoint
from nmt.errors import UserError
from nmt.huggingface import library
from nmt.lines import atomic_folder, check_empty
from nmt.models import Pretrained
from nmt.text.tokenizer import TokenizerVocabulary


def export_folder(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Writes configuration, weights (float32, one tensor where they are tied), the settings of `generate`, and the
    tokenizer's own files.

    Args:
        checkpoint: a model that `nmt import hf` has made, or `nmt train` of one.
        folder: appears when it is whole; must not be there or be empty.

    Raises:
        UserError: the folder holds something or cannot be written, or the model is not of transformers.
    """
    folder, model, vocabulary = Path(folder), checkpoint.model, checkpoint.source_vocabulary
    check_empty(folder)
    if not isinstance(model, Pretrained) or not isinstance(vocabulary, TokenizerVocabulary):
        raise UserError(
            f"transformers has no model like this {type(model).__name__}; format hf is for what nmt import hf has made "
            "and what was trained from that, so leave it out (onnx)"
        )
    with library("format hf") as transformers, atomic_folder(folder) as temporary:
        # Before the model's files, in whose place a file of this name would be.
        vocabulary.write_files(temporary)
        settings = transformers.GenerationConfig.from_dict(model.config.generation)
        # It refuses to save settings that it has read, such as early_stopping without a beam.
        model.network.generation_config = transformers.GenerationConfig()
        try:
            model.network.save_pretrained(temporary)
        except SafetensorError as error:
            raise UserError(f"{folder} cannot be written: {error}.") from error
        model.network.generation_config = settings
        settings.to_json_file(temporary / "generation_config.json")
        # safetensors writes for the owner alone.
        for weights in temporary.glob("*.safetensors"):
            weights.chmod((temporary / "config.json").stat().st_mode)
