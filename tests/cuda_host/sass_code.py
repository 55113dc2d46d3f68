"""What ``nvdisasm`` prints, as instructions."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PIPES = {
    **dict.fromkeys(("LDS", "STS", "ATOMS"), "shared"),
    **dict.fromkeys(("LDG", "STG"), "global"),
    **dict.fromkeys(("SHFL", "MATCH", "REDUX", "VOTE"), "shuffle"),
    **dict.fromkeys(("POPC", "FLO", "BREV", "MUFU", "I2F", "F2I", "FCHK", "R2UR"), "slow"),
    **dict.fromkeys(("DADD", "DMUL", "DSETP"), "double"),
    **dict.fromkeys(("LDC", "S2R"), "constant"),
    **dict.fromkeys(("IMAD", "FFMA", "FMUL", "FADD"), "fma"),
    **dict.fromkeys(
        ("BRA", "BSSY", "BSYNC", "BREAK", "BAR", "WARPSYNC", "NOP", "EXIT", "CALL", "RET", "YIELD"), "control"
    ),
}  # everything else: "alu"


@dataclass
class Instruction:
    op: str
    kinds: list[str]
    guard: str
    operands: list[str]
    chain: tuple[tuple[str, int], ...]  # (file, line), from the innermost function outwards
    run: object = None
    target: int = -1
    reads: tuple = ()
    writes: tuple = ()
    pipe: str = "alu"


def find_nvdisasm() -> str | None:
    """The disassembler of the environment variable NVDISASM, of a toolkit, or of the wheel nvidia-cuda-nvdisasm."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec else ()
    in_wheel = (str(path) for root in roots for path in Path(root).glob("*/bin/nvdisasm"))
    return os.environ.get("NVDISASM") or shutil.which("nvdisasm") or next(in_wheel, None)


def disassemble(nvdisasm: str, cubin: str) -> dict[str, list[Instruction]]:
    """Return the code of each kernel."""
    text = subprocess.run([nvdisasm, "-c", "-gi", cubin], capture_output=True, text=True, check=True).stdout
    kernels = {}
    for part in re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition(":")
        kernels[name] = _parse(body.split("//---------------------")[0])
    return kernels


def _parse(body: str) -> list[Instruction]:
    code, labels, chain, fresh = [], {}, (), True
    for line in body.splitlines():
        if label := re.match(r"(\.L\S+|\$\S+):", line):
            labels[label[1]] = len(code)
        elif place := re.match(r'\s*//## File "(?:[^"]*/)?([^"/]+)", line (\d+)', line):
            chain = (*(() if fresh else chain), (place[1], int(place[2])))
            fresh = False
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?(\S+)\s*(.*?)\s*;", line):
            guard, name, rest = found.groups()
            op, *kinds = name.split(".")
            operands = [one.strip().replace(".reuse", "") for one in rest.split(",") if one.strip()]
            code.append(Instruction(op, kinds, "PT" if guard in {None, "UPT"} else guard, operands, chain))
            fresh = True
    for one in code:
        if one.op.startswith("U") or one.op in {"S2UR", "VOTEU"}:
            one.op = {"S2UR": "S2R", "VOTEU": "VOTE"}.get(one.op, one.op[1:])
        one.pipe = PIPES.get(one.op, "alu")
        if one.operands and "`" in one.operands[-1]:
            one.target = labels.get(one.operands.pop()[2:-1], -1)
    return code
