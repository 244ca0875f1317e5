// Factorization machines on the GPU: one warp walks one row, and its lanes share the row's factors.
//
// The names are those of the CPU kernel (row_passes.py): `score` gives a row's logit and leaves the factor sums,
// `step_linear` and `step_factors` update what the row touched. Python puts the compile-time numbers in front:
//
//   N_FACTORS, LANES   factors, and floats of V in a record (params.padded_lanes)
//   PRIMARY, OWN_STATE, ROW_STATE, DERIVED   column of a linear record that is stepped; whether there is an accumulator
//                      per coordinate of V, or one for all of them, the last of the linear record; whether w is made of
//                      the two columns from PRIMARY on
//   LOSS_PARAMETER     of a loss that has one
//   FACTOR_BITS        32: V is trained in the table itself; 16: in a copy of it, as bf16 (FACTOR_BF16 = 1) or fp16
//
// Lanes. V of a feature is VECTORS float4s. GROUP_LANES neighbouring lanes hold one feature, STEPS float4s each, so a
// warp works on GROUPS entries at a time, and every access to V or its accumulators is a coalesced 16-byte one
// (8 bytes where FACTOR_BITS = 16).
//
// Sharing. Many warps train on one table without locks (Hogwild, Niu et al. 2011): weights and accumulators move by
// atomic additions, so that no row's gradient is ever lost. They are read past the first-level cache (__ldcg), which
// would keep an old copy of what other blocks have changed since. Rows of the table that many rows touch (the bias, and
// the leading `n_hot` features) would be stepped by thousands of rows that all saw the same weights. Their gradients
// and squared gradients are summed first, of the bias in registers, of the others in shared memory, and `flush` makes
// one step of them. With one block of one warp, nothing is concurrent: that is the deterministic mode, the same walk as
// the CPU's.
//
// A line `// {name}` stands for a text that Python puts there: the fields of Rates; loss_value and loss_slope of the
// loss; move_linear of the optimizer, and its derived_weight where DERIVED.
//
// This file also compiles as plain C++ (tests/host_gpu/cuda.hpp stands in for CUDA's own names), which is how its
// arithmetic is tested without a GPU.

typedef long long Offset;

#define VECTORS (LANES / 4)
#define GROUP_LANES (VECTORS <= 1 ? 1 : VECTORS <= 2 ? 2 : VECTORS <= 4 ? 4 : VECTORS <= 8 ? 8 : VECTORS <= 16 ? 16 : 32)
#define GROUPS (32 / GROUP_LANES)
#define STEPS ((VECTORS + GROUP_LANES - 1) / GROUP_LANES)

#define EVERY_LANE 0xffffffffu
#define NO_FEATURE 0xffffffffu
#define TINY 1e-30f

// Rows [0, n) of a piece of a partition. Offsets in `indptr` count from the partition's start.
struct Rows {
    const Offset *indptr;     // [n + 1]
    const unsigned *indices;  // from entry `first_entry` on
    const float *values;      // from entry `first_value` on
    const float *labels;      // [n]
    const float *weights;     // [n], or null: all 1
    Offset first_entry;
    Offset first_value;
    Offset n_implicit;        // rows before this one have value 1 in every entry, and store none
};

struct Table {
    float *bias;              // [linear_width]
    float *linear;            // [n_features][linear_width]: w, then state
    float *factors;           // [n_factored][factor_width]: V, then accumulators if any
    unsigned short *halves;   // [n_factored][LANES]: V in 16 bits, or null
    Offset linear_width;
    Offset factor_width;
    Offset n_features;
    Offset n_factored;
};

struct Rates {
// {rates}
};

// Everything that a kernel is told. Python fills in the same record (cupy_gpu.LAUNCH).
struct Launch {
    Rows rows;
    Table table;
    Rates rates;
    int n_hot;                // leading features whose gradients are summed in shared memory
    int rows_per_flush;       // rows of a warp between two flushes
    const Offset *blocks;     // [n_blocks][2]: first and last row, in the order of the walk
    Offset n_blocks;
    double *tallies;          // [n_blocks][3]: rows, sum of weights, sum of weighted losses; written
    int *stop;                // set where a loss was not finite: the walk ends
    float *scores;            // [n_blocks], written: by `score_rows`, n_blocks is then the number of rows
    unsigned long long seed;  // of the rounding to 16 bits
};

extern __shared__ float4 shared_memory[];

// Tells the compiler that an address which came out of memory is one of global memory. Without it every atomic addition
// would first ask which memory it is about.
template <typename T>
__device__ inline void in_global_memory(T *address) {
#ifdef __CUDA_ARCH__
    __builtin_assume(__isGlobal(address));
#endif
}

__device__ inline Launch launch_of(const Launch *arguments) {
    Launch launch = *arguments;
    in_global_memory(launch.rows.indptr);
    in_global_memory(launch.rows.indices);
    in_global_memory(launch.rows.values);
    in_global_memory(launch.rows.labels);
    if (launch.rows.weights) in_global_memory(launch.rows.weights);
    in_global_memory(launch.table.bias);
    in_global_memory(launch.table.linear);
    in_global_memory(launch.table.factors);
    in_global_memory(launch.table.halves);
    in_global_memory(launch.blocks);
    in_global_memory(launch.tallies);
    in_global_memory(launch.scores);
    return launch;
}

// ---------------------------------------------------------------------------------------------- small things ----

__device__ inline float4 times(float4 a, float b) { return make_float4(a.x * b, a.y * b, a.z * b, a.w * b); }

__device__ inline float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

__device__ inline float4 squared(float4 a) { return make_float4(a.x * a.x, a.y * a.y, a.z * a.z, a.w * a.w); }

__device__ inline float dot(float4 a) { return fmaf(a.x, a.x, fmaf(a.y, a.y, fmaf(a.z, a.z, a.w * a.w))); }

// a * b + c, b one number for all.
__device__ inline float4 fused(float4 a, float b, float4 c) {
    return make_float4(fmaf(a.x, b, c.x), fmaf(a.y, b, c.y), fmaf(a.z, b, c.z), fmaf(a.w, b, c.w));
}

// 1 / sqrt(x), finite at 0.
__device__ inline float reciprocal_root(float x) { return rsqrtf(fmaxf(x, TINY)); }

__device__ inline float4 load4(const float *address) { return __ldcg(reinterpret_cast<const float4 *>(address)); }

// Adds four numbers in global memory, atomically each: one instruction from compute capability 9.0 on.
__device__ inline void add4(float *address, float4 change) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    atomicAdd(reinterpret_cast<float4 *>(address), change);
#else
    atomicAdd(address, change.x);
    atomicAdd(address + 1, change.y);
    atomicAdd(address + 2, change.z);
    atomicAdd(address + 3, change.w);
#endif
}

// The same in shared memory, which has no such instruction.
__device__ inline void add4_shared(float *address, float4 change) {
    atomicAdd(address, change.x);
    atomicAdd(address + 1, change.y);
    atomicAdd(address + 2, change.z);
    atomicAdd(address + 3, change.w);
}

// Sum over the lanes at distances first, 2 first, ... below `last`; every lane gets it, and the same bits.
__device__ inline float sum_lanes(float value, int first, int last) {
    for (int distance = first; distance < last; distance *= 2)
        value += __shfl_xor_sync(EVERY_LANE, value, distance);
    return value;
}

// --------------------------------------------------------------------------------------------------- losses ----

// {loss}

// ------------------------------------------------------------------------------------------ factors, 32 or 16 bits ----

#if FACTOR_BITS == 16

#ifndef HALF_TO_FLOAT  // the processor has its own
#define HALF_TO_FLOAT(value, bits) asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits))
#define FLOAT_TO_HALF(bits, value) asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value))
#endif

// Pseudorandom 32 bits of a number (SplitMix64's finaliser).
__device__ inline unsigned mixed(unsigned long long state) {
    state += 0x9E3779B97F4A7C15ull;
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9ull;
    state = (state ^ (state >> 27)) * 0x94D049BB133111EBull;
    return (unsigned)((state ^ (state >> 31)) >> 32);
}

#if FACTOR_BF16

__device__ inline float widened(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }

// Up or down with `noise` in [0, 2^16), by chance in proportion to nearness; noise 0x8000: to the nearest.
__device__ inline unsigned short narrowed(float value, unsigned noise) {
    return (unsigned short)((__float_as_uint(value) + (noise & 0xffffu)) >> 16);
}

#else

__device__ inline float widened(unsigned short bits) {
    float value;
    HALF_TO_FLOAT(value, bits);
    return value;
}

// As above: 13 bits of a float32 do not fit, and what is left after them converts exactly (below 6e-5 it is rounded).
__device__ inline unsigned short narrowed(float value, unsigned noise) {
    unsigned short bits;
    float kept = __uint_as_float((__float_as_uint(value) + ((noise & 0xffffu) >> 3)) & 0xffffe000u);
    FLOAT_TO_HALF(bits, kept);
    return bits;
}

#endif

__device__ inline float4 load_trained(const Table &table, unsigned feature, int column) {
    ushort4 bits = __ldcg(reinterpret_cast<const ushort4 *>(table.halves + (Offset)feature * LANES + 4 * column));
    return make_float4(widened(bits.x), widened(bits.y), widened(bits.z), widened(bits.w));
}

// Writes `factors` + `change`, rounded by chance so that small steps are not lost. No atomic: where two rows do this at
// once, the later one wins.
__device__ inline void move_factors(
    const Launch &launch, unsigned feature, int column, float4 factors, float4 change, unsigned long long moment
) {
    float4 moved = plus(factors, change);
    unsigned long long place = ((unsigned long long)feature * VECTORS + column) * 2;
    unsigned first = mixed(mixed(launch.seed + moment) + place), second = mixed(first + place + 1);
    ushort4 bits;
    bits.x = narrowed(moved.x, first);
    bits.y = narrowed(moved.y, first >> 16);
    bits.z = narrowed(moved.z, second);
    bits.w = narrowed(moved.w, second >> 16);
    *reinterpret_cast<ushort4 *>(launch.table.halves + (Offset)feature * LANES + 4 * column) = bits;
}

#elif LANES > 0

__device__ inline float4 load_trained(const Table &table, unsigned feature, int column) {
    return load4(table.factors + feature * table.factor_width + 4 * column);
}

__device__ inline void move_factors(
    const Launch &launch, unsigned feature, int column, float4 factors, float4 change, unsigned long long moment
) {
    add4(launch.table.factors + feature * launch.table.factor_width + 4 * column, change);
}

#endif

#if LANES > 0

// Four factors of a feature: of the copy that is being trained, or, to score, of the table.
template <bool TRAINING>
__device__ inline float4 load_factors(const Table &table, unsigned feature, int column) {
    if (TRAINING) return load_trained(table, feature, column);
    return load4(table.factors + feature * table.factor_width + 4 * column);
}

#endif

// ------------------------------------------------------------------------------------------------- a row's logit ----

// A row as all lanes of a warp see it; `values` only where they are stored.
struct Row {
    const unsigned *features;
    const float *values;
    int n_entries;
    bool has_values;
};

__device__ inline Row row_at(const Rows &rows, Offset row) {
    Offset start = rows.indptr[row], stop = rows.indptr[row + 1];
    Row result;
    result.features = rows.indices + (start - rows.first_entry);
    result.has_values = row >= rows.n_implicit;
    result.values = rows.values + (start - rows.first_value);
    result.n_entries = (int)(stop - start);
    return result;
}

// The entry of each lane among the 32 from `first` on; NO_FEATURE and 0 beyond the row's end.
struct Entry {
    unsigned feature;
    float value;
};

__device__ inline Entry entry_of_lane(const Row &row, int first, int lane) {
    Entry entry = {NO_FEATURE, 0.0f};
    int position = first + lane;
    if (position < row.n_entries) {
        entry.feature = row.features[position];
        entry.value = row.has_values ? row.values[position] : 1.0f;
    }
    return entry;
}

// The entry that a lane's group works on in its turn, out of those that the lanes hold.
__device__ inline Entry entry_of_group(Entry held, int turn, int lane) {
    int holder = turn * GROUPS + lane / GROUP_LANES;
    Entry entry;
    entry.feature = __shfl_sync(EVERY_LANE, held.feature, holder);
    entry.value = __shfl_sync(EVERY_LANE, held.value, holder);
    return entry;
}

// Of the optimizer. move_linear(record, gradient, squares, is_bias, rates): a linear record's step from a summed gradient
// and its summed squares; one row is a sum of one. Atomic, in place. derived_weight(first, second, is_bias, rates): the w
// that the columns from PRIMARY on stand for. The bias has no penalty.
// {optimizer}

#if !DERIVED
__device__ inline float derived_weight(float first, float second, bool is_bias, const Rates &rates) { return first; }
#endif

// w of a linear record. While an optimizer that derives it trains, w is not stored: what it is made of is added to by many
// rows at once, and what that stands for is worked out where it is read.
template <bool TRAINING>
__device__ inline float linear_weight(const float *record, bool is_bias, const Rates &rates) {
    if (TRAINING && DERIVED)
        return derived_weight(__ldcg(record + PRIMARY), __ldcg(record + PRIMARY + 1), is_bias, rates);
    return __ldcg(record);
}

// What the family makes of the vectors of a row's entries. Each lane sees the columns of its place in its group:
//
//   FactorSums          what the score leaves for the gradients
//   begin_row           before the first entry
//   take_entry          a vector's part times x; returns what that adds to twice the family's part of the score
//   finish_row          after the last entry, all lanes together; adds what is left to what this lane has of it
//   factor_gradient     of a part of V_j: slope_x is slope x_j, own the factor of V_j itself, (l2 − slope x_j²)
//
// {family}
// The logit, in every lane: w0 + Σ_j w_j x_j and the family's part.
template <bool TRAINING>
__device__ inline float score(const Launch &launch, const Row &row, int lane, FactorSums &sums) {
    const Table &table = launch.table;
    const Rates &rates = launch.rates;
    float linear = 0.0f, pairs = 0.0f;
    begin_row(sums);
    for (int first = 0; first < row.n_entries; first += 32) {
        Entry held = entry_of_lane(row, first, lane);
        if (held.feature != NO_FEATURE) {
            const float *record = table.linear + held.feature * table.linear_width;
            float weight = linear_weight<TRAINING>(record, false, rates);
            linear = fmaf(weight, held.value, linear);
        }
#if LANES > 0
#pragma unroll 4
        for (int turn = 0; turn < GROUP_LANES; turn++) {
            if (first + turn * GROUPS >= row.n_entries) break;
            Entry entry = entry_of_group(held, turn, lane);
            if (entry.feature >= table.n_factored) continue;
            for (int step = 0; step < STEPS; step++) {
                int column = lane % GROUP_LANES + step * GROUP_LANES;
                if (column >= VECTORS) continue;
                float4 part = times(load_factors<TRAINING>(table, entry.feature, column), entry.value);
                pairs += take_entry(sums, step, part);
            }
        }
#endif
    }
    pairs = finish_row(sums, pairs, lane);
    float bias = linear_weight<TRAINING>(table.bias, true, rates);
    return bias + sum_lanes(fmaf(0.5f, pairs, linear), 1, 32);
}

// --------------------------------------------------------------------------------------------------- updates ----

// What shared memory holds. Every record begins with the four numbers below; those of the leading features go on with
// the summed gradients of V, and their squares where V has accumulators of its own.
#define GRADIENT 0  // Σ g of w
#define SQUARES 1   // Σ g² of w
#define ROW 2       // Σ of the mean g² of V, then the step size that came of it
#define TOUCHES 3   // how many rows
#define HOT_WIDTH (4 + LANES * (1 + OWN_STATE))

__device__ inline float *hot_bias() { return reinterpret_cast<float *>(shared_memory); }

__device__ inline float *hot_record(unsigned feature) { return hot_bias() + 4 + (Offset)feature * HOT_WIDTH; }

__device__ inline void step_linear(const Launch &launch, Entry entry, float slope, float sample_weight) {
    const Rates &rates = launch.rates;
    float *record = launch.table.linear + entry.feature * launch.table.linear_width;
    float gradient = slope * entry.value;
    if (!DERIVED) gradient = fmaf(__ldcg(record), sample_weight * rates.l2_linear, gradient);
    if (entry.feature < (unsigned)launch.n_hot) {
        float *hot = hot_record(entry.feature);
        atomicAdd(hot + GRADIENT, gradient);
        atomicAdd(hot + SQUARES, gradient * gradient);
        atomicAdd(hot + TOUCHES, 1.0f);
    } else {
        move_linear(record, gradient, gradient * gradient, false, rates);
    }
}

#if LANES > 0

// θ − η g / sqrt(G) with the accumulators after their own addition; returns the change of θ. Atomic, in place.
__device__ inline float4 adagrad_change(float *accumulators, float4 gradient, float4 squares, float rate) {
    float4 total = plus(load4(accumulators), squares);
    add4(accumulators, squares);
    return make_float4(
        -rate * gradient.x * reciprocal_root(total.x), -rate * gradient.y * reciprocal_root(total.y),
        -rate * gradient.z * reciprocal_root(total.z), -rate * gradient.w * reciprocal_root(total.w)
    );
}

// Updates V of one entry per group. All lanes come here, those without an owner too: they take part in the exchange.
__device__ inline void step_factors(
    const Launch &launch, Entry entry, int lane, const FactorSums &sums, float slope, float sample_weight, Offset moment
) {
    const Table &table = launch.table;
    const Rates &rates = launch.rates;
    bool owns = entry.feature < table.n_factored, is_hot = entry.feature < (unsigned)launch.n_hot;
    float slope_x = slope * entry.value;
    float own = fmaf(-slope_x, entry.value, sample_weight * rates.l2_factors);
    float4 factors[STEPS], gradients[STEPS];
    float squares = 0.0f;
    for (int step = 0; step < STEPS; step++) {
        int column = lane % GROUP_LANES + step * GROUP_LANES;
        if (!owns || column >= VECTORS) continue;
        factors[step] = load_trained(table, entry.feature, column);
        gradients[step] = factor_gradient(sums, step, factors[step], own, slope_x);
        squares += dot(gradients[step]);
    }
    float rate = rates.factor_learning_rate;
#if ROW_STATE
    squares = sum_lanes(squares, 1, GROUP_LANES) / N_FACTORS;
    float total = 0.0f;
    if (owns && lane % GROUP_LANES == 0) {
        if (is_hot) atomicAdd(hot_record(entry.feature) + ROW, squares);
        else total = atomicAdd(table.linear + entry.feature * table.linear_width + 2, squares) + squares;
    }
    rate *= reciprocal_root(__shfl_sync(EVERY_LANE, total, lane - lane % GROUP_LANES));
#endif
    for (int step = 0; step < STEPS; step++) {
        int column = lane % GROUP_LANES + step * GROUP_LANES;
        if (!owns || column >= VECTORS) continue;
        if (is_hot) {
            float *hot = hot_record(entry.feature) + 4 + 4 * column;
            add4_shared(hot, gradients[step]);
            if (OWN_STATE) add4_shared(hot + LANES, squared(gradients[step]));
            continue;
        }
        float4 change;
        if (OWN_STATE) {
            float *accumulators = table.factors + entry.feature * table.factor_width + LANES + 4 * column;
            change = adagrad_change(accumulators, gradients[step], squared(gradients[step]), rate);
        } else {
            change = times(gradients[step], -rate);
        }
        move_factors(launch, entry.feature, column, factors[step], change, moment);
    }
}

#endif

// What a warp keeps of the rows that it walked.
struct WarpSums {
    float gradient, squares, touches;  // of the bias, since the last flush
    double rows, weight, loss;
};

// Learns from one row, in place. All lanes of a warp come here together.
__device__ inline void train_row(const Launch &launch, Offset number, int lane, WarpSums &warp) {
    Row row = row_at(launch.rows, number);
    FactorSums sums;
    float logit = score<true>(launch, row, lane, sums);
    float sample_weight = launch.rows.weights ? launch.rows.weights[number] : 1.0f;
    double label = launch.rows.labels[number];
    float slope = (float)loss_slope(logit, label) * sample_weight;
    warp.gradient += slope;
    warp.squares = fmaf(slope, slope, warp.squares);
    warp.touches += 1.0f;
    warp.rows += 1.0;
    warp.weight += sample_weight;
    warp.loss += loss_value(logit, label) * sample_weight;
    for (int first = 0; first < row.n_entries; first += 32) {
        Entry held = entry_of_lane(row, first, lane);
        if (held.feature != NO_FEATURE) step_linear(launch, held, slope, sample_weight);
#if LANES > 0
#pragma unroll 4
        for (int turn = 0; turn < GROUP_LANES; turn++) {
            if (first + turn * GROUPS >= row.n_entries) break;
            step_factors(launch, entry_of_group(held, turn, lane), lane, sums, slope, sample_weight, number);
        }
#endif
    }
    __syncwarp();  // what one lane wrote, any lane may read in the next row
}

// --------------------------------------------------------------------------------------- what many rows touch ----

// Steps the bias and the hot features by their sums, and clears these. All threads of a block come here together.
__device__ inline void flush(const Launch &launch, WarpSums &warp, int lane, Offset moment) {
    const Table &table = launch.table;
    const Rates &rates = launch.rates;
    if (lane == 0) {
        atomicAdd(hot_bias() + GRADIENT, warp.gradient);
        atomicAdd(hot_bias() + SQUARES, warp.squares);
        atomicAdd(hot_bias() + TOUCHES, warp.touches);
    }
    warp.gradient = warp.squares = warp.touches = 0.0f;
    __syncthreads();
    if (threadIdx.x == 0 && hot_bias()[TOUCHES] > 0.0f)
        move_linear(table.bias, hot_bias()[GRADIENT], hot_bias()[SQUARES], true, rates);
    for (int feature = threadIdx.x; feature < launch.n_hot; feature += blockDim.x) {
        float *hot = hot_record(feature), *record = table.linear + feature * table.linear_width;
        if (hot[TOUCHES] == 0.0f) continue;
        move_linear(record, hot[GRADIENT], hot[SQUARES], false, rates);
        if (ROW_STATE && feature < table.n_factored)
            hot[ROW] = rates.factor_learning_rate * reciprocal_root(atomicAdd(record + 2, hot[ROW]) + hot[ROW]);
    }
    __syncthreads();
#if LANES > 0
    for (int place = threadIdx.x; place < launch.n_hot * VECTORS; place += blockDim.x) {
        unsigned feature = place / VECTORS;
        int column = place % VECTORS;
        float *hot = hot_record(feature), *sums = hot + 4 + 4 * column;
        if (hot[TOUCHES] == 0.0f || feature >= table.n_factored) continue;
        float4 gradient = *reinterpret_cast<float4 *>(sums), change;
        if (OWN_STATE) {
            float *accumulators = table.factors + feature * table.factor_width + LANES + 4 * column;
            float4 squares = *reinterpret_cast<float4 *>(sums + LANES);
            change = adagrad_change(accumulators, gradient, squares, rates.factor_learning_rate);
        } else {
            change = times(gradient, ROW_STATE ? -hot[ROW] : -rates.factor_learning_rate);
        }
        move_factors(launch, feature, column, load_trained(table, feature, column), change, moment);
    }
    __syncthreads();
#endif
    for (int place = threadIdx.x; place < 1 + launch.n_hot * (HOT_WIDTH / 4); place += blockDim.x)
        shared_memory[place] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    __syncthreads();
}

// --------------------------------------------------------------------------------------------------- kernels ----

// Adds up the warps' tallies of a row block, in their order; `room` has three doubles per warp. All threads come here.
__device__ inline void write_tally(const Launch &launch, const WarpSums &warp, double *room, Offset block, int lane) {
    int number = threadIdx.x / 32, n_warps = blockDim.x / 32;
    if (lane == 0) {
        room[3 * number] = warp.rows;
        room[3 * number + 1] = warp.weight;
        room[3 * number + 2] = warp.loss;
    }
    __syncthreads();
    if (threadIdx.x < 3) {
        double total = 0.0;
        for (int other = 0; other < n_warps; other++) total += room[3 * other + threadIdx.x];
        launch.tallies[3 * block + threadIdx.x] = total;
        if (threadIdx.x == 2 && !isfinite(total)) *launch.stop = 1;
    }
    __syncthreads();
}

// Whether a loss was not finite somewhere, the same answer for all threads of the block.
__device__ inline bool must_stop(const Launch &launch, double *room) {
    if (threadIdx.x == 0) room[0] = *(volatile int *)launch.stop;
    __syncthreads();
    bool stop = room[0] != 0.0;
    __syncthreads();
    return stop;
}

// Trains on row blocks. Grid: any number of blocks of whole warps. Shared memory: the bias' and the hot features'
// records, then three doubles per warp.
extern "C" __global__ void __launch_bounds__(256, 2) train_rows(const Launch *arguments) {
    Launch launch = launch_of(arguments);
    int lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    int n_vectors = 1 + launch.n_hot * (HOT_WIDTH / 4);
    double *room = reinterpret_cast<double *>(shared_memory + n_vectors);
    for (int place = threadIdx.x; place < n_vectors; place += blockDim.x)
        shared_memory[place] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    WarpSums warp = {0.0f, 0.0f, 0.0f, 0.0, 0.0, 0.0};
    __syncthreads();
    for (Offset block = blockIdx.x; block < launch.n_blocks; block += gridDim.x) {
        if (must_stop(launch, room)) break;
        Offset first = launch.blocks[2 * block], last = launch.blocks[2 * block + 1];
        warp.rows = warp.weight = warp.loss = 0.0;
        for (Offset base = first; base < last; base += (Offset)n_warps * launch.rows_per_flush) {
            for (int turn = 0; turn < launch.rows_per_flush; turn++) {
                Offset row = base + (Offset)turn * n_warps + threadIdx.x / 32;
                if (row < last) train_row(launch, row, lane, warp);
            }
            flush(launch, warp, lane, base);
        }
        write_tally(launch, warp, room, block, lane);
    }
}

// Writes the logit of every row. Grid: any.
extern "C" __global__ void __launch_bounds__(256) score_rows(const Launch *arguments) {
    Launch launch = launch_of(arguments);
    int lane = threadIdx.x % 32;
    Offset warp = ((Offset)blockIdx.x * blockDim.x + threadIdx.x) / 32, n_warps = (Offset)gridDim.x * blockDim.x / 32;
    for (Offset row = warp; row < launch.n_blocks; row += n_warps) {
        FactorSums sums;
        float logit = score<false>(launch, row_at(launch.rows, row), lane, sums);
        if (lane == 0) launch.scores[row] = logit;
    }
}

// Makes w of what it is derived from, of all features and the bias. Grid: any.
extern "C" __global__ void refresh_weights(const Launch *arguments) {
    const Table table = arguments->table;
    const Rates rates = arguments->rates;
    Offset thread = (Offset)blockIdx.x * blockDim.x + threadIdx.x, n_threads = (Offset)gridDim.x * blockDim.x;
    if (!DERIVED) return;
    if (thread == 0) table.bias[0] = derived_weight(table.bias[PRIMARY], table.bias[PRIMARY + 1], true, rates);
    for (Offset feature = thread; feature < table.n_features; feature += n_threads) {
        float *record = table.linear + feature * table.linear_width;
        record[0] = derived_weight(record[PRIMARY], record[PRIMARY + 1], false, rates);
    }
}

#if FACTOR_BITS == 16

// Writes V in 16 bits, to the nearest. Grid: any.
extern "C" __global__ void narrow_factors(const Launch *arguments) {
    const Table table = arguments->table;
    Offset thread = (Offset)blockIdx.x * blockDim.x + threadIdx.x, n_threads = (Offset)gridDim.x * blockDim.x;
    for (Offset place = thread; place < table.n_factored * LANES; place += n_threads)
        table.halves[place] = narrowed(table.factors[place / LANES * table.factor_width + place % LANES], 0x8000u);
}

// Adds to the table's V what its 16-bit copy moved since `narrow_factors`. So the table never loses its own digits: a
// factor that did not move keeps its bits. Grid: any.
extern "C" __global__ void widen_factors(const Launch *arguments) {
    const Table table = arguments->table;
    Offset thread = (Offset)blockIdx.x * blockDim.x + threadIdx.x, n_threads = (Offset)gridDim.x * blockDim.x;
    for (Offset place = thread; place < table.n_factored * LANES; place += n_threads) {
        float &master = table.factors[place / LANES * table.factor_width + place % LANES];
        unsigned short before = narrowed(master, 0x8000u), after = table.halves[place];
        if (before != after) master += widened(after) - widened(before);
    }
}

#endif
