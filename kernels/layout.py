"""What the masking kernels take as plain numbers, and what each strategy's kernels need. Importing it costs nothing."""

from typing import NamedTuple

AT_ONCE = 32  # columns whose words are computed at a time: a round of one vector alone is waiting most of its time


class Settings(NamedTuple):
    """The integer constants of a masker. The CPU kernels get them as one int64 array, in this order."""

    pad: int  # the token ids of <pad> and <mask>
    mask: int
    lo: int  # genes are the token ids [lo, hi)
    hi: int
    size: int  # of the vocabulary
    max_partners: int
    mask_below: int  # floor(2**32 · mask_replace_prob)
    random_below: int  # floor(2**32 · (mask_replace_prob + random_replace_prob))
    degree: int  # the largest number of neighbours
    strategy: int  # an index of KERNELS
    grouped: int = 0  # whether a group's columns are replaced as its first one is


# Entries of the array.
PAD, MASK, LO, HI, SIZE, PARTNERS, MASK_BELOW, RANDOM_BELOW, DEGREE, STRATEGY, GROUPED = range(len(Settings._fields))
# Entries of ``rates``, float64: the ends of what a row's p and λ are drawn from; equal ends are what every row has.
P_LO, P_HI, RATIO_LO, RATIO_HI = range(4)
# How a row gets its draw_id: given, counted, or from its content plus a salt.
GIVEN, COUNTED, CONTENT = range(3)


class Kernels(NamedTuple):
    """The kernels of a strategy, and what they need beyond what all strategies have."""

    stem: str  # of kernels/<stem>.py and kernels/<stem>.cu; the CUDA kernels are <stem>_i32, <stem>_i64, …_scratch
    reads: str = ""  # what they look up: a "graph", a table of "pairs", "gene sets", or nothing
    # What given priorities put in order: "groups"; the "top-up", or "columns" (these must be given); or nothing, "".
    priorities: str = "groups"
    columns: int = 0  # CUDA working memory: numbers of 32 bits for each column,
    sets: int = 0  # sets of columns,
    waves: bool = False  # and seeds that are expanded in waves; with a graph or sets, the genes that stand in the row


# What a strategy masks before the random top-up (SPEC 5): nothing; spans; runs of associated pairs; seeds with their
# partners; nothing, and the top-up goes by given priorities; an arc of the circle of all modules; columns by given
# priorities; or gene sets.
RANDOM, SPAN, PMI, CORRMASK, SAMPLED, BALANCED, FUNCTION, GENE_SETS = range(8)
KERNELS = (
    Kernels("random", priorities=""),
    Kernels("span", columns=1),
    Kernels("pmi", reads="pairs", sets=2),
    Kernels("corrmask", reads="graph", waves=True),
    Kernels("random", priorities="top-up"),
    Kernels("balanced", reads="graph", columns=2, sets=1),
    Kernels("function", priorities="columns", sets=1),
    Kernels("gene_sets", reads="gene sets", columns=2, sets=1),
)
NEEDED = frozenset({"top-up", "columns"})  # priorities without which a kernel has nothing to go by
NOT_PROPOSED = 2**32 - 1  # the priority of such a column, where they order columns
