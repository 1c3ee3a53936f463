// Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
//
// The compiled form of `find_clusters` in clustering_clustr.py for float32 tokens on CPUs: it finds the same clusters
// without ever storing a block of distances. The interface is plain C without Python or torch headers, so that one
// build works with all their versions; clustering_kernel_clustr.py loads it.
//
// One sweep over all pairs of tokens (each pair once, because distances are symmetric) keeps the k nearest tokens of
// each token in a list. A token with a denser one in its list has found its parent. Only the remaining tokens are
// compared again, with denser tokens only: in the order of density these are a prefix.
//
// All comparisons are lexicographic by (value, index), so the result does not depend on how the work is divided among
// threads. N tokens, C channels, k neighbours, M clusters.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "clustering_kernel_threads.h"
#include "instruction_sets.h"

#ifdef X86_VARIANTS
#include <immintrin.h>
#endif

namespace {

constexpr float INFINITE = std::numeric_limits<float>::infinity();
// Entries of a neighbour list, so the largest k: one vector.
constexpr int LIST = 8;
// Memory limit of the neighbour lists, of which each thread has its own. It limits the number of threads for an image.
constexpr int64_t MAX_LIST_BYTES = int64_t(64) << 20;
constexpr int MAX_WORKERS = 64;
// Products of coordinates that justify one more thread, less than a millisecond of work. With less work, two threads
// are no faster than one, and much slower on a busy machine.
#ifndef CLUSTR_PRODUCTS_PER_THREAD
#define CLUSTR_PRODUCTS_PER_THREAD 24e6
#endif
// With more blocks, the limits of the lists start from the neighbours within each token's own block, which saves
// insertions.
constexpr int MAX_UNSEEDED_BLOCKS = 8;
// Row blocks that a column block is compared with while it is in the cache, if every thread has enough of them.
constexpr int MAX_ROW_BLOCKS = 4;
// Tokens that a thread takes at a time in loops with little work per token.
constexpr int TOKENS_AT_ONCE = 64;

// A cache line, so that no vector of packed tokens straddles two of them.
constexpr std::size_t ALIGNMENT = 64;

template <class T>
struct AlignedAllocator {
    using value_type = T;
    AlignedAllocator() = default;
    template <class U>
    AlignedAllocator(const AlignedAllocator<U>&) {}
    T* allocate(std::size_t count) {
        return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(ALIGNMENT)));
    }
    void deallocate(T* pointer, std::size_t) { ::operator delete(pointer, std::align_val_t(ALIGNMENT)); }
    bool operator==(const AlignedAllocator&) const { return true; }
    bool operator!=(const AlignedAllocator&) const { return false; }
};
using AlignedFloats = std::vector<float, AlignedAllocator<float>>;
using AlignedIntegers = std::vector<int32_t, AlignedAllocator<int32_t>>;

// The largest `ROWS` of any instruction set.
constexpr int MAX_ROWS = 8;

// Tokens packed for the sweeps. Places beyond the last token have coordinates 0 and an infinite norm.
struct Blocks {
    const float* packed;
    const float* half_norm;
    int channels;
};

// The nearest tokens of every token found so far, by rising (distance, index). Tokens must be offered by rising index,
// so that a later one of equal distance never displaces an earlier one.
struct NeighborLists {
    int k;
    float* limit;     // (N), upper bound (exclusive) of the distances that enter the list
    float* distance;  // (N, LIST)
    int32_t* index;   // (N, LIST)

    void lower_limit(int token) {
        limit[token] = std::min(limit[token], distance[int64_t(token) * LIST + k - 1]);
    }
};

// The functions that are compiled once per instruction set.
struct Sweeps {
    int rows, block;
    void (*meet_blocks)(const Blocks&, int, int, NeighborLists&);
    void (*find_nearest)(const float*, const float*, const Blocks&, const int32_t*, const int32_t*, int32_t*);
    float (*squared_distance)(const float*, const float*, int);
    void (*half_norms)(const float*, int, float*);
};

// Insertion for instruction sets other than AVX-512, which has its own.
inline void insert(NeighborLists& lists, int token, int other, float value) {
    float* distances = lists.distance + int64_t(token) * LIST;
    int32_t* indices = lists.index + int64_t(token) * LIST;
    int place = lists.k - 1;
    if (!(value < distances[place])) return;
    for (; place > 0 && distances[place - 1] > value; --place) {
        distances[place] = distances[place - 1];
        indices[place] = indices[place - 1];
    }
    distances[place] = value;
    indices[place] = other;
    lists.lower_limit(token);
}

#ifdef X86_VARIANTS
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl")
namespace avx512 {
constexpr int LANES = 16, ROWS = 8;
static inline __attribute__((always_inline)) unsigned less_mask(__m512 a, __m512 b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
static inline __attribute__((always_inline)) float sum_of(__m512 values) {
    __m512 sum = values + _mm512_shuffle_f32x4(values, values, 0x4e);
    sum += _mm512_shuffle_f32x4(sum, sum, 0xb1);
    sum += _mm512_permute_ps(sum, 0x4e);
    return _mm512_cvtss_f32(sum) + _mm512_cvtss_f32(_mm512_permute_ps(sum, 1));
}
// Insertion without a branch: greater lanes move up by one, and the first of them takes the new value.
static inline __attribute__((always_inline)) void offer(NeighborLists& lists, int token, int other, float value) {
    float* distances = lists.distance + int64_t(token) * LIST;
    int32_t* indices = lists.index + int64_t(token) * LIST;
    const __m256i lane_below = _mm256_setr_epi32(0, 0, 1, 2, 3, 4, 5, 6);
    __m256 distance = _mm256_loadu_ps(distances);
    __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(indices));
    const __mmask8 greater = _mm256_cmp_ps_mask(distance, _mm256_set1_ps(value), _CMP_GT_OQ);
    const __mmask8 place = greater & -greater;
    distance = _mm256_mask_permutexvar_ps(distance, greater, lane_below, distance);
    index = _mm256_mask_permutexvar_epi32(index, greater, lane_below, index);
    _mm256_storeu_ps(distances, _mm256_mask_mov_ps(distance, place, _mm256_set1_ps(value)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices), _mm256_mask_set1_epi32(index, place, other));
    lists.lower_limit(token);
}
#include "clustering_kernel_sweeps.inc"
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
constexpr int LANES = 8, ROWS = 4;
static inline __attribute__((always_inline)) unsigned less_mask(__m256 a, __m256 b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
static inline __attribute__((always_inline)) float sum_of(__m256 values) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
static inline void offer(NeighborLists& lists, int token, int other, float value) {
    insert(lists, token, other, value);
}
#include "clustering_kernel_sweeps.inc"
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace portable {
constexpr int LANES = 4, ROWS = 4;
template <class FourFloats>
static inline unsigned less_mask(FourFloats a, FourFloats b) {
    unsigned mask = 0;
    for (int l = 0; l < LANES; ++l) mask |= unsigned(a[l] < b[l]) << l;
    return mask;
}
template <class FourFloats>
static inline float sum_of(FourFloats values) {
    return (values[0] + values[2]) + (values[1] + values[3]);
}
static inline void offer(NeighborLists& lists, int token, int other, float value) {
    insert(lists, token, other, value);
}
#include "clustering_kernel_sweeps.inc"
}  // namespace portable

#define SWEEPS_OF(variant)                                                                                    \
    Sweeps {                                                                                                  \
        variant::ROWS, variant::BLOCK, variant::meet_blocks, variant::find_nearest, variant::squared_distance, \
            variant::half_norms                                                                               \
    }

// The number of threads that are worthwhile for a number of pairs of tokens, at most `max_threads`.
int worthwhile_threads(double pairs, int64_t channels, int64_t max_threads) {
    const double threads = pairs * double(channels) / CLUSTR_PRODUCTS_PER_THREAD;
    return int(std::clamp(threads, 1.0, double(std::max<int64_t>(1, max_threads))));
}

// The tokens of one image and the steps of their clustering.
class Image {
public:
    Image(const float* tokens, int num_tokens, int channels, int num_neighbors, const Sweeps& sweeps, Team& team)
        : sweeps(sweeps), team(team), n(num_tokens), channels(channels), k(std::min(num_neighbors, num_tokens)),
          num_blocks((num_tokens + sweeps.block - 1) / sweeps.block) {
        center(tokens);
        pack(identity());
        find_neighbors();
        find_densities();
        find_parents();
        find_decision_ranks();
    }

    // Label of the first centre on the path from each token to denser tokens.
    void follow_parents(int64_t num_clusters, int64_t* label) const {
        for (int token : by_density)
            label[token] = decision_rank[token] < num_clusters ? decision_rank[token] : label[parent[token]];
    }

    // Packs tokens by falling decision value, so that centres are a prefix, as `join_nearest_center` requires.
    void pack_centers() {
        std::vector<int32_t> by_decision(n);
        for (int token = 0; token < n; ++token) by_decision[decision_rank[token]] = token;
        pack(by_decision);
    }

    // Label of each token's nearest centre; centres keep their own.
    void join_nearest_center(int64_t num_clusters, int64_t* label) const {
        const int num_centers = int(std::min<int64_t>(num_clusters, n));
        std::vector<int32_t> labels(padded(), 0), nearest(n, 0), others;
        for (int place = 0; place < n; ++place) labels[place] = place;
        for (int token = 0; token < n; ++token)
            if (decision_rank[token] >= num_centers) others.push_back(token);
        const std::vector<int32_t> limits(n, num_centers);
        nearest_of_prefix(others, labels, limits, nearest);
        for (int token = 0; token < n; ++token)
            label[token] = decision_rank[token] < num_centers ? decision_rank[token] : nearest[token];
    }

private:
    const Sweeps& sweeps;
    Team& team;
    const int n, channels, k, num_blocks;
    std::vector<float> coordinates;          // (N, C), centred
    AlignedFloats packed, half_norm;         // blocks, in some order
    std::vector<int32_t> neighbor_index;     // (N, k), by rising (distance, index)
    std::vector<float> log_density;
    std::vector<int32_t> by_density, density_rank, parent, decision_rank;

    int padded() const { return num_blocks * sweeps.block; }
    Blocks blocks() const { return {packed.data(), half_norm.data(), channels}; }
    const float* row(int token) const { return coordinates.data() + int64_t(token) * channels; }

    template <class Body>
    void for_tokens(const Body& body) const {
        team.run((n + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE, [&](int64_t part, int) {
            const int first = int(part) * TOKENS_AT_ONCE;
            for (int token = first; token < std::min(n, first + TOKENS_AT_ONCE); ++token) body(token);
        });
    }

    std::vector<int32_t> identity() const {
        std::vector<int32_t> order(n);
        for (int token = 0; token < n; ++token) order[token] = token;
        return order;
    }

    // Tokens minus the token nearest to their mean. A token instead of the mean keeps differences on a grid exact.
    void center(const float* tokens) {
        std::vector<double> sum(channels, 0.0);
        for (int token = 0; token < n; ++token)
            for (int c = 0; c < channels; ++c) sum[c] += tokens[int64_t(token) * channels + c];
        std::vector<float> mean(channels);
        for (int c = 0; c < channels; ++c) mean[c] = float(sum[c] / n);
        int central = 0;
        float smallest = INFINITE;
        for (int token = 0; token < n; ++token) {
            const float distance = sweeps.squared_distance(tokens + int64_t(token) * channels, mean.data(), channels);
            if (distance < smallest) {
                smallest = distance;
                central = token;
            }
        }
        const float* origin = tokens + int64_t(central) * channels;
        coordinates.resize(int64_t(n) * channels);
        for (int token = 0; token < n; ++token)
            for (int c = 0; c < channels; ++c)
                coordinates[int64_t(token) * channels + c] = tokens[int64_t(token) * channels + c] - origin[c];
    }

    void pack(const std::vector<int32_t>& order) {
        const int block = sweeps.block;
        packed.assign(int64_t(padded()) * channels, 0.0f);
        half_norm.resize(padded());
        team.run(num_blocks, [&](int64_t b, int) {
            const int count = std::min(block, n - int(b) * block);
            pack_block(order.data() + b * block, count, packed.data() + b * block * channels,
                       half_norm.data() + b * block);
            std::fill(half_norm.begin() + b * block + count, half_norm.begin() + (b + 1) * block, INFINITE);
        });
    }

    void pack_block(const int32_t* order, int count, float* target, float* norms) const {
        for (int t = 0; t < count; ++t) {
            const float* token = row(order[t]);
            for (int c = 0; c < channels; ++c) target[int64_t(c) * sweeps.block + t] = token[c];
        }
        sweeps.half_norms(target, channels, norms);
    }

    // Compares every pair of tokens once; each member of the team has its own lists.
    void find_neighbors() {
        const Blocks tokens = blocks();
        const int64_t entries = int64_t(padded()) * LIST;
        const int64_t list_bytes = entries * (sizeof(float) + sizeof(int32_t));
        const int max_workers = std::min(team.size(), MAX_WORKERS);
        const int workers = int(std::clamp<int64_t>(MAX_LIST_BYTES / list_bytes, 1, max_workers));
        AlignedFloats distance(workers * entries, INFINITE);
        AlignedIntegers index(workers * entries, -1);
        AlignedFloats limit(int64_t(workers) * padded(), INFINITE);
        const auto lists_of = [&](int worker) {
            return NeighborLists{k, limit.data() + int64_t(worker) * padded(), distance.data() + worker * entries,
                                 index.data() + worker * entries};
        };
        const bool seeded = num_blocks > MAX_UNSEEDED_BLOCKS;
        const int row_blocks = num_blocks > 8 * workers * MAX_ROW_BLOCKS ? MAX_ROW_BLOCKS : 1;
        if (seeded) {
            NeighborLists seeds = lists_of(0);
            team.run(num_blocks, [&](int64_t b, int) { sweeps.meet_blocks(tokens, int(b), int(b), seeds); });
            take_limits(distance, index, limit, workers);
        }
        // A member takes row blocks in rising order, so it offers tokens by rising index.
        const int steps = (num_blocks + row_blocks - 1) / row_blocks;
        const auto meet_rows = [&](int64_t step, int member) {
            NeighborLists lists = lists_of(member);
            const int first = int(step) * row_blocks;
            for (int column_block = first; column_block < num_blocks; ++column_block)
                for (int row_block = first; row_block < first + row_blocks && row_block <= column_block; ++row_block)
                    sweeps.meet_blocks(tokens, row_block, column_block, lists);
        };
        team.run(steps, meet_rows, workers);
        merge_lists(distance, index, workers);
    }

    // Empties the first thread's lists and gives their limits to all threads. Limits are just above the distances
    // found, so that an equally near token of lower index can still enter.
    void take_limits(AlignedFloats& distance, AlignedIntegers& index, AlignedFloats& limit, int workers) const {
        const int64_t entries = int64_t(padded()) * LIST;
        for (int token = 0; token < n; ++token)
            limit[token] = std::nextafter(distance[int64_t(token) * LIST + k - 1], INFINITE);
        for (int worker = 1; worker < workers; ++worker)
            std::copy_n(limit.begin(), padded(), limit.begin() + int64_t(worker) * padded());
        std::fill_n(distance.begin(), entries, INFINITE);
        std::fill_n(index.begin(), entries, -1);
    }

    // The first k entries of all threads' lists together.
    void merge_lists(const AlignedFloats& distance, const AlignedIntegers& index, int workers) {
        neighbor_index.resize(int64_t(n) * k);
        for_tokens([&](int token) {
            std::pair<float, int32_t> entries[MAX_WORKERS * LIST];
            int count = 0;
            for (int worker = 0; worker < workers; ++worker) {
                const int64_t first = (int64_t(worker) * padded() + token) * LIST;
                for (int place = 0; place < k && index[first + place] >= 0; ++place)
                    entries[count++] = {distance[first + place], index[first + place]};
            }
            if (workers > 1) std::sort(entries, entries + count);
            // Tokens that cannot be compared (NaN, overflow) have fewer than k entries: they fill the list themselves.
            for (int place = 0; place < k; ++place)
                neighbor_index[int64_t(token) * k + place] = place < count ? entries[place].second : token;
        });
    }

    // log rho of Eq. 1, from coordinate differences, which do not cancel.
    void find_densities() {
        log_density.resize(n);
        for_tokens([&](int token) {
            float squared[LIST];
            for (int place = 0; place < k; ++place)
                squared[place] =
                    sweeps.squared_distance(row(token), row(neighbor_index[int64_t(token) * k + place]), channels);
            // Sorted, so that equal neighbourhoods have bitwise equal densities.
            std::sort(squared, squared + k);
            float sum = 0;
            for (int place = 0; place < k; ++place) sum += squared[place];
            log_density[token] = -sum / float(k * channels);
        });
        by_density = descending(log_density);
        density_rank = ranks(by_density);
    }

    // The nearest denser token of each token (Eq. 2); the densest is its own parent.
    void find_parents() {
        const int densest = by_density[0];
        parent.assign(n, densest);
        std::vector<int32_t> unresolved;
        for (int place = 1; place < n; ++place) {
            const int token = by_density[place];
            const int32_t* near = neighbor_index.data() + int64_t(token) * k;
            const int32_t* found = std::find_if(
                near, near + k, [&](int32_t other) { return density_rank[other] < density_rank[token]; });
            if (found == near + k)
                unresolved.push_back(token);
            else
                parent[token] = *found;
        }
        pack(by_density);
        std::vector<int32_t> labels(by_density);
        labels.resize(padded(), 0);
        nearest_of_prefix(unresolved, labels, density_rank, parent);
    }

    // For each token in `rows`: the label of the nearest among the first limits[token] packed tokens.
    void nearest_of_prefix(const std::vector<int32_t>& rows, const std::vector<int32_t>& labels,
                           const std::vector<int32_t>& limits, std::vector<int32_t>& nearest) const {
        const int width = sweeps.rows, block = sweeps.block;
        const int groups = (int(rows.size()) + width - 1) / width;
        const Blocks columns = blocks();
        AlignedFloats groups_packed(int64_t(team.size()) * block * channels, 0.0f);
        AlignedFloats norms(int64_t(team.size()) * block, 0.0f);
        team.run(groups, [&](int64_t step, int member) {
            const int64_t first = (groups - 1 - step) * width;  // the longest prefixes first
            const int count = int(std::min<int64_t>(width, int64_t(rows.size()) - first));
            float* group = groups_packed.data() + int64_t(member) * block * channels;
            float* norm = norms.data() + int64_t(member) * block;
            int32_t limit[MAX_ROWS] = {}, result[MAX_ROWS] = {};
            pack_block(rows.data() + first, count, group, norm);
            for (int r = 0; r < count; ++r) {
                limit[r] = limits[rows[first + r]];
                result[r] = nearest[rows[first + r]];
            }
            sweeps.find_nearest(group, norm, columns, labels.data(), limit, result);
            for (int r = 0; r < count; ++r) nearest[rows[first + r]] = result[r];
        });
    }

    // Ranks by falling decision value rho * delta, compared as logarithms. The densest token is the first (Eq. 2).
    void find_decision_ranks() {
        const int densest = by_density[0];
        std::vector<float> log_decision(n);
        for (int token = 0; token < n; ++token) {
            const float squared = sweeps.squared_distance(row(token), row(parent[token]), channels);
            const float separation = std::sqrt(squared / float(channels));
            // In float64, as in the tensor operations: float32 logarithms depend on the library.
            log_decision[token] = float(double(log_density[token]) + std::log(double(separation)));
        }
        std::vector<int32_t> order = descending(log_decision);
        const auto place = std::find(order.begin(), order.end(), densest);
        std::rotate(order.begin(), place, place + 1);
        decision_rank = ranks(order);
    }

    // Indices by falling value, ties by rising index; NaN last.
    std::vector<int32_t> descending(const std::vector<float>& values) const {
        std::vector<uint64_t> keys(n);
        for (int token = 0; token < n; ++token) {
            float value = values[token] + 0.0f;  // makes -0 equal to 0
            if (std::isnan(value)) value = -INFINITE;
            uint32_t bits;
            std::memcpy(&bits, &value, sizeof bits);
            const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
            keys[token] = uint64_t(~ascending) << 32 | uint32_t(token);
        }
        std::sort(keys.begin(), keys.end());
        std::vector<int32_t> order(n);
        for (int place = 0; place < n; ++place) order[place] = int32_t(keys[place] & 0xffffffffu);
        return order;
    }

    std::vector<int32_t> ranks(const std::vector<int32_t>& order) const {
        std::vector<int32_t> rank(n);
        for (int place = 0; place < n; ++place) rank[order[place]] = place;
        return rank;
    }
};

// The arguments that all images share.
struct Request {
    int64_t num_tokens, channels;
    int num_neighbors;
    bool nearest_center;
    const int64_t* num_clusters;
    int64_t num_scales, scale_stride;
};

void cluster_image(const float* tokens, const Request& request, const Sweeps& sweeps, Team& team, int64_t* labels) {
    Image image(tokens, int(request.num_tokens), int(request.channels), request.num_neighbors, sweeps, team);
    if (request.nearest_center) image.pack_centers();
    for (int64_t scale = 0; scale < request.num_scales; ++scale) {
        int64_t* label = labels + scale * request.scale_stride;
        if (request.nearest_center)
            image.join_nearest_center(request.num_clusters[scale], label);
        else
            image.follow_parents(request.num_clusters[scale], label);
    }
}

void cluster_images(const float* tokens, int64_t batch_size, const Request& request, const Sweeps& sweeps,
                    int64_t max_threads, int64_t* labels) {
    const auto cluster = [&](int64_t image, Team& team) {
        cluster_image(tokens + image * request.num_tokens * request.channels, request, sweeps, team,
                      labels + image * request.num_tokens);
    };
    const double pairs = double(batch_size) * double(request.num_tokens) * double(request.num_tokens) / 2;
    const int threads = worthwhile_threads(pairs, request.channels, max_threads);
    // One image per thread as long as there are enough images; then all threads share each remaining image.
    const int64_t shared = batch_size - batch_size % threads;
    Team::gather(threads, [&](Team& team) {
        team.run(shared, [&](int64_t image, int) { Team::gather(1, [&](Team& alone) { cluster(image, alone); }); });
        for (int64_t image = shared; image < batch_size; ++image) cluster(image, team);
    });
}

}  // namespace

extern "C" {

// The largest supported k.
int clustr_max_neighbors_v1() { return LIST; }

// Whether this processor and build have an instruction set ("avx512", "avx2" or "portable").
int clustr_supports_v1(const char* instruction_set) {
    return find_instruction_set(instruction_set) != NONE;
}

// Contiguous tokens (B, N, C) -> labels (S, B, N) of S scales. Returns 0 on success, 1 for an unsupported instruction
// set, 2 if memory ran out.
int clustr_find_clusters_v1(const float* tokens, int64_t batch_size, int64_t num_tokens, int64_t channels,
                            const int64_t* num_clusters, int64_t num_scales, int64_t num_neighbors, int nearest_center,
                            int num_threads, const char* instruction_set, int64_t* labels) {
    const InstructionSet set = find_instruction_set(instruction_set);
    if (set == NONE) return 1;
    const Sweeps sweeps = CHOOSE(SWEEPS_OF, set);
    const Request request{num_tokens,   channels,   int(num_neighbors),     nearest_center != 0,
                          num_clusters, num_scales, batch_size * num_tokens};
    try {
        cluster_images(tokens, batch_size, request, sweeps, num_threads, labels);
    } catch (const std::bad_alloc&) {
        return 2;
    } catch (const std::length_error&) {  // more elements than a vector can hold
        return 2;
    }
    return 0;
}
}
