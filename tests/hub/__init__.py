"""A Hub for the tests: a real process on a loopback port that the real `huggingface_hub` client talks to.

git_store.py      commits, trees and refs, as a bare git repository written in pure Python
git_patterns.py   which paths .gitattributes and .gitignore mean
repository.py     Hub repositories on disk: commits, LFS objects, visibility, renames
accounts.py       users, organisations, tokens
card_metadata.py  what is wrong with the front matter of a README.md
faults.py         what the server was told to do wrong, and when
http_messages.py  requests, bodies that are streamed, responses, errors with the headers the client reads
api.py            the Hub's routes
storage.py        the separate origin that stores large files ("the CDN"), behind signed addresses
server.py         sockets, connections, the process: `python -m tests.hub.server --root DIR`
fixture.py        `running_hub(folder)`, for tests

Whether it can be trusted is tested beside it: test_server.py runs client_checks.py (huggingface_hub),
transformers_checks.py and the `hf` command against it, test_git_store.py lets git judge what it wrote.

Not served: xet, multipart LFS uploads, discussions (a pull request is only a ref), likes, collections, what a Space
runs, gzip, and copies of large files between repositories (for which the client wants xet).
"""
