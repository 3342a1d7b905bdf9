"""The commands of `hfgen`, a file each: its arguments, and its work, which imports what it needs when it is run.

    HELP                       one line for `hfgen --help`
    add_arguments(parser)      ... for `hfgen COMMAND --help`, which must not wait for torch
    run(arguments)             does it; returns the exit status, and its docstring is the description in --help

Training: train.py, recipes.py, doctor.py. The Hub: push.py, pull.py, card.py, check.py. To use a model: sample.py,
reconstruct.py, interpolate.py, generate.py, embed.py, score.py, evaluate.py, convert.py, export.py, demo.py. Files:
compress.py, decompress.py, info.py. The shell: completion.py, over completions.py (what may follow on a command line).
What several have in common is in arguments.py.

The work behind them is in folders: machine/ (what is here, and what starts a training), images/ and text/.
"""

from types import ModuleType

from . import (
    card,
    check,
    completion,
    compress,
    convert,
    decompress,
    demo,
    doctor,
    embed,
    evaluate,
    export,
    generate,
    info,
    interpolate,
    pull,
    push,
    recipes,
    reconstruct,
    sample,
    score,
    train,
)


# In the order of `hfgen --help`.
COMMANDS: tuple[ModuleType, ...] = (
    *(train, recipes, doctor),
    *(push, pull, card, check),
    *(sample, reconstruct, interpolate, generate, embed, score, evaluate, convert, export, demo),
    *(compress, decompress, info),
    completion,
)
