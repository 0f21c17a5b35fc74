"""python -m jax_brcd.search: the images of an index that are nearest to others, or nearly the same as each other."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, check_file
from jax_brcd.settings.command_line import OneLineParser, bars, run_command, say

if TYPE_CHECKING:
    from jax_brcd.search.searching import Answer
    from jax_brcd.search.stores import Store

K = 10  # images for each query


def main(argv: list[str] | None = None) -> None:
    """Prints rank, distance and path of the images of an index nearest to each IMAGE, or groups of duplicates in it."""
    from jax_brcd.search.encoders import opened, query_encoder
    from jax_brcd.search.searching import duplicates, search_images
    from jax_brcd.search.session import prepare, whole

    given = _parser().parse_args(argv)
    _check(given)
    k = K if given.k is None else whole(given.k, "k", low=1)
    radius = None if given.duplicates is None else whole(given.duplicates, "duplicates", low=0)
    prepare()
    with opened(given.index) as store, bars() as progress:
        if radius is not None:
            answers = duplicates(store, radius, progress=progress)
        else:
            encoder = query_encoder(store, given.encoder, progress=progress)
            answers = search_images(store, encoder, given.images, k, soft=given.soft, missing=given.missing)
        progress.close()
        _show(given, store, answers)


def _parser() -> argparse.ArgumentParser:
    from jax_brcd.search.encoders import DEFAULT_INDEX

    parser = OneLineParser("python -m jax_brcd.search", description=main.__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files to find the like of")
    parser.add_argument("--index", default=DEFAULT_INDEX, metavar="URL", help="the index that python -m jax_brcd.index filled "
                        "(default: %(default)s)")
    parser.add_argument("-k", "--k", default=None, metavar="N", help=f"how many images for each IMAGE (default: {K})")
    parser.add_argument("--encoder", default=None, metavar="DIR", help="folder of the encoder of the queries, or hf:USER/NAME: "
                        "one of the index's code space, such as a student of the teacher that filled it (default: the one that "
                        "filled it)")
    parser.add_argument("--soft", action="store_true", help="rank by the logits of the queries, which tells apart images at "
                        "one distance; distances are then sums of |logit| over the bits that differ")
    parser.add_argument("--missing", action="store_true", help="find images too whose files have vanished")
    parser.add_argument("--duplicates", default=None, metavar="RADIUS", help="in place of IMAGE: groups of images of the "
                        "index, each within so many bits of another of its group")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print JSON")
    shape.add_argument("--html", default=None, metavar="FILE", help="write a page with small pictures instead")
    parser.add_argument("--pictures", action=argparse.BooleanOptionalAction, default=None, help="draw small pictures in the "
                        "terminal (default: where it is one and textual-image is installed)")
    return parser


def _check(given: argparse.Namespace) -> None:
    """Raises InputError for options that do not go together."""
    if given.duplicates is None and not given.images:
        raise InputError("no image to search for; name image files, or give `duplicates`")
    named = {"name no image": bool(given.images), "leave out `soft`": given.soft, "leave out `missing`": given.missing,
             "leave out `k`": given.k is not None, "leave out `encoder`": given.encoder is not None}
    for remedy, told in named.items():
        if given.duplicates is not None and told:
            raise InputError(f"compares the images of the index with each other; {remedy}", field="duplicates",
                             value=given.duplicates)
    if given.pictures and (given.json or given.html is not None):
        raise InputError("draws in the terminal, where JSON or a page is asked for; leave it out", field="pictures")
    if given.html is not None:
        check_file(as_path(given.html), field="html")


def _show(given: argparse.Namespace, store: "Store", answers: Sequence["Answer"]) -> None:
    """Prints the answers, or writes them where they are wanted."""
    from jax_brcd.search.gallery import write_gallery
    from jax_brcd.search.pictures import drawer
    from jax_brcd.search.searching import lines

    if given.json:
        say(json.dumps([{"query" if given.duplicates is None else "group": answer.title,
                         "pictures": [picture._asdict() for picture in answer.pictures]} for answer in answers], indent=2))
    elif given.html is not None:
        title = "Nearest images" if given.duplicates is None else "Duplicates"
        say(f"Page: {write_gallery(given.html, title, answers, store.thumbnail)}")
    else:
        draw = drawer(given.pictures)
        for answer in answers:
            for line in lines(answer, draw, store.thumbnail):
                say(line)
        if not answers:
            say("Nothing found.")


if __name__ == "__main__":
    run_command(main)
