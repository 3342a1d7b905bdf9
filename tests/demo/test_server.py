"""The server of the page."""

from __future__ import annotations

from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import pytest

from hfgen.demo import serve


def test_files_come_with_the_types_that_browsers_ask_for(tmp_path: Path) -> None:
    for name in ("index.html", "main.js", "ort.mjs", "ort.wasm"):
        (tmp_path / name).write_text("x")
    get = build_opener(ProxyHandler({})).open
    with serve(tmp_path) as address:
        assert address.startswith("http://127.0.0.1:")
        types = [get(address + name).headers.get_content_type() for name in ("", "main.js", "ort.mjs", "ort.wasm")]
        assert types == ["text/html", "text/javascript", "text/javascript", "application/wasm"]
        (tmp_path / "index.html").unlink()
        with pytest.raises(HTTPError, match="404"):  # and no list of files
            get(address)

        with pytest.raises(ValueError, match="--port must be free, got"), serve(tmp_path, int(address[17:-1])):
            pass
