// Averaging on the GPU: `pull`, `put`, `contribute`, the sum along the tree and `finalise` of averaging.py, one thread
// for a number or a row. The arithmetic is that of the CPU, operation by operation, and this file is compiled without
// fused multiply-adds: the same summands give the same bytes here and there.
//
// It knows nothing of optimizers and merge rules but the numbers in `Merge`, so one program serves all.

typedef long long Offset;

#define NO_PLACE 0xffffffffu
#define SMALLEST 1.17549435e-38f  // smallest normal float32
#define TINY 1e-30f

// averaging.Columns, Shares, Divisors and Outer.
struct Columns {
    int primary, state, n_states, squares, occurrences, touches, n_linear, lanes, factor_states, n_factor;
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

// Of optimizers.ftrl_weight, by which w is made of z and n; where not `is_used`, w is averaged itself.
struct Ftrl {
    float learning_rate, l1, l2, beta;
    int is_used;
};

// Summands of some replicas, in rows of `linear` and of `factors`. Those of row r of what is summed stand at places[r],
// NO_PLACE: nowhere.
struct Part {
    const unsigned *places;
    const float *linear;
    const float *factors;
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
    const float *before_linear, *before_factors, *after_linear, *after_factors;
    const float *occurrences;  // [n], or null where the rule does not count
    float *linear, *factors;   // of the table that is being finished, or of summands that are being made
    const float *linear_sums, *factor_sums;  // [n]
    float *linear_drift, *factor_drift;
    Offset linear_width, factor_width, drift_lanes;
    Merge merge;
    Ftrl ftrl;
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

// averaging._contribute_linear
extern "C" __global__ void contribute_linear(const Launch *arguments) {
    const Launch launch = *arguments;
    const Columns &columns = launch.merge.columns;
    const Shares &shares = launch.merge.shares;
    for (Offset row = first_item(); row < launch.n; row += n_threads()) {
        const float *before = launch.before_linear + row * launch.linear_width;
        const float *after = launch.after_linear + row * launch.linear_width;
        float *out = launch.linear + row * columns.n_linear;
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

// averaging._contribute_factors, after contribute_linear; an item is a factor of a row.
extern "C" __global__ void contribute_factors(const Launch *arguments) {
    const Launch launch = *arguments;
    const Columns &columns = launch.merge.columns;
    const Shares &shares = launch.merge.shares;
    int lanes = columns.lanes;
    for (Offset i = first_item(); i < launch.n * lanes; i += n_threads()) {
        Offset row = i / lanes, lane = i % lanes;
        const float *before = launch.before_factors + row * launch.factor_width + lane;
        const float *after = launch.after_factors + row * launch.factor_width + lane;
        const float *linear = launch.linear + row * columns.n_linear;
        float *out = launch.factors + row * columns.n_factor + lane;
        float share = shares.base, count = columns.occurrences >= 0 ? linear[columns.occurrences] : 1.0f;
        if (columns.factor_states == 0) {
            if (columns.n_states > 1) {
                float start = launch.before_linear[row * launch.linear_width + columns.state + 1];
                share += shares.history * start + shares.growth * linear[2];
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

// target[i] = Σ over the parts of `linear` (if FACTORS: `factors`) of rows[i] along the tree. What a part does not have
// counts as +0, and -0 becomes +0. Sums that wait for others of their size lie in shared memory: [depth of the
// tree][threads].
template <bool FACTORS>
__device__ inline void sum_parts(const Launch &launch) {
    float *waiting = reinterpret_cast<float *>(shared_memory) + threadIdx.x;
    for (Offset i = first_item(); i < launch.n * launch.width; i += n_threads()) {
        Offset row = (Offset)launch.rows[i / launch.width] - launch.start, column = i % launch.width;
        int n_waiting = 0;
        for (Offset number = 0; number < launch.n_parts; number++) {
            const Part &part = launch.parts[number];
            Offset place = part.places[row];
            float value = 0.0f;
            if (place != NO_PLACE) value += (FACTORS ? part.factors : part.linear)[place * launch.width + column];
            for (Offset add = 0; add < part.n_adds; add++) value = waiting[--n_waiting * blockDim.x] + value;
            waiting[n_waiting++ * blockDim.x] = value;
        }
        launch.target[i] = waiting[0];
    }
}

extern "C" __global__ void sum_linear(const Launch *arguments) { sum_parts<false>(*arguments); }

extern "C" __global__ void sum_factors(const Launch *arguments) { sum_parts<true>(*arguments); }

// ----------------------------------------------------------------------------------------------------- finish ----

// averaging._outer_move: Nesterov's step from the mean move of a coordinate; changes its momentum.
__device__ inline float outer_move(float move, const Outer &outer, float *drift) {
    if (outer.momentum > 0.0f) {
        float speed = outer.momentum * *drift + move;
        *drift = speed;
        move += outer.momentum * speed;
    }
    return outer.rate * move;
}

// optimizers.ftrl_weight
__device__ inline float ftrl_weight(float z, float n, const Ftrl &ftrl) {
    float clipped = fminf(fmaxf(z, -ftrl.l1), ftrl.l1);
    float curvature = (sqrtf(n) + ftrl.beta) / ftrl.learning_rate + ftrl.l2;
    return (clipped - z) / at_least(curvature, TINY);
}

// averaging._finish_linear
extern "C" __global__ void finish_linear(const Launch *arguments) {
    const Launch launch = *arguments;
    const Columns &columns = launch.merge.columns;
    const Divisors &weights = launch.merge.weights, &accumulators = launch.merge.accumulators;
    for (Offset i = first_item(); i < launch.n; i += n_threads()) {
        Offset row = (Offset)launch.rows[i] - launch.start;
        float *record = launch.linear + row * launch.linear_width;
        const float *sums = launch.linear_sums + i * columns.n_linear;
        float divisor = weights.counts >= 0 ? sums[weights.counts] : weights.fixed;
        if (columns.n_states) divisor += weights.history * record[columns.state] + weights.growth * sums[1];
        float move = sums[0] / at_least(divisor, SMALLEST);
        record[columns.primary] += outer_move(move, launch.merge.outer, launch.linear_drift + row);
        float per_row = accumulators.counts >= 0 ? sums[accumulators.counts] : accumulators.fixed;
        for (int state = 0; state < columns.n_states; state++) {
            float old = record[columns.state + state], growth = sums[1 + state];
            divisor = per_row + accumulators.history * old + accumulators.growth * growth;
            if (columns.squares >= 0) growth = growth * old + sums[columns.squares + state];
            record[columns.state + state] = old + growth / at_least(divisor, SMALLEST);
        }
        if (launch.ftrl.is_used) record[0] = ftrl_weight(record[1], record[2], launch.ftrl);
    }
}

// averaging._finish_factors, before finish_linear changes the row's accumulator; an item is a factor of a row.
extern "C" __global__ void finish_factors(const Launch *arguments) {
    const Launch launch = *arguments;
    const Columns &columns = launch.merge.columns;
    const Divisors &weights = launch.merge.weights, &accumulators = launch.merge.accumulators;
    int lanes = columns.lanes;
    for (Offset i = first_item(); i < launch.n * lanes; i += n_threads()) {
        Offset place = i / lanes, lane = i % lanes, row = (Offset)launch.rows[place] - launch.start;
        float *record = launch.factors + row * launch.factor_width + lane;
        const float *linear_sums = launch.linear_sums + place * columns.n_linear;
        const float *sums = launch.factor_sums + place * columns.n_factor + lane;
        float *drift = launch.factor_drift + row * launch.drift_lanes + lane;
        float shared = weights.counts >= 0 ? linear_sums[weights.counts] : weights.fixed;
        if (columns.factor_states == 0) {
            if (columns.n_states > 1) {
                float old = launch.linear[row * launch.linear_width + columns.state + 1];
                shared += weights.history * old + weights.growth * linear_sums[2];
            }
            record[0] += outer_move(sums[0] / at_least(shared, SMALLEST), launch.merge.outer, drift);
            continue;
        }
        float per_row = accumulators.counts >= 0 ? linear_sums[accumulators.counts] : accumulators.fixed;
        float old = record[lanes], growth = sums[lanes];
        float divisor = shared + weights.history * old + weights.growth * growth;
        record[0] += outer_move(sums[0] / at_least(divisor, SMALLEST), launch.merge.outer, drift);
        divisor = per_row + accumulators.history * old + accumulators.growth * growth;
        if (columns.squares >= 0) growth = growth * old + sums[2 * lanes];
        record[lanes] = old + growth / at_least(divisor, SMALLEST);
    }
}
