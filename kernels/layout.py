"""The order of what the masking kernels take as plain numbers; importing it costs nothing, unlike the kernels."""

# Entries of ``settings``, the int64 constants of a masker.
PAD, MASK, LO, HI, SIZE, PARTNERS, MASK_BELOW, RANDOM_BELOW, DEGREE, STRATEGY = range(10)
# What a strategy masks before the random top-up (SPEC 5): nothing, spans, runs of associated pairs, seeds with their
# partners; or nothing, and the top-up goes by given priorities.
RANDOM, SPAN, PMI, CORRMASK, SAMPLED = range(5)
# Entries of ``rates``, float64: the ends of what a row's p and λ are drawn from; equal ends are what every row has.
P_LO, P_HI, RATIO_LO, RATIO_HI = range(4)
# How a row gets its draw_id: given, counted, or from its content plus a salt.
GIVEN, COUNTED, CONTENT = range(3)
