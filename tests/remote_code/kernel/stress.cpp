// Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
//
// Calls the clustering and the merging kernel with random arguments; test_kernel_sanitizers.py builds it with sanitizers:
//
//     stress NUMBER_OF_CASES
//
// Tokens are ordinary, equal, on a grid, not finite, or huge. Labels must be in range and must not depend on the number
// of threads. If any allocation fails, the kernel must report it and handle the next call correctly.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>
#include <random>
#include <vector>

extern "C" {
int clustr_max_neighbors_v1();
int clustr_supports_v1(const char* instruction_set);
int clustr_find_clusters_v1(const float* tokens, int64_t batch_size, int64_t num_tokens, int64_t channels,
                            const int64_t* num_clusters, int64_t num_scales, int64_t num_neighbors, int nearest_center,
                            int num_threads, const char* instruction_set, int64_t* labels);
int clustr_merge_tile_v1();
int clustr_merge_clusters_v1(float* products, int64_t stride, const float* size, const float* max_cost,
                             int64_t batch_size, int64_t num_clusters, int num_threads, const char* instruction_set,
                             int64_t* owner);
}

namespace {

// Number of allocations that still succeed; negative: no limit.
std::atomic<int64_t> allocations_left{-1};

void* allocate(std::size_t size, std::size_t alignment) {
    int64_t left = allocations_left.load();
    while (left >= 0) {
        if (left == 0) throw std::bad_alloc();
        if (allocations_left.compare_exchange_weak(left, left - 1)) break;
    }
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, size ? size : 1) != 0) throw std::bad_alloc();
    return memory;
}

struct Case {
    int64_t batch_size, num_tokens, channels, num_neighbors;
    std::vector<float> tokens;
    std::vector<int64_t> num_clusters;
    bool nearest_center;

    int64_t labels() const { return int64_t(num_clusters.size()) * batch_size * num_tokens; }
    int call(int threads, const char* instruction_set, std::vector<int64_t>& found) const {
        return clustr_find_clusters_v1(tokens.data(), batch_size, num_tokens, channels, num_clusters.data(),
                                       int64_t(num_clusters.size()), num_neighbors, nearest_center, threads,
                                       instruction_set, found.data());
    }
};

Case make_case(std::mt19937& random, int64_t most_tokens) {
    const auto whole = [&](int64_t low, int64_t high) {
        return std::uniform_int_distribution<int64_t>(low, high)(random);
    };
    Case made{whole(1, 4), whole(1, most_tokens), whole(1, 40), whole(1, clustr_max_neighbors_v1()), {}, {}, whole(0, 1) == 1};
    const int64_t kind = whole(0, 5);
    std::normal_distribution<float> normal;
    made.tokens.resize(made.batch_size * made.num_tokens * made.channels);
    for (float& value : made.tokens) {
        value = normal(random);
        if (kind == 1) value = float(whole(-2, 2));
        if (kind == 2) value = 1.0f;
        if (kind == 3 && whole(0, 20) == 0) value = std::numeric_limits<float>::quiet_NaN();
        if (kind == 4 && whole(0, 20) == 0) value = std::numeric_limits<float>::infinity();
        if (kind == 5) value *= 1e19f;
    }
    for (int64_t scale = whole(1, 3); scale > 0; --scale) made.num_clusters.push_back(whole(1, made.num_tokens + 2));
    return made;
}

void fail(const char* what, const Case& at, const char* instruction_set) {
    std::fprintf(stderr, "%s: batch %ld, tokens %ld, channels %ld, neighbours %ld, nearest centre %d, %s\n", what,
                 long(at.batch_size), long(at.num_tokens), long(at.channels), long(at.num_neighbors), at.nearest_center,
                 instruction_set);
    std::exit(1);
}

void check_labels(const Case& at, const char* instruction_set, int threads) {
    std::vector<int64_t> alone(at.labels(), -1), together(at.labels(), -1);
    if (at.call(1, instruction_set, alone) != 0 || at.call(threads, instruction_set, together) != 0)
        fail("the kernel returned an error", at, instruction_set);
    const int64_t of_a_scale = at.batch_size * at.num_tokens;
    for (int64_t i = 0; i < at.labels(); ++i) {
        if (alone[i] < 0 || alone[i] >= at.num_clusters[i / of_a_scale]) fail("a label is out of range", at, instruction_set);
        if (alone[i] != together[i]) fail("threads change a label", at, instruction_set);
    }
}

// Lets each allocation of a call fail in turn.
void check_allocations(const Case& at, const char* instruction_set, int threads) {
    std::vector<int64_t> found(at.labels(), -1);
    for (int64_t succeed = 0;; ++succeed) {
        allocations_left = succeed;
        const int status = at.call(threads, instruction_set, found);
        const bool ran_out = allocations_left == 0;
        allocations_left = -1;
        if (status == 0 && !ran_out) return;
        if (status != 0 && status != 2) fail("running out of memory is not said", at, instruction_set);
    }
}

}  // namespace

void* operator new(std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) { return allocate(size, std::size_t(alignment)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

// Merges with random products, which need not be those of vectors, some of them equal, infinite or not a number.
// Products below the diagonal tiles are not a number.
void check_merging(std::mt19937& random, const char* instruction_set) {
    const auto whole = [&](int64_t low, int64_t high) {
        return std::uniform_int_distribution<int64_t>(low, high)(random);
    };
    const int64_t batch_size = whole(1, 4), m = whole(1, 90), kind = whole(0, 3), tile = clustr_merge_tile_v1();
    const int64_t padded = (m + tile - 1) / tile * tile, stride = padded + whole(0, 20);
    const float infinite = std::numeric_limits<float>::infinity(), no_number = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> products(batch_size * padded * stride, no_number), size(batch_size * m), max_cost(batch_size);
    for (int64_t image = 0; image < batch_size; ++image)
        for (int64_t i = 0; i < padded; ++i)
            for (int64_t j = i / tile * tile; j < padded; ++j) {
                float value = kind == 1 ? float(whole(0, 3)) : std::uniform_real_distribution<float>(0, 1)(random);
                if (kind == 2 && whole(0, 9) == 0) value = infinite;
                if (kind == 3 && whole(0, 9) == 0) value = no_number;
                products[(image * padded + i) * stride + j] = i < m && j < m ? value : 0.0f;
            }
    for (float& value : size) value = float(whole(0, 5));
    for (float& value : max_cost) value = whole(0, 4) == 0 ? infinite : float(whole(0, 8)) / 8;
    std::vector<int64_t> expected(size.size()), found(size.size());
    const auto merge = [&](int threads, int64_t allocations) {
        std::vector<float> overwritten = products;
        allocations_left = allocations;
        const int status = clustr_merge_clusters_v1(overwritten.data(), stride, size.data(), max_cost.data(), batch_size,
                                                    m, threads, instruction_set, found.data());
        allocations_left = -1;
        return status;
    };
    for (int threads : {1, 3}) {
        int status = merge(threads, threads == 3 ? whole(0, 8) : -1);
        if (status == 2 && threads == 3) status = merge(threads, -1);
        bool is_right = status == 0 && (threads == 1 || found == expected);
        for (int64_t i = 0; is_right && i < int64_t(found.size()); ++i) {
            const int64_t owner = found[i], first = i / m * m;
            is_right = owner >= 0 && owner <= i - first && found[first + owner] == owner && (size[i] > 0 || owner == i - first);
        }
        if (!is_right) {
            std::fprintf(stderr, "merging, %s: batch %ld, clusters %ld, kind %ld\n", instruction_set, long(batch_size),
                         long(m), long(kind));
            std::exit(1);
        }
        expected = found;
    }
}

int main(int argc, char** argv) {
    const int cases = argc > 1 ? std::atoi(argv[1]) : 0;
    if (cases < 1) {
        std::fprintf(stderr, "usage: stress NUMBER_OF_CASES\n");
        return 2;
    }
    std::mt19937 random(0);
    for (const char* instruction_set : {"avx512", "avx2", "portable"}) {
        if (!clustr_supports_v1(instruction_set)) {
            std::printf("%s: not on this processor\n", instruction_set);
            continue;
        }
        for (int i = 0; i < cases; ++i) {
            const Case made = make_case(random, i % 10 == 0 ? 700 : 120);
            check_labels(made, instruction_set, 2 + i % 3);
            check_merging(random, instruction_set);
            if (i % 5 == 1) check_allocations(make_case(random, 60), instruction_set, 1 + i % 3);
        }
        std::printf("%s: %d cases\n", instruction_set, cases);
    }
    return 0;
}
