"""The verbs from a shell: ``workbench --help``."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from workbench import __version__
from workbench.cli import actions
from workbench.cli.options import STRATEGIES, add_screening, add_setup, add_source


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench", description="Which way of transferring a pretrained video transformer to your clips works?"
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        # A shortened option could mean another one: --split is not --split-seed.
        sub = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(act=run)
        return sub

    sub = verb("demo", actions.demo, "the whole way once on generated clips, ending in an HTML report")
    sub.add_argument("--report", default="reports/quickstart.html")
    sub.add_argument("--runs", default="runs")
    sub.add_argument("--clips", type=int, default=600, help="size of the playground (a multiple of 4)")
    sub.add_argument("--epochs", type=int, default=6)
    sub.add_argument("--device", default="auto")
    sub.add_argument("--workers", type=int, default=2)
    sub = verb("lab", actions.lab, "open the notebooks in JupyterLab")
    sub.add_argument("folder", nargs="?", default="notebooks")
    sub = verb("data", actions.data, "open clips, say what is there, save the table")
    add_source(sub)
    sub.add_argument("--save", help="folder to save the table in")
    sub.add_argument("--shards", help="folder to copy the clips to, as tar shards that open like any other source")
    sub.add_argument("--clips-per-shard", type=int, default=1000, help="default: %(default)s")
    sub = verb(
        "doctor", actions.doctor,
        "decode every file in child processes; exit code 0: all can be used, 1: a clip is quarantined, 2: an error",
    )  # fmt: skip
    add_source(sub)
    sub.add_argument("--json", help="write one object per file (path, verdict, reason)")
    sub.add_argument("--workers", type=int, default=2, help="processes that decode")
    sub.add_argument("--html", help="write the report as one HTML page")
    sub.add_argument("--time-limit", type=float, default=60.0, help="seconds per file")
    sub.add_argument("--memory", type=float, default=8.0, help="GiB of address space per file (POSIX)")
    sub = verb("train", actions.train, "fine-tune one setup; an interrupted run goes on, a finished one is read")
    add_source(sub)
    sub.add_argument("--strategy", help=f"{STRATEGIES} (default: full, or the recipe's)")
    sub.add_argument(
        "--recipe",
        help="begin from a published recipe, scaled to the clips: finetune, videomae-ucf101, vjepa2-attentive, "
        "linear, st-adapter, bitfit, lora, or a strategy; what is given besides has the last word",
    )
    sub.add_argument("--setup", metavar="FILE", help="a setup saved as JSON; what is given has the last word")
    sub.add_argument(
        "--tracker", action="append", default=[],
        help="show the training there too: tensorboard, trackio or mlflow; may be given several times",
    )  # fmt: skip
    sub.add_argument("--job", metavar="FOLDER", help="folder of a launched training that is told how this one goes")
    add_setup(sub)
    sub = verb("sweep", actions.sweep, "fine-tune several strategies on the same clips and compare them")
    add_source(sub)
    sub.add_argument(
        "--strategies", default="scratch,linear,full", help=f"with commas: {STRATEGIES} (default: %(default)s)"
    )
    sub.add_argument("--recipes", action="store_true", help="each strategy by the published recipe nearest to it")
    add_setup(sub)
    sub = verb("compare", actions.compare, "compare finished runs, with intervals")
    sub.add_argument("run", nargs="+", help="run folders, or folders of runs")
    sub.add_argument("--split", default="test")
    sub.add_argument("--reference", help="name of the run that the others are compared with (default: the first)")
    sub.add_argument("--pairs", action="store_true", help="every run against every other as well")
    sub.add_argument("--seeds", action="store_true", help="runs that differ in their seed only as one row as well")
    sub.add_argument("--differences", action="store_true", help="what differs between the setups as well")
    sub.add_argument("--csv", help="write the table there too")
    sub.add_argument("--html", help="write tables, plots and some clips that two runs part on as one HTML page")
    sub = verb("predict", actions.predict, "what a run says of video files; exit code 1 when one cannot be read")
    sub.add_argument("run", help="run folder")
    sub.add_argument("file", nargs="+", help="video files")
    sub.add_argument("--csv", help="write the table there instead of printing it")
    sub.add_argument("--device", default="auto")
    sub.add_argument("--workers", type=int, default=2)
    sub = verb(
        "screen", actions.screen,
        "sort clips, or the moments of long videos, for a reviewer; exit code 1 when one cannot be read to its end",
    )  # fmt: skip
    add_screening(sub)
    sub = verb("app", actions.app, "the dashboards in a browser: compare the runs of a folder, look at their errors")
    sub.add_argument("runs", help="folder of runs")
    sub.add_argument("--clips", help="what they were trained on: the folder of a saved table, or any other source")
    sub.add_argument("--port", type=int, default=8866, help="on 127.0.0.1, where alone it can be reached (%(default)s)")
    sub.add_argument("--no-browser", action="store_true", help="open none; the address, with its token, is printed")
    sub = verb("export", actions.export, "write a run as a plain Hugging Face checkpoint")
    sub.add_argument("run", help="run folder")
    sub.add_argument("folder", help="new folder for config.json, model.safetensors and preprocessor_config.json")
    sub.add_argument("--encoder", action="store_true", help="the backbone alone, to transfer from; of any run")
    sub = verb("pretrain", actions.pretrain, "pretrain the embedded checkpoint on procedural video (resumable)")
    sub.add_argument("folder", help="working folder; its checkpoint/ is the result")
    sub.add_argument("--steps", type=int)
    sub.add_argument("--batch-size", type=int)
    sub.add_argument("--seed", type=int)
    sub.add_argument("--device", default="auto")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; an error of the user's making is one line on stderr and exit code 2."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "matplotlib", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return int(args.act(args))
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"{error or 'interrupted'}; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
