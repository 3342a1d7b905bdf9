"""Other layouts of a GPT to GPTForCausalLM, and back.

    native = to_native(model)                       # transformers' own class for this shape: no custom code
    model = from_native("Qwen/Qwen3-0.6B")          # an Apertus, Arcee, GPT-2, Llama or Qwen3, or its name
    model = from_gpt2("openai-community/gpt2")
    gpt2 = to_gpt2(model)
    model = from_nanogpt("ckpt.pt")                 # of karpathy/nanoGPT
    tokenizer = tokenizer_from_nanogpt("meta.pkl")

Each returns a new model that computes the same logits, or raises a ValueError that names every obstacle.

    native.py           the layouts of transformers, and which one fits a config
    gpt2.py             GPT-2, whose names and shapes differ from all others
    nanogpt.py          nanoGPT's checkpoints and vocabularies
    weights.py          how weights and settings go over to a new model
    folders.py          whole model folders: weights, tokenizer, card
    gguf_file.py        a folder as one file of llama.cpp
    gguf_tokenizer.py   what llama.cpp needs to know of a tokenizer

The command is `hfgen convert`.
"""

from .gpt2 import from_gpt2, to_gpt2
from .nanogpt import from_nanogpt, tokenizer_from_nanogpt
from .native import from_native, to_native


__all__ = ["from_gpt2", "from_nanogpt", "from_native", "to_gpt2", "to_native", "tokenizer_from_nanogpt"]
