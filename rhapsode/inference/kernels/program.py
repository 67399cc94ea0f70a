"""A step's program: all layers of a decoder for some tokens, run by several threads at once.

What the model is stands in tables of numbers (`layout`), so that one compiled program serves every dense decoder. The
threads share out rows of matrices, tokens and heads as they go, and meet after each part. Where there is but one token,
what is done between matrices is done by every thread for itself, which is cheaper than to wait.
"""

from __future__ import annotations

import numpy as np

from rhapsode.inference.kernels.attention import POSITIONS, keep, mix, score, soften
from rhapsode.inference.kernels.compiled import compiled
from rhapsode.inference.kernels.elementwise import activated, normalise, to_bytes
from rhapsode.inference.kernels.products import (
    BLOCK,
    GROUP,
    INT4_BYTES,
    INT4_SCALES,
    INT8_BYTES,
    INT8_SCALES,
    ROWS_BY_3,
    float_row,
    float_rows_by_3,
    float_rows_of_4,
    int4_rows,
    int4_rows_by_4,
    int8_rows,
    int8_rows_by_4,
)
from rhapsode.inference.kernels.threads import claim, next_step, step_is_done, wait_for_all
from rhapsode.inference.kernels.vectors import (
    broadcast,
    bytes_at,
    floats_at,
    halves_at,
    load_floats,
    load_halves,
    store_floats,
)

# Columns of the tables. Absent: -1 for what has a number, 0 for what has an address.
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, LAYERS, ACTIVATION, CENTRED, PARALLEL, NORM_ALL_HEADS, EMBEDDING = (
    range(11)
)
HEAD, FINAL_NORM, POSITION_ROWS, POSITION_COUNT, CACHE_BLOCKS, SHAPE_SIZE = range(11, 17)
"""Of the model's shape."""
EPSILON, SCALE, EMBEDDING_SCALE, NUMBERS_SIZE = range(4)
"""Of its fractions."""
WEIGHTS, SCALES, BIAS, ROWS, COLUMNS, BITS, MATRIX_SIZE = range(7)
"""Of each matrix."""
GAIN, NORM_BIAS, NORM_WIDTH, NORM_SIZE = range(4)
"""Of each norm."""
QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, QUERY_NORM, KEY_NORM, BEFORE_ATTENTION, AFTER_ATTENTION = range(11)
BEFORE_FEED_FORWARD, AFTER_FEED_FORWARD, WINDOW, ANGLES, PAIRS, LAYER_SIZE = range(11, 17)
"""Of each layer: numbers of matrices and norms, what it sees, and where its angles begin."""
TOKENS, WANTED, LOGITS, STEP_SIZE = range(4)
"""Of a step: how many tokens it has, of how many the logits are wanted, and the address where they shall be."""

PARTS_OF_LAYER = 7
"""Parts that are shared out piece by piece."""
LEAST_PIECE, LARGEST_PIECE = 16 * 1024, 128 * 1024
"""Bytes of weights that a thread takes at a time."""
PIECES = 6
"""Pieces for each thread, where these bounds allow."""
TOKENS_OF_PIECE = 8
"""Tokens that a thread takes at a time where it is tokens that are shared out."""


@compiled
def padded(size, to):
    """The next multiple."""
    return -(-size // to) * to


@compiled
def group_bytes(matrix):
    """Bytes of 8 rows of a matrix."""
    if matrix[BITS] == 32:
        return 4 * GROUP * matrix[COLUMNS]
    blocks = matrix[COLUMNS] // BLOCK
    return blocks * (INT8_BYTES + 2 * INT8_SCALES if matrix[BITS] == 8 else INT4_BYTES + 2 * INT4_SCALES)


@compiled
def groups_of(matrix):
    """Groups of 8 rows that a matrix has, the last one whole or not."""
    return -(-matrix[ROWS] // GROUP)


@compiled
def groups_of_piece(matrix, groups, threads):
    """Groups of rows that a thread takes at a time, of so many in all."""
    size = group_bytes(matrix)
    fair = -(-groups // (threads * PIECES))
    return max(1, min(max(fair, LEAST_PIECE // size), LARGEST_PIECE // size))


@compiled
def multiply(matrix, begin, end, x, small, first, tokens, out, stride):
    """Rows 8 * begin to 8 * end of a matrix times some vectors, plus the bias, into those rows of `out`.

    Args:
        x: (tokens, padded columns).
        small: the same in 8 bits, as `to_bytes` makes it.
        first: the first token in these.
        out: (tokens, stride), from its first token on.
    """
    rows, columns = matrix[ROWS], matrix[COLUMNS]
    blocks = columns // BLOCK
    bias = floats_at(matrix[BIAS], padded(rows, GROUP) if matrix[BIAS] != 0 else 0)
    if matrix[BITS] == 32:
        weights = floats_at(matrix[WEIGHTS], rows * columns)
        width = padded(columns, BLOCK)
        last = min(rows, GROUP * end)
        whole = last // ROWS_BY_3 * ROWS_BY_3 if last == rows else last
        for row in range(GROUP * begin, whole, ROWS_BY_3):
            token = 0
            while token + 3 <= tokens:
                found = float_rows_by_3(weights, row, columns, x, first + token, width)
                for r in range(ROWS_BY_3):
                    added = bias[row + r] if len(bias) > 0 else np.float32(0)
                    for t in range(3):
                        out[(token + t) * stride + row + r] = found[r][t] + added
                token += 3
            while token < tokens:
                for four in range(row, row + ROWS_BY_3, 4):
                    ones = float_rows_of_4(weights, four, columns, x, first + token, width)
                    for r in range(4):
                        added = bias[four + r] if len(bias) > 0 else np.float32(0)
                        out[token * stride + four + r] = ones[r] + added
                token += 1
        for row in range(max(whole, GROUP * begin), last):
            for token in range(tokens):
                added = bias[row] if len(bias) > 0 else np.float32(0)
                out[token * stride + row] = float_row(weights, row, columns, x, first + token, width) + added
        return
    signed, words, factors, offsets, sums = small
    groups = groups_of(matrix)
    eight = matrix[BITS] == 8
    packed = bytes_at(matrix[WEIGHTS], groups * blocks * (INT8_BYTES if eight else INT4_BYTES))
    scales = halves_at(matrix[SCALES], groups * blocks * (INT8_SCALES if eight else INT4_SCALES))
    for group in range(begin, end):
        row, token = GROUP * group, 0
        added = load_floats(bias, row) if len(bias) > 0 else broadcast(np.float32(0))
        while token + 4 <= tokens:
            if eight:
                a, b, c, d = int8_rows_by_4(
                    packed, scales, group, blocks, signed, words, factors, offsets, first + token
                )
            else:
                a, b, c, d = int4_rows_by_4(packed, scales, group, blocks, signed, factors, sums, first + token)
            store_floats(out, token * stride + row, a + added)
            store_floats(out, (token + 1) * stride + row, b + added)
            store_floats(out, (token + 2) * stride + row, c + added)
            store_floats(out, (token + 3) * stride + row, d + added)
            token += 4
        while token < tokens:
            if eight:
                a = int8_rows(packed, scales, group, blocks, signed, words, factors, offsets, first + token)
            else:
                a = int4_rows(packed, scales, group, blocks, signed, factors, sums, first + token)
            store_floats(out, token * stride + row, a + added)
            token += 1


@compiled
def product(common, part, threads, matrix, x, small, first, tokens, out, stride):
    """A whole matrix times some vectors, piece by piece; see `multiply`."""
    groups = groups_of(matrix)
    size = groups_of_piece(matrix, groups, threads)
    begin = claim(common, part) * size
    while begin < groups:
        end = min(groups, begin + size)
        multiply(matrix, begin, end, x, small, first, tokens, out, stride)
        begin = claim(common, part) * size


@compiled
def embed(matrix, token, out, to, spare):
    """A token's row of a matrix, as floats, into `out` from `to` on."""
    rows, columns = matrix[ROWS], matrix[COLUMNS]
    if matrix[BITS] == 32:
        weights = floats_at(matrix[WEIGHTS], rows * columns)
        for i in range(columns):
            out[to + i] = weights[token * columns + i]
        return
    groups, blocks, eight = groups_of(matrix), columns // BLOCK, matrix[BITS] == 8
    packed = bytes_at(matrix[WEIGHTS], groups * blocks * (INT8_BYTES if eight else INT4_BYTES))
    scales = halves_at(matrix[SCALES], groups * blocks * (INT8_SCALES if eight else INT4_SCALES))
    group, lane = token // GROUP, token % GROUP
    for block in range(blocks):
        place = group * blocks + block
        store_floats(spare, 0, load_halves(scales, (INT8_SCALES if eight else INT4_SCALES) * place))
        scale, minimum = spare[lane], np.float32(0)
        if not eight:
            store_floats(spare, 0, load_halves(scales, INT4_SCALES * place + 8))
            minimum = spare[lane]
        for i in range(BLOCK):
            if eight:
                value = np.int32(packed[INT8_BYTES * place + 32 * (i // 4) + 4 * lane + i % 4]) - 128
            else:
                pair = np.int32(packed[INT4_BYTES * place + 32 * (i // 8) + 4 * lane + i % 4])
                value = pair >> 4 if i % 8 >= 4 else pair & 15
            out[to + BLOCK * block + i] = np.float32(value) * scale + minimum


@compiled
def rotate(row, first, angles, at, pairs):
    """Turn the pairs (i, i + pairs) of a head; cosines, then sines, stand at `at`."""
    for i in range(pairs):
        cosine, sine = angles[at + i], angles[at + pairs + i]
        a, b = row[first + i], row[first + pairs + i]
        row[first + i] = a * cosine - b * sine
        row[first + pairs + i] = b * cosine + a * sine


@compiled
def norm_heads(row, first, heads, head_dim, norm, all_heads, centred, epsilon, spare):
    """Norm the heads of a query or key in place: each alone, or all together."""
    width = heads * head_dim if all_heads else head_dim
    gain = floats_at(norm[GAIN], padded(norm[NORM_WIDTH], GROUP))
    bias = floats_at(norm[NORM_BIAS], padded(norm[NORM_WIDTH], GROUP) if norm[NORM_BIAS] != 0 else 0)
    for begin in range(0, heads * head_dim, width):
        for i in range(width):
            spare[i] = row[first + begin + i]
        for i in range(width, padded(width, GROUP)):
            spare[i] = np.float32(0)
        normalise(spare, 0, width, gain, bias, centred, epsilon, spare, 0)
        for i in range(width):
            row[first + begin + i] = spare[i]


@compiled
def prepare(model, number, position, blocks, m, q, k, v, cache, spare, halves):
    """Norm and turn a token's queries and keys, and put its keys and values into the cache."""
    shape, numbers, layers, _, norms, angles = model
    layer, heads, kv_heads, head_dim = layers[number], shape[HEADS], shape[KV_HEADS], shape[HEAD_DIM]
    keys, values, key_factors, value_factors = cache
    all_heads, centred = shape[NORM_ALL_HEADS] == 1, shape[CENTRED] == 1
    at_q, at_k = m * padded(heads * head_dim, BLOCK), m * padded(kv_heads * head_dim, BLOCK)
    at_v = at_k
    if layer[QUERY_NORM] >= 0:
        norm_heads(q, at_q, heads, head_dim, norms[layer[QUERY_NORM]], all_heads, centred, numbers[EPSILON], spare)
        norm_heads(k, at_k, kv_heads, head_dim, norms[layer[KEY_NORM]], all_heads, centred, numbers[EPSILON], spare)
    pairs = layer[PAIRS]
    if pairs > 0:
        turn = layer[ANGLES] + position * 2 * pairs
        for head in range(heads):
            rotate(q, at_q + head * head_dim, angles, turn, pairs)
        for head in range(kv_heads):
            rotate(k, at_k + head * head_dim, angles, turn, pairs)
    width = padded(head_dim, GROUP)
    place = number * shape[CACHE_BLOCKS] + blocks[position // POSITIONS]
    inside = position % POSITIONS
    for i in range(head_dim, width):
        spare[i] = np.float32(0)
    for head in range(kv_heads):
        home = place * kv_heads + head
        for i in range(head_dim):
            spare[i] = k[at_k + head * head_dim + i]
        to = home * POSITIONS * width
        keep(spare, keys, to + inside, POSITIONS, width, key_factors, home * POSITIONS + inside, halves)
        for i in range(head_dim):
            spare[i] = v[at_v + head * head_dim + i]
        keep(spare, values, to + inside * width, 1, width, value_factors, home * POSITIONS + inside, halves)


@compiled
def attend(model, number, position, blocks, m, kv_head, q, cache, mixed, scores, spare):
    """Mix for a token the values that the query heads of one key and value head see."""
    shape, numbers, layers, _, _, _ = model
    layer, heads, kv_heads, head_dim = layers[number], shape[HEADS], shape[KV_HEADS], shape[HEAD_DIM]
    keys, values, key_factors, value_factors = cache
    stride = padded(heads * head_dim, BLOCK)
    width, group = padded(head_dim, GROUP), heads // kv_heads
    end = position + 1
    begin = max(0, end - layer[WINDOW]) if layer[WINDOW] > 0 else 0
    first_block, last_block = begin // POSITIONS, (end - 1) // POSITIONS
    apart = kv_heads * POSITIONS * width
    origin = (number * shape[CACHE_BLOCKS] * kv_heads + kv_head) * POSITIONS * width
    factor_apart = kv_heads * POSITIONS
    factor_origin = (number * shape[CACHE_BLOCKS] * kv_heads + kv_head) * POSITIONS
    row = (last_block - first_block + 1) * POSITIONS
    for place in range(first_block, last_block + 1):
        block = blocks[place]
        for one in range(group):
            at = m * stride + (kv_head * group + one) * head_dim
            to = one * row + (place - first_block) * POSITIONS
            from_factor = factor_origin + block * factor_apart
            score(q, at, head_dim, keys, origin + block * apart, key_factors, from_factor, numbers[SCALE], scores, to)
    for one in range(group):
        share = soften(scores, one * row, begin, end)
        if len(value_factors) > 0:
            for place in range(first_block, last_block + 1):
                at = one * row + (place - first_block) * POSITIONS
                of = factor_origin + blocks[place] * factor_apart
                for i in range(POSITIONS):
                    scores[at + i] *= value_factors[of + i]
        mix(scores, one * row, begin, end, values, origin, blocks, apart, width, share, spare, 0)
        at = m * stride + (kv_head * group + one) * head_dim
        for i in range(head_dim):
            mixed[at + i] = spare[i]


@compiled
def ready(model, number, x, at, width, normed, to):
    """What a part of a block reads of a vector: its norm, or where that has no number, itself."""
    shape, numbers, _, _, norms, _ = model
    if number < 0:
        for i in range(width):
            normed[to + i] = x[at + i]
        return
    norm = norms[number]
    size = norm[NORM_WIDTH]
    gain = floats_at(norm[GAIN], padded(size, GROUP))
    bias = floats_at(norm[NORM_BIAS], padded(size, GROUP) if norm[NORM_BIAS] != 0 else 0)
    normalise(x, at, size, gain, bias, shape[CENTRED] == 1, numbers[EPSILON], normed, to)


@compiled
def shrink(matrix, x, at, small, token):
    """A vector in 8 bits, where a matrix wants it so."""
    if matrix[BITS] < 32:
        signed, words, factors, offsets, sums = small
        to_bytes(x, at, matrix[COLUMNS] // BLOCK, signed, words, factors, offsets, sums, token)


@compiled
def copies_of(matrix, first):
    """Where the vectors begin that a matrix reads: those in fp32 are made once, those in 8 bits for each thread."""
    return first if matrix[BITS] < 32 else 0


@compiled
def add(x, at, y, of, width):
    """x + y, in place."""
    for i in range(0, width, 8):
        store_floats(x, at + i, load_floats(x, at + i) + load_floats(y, of + i))


@compiled
def answered(model, norm, x, at, y, of, width, spare, to):
    """Add what a part of a block has made of a vector, y, or its norm, to the residual stream x."""
    if norm < 0:
        add(x, at, y, of, width)
    else:
        ready(model, norm, y, of, width, spare, to)
        add(x, at, spare, to, width)


@compiled
def share(tokens, thread, threads):
    """Which of some tokens' vectors a thread makes ready for the next product, and where its copies begin.

    Of a single token each thread makes its own copy, and need not wait for others.

    Returns:
        the first token, the distance to the next one, and the first row of the copies.
    """
    return (0, 1, thread) if tokens == 1 else (thread, threads, 0)


@compiled
def embed_all(thread, threads, model, step, batch, floats, own):
    """The vectors of all tokens before the first block."""
    shape, numbers, _, matrices, _, _ = model
    ids, positions, _, _, _ = batch
    x, spare = floats[0], own[1][thread]
    hidden, width = shape[HIDDEN], padded(shape[HIDDEN], BLOCK)
    begin, apart, first = share(step[TOKENS], thread, threads)
    for m in range(begin, step[TOKENS], apart):
        at = (first + m) * width
        embed(matrices[shape[EMBEDDING]], ids[m], x, at, spare)
        for i in range(hidden):
            x[at + i] *= numbers[EMBEDDING_SCALE]
        for i in range(hidden, width):
            x[at + i] = np.float32(0)
        if shape[POSITION_ROWS] != 0:
            rows = floats_at(shape[POSITION_ROWS], shape[POSITION_COUNT] * hidden)
            for i in range(hidden):
                x[at + i] += rows[positions[m] * hidden + i]


@compiled
def attention(thread, threads, common, part, model, number, step, batch, cache, floats, small, own):
    """The first half of a block: from x to what is to be added to it."""
    shape, _, layers, matrices, _, _ = model
    _, positions, texts, blocks, _ = batch
    x, y, held, normed, q, k, v, mixed, _, _ = floats
    layer, tokens = layers[number], step[TOKENS]
    width, query, key = (
        padded(shape[HIDDEN], BLOCK),
        padded(shape[HEADS] * shape[HEAD_DIM], BLOCK),
        padded(shape[KV_HEADS] * shape[HEAD_DIM], BLOCK),
    )
    begin, apart, first = share(tokens, thread, threads)
    for m in range(begin, tokens, apart):
        at = (first + m) * width
        ready(model, layer[BEFORE_ATTENTION], x, at, width, normed, at)
        shrink(matrices[layer[QUERY]], normed, at, small, first + m)
    if tokens > 1:
        wait_for_all(common, threads)
    product(common, part, threads, matrices[layer[QUERY]], normed, small, first, tokens, q, query)
    product(common, part + 1, threads, matrices[layer[KEY]], normed, small, first, tokens, k, key)
    product(common, part + 2, threads, matrices[layer[VALUE]], normed, small, first, tokens, v, key)
    wait_for_all(common, threads)
    for m in range(thread, tokens, threads):
        prepare(model, number, positions[m], blocks[texts[m]], m, q, k, v, cache, own[1][thread], own[2][thread])
    wait_for_all(common, threads)
    tiles = -(-tokens // TOKENS_OF_PIECE)
    piece = claim(common, part + 3)
    while piece < tiles * shape[KV_HEADS]:
        kv_head, tile = piece % shape[KV_HEADS], piece // shape[KV_HEADS]
        for m in range(tile * TOKENS_OF_PIECE, min(tokens, (tile + 1) * TOKENS_OF_PIECE)):
            attend(
                model,
                number,
                positions[m],
                blocks[texts[m]],
                m,
                kv_head,
                q,
                cache,
                mixed,
                own[0][thread],
                own[1][thread],
            )
        piece = claim(common, part + 3)
    wait_for_all(common, threads)
    output = matrices[layer[OUTPUT]]
    for m in range(begin, tokens, apart):
        shrink(output, mixed, m * query, small, first + m)
    if tokens > 1:
        wait_for_all(common, threads)
    answer = held if shape[PARALLEL] == 1 else y
    product(common, part + 4, threads, output, mixed, small, copies_of(output, first), tokens, answer, width)
    wait_for_all(common, threads)


@compiled
def feed_forward(thread, threads, common, part, model, number, step, floats, small):
    """The second half of a block: what attention has made is added to x, and what is made of that to x again."""
    shape, _, layers, matrices, _, _ = model
    x, y, held, normed, _, _, _, _, gate, up = floats
    layer, tokens, parallel = layers[number], step[TOKENS], shape[PARALLEL] == 1
    width, inside = padded(shape[HIDDEN], BLOCK), padded(shape[INTERMEDIATE], BLOCK)
    begin, apart, first = share(tokens, thread, threads)
    for m in range(begin, tokens, apart):
        at = (first + m) * width
        if not parallel:
            answered(model, layer[AFTER_ATTENTION], x, at, y, m * width, width, normed, at)
        ready(model, layer[BEFORE_FEED_FORWARD], x, at, width, normed, at)
        shrink(matrices[layer[UP]], normed, at, small, first + m)
    if tokens > 1:
        wait_for_all(common, threads)
    matrix, gated = matrices[layer[UP]], layer[GATE] >= 0
    groups = groups_of(matrix)
    size = groups_of_piece(matrix, groups, threads)
    piece = claim(common, part) * size
    while piece < groups:
        end = min(groups, piece + size)
        multiply(matrix, piece, end, normed, small, first, tokens, up, inside)
        if gated:
            multiply(matrices[layer[GATE]], piece, end, normed, small, first, tokens, gate, inside)
        for m in range(tokens):
            for i in range(m * inside + GROUP * piece, m * inside + GROUP * end, GROUP):
                here = load_floats(up, i)
                if gated:
                    here = activated(load_floats(gate, i), shape[ACTIVATION]) * here
                else:
                    here = activated(here, shape[ACTIVATION])
                store_floats(up, i, here)
        piece = claim(common, part) * size
    wait_for_all(common, threads)
    down = matrices[layer[DOWN]]
    for m in range(begin, tokens, apart):
        shrink(down, up, m * inside, small, first + m)
    if tokens > 1:
        wait_for_all(common, threads)
    product(common, part + 1, threads, down, up, small, copies_of(down, first), tokens, y, width)
    wait_for_all(common, threads)
    for m in range(begin, tokens, apart):
        at = (first + m) * width
        if parallel:
            add(x, at, held, m * width, width)
        answered(model, layer[AFTER_FEED_FORWARD], x, at, y, m * width, width, normed, at)


@compiled
def predict(thread, threads, common, part, model, step, batch, floats, small):
    """The logits of the wanted tokens."""
    shape, _, _, matrices, _, _ = model
    wanted, x, normed = batch[4], floats[0], floats[3]
    count, width, head = step[WANTED], padded(shape[HIDDEN], BLOCK), matrices[shape[HEAD]]
    begin, apart, first = share(count, thread, threads)
    for m in range(begin, count, apart):
        at = (first + m) * width
        source = thread if step[TOKENS] == 1 else wanted[m]
        ready(model, shape[FINAL_NORM], x, source * width, width, normed, at)
        shrink(head, normed, at, small, first + m)
    if count > 1:
        wait_for_all(common, threads)
    vocabulary = padded(head[ROWS], GROUP)
    logits = floats_at(step[LOGITS], count * vocabulary)
    product(common, part, threads, head, normed, small, first, count, logits, vocabulary)
    wait_for_all(common, threads)


@compiled
def run(thread, threads, common, model, step, batch, cache, floats, small, own):
    """One thread's share of a step.

    Args:
        common: what the threads have in common.
        model: shape, numbers, layers, matrices, norms and angles, as `layout` makes them.
        step: what is to be done, as `TOKENS` and the following say.
        batch: the ids (tokens,), where each stands in its text, which text that is; (texts, blocks), where the blocks
            of each text lie in the cache; and the tokens whose logits are wanted.
        cache: keys, values, and their factors in a cache of 8 bits.
        floats: the vectors between the matrices, (tokens, padded width) each.
        small: the one that is multiplied next in 8 bits, as `to_bytes` makes it.
        own: for each thread, room for scores, for a vector, and for it in half precision.
    """
    embed_all(thread, threads, model, step, batch, floats, own)
    if step[TOKENS] > 1:
        wait_for_all(common, threads)
    part, layers = 0, model[0][LAYERS]
    for number in range(layers):
        attention(thread, threads, common, part, model, number, step, batch, cache, floats, small, own)
        feed_forward(thread, threads, common, part + 5, model, number, step, floats, small)
        part += PARTS_OF_LAYER
    if step[TOKENS] > 1:
        wait_for_all(common, threads)
    if step[WANTED] > 0:
        predict(thread, threads, common, part, model, step, batch, floats, small)
    else:
        wait_for_all(common, threads)


@compiled
def serve(thread, threads, common, model, step, batch, cache, floats, small, own):
    """A thread's shares of one step after the other; the arguments are those of `run`."""
    while next_step(common, thread):
        run(thread, threads, common, model, step, batch, cache, floats, small, own)
        step_is_done(common, thread)
