// y = Q x + L (R x) + b for few rows of x: packed codes are looked up, scaled and multiplied in one
// pass. A kernel of its own makes R x.
//
// linear.py compiles it with these definitions:
//   BITS         of a code, b0: 2, 3, 4 or 8
//   SCALE_BITS   of a block scale's code, b1: 2, 3, 4 or 8
//   SCALE_DTYPE  of second-level scales, b2: 0 float32, 1 bfloat16, 2 float16
//   SPLIT        scales that 32 codes have: 2 for blocks of 16, else 1
//   BF16         1 for bfloat16, 0 for float16, of x, y and of what is multiplied
//   GROUPS       of eight rows of x
//   WARPS        of a program, which share the columns of its 32 rows of Q
//   PROGRAMS     that a multiprocessor shall hold at a time
//
// A warp takes 128 columns of 32 rows at a time. Each of its lanes reads 32 codes of four rows: BITS
// whole words a row. Two neighbouring codes (four of 2 bits, one of 8) are looked up together in
// shared memory, which holds the table once for each lane, so that no two lanes ask one bank. What
// is found are registers of m16n8k16, whose order of columns is that of the lanes, for Q and x alike.

#define ROWS 32
#define CODES 32
#define COLUMNS (4 * CODES)
#define TOGETHER (BITS == 2 ? 4 : BITS == 8 ? 1 : 2)
#define WIDTH (BITS * TOGETHER)
#define ENTRIES (1 << WIDTH)
#define WORDS (BITS == 2 ? 2 : 1)  // of an entry
#define PARTIAL (ROWS * 8 * GROUPS)
// Registers are few: with many programs or groups x is read when it is needed, not a step before.
#define AHEAD (GROUPS == 1 && PROGRAMS < 3)

typedef unsigned int u32;

#if BF16
#define TYPE "bf16"
#else
#define TYPE "f16"
#endif

__device__ __forceinline__ float widened(unsigned short bits, bool bfloat) {
    float value;
    if (bfloat) return __uint_as_float((u32)bits << 16);
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ u32 doubled(float value) {
    u32 packed;
    asm("cvt.rn." TYPE "x2.f32 %0, %1, %1;" : "=r"(packed) : "f"(value));
    return packed;
}

__device__ __forceinline__ u32 scaled(u32 levels, u32 scale) {
    u32 product;  // plus -0: sm_80 has no product alone for bfloat16
    asm("fma.rn." TYPE "x2 %0, %1, %2, %3;"
        : "=r"(product) : "r"(levels), "r"(scale), "r"(0x80008000u));
    return product;
}

__device__ __forceinline__ void multiply(float* sum, const u32* q, u32 low, u32 high) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(q[0]), "r"(q[1]), "r"(q[2]), "r"(q[3]), "r"(low), "r"(high));
}

// Start after, and end before, the kernels around this one; what they write is read in between.
__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_the_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

extern __shared__ __align__(16) u32 shared[];

// The byte of this lane's copy of the entry for the codes that start at a bit.
__device__ __forceinline__ const char* entry(const u32* words, int bit, u32 lane) {
    constexpr int PLACE = WORDS == 2 ? 8 : 7;  // binary logarithm of an entry's bytes, for all lanes
    const int word = bit / 32, shift = bit % 32;
    u32 moved;
    if (shift + WIDTH > 32) moved = __funnelshift_r(words[word], words[word + 1], shift - PLACE);
    else if (shift >= PLACE) moved = words[word] >> (shift - PLACE);
    else moved = words[word] << (PLACE - shift);
    return (const char*)shared + ((moved & ((ENTRIES - 1) << PLACE)) | lane);
}

// Four neighbouring levels, in two registers.
__device__ __forceinline__ uint2 four_levels(const u32* words, int first, u32 lane) {
    uint2 found;
#if BITS == 2
    found = *(const uint2*)entry(words, 2 * first, lane);
#elif BITS == 8
    u32 level[4];
#pragma unroll
    for (int i = 0; i < 4; i++) level[i] = *(const u32*)entry(words, 8 * (first + i), lane);
    found.x = __byte_perm(level[0], level[1], 0x5410);
    found.y = __byte_perm(level[2], level[3], 0x5410);
#else
    found.x = *(const u32*)entry(words, BITS * first, lane);
    found.y = *(const u32*)entry(words, BITS * (first + 2), lane);
#endif
    return found;
}

__device__ __forceinline__ void read(u32* words, const u32* codes) {
#if BITS == 2
    *(uint2*)words = *(const uint2*)codes;
#elif BITS == 3
    for (int i = 0; i < 3; i++) words[i] = codes[i];
#else
#pragma unroll
    for (int i = 0; i < BITS / 4; i++) ((uint4*)words)[i] = ((const uint4*)codes)[i];
#endif
}

// s^ = m + q S / (2^b1 - 1) of a block, twice in a register.
__device__ __forceinline__ u32 scale_of(u32 block, const unsigned char* codes, const void* groups,
                                        float offset, int group) {
    u32 code;
#if SCALE_BITS == 8
    code = codes[block];
#else
    const u32 bit = block * SCALE_BITS, at = bit / 8, shift = bit % 8;
    code = codes[at];
    if (8 % SCALE_BITS != 0 && shift + SCALE_BITS > 8) code |= (u32)codes[at + 1] << 8;
    code = code >> shift & ((1 << SCALE_BITS) - 1);
#endif
    const u32 which = block >> group;
    const float top = SCALE_DTYPE == 0 ? ((const float*)groups)[which]
                                       : widened(((const unsigned short*)groups)[which],
                                                 SCALE_DTYPE == 1);
    return doubled(fmaf((float)code * (1.0f / ((1 << SCALE_BITS) - 1)), top, offset));
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, PROGRAMS)
linear(const u32* codes, const unsigned char* scale_codes, const void* group_scales,
       const float* offset, const u32* table, const unsigned short* x, const unsigned short* bias,
       const unsigned short* left, const float* inner, unsigned short* y, int rows_of_x, int out,
       int in, int rank, int block, int group) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 place = lane * 4 * WORDS;
    const float smallest = *offset;
    const u32* from[4];
    u32 blocks_before[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 row = min(blockIdx.x * ROWS + lane / 4 + 8 * i, out - 1);
        from[i] = codes + (size_t)row * (in / CODES) * BITS;
        blocks_before[i] = row * (u32)(in >> block);
    }

    struct Step {  // what a lane holds of 128 columns
        u32 words[4][BITS];
        u32 scales[4][SPLIT];
    };
    auto load = [&](Step& step, u32 column) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            read(step.words[i], from[i] + column / CODES * BITS);
#pragma unroll
            for (int k = 0; k < SPLIT; k++) {
                const u32 number = blocks_before[i] + (column >> block) + k;
                step.scales[i][k] = scale_of(number, scale_codes, group_scales, smallest, group);
            }
        }
    };
    auto load_x = [&](uint4* values, u32 column, int quarter) {
#pragma unroll
        for (int n = 0; n < GROUPS; n++) {
            const int row = 8 * n + lane / 4;
            values[n] = make_uint4(0, 0, 0, 0);
            if (column < in && row < rows_of_x)
                values[n] = *(const uint4*)(x + (size_t)row * in + column + 8 * quarter);
        }
    };

    u32 column = warp * COLUMNS + lane % 4 * CODES;
    Step now = {};  // beyond the last column x is zero, and no scale may be infinite
    if (column < in) load(now, column);

    constexpr int SHARE = (ENTRIES + WARPS - 1) / WARPS;
    static_assert(SHARE <= 32, "a warp writes as many entries as it has lanes");
    const int mine = warp * SHARE + lane;
    if (WORDS == 2) {
        const uint2 value = ((const uint2*)table)[min(mine, ENTRIES - 1)];
#pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const uint2 level = make_uint2(__shfl_sync(~0u, value.x, i),
                                           __shfl_sync(~0u, value.y, i));
            ((uint2*)shared)[32 * (warp * SHARE + i) + lane] = level;
        }
    } else {
        const u32 value = table[min(mine, ENTRIES - 1)];
#pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const u32 level = __shfl_sync(~0u, value, i);
            if (ENTRIES % WARPS == 0 || warp * SHARE + i < ENTRIES)
                shared[32 * (warp * SHARE + i) + lane] = level;
        }
    }
    let_the_next_start();
    wait_for_inputs();
    uint4 values[AHEAD ? 4 : 1][GROUPS];
    if (AHEAD)
#pragma unroll
        for (int quarter = 0; quarter < 4; quarter++) load_x(values[quarter], column, quarter);
    __syncthreads();

    float sums[2][GROUPS][4] = {};
    constexpr int AT_ONCE = GROUPS <= 2 ? 2 : 1;
#pragma unroll AT_ONCE
    for (u32 first = warp * COLUMNS; first < in; first += WARPS * COLUMNS) {
        const u32 following = column + WARPS * COLUMNS;
        Step next = {};
        if (following < in) load(next, following);
#pragma unroll
        for (int quarter = 0; quarter < 4; quarter++) {
            const int at = AHEAD ? quarter : 0;
            if (!AHEAD) load_x(values[0], column, quarter);
#pragma unroll
            for (int half = 0; half < 2; half++) {
#pragma unroll
                for (int tile = 0; tile < 2; tile++) {
                    u32 q[4];
#pragma unroll
                    for (int part = 0; part < 2; part++) {
                        const int i = 2 * tile + part;
                        const u32 scale = now.scales[i][SPLIT == 2 ? quarter / 2 : 0];
                        const uint2 levels =
                            four_levels(now.words[i], 8 * quarter + 4 * half, place);
                        q[part] = scaled(levels.x, scale);
                        q[part + 2] = scaled(levels.y, scale);
                    }
#pragma unroll
                    for (int n = 0; n < GROUPS; n++) {
                        const uint4 v = values[at][n];
                        multiply(sums[tile][n], q, half ? v.z : v.x, half ? v.w : v.y);
                    }
                }
            }
            if (AHEAD) load_x(values[at], following, quarter);
        }
        now = next;
        column = following;
    }

    // What the warps found of their columns, added up; the table is not needed any more.
    __syncthreads();
    float* partial = (float*)shared + warp * PARTIAL;
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
#pragma unroll
        for (int n = 0; n < GROUPS; n++)
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const int row = 8 * n + lane % 4 * 2 + part % 2;
                partial[row * ROWS + 16 * tile + 8 * (part / 2) + lane / 4] = sums[tile][n][part];
            }
    __syncthreads();
    for (int i = threadIdx.x; i < rows_of_x * ROWS; i += 32 * WARPS) {
        const int to = blockIdx.x * ROWS + i % ROWS;
        if (to >= out) continue;
        float sum = bias ? widened(bias[to], BF16) : 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += ((float*)shared)[w * PARTIAL + i];
        for (int k = 0; k < rank; k++)
            sum += widened(left[(size_t)to * rank + k], BF16) * inner[i / ROWS * rank + k];
        y[(size_t)(i / ROWS) * out + to] = (unsigned short)doubled(sum);
    }
}

__device__ __forceinline__ float dot(uint4 first, uint4 second) {
    const u32 a[] = {first.x, first.y, first.z, first.w};
    const u32 b[] = {second.x, second.y, second.z, second.w};
    float sum = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        sum += widened(a[k], BF16) * widened(b[k], BF16);
        sum += widened(a[k] >> 16, BF16) * widened(b[k] >> 16, BF16);
    }
    return sum;
}

// One value of R x: a program for each row of R and of x.
extern "C" __global__ void __launch_bounds__(256)
narrow(const unsigned short* right, const unsigned short* x, float* inner, int rank, int in) {
    __shared__ float partial[8];
    const uint4* row = (const uint4*)(right + (size_t)blockIdx.x * in);
    const uint4* values = (const uint4*)(x + (size_t)blockIdx.y * in);
    constexpr int EARLY = 6;  // read before x is there
    uint4 known[EARLY];
#pragma unroll
    for (int k = 0; k < EARLY; k++) {
        const int i = threadIdx.x + 256 * k;
        if (i < in / 8) known[k] = row[i];
    }
    let_the_next_start();
    wait_for_inputs();
    float sum = 0;
#pragma unroll
    for (int k = 0; k < EARLY; k++) {
        const int i = threadIdx.x + 256 * k;
        if (i < in / 8) sum += dot(known[k], values[i]);
    }
    for (int i = threadIdx.x + 256 * EARLY; i < in / 8; i += 256) sum += dot(row[i], values[i]);
#pragma unroll
    for (int far = 16; far > 0; far /= 2) sum += __shfl_xor_sync(~0u, sum, far);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 8; w++) sum += partial[w];
        inner[blockIdx.y * rank + blockIdx.x] = sum;
    }
}
