"""Many tasks on one ViT over HTTP: one folder of factor files, a task under each file's name.

    python -m experiments.serve --variant vit_b16 --weights PATH --factors DIR --port 8000
    curl --data-binary @picture.jpg http://127.0.0.1:8000/v1/tasks/NAME/classify

http://127.0.0.1:8000/ is a page to try it. Programs use the Open Inference Protocol V2 below /v2,
where a task is a model, and Triton's calls to load and unload tasks of the folder. Listens on this
machine only, unless --host says otherwise. Ctrl-C and SIGTERM end it with status 0 after every
request that was accepted has its answer. Needs the extra `serve`: pip install 'fact-jax[serve]'.
"""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import jax
from absl import flags

from fact_jax.backbone.config import PRECISIONS
from fact_jax.cli import arguments
from fact_jax.cli.stopping import STOPPING
from fact_jax.command_line import command
from fact_jax.errors import UserError
from fact_jax.extras import require
from fact_jax.files.factors import TrainedTask, read_factors
from fact_jax.files.weights import load_vit
from fact_jax.ranges import Real, Whole, check
from fact_jax.serving.bank import Bank
from fact_jax.serving.predict import affordable_batch
from fact_jax.serving.server.limits import Limits
from fact_jax.serving.stack import DTYPES
from fact_jax.text import count_of, printable_line, say

MODULES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
_MARGIN = 8.0  # seconds of the process's end after the last answer


def define_flags() -> None:
    """Defines --factors, the address, and a flag for each of `Limits`."""
    flags.DEFINE_string("factors", "", "Folder of factor files; nothing else is ever loaded.")
    flags.DEFINE_string("variant", None, "The ViT; by default that of the first factor file.")
    flags.DEFINE_string(
        "weights",
        None,
        "Its weights, a file, folder or hf:owner/name; by default the published ones.",
    )
    flags.DEFINE_bool("any_weights", False, "Accept weights that tasks were not trained on.")
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
    flags.DEFINE_integer("port", 8000, "Port to listen on; 0: a free one.")
    flags.DEFINE_list("allow_host", [], "Further names by which clients call a loopback server.")
    flags.DEFINE_string("token_env", "", "Environment variable with the token of all clients.")
    flags.DEFINE_string("token_file", "", "File with the token of all clients.")
    flags.DEFINE_integer("batch_size", None, "Most images of a batch. Default: 64, fewer if large.")
    flags.DEFINE_enum("stored", "float32", DTYPES, "Type in which factors lie on the device.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute type.")
    flags.DEFINE_enum("precision", "default", PRECISIONS, "Of float32 products (docs/numerics.md).")
    flags.DEFINE_bool("warm_up", True, "Compile all programs before the first request.")
    flags.DEFINE_float("grace", 30.0, "Seconds that accepted requests have at the end.")
    for field in dataclasses.fields(Limits):
        define: Any = flags.DEFINE_integer if field.type is int else flags.DEFINE_float
        define(field.name, field.default, f"Most {field.metadata['what']}.")


def check_flags(options: flags.FlagValues) -> Limits:
    """The limits; raises UserError for flags that are wrong whatever the files hold."""
    if not options.factors:
        raise UserError(f"--factors is missing. `{command('serve', '--help')}` lists all.")
    folder = os.path.expanduser(options.factors)
    if not os.path.isdir(folder):
        raise UserError(f"--factors {folder} is no folder; give one of factor files.")
    options.factors = folder
    check("--port", options.port, Whole(0, 65_535))
    check("--grace", options.grace, Real(1, 3600))
    if options.batch_size is not None:
        check("--batch_size", options.batch_size, Whole(1))
    bounds: dict[str, Any] = {f.name: options[f.name].value for f in dataclasses.fields(Limits)}
    return Limits(**bounds)


def read_token(options: flags.FlagValues) -> bytes | None:
    """The token of --token_env or --token_file, which no message repeats; None without both."""
    if options.token_env and options.token_file:
        raise UserError("Give --token_env or --token_file, not both.")
    if options.token_env:
        where, token = f"The variable {options.token_env}", os.environ.get(options.token_env, "")
    elif options.token_file:
        where = f"--token_file {options.token_file}"
        try:
            token = Path(options.token_file).expanduser().read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not ASCII"
            raise UserError(f"{where} cannot be read ({reason}).") from error
    else:
        return None
    token = token.strip()
    if not (token.isascii() and token.isprintable() and 16 <= len(token) <= 1000):
        raise UserError(
            f"{where} holds {len(token)} characters; expected a token of 16 to 1,000 that are "
            "printable ASCII, such as `openssl rand -hex 32` writes."
        )
    return token.encode()


def first_task(folder: Path) -> TrainedTask | None:
    """The first factor file of a folder that can be read, for its variant and settings."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            return read_factors(path)
        except UserError:  # is reported when all are loaded
            continue
    return None


def load_bank(options: flags.FlagValues) -> Bank:
    """An empty bank, with room for the files of the folder."""
    folder = Path(options.factors)
    task = first_task(folder)
    settings = {} if task is None else task.forward_settings
    numerics = {"dtype": options.dtype, "precision": options.precision}
    variant = arguments.variant_of(task, options.variant)
    model, base = load_vit(variant, options.weights, **settings, **numerics)
    side = (task and task.metadata.get("image_size")) or model.config.image_size
    return Bank(
        model,
        base,
        capacity=max(16, sum(1 for _ in folder.glob("*.safetensors"))),
        batch_size=options.batch_size or affordable_batch(model.config, side, jax.device_count()),
        dtype=options.stored,
        any_weights=options.any_weights,
    )


def main() -> None:
    require("fact-jax serve", "serve", *MODULES)
    # The core of the package runs without these, and so does this command's --help.
    from fact_jax.serving.server.access import LOOPBACK
    from fact_jax.serving.server.app import build_app
    from fact_jax.serving.server.connection import bind, serve
    from fact_jax.serving.server.folder import TaskFolder
    from fact_jax.serving.server.service import Service
    from fact_jax.serving.server.warm_up import WarmUp

    options = flags.FLAGS
    limits, token = check_flags(options), read_token(options)
    host, port = options.host, options.port
    hosts = {*LOOPBACK, *options.allow_host} if host in LOOPBACK else None
    try:
        bound = bind(host, port)
    except OSError as error:
        raise UserError(
            f"{host}, port {port} cannot be used ({error.strerror or error}). Give another --port "
            "or --host."
        ) from error
    with bound:
        bank = load_bank(options)
        folder = TaskFolder(Path(options.factors), bank, limits, WarmUp(bank, options.warm_up))
        for name, reason in folder.load_all().items():
            say(f"Not served: {name}: {printable_line(reason)}", error=True)
        service = Service(bank, folder, limits)
        for number in (signal.SIGINT, signal.SIGTERM):
            STOPPING.gently(number, options.grace + _MARGIN)
        address = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
        if hosts is None and token is None:
            say(
                "Whoever reaches this address may ask, load and unload: see --token_file.",
                error=True,
            )
        bound.listen(limits.max_connections)  # whoever reads the next line may connect
        tasks = count_of(len(bank.names), "task")
        say(f"{tasks} at {address}/, API below {address}/v1/tasks and /v2.")
        app = build_app(service, token, hosts)
        serve(app, bound, limits, lambda: STOPPING.number is not None, service.drain, options.grace)
    say("Ended: every request that was accepted has its answer.")
