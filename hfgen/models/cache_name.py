"""The two names of the cache of keys and values.

transformers 5.24 renamed it in calls and outputs, from "past_key_values" to "cache". A model's public `forward`
accepts either name and calls these functions; everything else knows one name, `cache`.
"""

import inspect
from typing import Any

from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask


CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


def either_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache, whichever name it was passed by."""
    if cache is not None and past_key_values is not None:
        raise ValueError("Only one of cache and past_key_values must be given, got both. They are names of one thing.")
    return past_key_values if cache is None else cache


def named_cache(cache: Cache | None) -> dict[str, Any]:
    """The cache as a keyword argument of the installed transformers."""
    return {CACHE: cache}
