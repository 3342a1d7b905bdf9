"""What a page has to know of a GPT: its tokens, its context, and the shape of its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..model_folder import read_json


DEFAULT_PROMPT = "The "


def describe_text(source: Path, manifest: dict[str, Any], prompt: str | None) -> dict[str, Any]:
    """The entry `text` of explorer.json.

    Args:
        source: the model's folder, with its tokenizer.
        manifest: of the export.
        prompt: what the text begins with at first.

    Raises:
        ValueError: the page does not know this kind of tokenizer, or the prompt is one that the model cannot take.
    """
    tokenizer = read_json(source / "tokenizer.json", "It says what the tokens are.")
    generation = read_json(source / "generation_config.json") if (source / "generation_config.json").is_file() else {}
    config = read_json(source / "config.json")
    special = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", []) if entry.get("special")}
    kind = _kind(tokenizer, source)
    end = _listed(generation.get("eos_token_id", config.get("eos_token_id")))
    start = _listed(generation.get("bos_token_id", config.get("bos_token_id"))) or _edges(source, special)
    vocabulary = _vocabulary(tokenizer, config["vocab_size"])
    cache = next(
        entry["shape"] for entry in manifest["graphs"]["model"]["inputs"]
        if entry["name"] == "past_key_values.0.key"
    )  # fmt: skip
    return {
        "kind": kind,
        "unit": "character" if kind == "characters" else "token",
        "vocabulary": vocabulary,
        "merges": [_pair(merge) for merge in tokenizer["model"]["merges"]] if kind == "byte_level" else [],
        "special": sorted(special.values()),
        # Padding is never written; neither is what has no token.
        "suppressed": sorted({
            *_listed(generation.get("suppress_tokens")),
            *(index for index in special.values() if index not in end),
            *(index for index, token in enumerate(vocabulary) if token is None),
        }),
        "start": start[0] if start else None,
        "end": end,
        "context": config["max_position_embeddings"],
        "layers": sum(entry["name"].endswith(".key") for entry in manifest["graphs"]["model"]["inputs"]),
        "heads": cache[1],
        "head_dim": cache[3],
        "prompt": DEFAULT_PROMPT if prompt is None else prompt,
    }  # fmt: skip


def _kind(tokenizer: dict[str, Any], source: Path) -> str:
    """How the page splits a text: "characters", with bytes as a fallback, or "byte_level", as GPT-2 does."""
    model, before = tokenizer.get("model", {}), tokenizer.get("pre_tokenizer") or {}
    parts = before.get("pretokenizers", [before])
    if model.get("type") == "BPE" and model.get("byte_fallback") and not model.get("merges"):
        return "characters"
    if model.get("type") == "BPE" and [part.get("type") for part in parts] == ["ByteLevel"]:
        return "byte_level"
    raise ValueError(
        f"The tokenizer of {source} must be one that hfgen builds (characters, or byte-level BPE as GPT-2's), got "
        f"{model.get('type')!r}. The page cannot split a text as others do."
    )


def _edges(source: Path, special: dict[str, int]) -> list[int]:
    """The tokens that the tokenizer calls the begin and the end of a text."""
    path = source / "tokenizer_config.json"
    named = read_json(path) if path.is_file() else {}
    given = (named.get("bos_token"), named.get("eos_token"))
    names = (entry.get("content") if isinstance(entry, dict) else entry for entry in given)
    return [special[name] for name in names if name in special]


def _vocabulary(tokenizer: dict[str, Any], size: int) -> list[str | None]:
    """Tokens by id; None where the network has more outputs than there are tokens."""
    vocabulary: list[str | None] = [None] * size
    entries = [*tokenizer["model"]["vocab"].items()]
    entries += [(entry["content"], entry["id"]) for entry in tokenizer.get("added_tokens", [])]
    for token, index in entries:
        if index < size:
            vocabulary[index] = token
    return vocabulary


def _pair(merge: Any) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else list(merge)


def _listed(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(entry) for entry in value] if isinstance(value, list) else [int(value)]
