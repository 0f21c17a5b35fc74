"""python -m jax_brcd.evaluate: how well one encoder's queries find in a database of another's codes, or of its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax_brcd.settings.command_line import run_command, say

# Taken over from the encoder's run; places where they are on this machine too
PROTOCOL, PLACES = ("dataset", "split", "train_images", "label_format", "k", "max_bad_images", "seed"), ("data_dir", "cache_dir")
SETTINGS = frozenset({*PROTOCOL, *PLACES, "decode_workers", "compile_cache"})


def main(argv: list[str] | None = None) -> None:
    """Searches the database of a data set with its test queries and prints the measures.

    The data set and its protocol are those of the run that made the queries' encoder, unless told.
    """
    from jax_brcd.encoder import load, read_config
    from jax_brcd.report import pair_table
    from jax_brcd.retrieval.packing import PackedCodes
    from jax_brcd.runtime import devices
    from jax_brcd.runtime.errors import InputError
    from jax_brcd.runtime.files import as_path
    from jax_brcd.stages.command import session
    from jax_brcd.stages.configuration import create_config, create_parser
    from jax_brcd.stages.evaluation import check_pair, evaluate_pair, load_for_evaluation
    from jax_brcd.stages.sight import told_sizes

    parser = create_parser("python -m jax_brcd.evaluate", __doc__, SETTINGS.__contains__, presets=False)
    parser.add_argument("--queries", required=True, metavar="DIR", help="folder of the encoder that encodes the test queries")
    parser.add_argument("--database", required=True, metavar="DIR|FILE", help="folder of the encoder that encodes the database, or "
                        "a file of its packed codes, in the data set's order")
    parser.add_argument("--save-codes", default=None, metavar="FILE", help="where to keep the database's packed codes")
    given = vars(parser.parse_args(argv))
    queries, database, save_codes = (given.pop(name) for name in ("queries", "database", "save_codes"))
    config = create_config(**known_settings(read_config(queries)["provenance"], given.get("dataset")) | given)
    with session(config) as progress:
        encoder, path = load(queries), as_path(database)
        if not path.exists():
            raise InputError("no such encoder's folder or file of codes; check the path", field="database", value=database)
        searched = load(path) if path.is_dir() else PackedCodes.load(path)
        check_pair(encoder, searched)
        encoders = {"queries": encoder, **({} if isinstance(searched, PackedCodes) else {"database": searched})}
        dataset, k = load_for_evaluation(config, encoders.values(), progress=progress)
        scores, codes = evaluate_pair(encoder, searched, dataset, k, progress=progress)
        if save_codes is not None and devices.is_first():
            codes.save(save_codes)
        progress.close()
        protocol = {"dataset": dataset.name, "split": dataset.split, "queries": len(dataset.test),
                    "database": len(dataset.database), "k": k, "ties": "stable", "bits": encoder.bits, "seed": config.run.seed,
                    **told_sizes(dataset, {role: each.preprocessing.size for role, each in encoders.items()})}
        say(pair_table(queries, database, dataclasses.asdict(scores), protocol))


def known_settings(provenance: Mapping[str, Any], dataset: str | None) -> dict[str, Any]:
    """The settings of the data set that an encoder's run had, as far as it says; none where another `dataset` is told."""
    from jax_brcd.runtime.files import as_path

    known = provenance.get("settings")
    if not isinstance(known, dict) or dataset not in (None, known.get("dataset")):
        return {}
    places = {name: known[name] for name in PLACES if isinstance(known.get(name), str) and as_path(known[name]).is_dir()}
    return {name: known[name] for name in PROTOCOL if name in known} | places


if __name__ == "__main__":
    run_command(main)
