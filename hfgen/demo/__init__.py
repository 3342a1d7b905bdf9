"""The explorer: a model to play with in a browser, which computes everything itself.

    write_explorer(fetch_model("vae-mnist"), "vae-mnist-demo", name="vae-mnist")       a folder for any static server
    with serve("vae-mnist-demo") as address: ...                                       on this machine
    push_space("vae-mnist-demo", "me/vae-mnist-demo")                                  as a static Space on the Hub

    folder.py            from a model's folder to the explorer's: page, networks, runtime, and explorer.json
    stored_pictures.py   pictures to show beside the model, and their latents
    latent_space.py      a plane to look at, and the strongest directions
    strangeness.py       how strange stored pictures are, to compare a drawing with
    text.py              what a page has to know of a GPT
    runtime.py           onnxruntime-web, from the npm registry
    server.py  space.py  who serves it

page/ is what the browser gets, as it is, and ../look.css beside it: index.html, explorer.css, and modules that main.js
puts together. latents.js, generator.js and text.js are a view each.
"""

from .folder import write_explorer
from .server import serve
from .space import push_space


__all__ = ["push_space", "serve", "write_explorer"]
