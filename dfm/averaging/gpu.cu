// Averaging on the GPU: `pull`, `put`, `contribute`, the sum along the tree and `finalise` of averaging.py, one thread
// for a number or a row. The arithmetic is that of the CPU, operation by operation, and this file is compiled without
// fused multiply-adds: the same summands give the same bytes here and there.
//
// It knows nothing of optimizers and merge rules but the numbers in `Merge`, so one program serves all but those that
// derive w of their state (DERIVED): their text stands in place of the line that names it.

typedef long long Offset;

#define NO_PLACE 0xffffffffu
#define SMALLEST 1.17549435e-38f  // smallest normal float32
#define TINY 1e-30f

// averaging.Columns, Shares, Divisors and Outer.
struct Columns {
    int primary, state, n_states, squares, occurrences, touches, n_number, lanes, vector_states, n_vector;
};

struct Shares {
    float base, history, growth;
};

struct Divisors {
    float fixed, history, growth;
    int counts;
};

struct Outer {
    float rate, momentum;
};

struct Merge {
    Columns columns;
    Shares shares;
    Divisors weights, accumulators;
    Outer outer;
};

struct Rates {
// {rates}
};

// Summands of some replicas for one block. Those of row r of what is summed stand at row places[r], NO_PLACE: nowhere.
struct Part {
    const unsigned *places;
    const float *summands;
    Offset n_adds;  // of the tree, after this part: how often the last two sums become one
};

// Everything that a kernel is told. Python fills in the same record (gpu_averaging.LAUNCH).
struct Launch {
    Offset n;                  // rows that are worked on, or numbers
    Offset width;              // numbers of a row
    Offset start;              // row of the parameter table that comes first in a table, or in `places` and `touched`
    Offset n_places;           // rows that `places` knows
    Offset shift;              // what is added to a place
    const unsigned *rows;      // [n] of the parameter table, ascending
    const float *source;
    float *target;
    unsigned *places;          // [n_places]
    unsigned char *touched;    // [n]
    const Part *parts;
    Offset n_parts;
    // Of a block of numbers; or of one of vectors, and of the numbers of the same features.
    const float *before_numbers, *before_vectors, *after_numbers, *after_vectors;
    const float *occurrences;  // [n], or null where the rule does not count
    float *numbers, *vectors;  // of the table that is being finished, or of summands that are being made
    const float *number_sums, *vector_sums;  // [n]
    float *drift;              // momentum of the block, [rows] or [rows][lanes]
    Offset number_width, vector_width;
    Merge merge;
    Rates rates;
};

extern __shared__ float4 shared_memory[];

__device__ inline Offset first_item() { return (Offset)blockIdx.x * blockDim.x + threadIdx.x; }

__device__ inline Offset n_threads() { return (Offset)gridDim.x * blockDim.x; }

__device__ inline float at_least(float value, float least) { return value > least ? value : least; }

// ---------------------------------------------------------------------------------------- rows of a table ----

extern "C" __global__ void clear_numbers(const Launch *arguments) {
    const Launch launch = *arguments;
    for (Offset i = first_item(); i < launch.n; i += n_threads()) launch.target[i] = 0.0f;
}

extern "C" __global__ void copy_numbers(const Launch *arguments) {
    const Launch launch = *arguments;
    for (Offset i = first_item(); i < launch.n; i += n_threads()) launch.target[i] = launch.source[i];
}

// target = source[rows - start]
extern "C" __global__ void gather_rows(const Launch *arguments) {
    const Launch launch = *arguments;
    for (Offset i = first_item(); i < launch.n * launch.width; i += n_threads()) {
        Offset row = (Offset)launch.rows[i / launch.width] - launch.start;
        launch.target[i] = launch.source[row * launch.width + i % launch.width];
    }
}

// target[rows - start] = source
extern "C" __global__ void scatter_rows(const Launch *arguments) {
    const Launch launch = *arguments;
    for (Offset i = first_item(); i < launch.n * launch.width; i += n_threads()) {
        Offset row = (Offset)launch.rows[i / launch.width] - launch.start;
        launch.target[row * launch.width + i % launch.width] = launch.source[i];
    }
}

// -------------------------------------------------------------------------------------- what a replica learnt ----

// merge._contribute_numbers
extern "C" __global__ void contribute_numbers(const Launch *arguments) {
    const Launch launch = *arguments;
    const Columns &columns = launch.merge.columns;
    const Shares &shares = launch.merge.shares;
    for (Offset row = first_item(); row < launch.n; row += n_threads()) {
        const float *before = launch.before_numbers + row * launch.number_width;
        const float *after = launch.after_numbers + row * launch.number_width;
        float *out = launch.numbers + row * columns.n_number;
        float share = shares.base;
        if (columns.n_states) {
            float start = before[columns.state];
            share += shares.history * start + shares.growth * (after[columns.state] - start);
        }
        if (columns.occurrences >= 0) {
            out[columns.occurrences] = launch.occurrences[row];
            share *= launch.occurrences[row];
        }
        out[0] = share * (after[columns.primary] - before[columns.primary]);
        for (int state = 0; state < columns.n_states; state++) {
            float growth = after[columns.state + state] - before[columns.state + state];
            out[1 + state] = growth;
            if (columns.squares >= 0) out[columns.squares + state] = growth * growth;
        }
        if (columns.touches >= 0) out[columns.touches] = 1.0f;
    }
}

// merge._contribute_vectors, after contribute_numbers; an item is a lane of a row.
extern "C" __global__ void contribute_vectors(const Launch *arguments) {
    const Launch launch = *arguments;
    const Columns &columns = launch.merge.columns;
    const Shares &shares = launch.merge.shares;
    int lanes = columns.lanes;
    for (Offset i = first_item(); i < launch.n * lanes; i += n_threads()) {
        Offset row = i / lanes, lane = i % lanes;
        const float *before = launch.before_vectors + row * launch.vector_width + lane;
        const float *after = launch.after_vectors + row * launch.vector_width + lane;
        const float *numbers = launch.numbers + row * columns.n_number;
        float *out = launch.vectors + row * columns.n_vector + lane;
        float share = shares.base, count = columns.occurrences >= 0 ? numbers[columns.occurrences] : 1.0f;
        if (columns.vector_states == 0) {
            if (columns.n_states > 1) {
                float start = launch.before_numbers[row * launch.number_width + columns.state + 1];
                share += shares.history * start + shares.growth * numbers[2];
            }
            out[0] = share * count * (after[0] - before[0]);
            continue;
        }
        float start = before[lanes], growth = after[lanes] - start;
        out[0] = count * (shares.base + shares.history * start + shares.growth * growth) * (after[0] - before[0]);
        out[lanes] = growth;
        if (columns.squares >= 0) out[2 * lanes] = growth * growth;
    }
}

// contributions._round_bits: rounds float32 to bfloat16, to the nearest and ties to even, in place on `target`.
extern "C" __global__ void round_summands(const Launch *arguments) {
    const Launch launch = *arguments;
    unsigned *words = reinterpret_cast<unsigned *>(launch.target);
    for (Offset i = first_item(); i < launch.n; i += n_threads()) {
        unsigned word = words[i];
        bool is_finite = (word & 0x7f800000u) != 0x7f800000u;
        words[i] = (word + (is_finite ? 0x7fffu + (word >> 16 & 1u) : 0u)) & 0xffff0000u;
    }
}

// ------------------------------------------------------------------------------------------------------- sums ----

// places = NO_PLACE
extern "C" __global__ void forget_places(const Launch *arguments) {
    const Launch launch = *arguments;
    for (Offset i = first_item(); i < launch.n; i += n_threads()) launch.places[i] = NO_PLACE;
}

// places[rows - start] = shift, shift + 1, ... for those of the rows that lie in the n_places rows from `start` on.
extern "C" __global__ void note_places(const Launch *arguments) {
    const Launch launch = *arguments;
    for (Offset i = first_item(); i < launch.n; i += n_threads()) {
        Offset row = (Offset)launch.rows[i] - launch.start;
        if (row >= 0 && row < launch.n_places) launch.places[row] = (unsigned)(launch.shift + i);
    }
}

// touched[r] = whether any part has row r.
extern "C" __global__ void note_touched(const Launch *arguments) {
    const Launch launch = *arguments;
    for (Offset row = first_item(); row < launch.n; row += n_threads()) {
        bool is_touched = false;
        for (Offset part = 0; part < launch.n_parts; part++) is_touched |= launch.parts[part].places[row] != NO_PLACE;
        launch.touched[row] = is_touched;
    }
}

// target[i] = Σ over the parts' summands of rows[i] along the tree. What a part does not have counts as +0, and -0
// becomes +0. Sums that wait for others of their size lie in shared memory: [depth of the tree][threads].
extern "C" __global__ void sum_parts(const Launch *arguments) {
    const Launch launch = *arguments;
    float *waiting = reinterpret_cast<float *>(shared_memory) + threadIdx.x;
    for (Offset i = first_item(); i < launch.n * launch.width; i += n_threads()) {
        Offset row = (Offset)launch.rows[i / launch.width] - launch.start, column = i % launch.width;
        int n_waiting = 0;
        for (Offset number = 0; number < launch.n_parts; number++) {
            const Part &part = launch.parts[number];
            Offset place = part.places[row];
            float value = 0.0f;
            if (place != NO_PLACE) value += part.summands[place * launch.width + column];
            for (Offset add = 0; add < part.n_adds; add++) value = waiting[--n_waiting * blockDim.x] + value;
            waiting[n_waiting++ * blockDim.x] = value;
        }
        launch.target[i] = waiting[0];
    }
}

// ----------------------------------------------------------------------------------------------------- finish ----

// merge._outer_move: Nesterov's step from the mean move of a coordinate; changes its momentum.
__device__ inline float outer_move(float move, const Outer &outer, float *drift) {
    if (outer.momentum > 0.0f) {
        float speed = outer.momentum * *drift + move;
        *drift = speed;
        move += outer.momentum * speed;
    }
    return outer.rate * move;
}

// derived_weight(first, second, is_bias, rates) of an optimizer that makes w of the columns from `primary` on.
// {optimizer}

// merge._finish_numbers
extern "C" __global__ void finish_numbers(const Launch *arguments) {
    const Launch launch = *arguments;
    const Columns &columns = launch.merge.columns;
    const Divisors &weights = launch.merge.weights, &accumulators = launch.merge.accumulators;
    for (Offset i = first_item(); i < launch.n; i += n_threads()) {
        Offset row = (Offset)launch.rows[i] - launch.start;
        float *record = launch.numbers + row * launch.number_width;
        const float *sums = launch.number_sums + i * columns.n_number;
        float divisor = weights.counts >= 0 ? sums[weights.counts] : weights.fixed;
        if (columns.n_states) divisor += weights.history * record[columns.state] + weights.growth * sums[1];
        float move = sums[0] / at_least(divisor, SMALLEST);
        record[columns.primary] += outer_move(move, launch.merge.outer, launch.drift + row);
        float per_row = accumulators.counts >= 0 ? sums[accumulators.counts] : accumulators.fixed;
        for (int state = 0; state < columns.n_states; state++) {
            float old = record[columns.state + state], growth = sums[1 + state];
            divisor = per_row + accumulators.history * old + accumulators.growth * growth;
            if (columns.squares >= 0) growth = growth * old + sums[columns.squares + state];
            record[columns.state + state] = old + growth / at_least(divisor, SMALLEST);
        }
#if DERIVED
        record[0] = derived_weight(record[columns.primary], record[columns.primary + 1], false, launch.rates);
#endif
    }
}

// merge._finish_vectors, before finish_numbers changes the row's accumulator; an item is a lane of a row.
extern "C" __global__ void finish_vectors(const Launch *arguments) {
    const Launch launch = *arguments;
    const Columns &columns = launch.merge.columns;
    const Divisors &weights = launch.merge.weights, &accumulators = launch.merge.accumulators;
    int lanes = columns.lanes;
    for (Offset i = first_item(); i < launch.n * lanes; i += n_threads()) {
        Offset place = i / lanes, lane = i % lanes, row = (Offset)launch.rows[place] - launch.start;
        float *record = launch.vectors + row * launch.vector_width + lane;
        const float *number_sums = launch.number_sums + place * columns.n_number;
        const float *sums = launch.vector_sums + place * columns.n_vector + lane;
        float *drift = launch.drift + row * lanes + lane;
        float shared = weights.counts >= 0 ? number_sums[weights.counts] : weights.fixed;
        if (columns.vector_states == 0) {
            if (columns.n_states > 1) {
                float old = launch.numbers[row * launch.number_width + columns.state + 1];
                shared += weights.history * old + weights.growth * number_sums[2];
            }
            record[0] += outer_move(sums[0] / at_least(shared, SMALLEST), launch.merge.outer, drift);
            continue;
        }
        float per_row = accumulators.counts >= 0 ? number_sums[accumulators.counts] : accumulators.fixed;
        float old = record[lanes], growth = sums[lanes];
        float divisor = shared + weights.history * old + weights.growth * growth;
        record[0] += outer_move(sums[0] / at_least(divisor, SMALLEST), launch.merge.outer, drift);
        divisor = per_row + accumulators.history * old + accumulators.growth * growth;
        if (columns.squares >= 0) growth = growth * old + sums[2 * lanes];
        record[lanes] = old + growth / at_least(divisor, SMALLEST);
    }
}
