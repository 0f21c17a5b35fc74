"""python -m jax_brcd.index: fills an index of images from folders, and looks after it."""

import argparse
import contextlib
import os

from jax_brcd.settings.command_line import bars, run_command, say

LISTED = 20  # files that cannot be read, of which the last lines tell


def main(argv: list[str] | None = None) -> None:
    """Adds folders to an index, removes them, tells what it holds, or verifies its codes."""
    given = _parser().parse_args(argv)
    given.action(given)


def _parser() -> argparse.ArgumentParser:
    from jax_brcd.search.encoders import DEFAULT_INDEX
    from jax_brcd.settings.command_line import OneLineParser

    parser = OneLineParser("python -m jax_brcd.index", description=main.__doc__)
    actions = parser.add_subparsers(title="what to do", required=True, dest="chosen", metavar="add|remove|status|verify")

    def action(name, function, text):
        made = actions.add_parser(name, help=text, description=text)
        made.set_defaults(action=function)
        made.add_argument("--index", default=DEFAULT_INDEX, metavar="URL", help="the index: a path such as photos.brcd, or a "
                          f"server's URL such as postgresql://... (default: {DEFAULT_INDEX})")
        return made

    add = action("add", _add, "Adds the images below folders; what is there already is not encoded again.")
    add.add_argument("folders", nargs="+", metavar="FOLDER", help="where images lie, at any depth")
    _add_encoder(add, "folder of the encoder that fills the index, or hf:USER/NAME; needed the first time")
    add.add_argument("--shard", default="1/1", metavar="N/OF", help="the part of the files that this machine reads, such as "
                     "2/8, where several fill one index of a server (default: %(default)s)")
    add.add_argument("--decode-workers", default=None, metavar="N", help="processes that read files; 0 for threads, which a "
                     "file that takes for ever would hold up (default: one a core, fewer for few files)")
    add.add_argument("--ray", default=None, metavar="ADDRESS", help="have all nodes of a Ray cluster read, decode and encode, "
                     "and write to the index's server; auto for the cluster that this machine is of")
    remove = action("remove", _remove, "Takes folders out of the index; their files stay as they are.")
    remove.add_argument("folders", nargs="*", metavar="FOLDER", help="which, whether they are still there or not")
    remove.add_argument("--missing", action="store_true", help="take out all images whose files have vanished")
    action("status", _status, "Tells what the index holds, of which encoders, and which files cannot be read.")
    verify = action("verify", _verify, "Compares the stored codes of a random sample with fresh ones of their files.")
    verify.add_argument("--sample", default="100", metavar="N", help="how many images (default: %(default)s)")
    verify.add_argument("--seed", default="0", metavar="N", help="which of them (default: %(default)s)")
    _add_encoder(verify, "folder of the encoder that filled the index (default: where it lay then)")
    return parser


def _add_encoder(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--encoder", default=None, metavar="DIR", help=text)


def _add(given: argparse.Namespace) -> None:
    from jax_brcd.search.encoders import load_encoder, noted_encoder, opened, place_of
    from jax_brcd.search.indexing import add_folders
    from jax_brcd.search.places import shown
    from jax_brcd.search.scanning import Shard
    from jax_brcd.search.session import prepare, whole

    shard = Shard.parse(given.shard)
    processes = None if given.decode_workers is None else whole(given.decode_workers, "decode_workers", low=0)
    prepare()
    with bars() as progress:
        if given.encoder is None:
            with opened(given.index) as store:
                given.encoder = noted_encoder(store)
        encoder = load_encoder(given.encoder, progress=progress)
        _check_there(given)
        with _elsewhere(given) as elsewhere, opened(given.index, create_for=encoder) as store:
            added = add_folders(store, given.folders, encoder, place=place_of(given.encoder), shard=shard, processes=processes,
                                elsewhere=elsewhere, progress=progress, say=say)
            progress.close()
            for path in list(added.bad)[:LISTED]:
                say(f"Cannot be read: {shown(path)}: {added.bad[path]}")
            if len(added.bad) > LISTED:
                say(f"Cannot be read: {len(added.bad) - LISTED:,} more, which the status lists")
            say(f"{added.line()} The index holds {len(store):,}.")


def _check_there(given: argparse.Namespace) -> None:
    """Raises InputError for a folder that is not there, unless there is an index, which may know it; none is made for it."""
    from jax_brcd.runtime.errors import InputError
    from jax_brcd.search.encoders import opened
    from jax_brcd.search.scanning import Shard, look_below, roots_of

    absent = next((root for root in roots_of(given.folders) if not os.path.isdir(root)), None)
    if absent is None:
        return
    problem = look_below(absent, Shard())
    try:
        with opened(given.index):
            pass
    except InputError:
        raise InputError(f"{absent}: {problem}; check the path") from None


def _elsewhere(given: argparse.Namespace) -> contextlib.AbstractContextManager:
    """A Ray cluster, where one is to do the work."""
    from jax_brcd.search.cluster import check_server, on_cluster
    from jax_brcd.search.encoders import place_of

    if given.ray is None:
        return contextlib.nullcontext()
    check_server(given.index)
    return on_cluster(given.ray, given.index, place_of(given.encoder))


def _remove(given: argparse.Namespace) -> None:
    from jax_brcd.runtime.errors import InputError
    from jax_brcd.search.encoders import opened
    from jax_brcd.search.upkeep import remove_folders, remove_missing

    if not given.folders and not given.missing:
        raise InputError("nothing to remove; name folders, or give `missing`")
    with opened(given.index) as store:
        gone = (remove_folders(store, given.folders) if given.folders else 0) + (remove_missing(store) if given.missing else 0)
        say(f"{gone:,} images removed. The index holds {len(store):,}.")


def _status(given: argparse.Namespace) -> None:
    from jax_brcd.search.encoders import opened
    from jax_brcd.search.stores.servers import without_password
    from jax_brcd.search.upkeep import status

    with opened(given.index) as store:
        say(f"Index: {without_password(given.index)}")
        for line in status(store).lines():
            say(line)


def _verify(given: argparse.Namespace) -> None:
    from jax_brcd.runtime.errors import InputError
    from jax_brcd.search.encoders import load_encoder, opened
    from jax_brcd.search.places import shown
    from jax_brcd.search.session import prepare, whole
    from jax_brcd.search.stores.servers import without_password
    from jax_brcd.search.upkeep import verify

    sample, seed = whole(given.sample, "sample", low=1), whole(given.seed, "seed", low=0)
    prepare()
    with opened(given.index) as store, bars() as progress:
        encoder = None if given.encoder is None else load_encoder(given.encoder, progress=progress)
        found = verify(store, sample, seed=seed, encoder=encoder, progress=progress)
        progress.close()
        for path, reason in list(found.unchecked.items())[:LISTED]:
            say(f"Not checked: {shown(path)}: {reason}")
        checked = found.equal + len(found.different)
        if found.different:
            raise InputError(f"{len(found.different):,} of {checked:,} stored codes differ from fresh ones, that of "
                             f"{shown(found.different[0])} for one; remove its folder from the index and add it again",
                             field="index", value=without_password(given.index))
        say(f"{found.equal:,} of {checked:,} stored codes equal fresh ones; {len(found.unchecked):,} not checked.")


if __name__ == "__main__":
    run_command(main)
