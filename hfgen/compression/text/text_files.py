"""From a text to one `.hfz` file, and back, byte for byte."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ...model_folder import LoadError, read_json
from ...models.modeling_gpt import GPTConfig, GPTForCausalLM
from ..container import TEXT, Container, parse
from ..identity import FetchedModel, fetch
from ..new_files import check_new, write_file
from . import gpt_text_codec


def compress(
    file: str | Path, output: str | Path, model: str | Path, revision: str | None = None, verify: bool = False
) -> Container:
    """Compresses a text with a GPT, without loss.

    Args:
        file: a text in UTF-8.
        output: a new file; `.hfz` by custom.
        model: a folder, or a repository on the Hub, with a GPTForCausalLM and its tokenizer.
        revision: branch, tag or commit of the repository.
        verify: decompress the result before it is written, which takes several times as long.

    Returns:
        What was written.

    Raises:
        ValueError: `output` exists, the text or the model does not fit, or the model cannot be had (HubError,
            LoadError). Nothing is written.
        OSError: a file cannot be read or written.
    """
    output = check_new(output)
    original = Path(file).read_bytes()
    fetched = fetch(str(model), revision, GPTConfig.model_type)
    gpt, tokenizer = load_gpt(fetched.folder)
    parameters, payload = gpt_text_codec.encode(original, gpt, tokenizer)
    digest = sha256(original).digest()
    container = Container(
        TEXT, fetched.name, fetched.revision, fetched.weights_sha256, len(original), digest, parameters, payload
    )
    if verify:
        written = parse(container.to_bytes(), str(output))
        written.check_original(gpt_text_codec.decode(written.parameters, written.payload, gpt, tokenizer))
    write_file(output, container.to_bytes())
    return container


def restore_text(container: Container, fetched: FetchedModel, output: Path) -> None:
    """Writes the text of a file.

    Raises:
        ValueError: the content is not what was written. Nothing is written.
    """
    original = gpt_text_codec.decode(container.parameters, container.payload, *load_gpt(fetched.folder))
    write_file(output, container.check_original(original))


def load_gpt(folder: Path) -> tuple[GPTForCausalLM, Any]:
    """A GPT as the codec needs it, in float64 and with eager attention, and its tokenizer.

    Raises:
        LoadError: there is no GPTForCausalLM or no tokenizer in the folder.
    """
    name = GPTForCausalLM.__name__
    architectures = read_json(folder / "config.json").get("architectures") or []
    if architectures[:1] != [name]:
        raise LoadError(f"{folder} must hold a {name}, got {architectures}. Save the model with its output layer.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise LoadError(f"{folder} must hold the model's tokenizer, got none that loads: {error}") from None
    model = GPTForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    return model.eval(), tokenizer
