"""python -m jax_brcd.serve: search an index by a page and over HTTP."""

import contextlib
import os
import threading
from collections.abc import Mapping
from typing import Any, NoReturn

from jax_brcd.settings.command_line import OneLineParser, add_options, bars, run_command, say

PORT = 8765
TOKEN = "JAX_BRCD_TOKEN"  # variable of the environment, which other users do not see as they see a command line


def main(argv: list[str] | None = None) -> None:
    """Serves an index until Ctrl-C: a page to search by photos, and the same over HTTP (/openapi.json).

    On this machine alone, unless another interface is named, which needs a token.
    """
    from jax_brcd.runtime.errors import InputError
    from jax_brcd.search.encoders import opened
    from jax_brcd.search.service.encoders import load_encoders
    from jax_brcd.search.service.engine import Engine
    from jax_brcd.search.service.limits import Limits
    from jax_brcd.search.session import prepare
    from jax_brcd.search.stores.servers import without_password
    from jax_brcd.settings.options import convert

    parser = _parser()
    add_options(parser, "limits", [Limits])
    given = vars(parser.parse_args(argv))
    own = {name: given.pop(name) for name in ("index", "encoder", "host", "port", "token", "browser", "browser_runtime")}
    limits, port = convert(Limits, given), _port(own["port"])
    try:
        from jax_brcd.search.service.app import create_app
        from jax_brcd.search.service.gate import check_token, is_loopback
        from jax_brcd.search.service.protocol import listen, run
    except ImportError as error:
        raise InputError(f"a service needs the package {error.name}; pip install 'jax_brcd[search]'") from None
    if own["token"] is not None:
        check_token(own["token"])
    elif not is_loopback(own["host"]):
        raise InputError("an interface that other machines reach; give a `token` too, which they must know", field="host",
                         value=own["host"])
    prepare()
    with contextlib.ExitStack() as held:
        store, progress = held.enter_context(opened(own["index"])), held.enter_context(bars())
        browser = _browser(own, store)
        engine = held.enter_context(contextlib.closing(Engine(store, load_encoders(store, own["encoder"], progress=progress))))
        engine.warm()
        listening = held.enter_context(contextlib.closing(listen(own["host"], port)))
        progress.close()
        name = f"[{own['host']}]" if ":" in own["host"] else own["host"]
        say(f"{len(store):,} images of {without_password(own['index'])} at http://{name}:{listening.getsockname()[1]}/ (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):
            run(create_app(engine, limits=limits, token=own["token"], browser=browser), listening, limits)
    say("ended")


def _browser(own: Mapping[str, Any], index: Any) -> Any:
    """What the page is to encode by, where the command line tells of it."""
    from jax_brcd.runtime.errors import InputError
    from jax_brcd.search.service.files import browser_files

    if (own["browser"] is None) != (own["browser_runtime"] is None):
        raise InputError("an encoder in the browser needs two folders, of an export and of onnxruntime-web's files; give both "
                         "`browser` and `browser_runtime`")
    return None if own["browser"] is None else browser_files(own["browser"], own["browser_runtime"], index)


def _port(text: str) -> int:
    from jax_brcd.runtime.errors import InputError
    from jax_brcd.settings.options import read_number

    port = read_number(int, (), text, "port")
    if not 0 <= port < 2**16:
        raise InputError("no port; give one from 1 to 65535, or 0 for one that is free", field="port", value=port)
    return port


def _parser() -> OneLineParser:
    from jax_brcd.search.encoders import DEFAULT_INDEX

    parser = OneLineParser(prog="python -m jax_brcd.serve", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--index", default=DEFAULT_INDEX, metavar="URL",
                        help=f"the index that is searched (default: {DEFAULT_INDEX})")
    parser.add_argument("--encoder", default=None, metavar="DIR", help="encoder of the queries (default: the one that filled "
                        "the index); with another one of its space both are offered, symmetric and asymmetric")
    parser.add_argument("--host", default="127.0.0.1", metavar="NAME", help="interface to listen at (default: 127.0.0.1, this "
                        "machine alone); others need --token")
    parser.add_argument("--port", default=str(PORT), metavar="N", help=f"port to listen at, 0 for a free one (default: {PORT})")
    parser.add_argument("--token", default=os.environ.get(TOKEN), metavar="WORD", help=f"what clients must know (default: "
                        f"{TOKEN} of the environment, which others on the machine do not see)")
    parser.add_argument("--browser", default=None, metavar="DIR", help="export of an encoder that runs in the page itself, so "
                        "that a photo stays where it is: what python -m jax_brcd.export --to onnx wrote")
    parser.add_argument("--browser-runtime", default=None, metavar="DIR", help="folder of onnxruntime-web's files, for "
                        "--browser (npm pack onnxruntime-web, unpacked)")
    return parser


def _run() -> NoReturn:
    """The command as a program. It ends though a disk keeps threads waiting that read files, for which the interpreter would wait
    as it ends."""
    try:
        run_command(main)
    except SystemExit as stop:
        from jax_brcd.search.service import READERS  # not above: it imports JAX, and may be interrupted

        if any(thread.name.startswith(READERS) for thread in threading.enumerate()):
            os._exit(stop.code)  # all is closed and told
        raise


if __name__ == "__main__":
    _run()
