"""The order of what the masking kernels take as plain numbers; importing it costs nothing, unlike the kernels."""

# Entries of ``settings``, the int64 constants of a masker.
PAD, MASK, LO, HI, SIZE, PARTNERS, MASK_BELOW, RANDOM_BELOW, DEGREE = range(9)
# How a row gets its draw_id: given, counted, or from its content plus a salt.
GIVEN, COUNTED, CONTENT = range(3)
