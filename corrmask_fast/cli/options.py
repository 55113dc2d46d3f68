"""What the commands of the command line share: their parsers' look, and opening what they are given."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from typing import TYPE_CHECKING, Any, NoReturn

from corrmask_fast.errors import InputError
from corrmask_fast.suggestions import did_you_mean, similar_names

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph

PROGRAM = "corrmask-fast"
# Options and arguments that are files or folders to read.
INPUTS = (
    *("corpus", "graph", "graphs", "pmi", "table", "genes", "model", "models", "config", "input", "into", "sets"),
    *("vocabulary", "tokens", "medians", "symbols", "gene_mapping"),
)


class Parser(argparse.ArgumentParser):
    """A parser whose messages suggest what a misspelt option, command or choice may be.

    Parsers of commands are of this class too: argparse makes them of their parent's.
    """

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, and refuse what is not known here: the parser of a command knows its options, its parent does not."""
        self._given = sys.argv[1:] if args is None else list(args)
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, left

    def error(self, message: str) -> NoReturn:
        """Print usage, the message and what may help, and exit with 2."""
        super().error("; ".join([message, *self._misspelt(), *self._swallowed(message)]))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            raise argparse.ArgumentError(
                action, f"{error.message}{did_you_mean(value, action.choices or ())}"
            ) from None

    def _misspelt(self) -> Iterator[str]:
        """Yield a suggestion for each option that was given and does not exist."""
        known = [flag for action in self._actions for flag in action.option_strings]
        for word in dict.fromkeys(self._given):
            flag = word.partition("=")[0]
            if word == "--":
                return
            if not flag.startswith("--") or any(option.startswith(flag) for option in known):
                continue
            if similar := similar_names(flag, known):
                yield f"{flag}: did you mean {' or '.join(similar)}?"

    def _swallowed(self, message: str) -> Iterator[str]:
        """Yield what to do where an option with several values took an argument that stands behind them."""
        names = [str(action.metavar) for action in self._actions if not action.option_strings]
        missing = message.removeprefix("the following arguments are required: ").split(", ")
        if not names or not self._given or not self._given[0].startswith("-"):
            return
        for action in self._actions:
            flags = action.option_strings
            if action.nargs not in {"+", "*"} or not set(flags) & set(self._given):
                continue
            if set(names) & set(missing) or message.startswith(f"argument {'/'.join(flags)}:"):
                yield f"{flags[0]} takes all that follows it: put {' '.join(names)} first, or after --"


def command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    *,
    summary: str,
    text: str,
    example: str,
    notes: str = "",
    computes: bool = True,
) -> argparse.ArgumentParser:
    """Add a command with its description, an example, and the options of every command that computes."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(text, 100),
        epilog="\n\n".join(filter(None, [notes, f"example:\n  {PROGRAM} {example}"])),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    if computes:
        parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores of this process)")
        parser.add_argument(
            "--no-progress",
            dest="progress",
            action="store_false",
            help="show no progress; results and estimates are printed all the same",
        )
    return parser


def setting(parser: argparse.ArgumentParser, flag: str, default: float, metavar: str, text: str) -> None:
    """Add a number with its default, which the help names."""
    parser.add_argument(flag, type=type(default), default=default, metavar=metavar, help=f"{text} (default: {default})")


def add_corpus(parser: argparse.ArgumentParser, text: str = "datasets folder or .npz file of tokenised cells") -> None:
    """Add ``CORPUS``, and the options for one that stores no vocabulary."""
    parser.add_argument("corpus", metavar="CORPUS", help=text)
    parser.add_argument(
        "--vocabulary",
        metavar="DICT",
        help="token dictionary (.pkl or .json), for a corpus that stores none, as those that Geneformer tokenised",
    )
    add_dictionary_options(parser, "--vocabulary")


def add_dictionary_options(parser: argparse.ArgumentParser, dictionary: str) -> None:
    """Add what goes with a token dictionary, which the option ``dictionary`` names: symbols, and roles of tokens."""
    parser.add_argument(
        "--symbols", metavar="FILE", help=f"dictionary from gene symbol to gene id (.pkl or .json), with {dictionary}"
    )
    for role, usual in (("pad", "<pad>"), ("mask", "<mask>, if there is one")):
        text = f"name or id in {dictionary} of the token that {role}s (default: {usual})"
        parser.add_argument(f"--{role}-token", type=_token, metavar="TOKEN", help=text)
    parser.add_argument(
        "--special-tokens",
        type=_token,
        nargs="+",
        metavar="TOKEN",
        help=f"special tokens of {dictionary} that have no angle brackets, such as [CLS]; special tokens are never "
        "masked",
    )


def _token(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def in_options(message: str, names: Iterable[str]) -> str:
    """Return a message of the library with the options of a command in place of its parameters.

    >>> in_options("rho_min must be at most 1; or try layer='raw'", ["rho_min", "layer"])
    '--rho-min must be at most 1; or try --layer raw'
    """
    for name in names:
        flag, word = f"--{name.replace('_', '-')}", rf"(?<![\w./-]){name}\b"
        message = re.sub(rf"\({word}=None\)", f"(without {flag})", message)
        message = re.sub(rf"{word}=(?:'([^']*)'|(?=\d))", rf"{flag} \1", message)
        message = re.sub(rf"{word}=(?=[,;])", flag, message)
        # A name of one word may be an ordinary word; before "must be" it is the parameter.
        message = re.sub(word + (r"(?![./'=])" if "_" in name else r"(?= must be)"), flag, message)
    return message


def inputs_of(arguments: argparse.Namespace) -> list[str]:
    """Return the paths of all that a command reads."""
    given = [getattr(arguments, name, None) or () for name in INPUTS]
    return [path for paths in given for path in ([paths] if isinstance(paths, str) else paths)]


def check_outputs(arguments: argparse.Namespace, *files: str, picture: str = "plot") -> None:
    """Refuse outputs that cannot be written, that are inputs, or have one name, before the work begins.

    ``files`` and ``picture`` are names of options; those that were not given do not count.
    """
    from corrmask_fast.errors import import_extra
    from corrmask_fast.files import check_not_input, check_output, target_of
    from corrmask_fast.plots import check_picture

    taken: dict[Path, str] = {}
    for option in (*files, picture):
        given = getattr(arguments, option, None)
        if given is None:
            continue
        path = target_of((check_picture if option == picture else check_output)(given))
        flag = f"--{option.replace('_', '-')}"
        for source in inputs_of(arguments):
            check_not_input(given, source, flag)
        if path in taken:
            raise InputError(f"{taken[path]} and {flag} are both {given}; give each a file of its own")
        taken[path] = flag
    if getattr(arguments, picture, None) is not None:
        import_extra("matplotlib", "plot")


def check_tensors_file(arguments: argparse.Namespace, what: str, *more: str) -> None:
    """Like :func:`check_outputs` for ``output``, where a graph or a table is saved, and ``more`` outputs."""
    from pathlib import Path

    check_outputs(arguments, "output", *more)
    if arguments.output is not None and Path(arguments.output).suffix != ".safetensors":
        raise InputError(f"{what} must end in .safetensors; got {arguments.output}")


def check_dictionary(arguments: argparse.Namespace, dictionary: str) -> None:
    """Refuse what goes with a token dictionary where the option ``dictionary`` names none."""
    for option in ("symbols", "pad_token", "mask_token", "special_tokens"):
        if getattr(arguments, option) is not None and getattr(arguments, dictionary) is None:
            raise InputError(f"--{option.replace('_', '-')} belongs to --{dictionary}; give both, or neither")


def roles_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the special tokens that options give by role, as a vocabulary takes them."""
    given = {"pad": arguments.pad_token, "mask": arguments.mask_token, "special": arguments.special_tokens}
    return {role: tokens for role, tokens in given.items() if tokens is not None}


def load_vocabulary(
    path: str | os.PathLike[str], symbols: str | os.PathLike[str] | None, roles: Mapping[str, Any]
) -> Vocabulary:
    """Read a token dictionary, with symbols and :func:`roles_of` its special tokens where given."""
    from corrmask_fast.cells.vocabulary import Vocabulary

    if symbols is None and not roles:
        return Vocabulary.load(path)
    return Vocabulary.from_token_dictionary(path, symbols, **roles)


def open_corpus(arguments: argparse.Namespace, *, model_length: int | None = None) -> Corpus:
    """Open ``CORPUS`` with the vocabulary that the options name, or its own.

    ``model_length`` cuts cells so that they fit a model of so many positions, ``<cls>`` and ``<eos>`` included.
    """
    from corrmask_fast.cells.corpus_io import read_corpus

    check_dictionary(arguments, "vocabulary")
    vocabulary = None
    if arguments.vocabulary is not None:
        vocabulary = load_vocabulary(arguments.vocabulary, arguments.symbols, roles_of(arguments))
    corpus = read_corpus(arguments.corpus, vocabulary)
    if model_length is None:
        return corpus
    length = min(corpus.max_length, max(1, model_length - corpus.vocabulary.n_surrounding))
    return read_corpus(arguments.corpus, corpus.vocabulary, max_length=length)


def load_graph(path: str) -> DependencyGraph:
    """Read a graph file."""
    from corrmask_fast.graph.dependency_graph import DependencyGraph

    return DependencyGraph.load(path)
