"""The model card of an encoder: what its config.json knows of it, what it does not, and how to search with it."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

TAGS = ("hashing", "image-retrieval", "hamming-distance", "knowledge-distillation", "jax")
MEASURES = {"map": "mAP@{k}", "tie_aware_map": "tie-aware mAP@{k}", "soft_map": "soft mAP@{k}",
            "cosine_map": "cosine mAP@{k}", "precision": "precision@{k}"}
RANKED = {"soft_map": "the soft one ranks by the query's logits against the database's bits",
          "cosine_map": "the cosine one by features of one model on both sides"}
PROTOCOL = ("dataset", "split", "queries", "database", "training", "k", "ties", "bits", "seed")
RECIPE = ("teacher", "teacher_weights", "teacher_objective", "student", "student_weights", "method", "train_backbone", "epochs",
          "lr")
OWN = "Queries and database are its own codes."
SEARCHED = {"symmetric": OWN, "asymmetric": "Queries are its codes, the database is its teacher's.",
            "both": f"{OWN} Its queries are for its teacher's codes too."}
NAMED = {"both": "symmetric and asymmetric"}
UNKNOWN = "unknown"


def model_card(config: Mapping[str, Any], repository: str) -> str:
    """A README.md in Markdown, with the metadata that the hub reads.

    Args:
        config: of an encoder's config.json. repository: user/name, by which it is loaded.
    """
    provenance = _mapping(config.get("provenance"))
    base = _base(config, provenance)
    metadata = {"library_name": "jax_brcd", "pipeline_tag": "image-feature-extraction", "tags": list(TAGS),
                **({"base_model": base["repository"]} if base else {})}
    sections = [
        f"# {repository}", _summary(config, provenance), _table(("", ""), _facts(config, provenance, base)),
        "## How well it searches", *_measured(config, provenance),
        "## How to search", *_usage(config, provenance, repository),
        "## How it was made", *_made(provenance),
        "## What is not known", *_not_known(provenance)]
    lines = "".join(f"{name}: {json.dumps(value)}\n" for name, value in metadata.items())
    return f"---\n{lines}---\n\n" + "\n\n".join(sections) + "\n"


def _summary(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    taught = " A teacher taught it to find what the teacher finds." if config["role"] == "student" else ""
    width = _row_width(config)
    what = ("An image hashing encoder: it turns an image" if width is None else
            f"A hashing encoder over embeddings: it turns a row of {width} numbers")
    alike = "images" if width is None else "rows"
    return (f"{what} into {config['bits']} bits, and {alike} that are alike into codes "
            f"that differ in few of them.{taught} Written by jax_brcd, version {_text(provenance.get('version', UNKNOWN))}.")


def _row_width(config: Mapping[str, Any]) -> str | None:
    """Numbers a row of an encoder over embeddings; None of one that sees images."""
    seen = _mapping(config["preprocessing"])
    return _text(seen["width"]) if "width" in seen else None


def _facts(config: Mapping[str, Any], provenance: Mapping[str, Any], base: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    protocol = _mapping(provenance.get("protocol"))
    yield "code length", f"{config['bits']} bits"
    yield "code space", f"`{_text(config['space'])}`"
    search = provenance.get("search")
    named = NAMED.get(search, search) if isinstance(search, str) else search
    yield "role", config["role"] + (f", for {_text(named)} search" if "search" in provenance else "")
    yield "backbone", f"`{_text(config['backbone'])}`, computed in {config['dtype']}"
    yield "layout of the weights", _text(config["layout"])
    yield _takes(config)
    yield "data set", f"{_text(protocol.get('dataset', UNKNOWN))}, split: {_text(protocol.get('split', UNKNOWN))}"
    if base:
        yield "made from", f"{_text(base['repository'])} at commit {_text(base.get('commit') or UNKNOWN)}"


def _takes(config: Mapping[str, Any]) -> tuple[str, str]:
    """What an encoder is given, as a row of the table of facts."""
    seen, width = _mapping(config["preprocessing"]), _row_width(config)
    if width is not None:
        return "embeddings", f"{width} numbers a row"
    cut = f" cut from a shorter side of {seen['resize']}" if seen.get("resize") else ""
    return "images", (f"RGB, {seen.get('size')} x {seen.get('size')} pixels{cut}, mean {_text(seen.get('mean'))}, deviation "
                      f"{_text(seen.get('std'))}")


def _measured(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterable[str]:
    metrics, protocol = _mapping(provenance.get("metrics")), _mapping(provenance.get("protocol"))
    known = {name: (title.format(k=protocol.get("k", "k")), metrics[name]) for name, title in MEASURES.items()
             if isinstance(metrics.get(name), int | float)}
    if not known:
        yield "It was not measured, or its folder does not say how well it searches."
        return
    yield _table([title for title, _ in known.values()], [[f"{value:.4f}" for _, value in known.values()]])
    usual = OWN if config["role"] == "teacher" else "Which codes were searched is not known."
    yield (f"{SEARCHED.get(str(provenance.get('search')), usual)} mAP@k averages the precision at the relevant results among "
           "the first k, ties in database order; the tie-aware one is its expectation over all orders of ties"
           f"{''.join(f'; {said}' for name, said in RANKED.items() if name in known)}. The figures hold for this protocol "
           "alone:")
    yield _table(("", ""), [(name, _text(protocol.get(name, UNKNOWN))) for name in PROTOCOL])


def _usage(config: Mapping[str, Any], provenance: Mapping[str, Any], repository: str) -> Iterable[str]:
    yield "```bash\npip install 'jax_brcd[hub]'\n```"
    width = _row_width(config)
    given = ('["a.jpg", "b.jpg"])  # paths, Pillow images or uint8 arrays (n, height, width, 3)' if width is None else
             f'np.load("embeddings.npy"))  # any real numbers (n, {width})')
    query = '"query.jpg"' if width is None else 'np.load("queries.npy")'
    yield (f"```python\nimport jax_brcd\n{'' if width is None else 'import numpy as np' + chr(10)}\n"
           f'encoder = jax_brcd.load("hf:{repository}")\n'
           f"codes = encoder.encode({given}\n"
           "index = jax_brcd.HammingIndex(codes)\n"
           f"distances, positions = index.search(encoder.encode({query}), k=2)\n```")
    other = (" For the figures above the database is encoded by the teacher of that space."
             if provenance.get("search") == "asymmetric" else "")
    yield (f"Codes are compared with codes of the space `{_text(config['space'])}` alone; those of other encoders mean "
           f"something else.{other}")


def _made(provenance: Mapping[str, Any]) -> Iterable[str]:
    settings = _mapping(provenance.get("settings"))
    told = [(name, _text(settings[name])) for name in RECIPE if settings.get(name) is not None]
    yield _table(("setting", "value"), told) if told else "Its folder does not say how."
    notes = provenance.get("notes")
    if isinstance(notes, list) and notes:
        yield "\n".join(f"- {_text(note)}" for note in notes)
    if told:
        yield "`config.json` holds all settings, and digests of the data."


def _not_known(provenance: Mapping[str, Any]) -> Iterable[str]:
    absent = [f"no `{name}`" for name in ("protocol", "metrics", "settings") if not _mapping(provenance.get(name))]
    lacking = [f"Its provenance holds {', '.join(absent)}."] if absent else []
    yield "\n".join(f"- {line}" for line in (
        *lacking,
        "A licence is not stated; those of the weights it started from and of the images apply.",
        "How it does on other images than those of its data set, and which groups of images it confuses, was not examined."))


def _base(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where on the hub the encoder's weights started from, if they did."""
    base = _mapping(_mapping(provenance.get("weights")).get(str(config["role"])))
    return base if isinstance(base.get("repository"), str) else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (lines[0], ["---"] * len(lines[0]), *lines[1:]))


def _text(value: Any) -> str:
    """A value on one line, in which Markdown and HTML see plain text."""
    text = value if isinstance(value, str) else json.dumps(value)
    for sign, plain in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'")):
        text = text.replace(sign, plain)
    return " ".join(text.split())
