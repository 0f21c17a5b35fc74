"""python -m jax_brcd.evaluate: how well one encoder's queries find in a database of another's codes, or of its own."""

import dataclasses

from jax_brcd.settings.command_line import bars, run_command, say


def main(argv: list[str] | None = None) -> None:
    """Searches the database of a data set with its test queries and prints the measures.

    The data set and its protocol are those of the run that made the queries' encoder, unless told.
    """
    from jax_brcd.encoder import folder_of, load, read_config
    from jax_brcd.report import pair_table
    from jax_brcd.retrieval.packing import PackedCodes
    from jax_brcd.runtime import devices
    from jax_brcd.runtime.errors import InputError, of_setting
    from jax_brcd.runtime.files import as_path, check_file
    from jax_brcd.stages.command import named_places, session
    from jax_brcd.stages.configuration import create_config, create_parser
    from jax_brcd.stages.evaluation import (
        check_pair,
        check_tables,
        evaluate_pair,
        load_for_evaluation,
        over_embeddings,
        rows_for,
    )
    from jax_brcd.stages.provenance import FURTHER, PLACES, PROTOCOL, known_settings
    from jax_brcd.stages.sight import told_sizes

    parser = create_parser("python -m jax_brcd.evaluate", __doc__, {*PROTOCOL, *PLACES, *FURTHER}.__contains__,
                           presets=False)
    parser.add_argument("--queries", required=True, metavar="DIR", help="folder of the encoder that encodes the test queries, or "
                        "hf:USER/NAME of the Hugging Face hub")
    parser.add_argument("--database", required=True, metavar="DIR|FILE", help="folder of the encoder that encodes the database, "
                        "hf:USER/NAME, or a file of its packed codes, in the data set's order")
    parser.add_argument("--save-codes", default=None, metavar="FILE", help="where to keep the database's packed codes")
    given = vars(parser.parse_args(argv))
    queries, database, save_codes = (given.pop(name) for name in ("queries", "database", "save_codes"))
    kept = None
    if save_codes is not None:
        with of_setting("save_codes", save_codes):
            kept = as_path(save_codes)
        check_file(kept, field="save_codes")
    with bars() as progress:
        with of_setting("queries", queries):
            of_queries = folder_of(queries, progress=progress)
            known = known_settings(read_config(of_queries)["provenance"], given.get("dataset"), given.get("split"))
            create_config(**known)  # what is wrong with these is the folder's fault
        with of_setting("database", database):
            path = folder_of(database, progress=progress)
    config = create_config(**known | given)
    with session(config) as progress:
        with of_setting("queries", queries):
            encoder = load(of_queries)
        with of_setting("database", database):
            if not path.exists():
                raise InputError("no such encoder's folder or file of codes; check the path")
            searched = load(path) if path.is_dir() else PackedCodes.load(path)
        check_pair(encoder, searched)
        over = over_embeddings(encoder, searched)
        check_tables(over, config.teacher.embeddings, given="embeddings" in given)
        seeing = {role: encoder for role, encoder in (("queries", encoder), ("database", searched))
                  if not isinstance(encoder, PackedCodes) and not encoder.over_embeddings}
        dataset, k = load_for_evaluation(config, seeing.values(), progress=progress, say=say)
        table = rows_for(over, dataset, config.teacher.embeddings)
        scores, codes = evaluate_pair(encoder, searched, dataset, k, table=table, progress=progress)
        if kept is not None and devices.is_first():
            with named_places({"save_codes": kept}):
                codes.save(kept)
        progress.close()
        protocol = {"dataset": dataset.name, "split": dataset.split, "queries": len(dataset.test),
                    "database": len(dataset.database), "k": k, "ties": "stable", "bits": encoder.bits, "seed": config.run.seed,
                    **told_sizes(dataset, {role: each.preprocessing.size for role, each in seeing.items()})}
        say(pair_table(queries, database, dataclasses.asdict(scores), protocol))


if __name__ == "__main__":
    run_command(main)
