"""Instructions as Python functions of a warp, a mask of its lanes and a place: each is written once, then compiled."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .sass_code import Instruction

u32, u64, i32, f32, f64 = np.uint32, np.uint64, np.int32, np.float32, np.float64
LANES = np.arange(32)
FULL = 0xFFFFFFFF
RZ, URZ, UNIFORM = 255, 319, 256  # rows of the register file: R0 … R254, RZ, UR0 … UR62, URZ
PT, UPT = 7, 15


def register(text: str) -> int:
    """Return a register's row; -1 of what is none."""
    found = re.fullmatch(r"[-~|]*(U?)R(Z|\d+)\|?(?:\.\w+)*", text)
    if not found:
        return -1
    return (URZ if found[1] else RZ) if found[2] == "Z" else int(found[2]) + (UNIFORM if found[1] else 0)


def predicate(text: str) -> int:
    found = re.fullmatch(r"!?(U?)P(T|\d)", text)
    return -1 if not found else (8 if found[1] else 0) + (7 if found[2] == "T" else int(found[2]))


def p(text: str) -> str:
    return f"(~P[{predicate(text)}])" if text[0] == "!" else f"P[{predicate(text)}]"


def value(text: str, kind: str = "u32", *, reads: list[int] | None = None, high: int = 0) -> str:
    """Return the expression of a source operand. ``kind``: u32, u64 (a pair), f32, f64."""
    bare = text.strip("-~|")
    row = register(bare)
    reads = [] if reads is None else reads
    if row >= 0:
        reads += [row] if kind in {"u32", "f32"} else [row, row + 1]
        word = f"R[{row}]"
        if kind == "f32":
            word += ".view(f32)"
        elif kind in {"u64", "f64"}:
            word = "zero64" if row in {RZ, URZ} else f"pair(R, {row})"
            word += ".view(f64)" if kind == "f64" else ""
    elif constant := re.fullmatch(r"c\[0x0\]\[(?:0x([0-9a-f]+)|RZ)\]", bare):
        at = int(constant[1] or "0", 16) // 4
        word = f"B[{at}]" if kind == "u32" else f"B[{at}].view(f32)" if kind == "f32" else f"pair(B, {at})"
    elif kind in {"f32", "f64"}:
        number = {"+INF": "inf", "QNAN": "nan"}.get(bare, bare)
        word = f"constant({number!r}, {kind!r})"
    else:
        number = int(text, 16) if "x" in text else int(float(text))
        return f"constant({number % 2 ** (64 if kind == 'u64' else 32)}, {kind!r})"
    if text.strip("-~").startswith("|"):
        word = f"np.abs({word})"
    return f"(-{word})" if text[0] == "-" else f"(~{word})" if text[0] == "~" else word


@cache
def constant(number, kind: str) -> np.ndarray:
    return np.full(
        32, float(number) if kind[0] == "f" else number, {"u32": u32, "u64": u64, "f32": f32, "f64": f64}[kind]
    )


def wide(text: str, reads: list[int]) -> str:
    """A 32-bit operand as uint64; of a negated one 2^32 − x, as the adder takes it, so that carries are right."""
    if text[0] == "-" and register(text) >= 0:
        return f"(constant(2**32, 'u64') - {value(text[1:], reads=reads)}.astype(u64))"
    return f"{value(text, reads=reads)}.astype(u64)"


COMPARE = {"LT": "<", "LE": "<=", "GT": ">", "GE": ">=", "EQ": "==", "NE": "!=", "GTU": ">", "GEU": ">=", "NEU": "!="}
JOIN = {"AND": "&", "OR": "|", "XOR": "^"}
SPECIAL = {
    "SR_TID.X": "w.tid", "SR_LANEID": "lanes", "SR_LTMASK": "lanes_below", "SR_CTAID.X": "w.block.index",
    "SR_CgaCtaId": "zero", "SRZ": "zero",
}  # fmt: skip


def translate(one: Instruction) -> None:
    """Make the function that executes an instruction: of the warp, and of the mask of its lanes."""
    op, kinds, args, reads, writes = one.op, one.kinds, list(one.operands), [], []
    lines: list[str] = []
    uniform = register(args[0]) >= UNIFORM or 8 <= predicate(args[0]) < 16
    mask = "m" if not uniform else "True" if one.guard == "PT" else p(one.guard)  # uniform registers have no lanes

    def v(i: int, kind: str = "u32") -> str:
        return value(args[i], kind, reads=reads)

    def put(text: str, expression: str, *, pair: bool = False, dtype: str = "") -> None:
        row = register(text)
        if row in {RZ, URZ}:
            lines.append(expression)
            return
        writes.extend([row, row + 1] if pair else [row])
        lines.append(f"x = {expression}" + (f".view({dtype})" if dtype else ""))
        if pair:
            lines.append(f"np.copyto(R[{row}], x.astype(u32), where={mask})")
            lines.append(f"np.copyto(R[{row + 1}], (x >> shift32).astype(u32), where={mask})")
        else:
            lines.append(f"np.copyto(R[{row}], x, where={mask})")

    def put_p(text: str, expression: str) -> None:
        row = predicate(text)
        if row not in {PT, UPT}:
            writes.append(1000 + row)
            lines.append(f"np.copyto(P[{row}], {expression}, where={mask})")

    def carries() -> list[str]:
        """Take the predicates that follow the destination out of the operands."""
        found = []
        while len(args) > 1 and predicate(args[1]) >= 0:
            found.append(args.pop(1))
        return found

    def take_p() -> str:
        reads.append(1000 + predicate(args[-1]))
        return p(args.pop())

    if op in {"MOV", "LDC"} or (op == "CS2R" and "32" in kinds):
        put(args[0], v(1, "u64") if "64" in kinds else v(1), pair="64" in kinds)
    elif op == "CS2R":
        put(args[0], "zero64", pair=True)
    elif op == "S2R":
        put(args[0], SPECIAL[args[1]])
    elif op == "R2UR":
        put(args[0], f"first_of({v(1)}, m)")
    elif op == "IMAD" and ("WIDE" in kinds or "HI" in kinds):
        outs, carry = carries(), "zero64"
        if "X" in kinds:
            carry = take_p() + ".astype(u64)"
        signed = "U32" not in kinds
        a, b = (f"{v(i)}.view(i32).astype(np.int64).view(u64)" if signed else f"{v(i)}.astype(u64)" for i in (1, 2))
        total = f"({a} * {b} + {v(3, 'u64')} + {carry})"
        if "HI" in kinds:
            put(args[0], f"({total} >> shift32).astype(u32)")
        else:
            put(args[0], total, pair=True)
        assert not outs or outs == ["PT"], one
    elif op == "IMAD":
        carry = f" + {take_p()}" if "X" in kinds else ""
        put(args[0], f"{v(1)} * {v(2)} + {v(3)}{carry}")
    elif op in {"IADD3", "VIADD", "LEA"}:
        outs, carry = carries(), ""
        if "X" in kinds:
            carry = f" + {take_p()}.astype(u64)"
            if op == "IADD3" and predicate(args[-1]) >= 0:
                carry += f" + {take_p()}.astype(u64)"
        if op == "LEA":
            shift = int(args.pop(), 16)
            if "HI" in kinds:
                lines.append(f"both = ({value(args.pop(), reads=reads)}.astype(u64) << shift32) | {v(1)}.astype(u64)")
                low = f"((both << constant({shift}, 'u64')) >> shift32)"
            else:
                low = f"(({v(1)} << constant({shift}, 'u32')).astype(u64))"
            total = f"{low} + {wide(args[2], reads)}{carry}"
        else:
            total = " + ".join(wide(arg, reads) for arg in args[1:]) + carry
        if outs:
            lines.append(f"total = {total}")
            put(args[0], "total.astype(u32)")
            put_p(outs[0], "(total >> shift32) != 0")
        else:
            put(args[0], f"({total}).astype(u32)")
    elif op == "SHF":
        both = f"(({v(3)}.astype(u64) << shift32) | {v(1)}.astype(u64))"
        most = 31 if "W" in kinds else None
        by = (
            f"({v(2)} & constant(31, 'u32')).astype(u64)"
            if most
            else f"np.minimum({v(2)}, constant(63, 'u32')).astype(u64)"
        )
        if "R" in kinds and "S32" in kinds:
            put(args[0], f"({both}.view(np.int64) >> {by}.view(np.int64) >> 32).astype(u32)")
        else:
            shifted = f"({both} {'>>' if 'R' in kinds else '<<'} {by})"
            put(args[0], f"({shifted} >> shift32).astype(u32)" if "HI" in kinds else f"{shifted}.astype(u32)")
    elif op == "LOP3":
        outs = [args.pop(0)] if predicate(args[0]) >= 0 else []
        args.pop()  # joined with a result that is a predicate: none of ours has one
        table = int(args.pop(), 16)
        lines.append(f"total = lop({table}, {v(1)}, {v(2)}, {v(3)})")
        put(args[0], "total")
        for out in outs:
            put_p(out, "total != 0")
    elif op == "PLOP3":
        table = int(args[5], 16)
        reads.extend(1000 + predicate(args[i]) for i in (2, 3, 4))
        put_p(args[0], f"lop({table}, {p(args[2])}, {p(args[3])}, {p(args[4])})")
        assert args[1] == "PT" or args[1] == "UPT"
    elif op in {"ISETP", "FSETP", "DSETP"}:
        kind = {"I": "u32", "F": "f32", "D": "f64"}[op[0]]
        view = ".view(i32)" if kind == "u32" and "U32" not in kinds else ""
        a, b = v(2, kind) + view, v(3, kind) + view
        sign = COMPARE[kinds[0]]
        test = f"({a} {sign} {b})"
        if kinds[0][-1] == "U" and kinds[0] != "NEU":
            test = f"({test} | np.isnan({a}) | np.isnan({b}))"
        if "EX" in kinds:
            before = take_p()
            if sign == "!=":
                test = f"({test} | {before})"
            elif sign == "==":
                test = f"({test} & {before})"
            else:
                test = f"(({a} {sign[0]} {b}) | (({a} == {b}) & {before}))"
        join = next(JOIN[kind] for kind in kinds if kind in JOIN)
        reads.append(1000 + predicate(args[4]))
        lines.append(f"test, other = {test}, {p(args[4])}")
        lines.append("other = other.copy()")
        put_p(args[0], f"test {join} other")
        if args[1] not in {"PT", "UPT"}:
            put_p(args[1], f"~test {join} other")
    elif op in {"SEL", "FSEL"}:
        reads.append(1000 + predicate(args[3]))
        put(args[0], f"np.where({p(args[3])}, {v(1)}, {v(2)})")
    elif op in {"VIMNMX", "VIADDMNMX", "FMNMX"}:
        kind = "f32" if op == "FMNMX" else "u32"
        view = "" if "U32" in kinds or kind == "f32" else ".view(i32)"
        which = {"PT": "minimum", "!PT": "maximum"}[args[-1]]
        first = f"({v(1)} + {v(2)})" if op == "VIADDMNMX" else v(1, kind)
        second = v(3) if op == "VIADDMNMX" else v(2, kind)
        best = f"np.{which}({first}{view}, {second}{view})"
        put(args[0], f"np.maximum({best}, 0)" if "RELU" in kinds else best, dtype="u32")
    elif op == "PRMT":
        put(args[0], f"permute({v(1)}, {int(args[2], 16)}, {v(3)})")
    elif op == "P2R":
        chosen = int(args[3], 16)
        reads.extend(1000 + i for i in range(7) if chosen >> i & 1)
        put(args[0], f"({v(2)} & constant({~chosen & FULL}, 'u32')) | (bits_of(P) & constant({chosen}, 'u32'))")
    elif op == "R2P":
        for i in range(7):
            if int(args[2], 16) >> i & 1:
                put_p(f"P{i}", f"({v(1)} >> constant({i}, 'u32') & one) != 0")
    elif op == "POPC":
        put(args[0], f"np.bitwise_count({v(1)}).astype(u32)")
    elif op == "FLO":
        put(args[0], f"leading({v(1)}, {'SH' in kinds})")
    elif op == "BREV":
        put(args[0], f"reverse({v(1)})")
    elif op in {"I2F", "I2FP"}:
        source = v(1) if "U32" in kinds else v(1) + ".view(i32)"
        if "F64" in kinds:
            put(args[0], f"{source}.astype(f64)", pair=True, dtype="u64")
        else:
            put(args[0], f"{'round_up' if 'RP' in kinds else 'f32_of'}({source})", dtype="u32")
    elif op == "F2I":
        if kinds[0] == "F64":
            put(args[0], f"to_int(np.floor({v(1, 'f64')}))")
        elif "U64" in kinds:
            put(args[0], f"np.clip(np.trunc({v(1, 'f32')}), 0, 1.8446742e19).astype(u64)", pair=True)
        else:
            put(args[0], f"np.clip(np.trunc({v(1, 'f32')}.astype(f64)), 0, 4294967295).astype(u32)")
    elif op == "MUFU":
        assert kinds == ["RCP"]
        put(args[0], f"(f32(1) / {v(1, 'f32')})", dtype="u32")
    elif op == "FCHK":
        put_p(args[0], "P[7] & False")
    elif op in {"FFMA", "FMUL", "FADD"}:
        a, b = (f"{v(i, 'f32')}.astype(f64)" for i in (1, 2))
        total = f"{a} * {b} + {v(3, 'f32')}" if op == "FFMA" else f"{a} {'*' if op == 'FMUL' else '+'} {b}"
        put(args[0], f"({total}).astype(f32)", dtype="u32")
    elif op in {"DADD", "DMUL"}:
        put(args[0], f"({v(1, 'f64')} {'+' if op == 'DADD' else '*'} {v(2, 'f64')})", pair=True, dtype="u64")
    elif op == "SHFL":
        put(args[1], f"shuffle({kinds[0]!r}, {v(2)}, {v(3)})")
        assert args[0] == "PT", "the path of lanes apart is not needed"
    elif op == "VOTE":
        outs = [arg for arg in args[:-1] if predicate(arg) >= 0]
        reads.append(1000 + predicate(args[-1]))
        assert kinds == ["ANY"]
        lines.append(f"votes = ({p(args[-1])} & m)")
        if register(args[0]) >= 0:
            put(args[0], "constant(int_of(votes), 'u32')")
        for out in outs:
            put_p(out, "votes.any()")
    elif op == "MATCH":
        put(args[0], f"match({v(1)}, m)")
    elif op == "REDUX":
        put(args[0], f"constant(int({v(1)}[m].astype(u64).{kinds[0].lower()}()) % 2**32, 'u32')")
    elif op in {"LDG", "STG", "LDS", "STS", "ATOMS"}:
        size = next((int(kind) // 8 for kind in kinds if kind in {"64", "128"}), 1 if "U8" in kinds else 4)
        where = next(i for i, arg in enumerate(args) if "[" in arg)
        address = _address(args[where], reads)
        # A guard that is false on all lanes: the request is issued and does nothing.
        if op in {"LDG", "LDS"}:
            lines.append(f"x = w.load({op == 'LDG'}, {address}, {size}, m, at)")
            for k in range(max(1, size // 4)):
                row = register(args[0])
                writes.append(row + k)
                lines.append(f"R[{row + k}][m] = x[{k}]")
        elif op in {"STG", "STS"}:
            row = register(args[where + 1])
            rows = [row if row == RZ else row + k for k in range(max(1, size // 4))]
            reads.extend(rows)
            values = ", ".join(f"R[{row}][m]" for row in rows)
            lines.append(f"w.store({op == 'STG'}, {address}, [{values}], {size}, m, at)")
        else:
            kind = kinds[0]
            row = register(args[0])
            given = "one" if kind == "POPC" else v(where + 1, "u64" if size == 8 else "u32")
            new = v(where + 2, "u64") if kind == "CAST" else "None"
            lines.append(f"x = w.atomic({kind!r}, {address}, {given}, {new}, {size}, m, at)")
            if row != RZ:
                writes.extend([row, row + 1] if size == 8 else [row])
                lines.append(f"R[{row}][m] = x.astype(u32)")
                if size == 8:
                    lines.append(f"R[{row + 1}][m] = x >> u64(32)")
    else:
        raise KeyError(f"{one.op}.{'.'.join(one.kinds)} {one.operands}")
    reads.append(1000 + predicate(one.guard))
    one.reads = tuple({row for row in reads if row not in {RZ, URZ, RZ + 1, URZ + 1, 1000 + PT, 1000 + UPT}})
    one.writes = tuple(writes)
    text = "def run(w, m, at):\n    R, P, B = w.R, w.P, w.block.bank\n    " + "\n    ".join(lines)
    scope = dict(TOOLS)
    exec(text, scope)
    one.run = scope["run"]


def _address(text: str, reads: list[int]) -> str:
    """[R4.64+0x8], desc[UR12][R4.64], [R13+URZ+0x1c0], [UR4+0x118] → an expression of 32 addresses."""
    inside = re.search(r"\[([^\[\]]*)\]$", text)[1]
    parts = re.findall(r"[-+]?[^-+]+", inside)
    total = []
    for part in parts:
        bare = part.strip().lstrip("+")
        if register(bare) >= 0 and ".64" in bare:
            total.append(value(bare.replace(".64", ""), "u64", reads=reads))
        elif register(bare) >= 0:
            total.append(value(bare.replace(".U32", ""), reads=reads) + ".astype(u64)")
        else:
            total.append(f"constant({int(bare, 16) % 2**64}, 'u64')")
    joined = " + ".join(total)
    return f"({joined})" if ".64" in inside else f"(({joined}) & constant(0xFFFFFFFF, 'u64'))"


# ------------------------------------------------------------------------------------------------------ what they call


def pair(rows: np.ndarray, row: int) -> np.ndarray:
    return rows[row].astype(u64) | (rows[row + 1].astype(u64) << u64(32))


def int_of(bools: np.ndarray) -> int:
    return int.from_bytes(np.packbits(bools, bitorder="little").tobytes(), "little")


def lop(table: int, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    quick = {
        0xC0: lambda: a & b,
        0xFC: lambda: a | b,
        0x3C: lambda: a ^ b,
        0x96: lambda: a ^ b ^ c,
        0x80: lambda: a & b & c,
        0xFE: lambda: a | b | c,
    }
    if table in quick:
        return quick[table]()
    total = a ^ a
    for i in range(8):
        if table >> i & 1:
            total = total | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return total


def permute(a: np.ndarray, selector: int, c: np.ndarray) -> np.ndarray:
    both, out = a.astype(u64) | (c.astype(u64) << u64(32)), np.zeros(32, u32)
    for i in range(4):
        nibble = selector >> (4 * i) & 15
        byte = (both >> u64(8 * (nibble & 7)) & u64(255)).astype(u32)
        if nibble & 8:
            byte = (byte >> u32(7)) * u32(255)
        out |= byte << u32(8 * i)
    return out


def leading(x: np.ndarray, shift: bool) -> np.ndarray:
    """The number of the highest bit, or how far it is from the top; of 0 all ones."""
    high = np.frexp(x.astype(f64))[1] - 1
    return np.where(x == 0, FULL, 31 - high if shift else high).astype(u32)


def reverse(x: np.ndarray) -> np.ndarray:
    return np.array([int(f"{int(one):032b}"[::-1], 2) for one in x], u32)


def round_up(x: np.ndarray) -> np.ndarray:
    near = x.astype(f32)
    return np.where(near.astype(f64) < x.astype(f64), np.nextafter(near, f32(np.inf)), near)


def to_int(x: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.clip(x, -(2**31), 2**31 - 1)).astype(i32).view(u32)


def first_of(x: np.ndarray, m: np.ndarray) -> np.ndarray:
    return np.full(32, x[m.argmax()], u32)


def shuffle(kind: str, x: np.ndarray, by: np.ndarray) -> np.ndarray:
    by = by.astype(np.int64) & 31
    source = {"BFLY": LANES ^ by, "UP": LANES - by, "DOWN": LANES + by, "IDX": by}[kind]
    return x[np.where((source < 0) | (source > 31), LANES, source)]


def match(x: np.ndarray, m: np.ndarray) -> np.ndarray:
    return np.array([int_of((x == one) & m) for one in x], u32)


TOOLS = {
    "np": np, "u32": u32, "u64": u64, "i32": i32, "f32": f32, "f64": f64, "constant": constant, "pair": pair,
    "lop": lop, "permute": permute, "leading": leading, "reverse": reverse, "round_up": round_up, "to_int": to_int,
    "match": match, "first_of": first_of, "shuffle": shuffle, "int_of": int_of, "f32_of": lambda x: x.astype(f32),
    "zero": np.zeros(32, u32), "zero64": np.zeros(32, u64), "one": np.ones(32, u32), "lanes": LANES.astype(u32),
    "shift32": u64(32),
    "lanes_below": ((u64(1) << LANES.astype(u64)) - u64(1)).astype(u32),
    "bits_of": lambda rows: (rows[:7] * (1 << np.arange(7, dtype=u32))[:, None]).sum(0, dtype=u32),
}  # fmt: skip
