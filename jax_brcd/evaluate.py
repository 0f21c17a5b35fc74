"""python -m jax_brcd.evaluate: how well one encoder's queries find in a database of another's codes, or of its own."""

import dataclasses

from jax_brcd.settings.command_line import run_command, say

SETTINGS = frozenset({"dataset", "data_dir", "split", "train_images", "label_format", "k", "max_bad_images", "decode_workers", "cache_dir",
                      "seed", "compile_cache"})
HERE = frozenset({"data_dir", "cache_dir", "decode_workers", "compile_cache"})  # of this machine, and not of the encoder's run


def main(argv: list[str] | None = None) -> None:
    """Searches the database of a data set with its test queries and prints the measures.

    The data set and its protocol are those of the run that made the queries' encoder, unless told.
    """
    from jax_brcd.encoder import load
    from jax_brcd.report import pair_table
    from jax_brcd.retrieval.packing import PackedCodes
    from jax_brcd.runtime.files import as_path
    from jax_brcd.stages.command import session
    from jax_brcd.stages.configuration import create_config, create_parser
    from jax_brcd.stages.evaluation import evaluate_pair, load_for_evaluation

    parser = create_parser("python -m jax_brcd.evaluate", __doc__, SETTINGS.__contains__, presets=False)
    parser.add_argument("--queries", required=True, metavar="DIR", help="folder of the encoder that encodes the test queries")
    parser.add_argument("--database", required=True, metavar="DIR|FILE", help="folder of the encoder that encodes the database, or a "
                        "file of its packed codes, in the data set's order")
    parser.add_argument("--save-codes", default=None, metavar="FILE", help="where to keep the database's packed codes")
    given = vars(parser.parse_args(argv))
    places = {name: given.pop(name) for name in ("queries", "database", "save_codes")}
    queries = load(places["queries"])
    known = queries.provenance.get("settings", {})
    config = create_config(**{name: value for name, value in known.items() if name in SETTINGS - HERE} | given)
    with session(config) as progress:
        path = as_path(places["database"])
        database = load(path) if path.is_dir() else PackedCodes.load(path)
        dataset, k = load_for_evaluation(config, progress=progress)
        scores, codes = evaluate_pair(queries, database, dataset, k, progress=progress)
        if places["save_codes"] is not None:
            codes.save(places["save_codes"])
        progress.close()
        protocol = {"dataset": dataset.name, "split": dataset.split, "queries": len(dataset.test), "database": len(dataset.database),
                    "k": k, "ties": "stable", "bits": queries.bits, "seed": config.run.seed}
        say(pair_table(places["queries"], places["database"], dataclasses.asdict(scores), protocol))


if __name__ == "__main__":
    run_command(main)
