// Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
//
// Merges the clusters of images by Ward's criterion, for clustering_content_clustr.py.
//
// Nearest-neighbour chains (Murtagh 1983) find the merges of the greedy algorithm in time proportional to M^2: follow
// the chain from any cluster to its cheapest partner until two clusters are each other's partner, and merge these.
// Merging never brings clusters closer, so the rest of the chain stays valid, and a cluster whose cheapest merge is too
// expensive is final.
//
// A merge changes a row and a column of the matrix of costs. Only the row is written: a row that is needed later takes
// over what merges have changed since, because writing columns would take most of the time.
//
// M clusters, padded to P, a multiple of TILE.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <stdexcept>
#include <vector>

#include "clustering_kernel_threads.h"
#include "instruction_sets.h"

namespace {

constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr int TILE = 32;

// The functions that are compiled once per instruction set.
struct Loops {
    void (*find_costs)(float*, int64_t, const float*, const float*, int64_t, int64_t);
    int64_t (*find_cheapest)(const float*, const float*, int64_t);
    void (*merge_costs)(float*, const float*, const float*, float, float, float, int64_t);
};

#ifdef X86_VARIANTS
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl")
namespace avx512 {
constexpr int LANES = 16;
#include "merging_kernel_loops.inc"
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
constexpr int LANES = 8;
#include "merging_kernel_loops.inc"
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace portable {
constexpr int LANES = 4;
#include "merging_kernel_loops.inc"
}  // namespace portable

#define LOOPS_OF(variant) \
    Loops { variant::find_costs, variant::find_cheapest, variant::merge_costs }

// The clusters of one image.
class Clusters {
public:
    // `products`: of the means, (P, P) in rows of `stride` numbers; those below the diagonal tiles need not be there.
    Clusters(float* products, int64_t stride, const float* sizes, int64_t num_clusters, const Loops& loops,
             int64_t* owner)
        : loops(loops), owner(owner), m(num_clusters), padded((m + TILE - 1) / TILE * TILE), stride(stride),
          cost(products), size(padded, 0.0f), penalty(padded, INFINITE), seen(m, 0), changed(m, -1) {
        std::copy(sizes, sizes + m, size.begin());
        for (int64_t i = 0; i < m; ++i) {
            owner[i] = i;
            if (size[i] > 0) penalty[i] = 0;
        }
        find_costs();
    }

    void merge(float max_cost) {
        std::vector<int64_t> chain;
        for (int64_t next = 0; next < m; ++next) {
            if (penalty[next] == 0) chain.push_back(next);
            while (!chain.empty()) follow(chain, max_cost);
        }
        // An owner has a lower number than what it owns, so that one pass resolves all chains of owners.
        for (int64_t i = 0; i < m; ++i) owner[i] = owner[owner[i]];
    }

private:
    struct Growth {
        int64_t merge, cluster;  // the number of a merge, and the cluster that has grown
    };

    // Extends the chain by a cluster, or removes the pair at its end: merged, or final.
    void follow(std::vector<int64_t>& chain, float max_cost) {
        const int64_t last = chain.back();
        if (penalty[last] != 0) return chain.pop_back();  // rounding can lead a chain back to a cluster
        update_row(last);
        int64_t partner = loops.find_cheapest(row(last), penalty.data(), padded);
        const int64_t previous = chain.size() > 1 ? chain[chain.size() - 2] : -1;
        // Of equally cheap partners the previous cluster of the chain, so that every chain ends.
        if (previous >= 0 && penalty[previous] == 0 && !(at(last, partner) < at(last, previous))) partner = previous;
        const float best = at(last, partner) + penalty[partner];
        if (!(best <= max_cost && best < INFINITE)) {  // also if there is no other cluster, and for NaN
            penalty[last] = INFINITE;
            chain.pop_back();
        } else if (partner == previous) {
            chain.resize(chain.size() - 2);
            join(std::min(last, partner), std::max(last, partner));
            if (chain.empty()) chain.push_back(std::min(last, partner));
        } else {
            chain.push_back(partner);
        }
    }

    void find_costs() {
        std::vector<float> norm(padded), inverse(padded);
        for (int64_t i = 0; i < padded; ++i) {
            norm[i] = at(i, i);
            inverse[i] = 1.0f / std::max(size[i], 1.0f);
        }
        for (int64_t i = 0; i < padded; i += TILE)
            for (int64_t j = i; j < padded; j += TILE)
                loops.find_costs(cost, stride, norm.data(), inverse.data(), i, j);
        for (int64_t i = 0; i < m; ++i) row(i)[i] = INFINITE;
    }

    // Takes over the costs of the clusters that have grown since the row was last up to date.
    void update_row(int64_t i) {
        for (auto growth = growths.rbegin(); growth != growths.rend() && growth->merge >= seen[i]; ++growth)
            if (growth->cluster != i && is_current(*growth)) row(i)[growth->cluster] = at(growth->cluster, i);
        seen[i] = num_merges;
    }

    // Cluster j joins cluster i.
    void join(int64_t i, int64_t j) {
        update_row(i);
        update_row(j);
        loops.merge_costs(row(i), row(j), size.data(), size[i], size[j], at(i, j), padded);
        row(i)[i] = INFINITE;
        penalty[j] = INFINITE;
        owner[j] = i;
        size[i] += size[j];
        note_growth(i);
        seen[i] = num_merges;
    }

    void note_growth(int64_t i) {
        changed[i] = num_merges;
        growths.push_back({num_merges++, i});
        if (growths.size() < max_growths) return;
        const auto is_outdated = [this](const Growth& growth) { return !is_current(growth); };
        growths.erase(std::remove_if(growths.begin(), growths.end(), is_outdated), growths.end());
        max_growths = 2 * growths.size() + TILE;
    }

    // Whether the cluster has not grown again since, and is still considered.
    bool is_current(const Growth& growth) const {
        return changed[growth.cluster] == growth.merge && penalty[growth.cluster] == 0;
    }

    float* row(int64_t i) const { return cost + i * stride; }
    float at(int64_t i, int64_t j) const { return row(i)[j]; }

    const Loops& loops;
    int64_t* owner;
    const int64_t m, padded, stride;
    float* const cost;                 // (P, P)
    std::vector<float> size, penalty;  // penalty: infinite for clusters that are no longer considered
    std::vector<Growth> growths;       // in the order of the merges; at least the current ones
    size_t max_growths = TILE;         // number at which those that are not current are removed
    int64_t num_merges = 0;
    std::vector<int64_t> seen;     // for each row, the number of merges that it takes into account
    std::vector<int64_t> changed;  // for each cluster, the last merge by which it has grown, or -1
};

}  // namespace

extern "C" {

// TILE, of which P is a multiple.
int clustr_merge_tile_v1() { return TILE; }

// Products of the means (B, P, P), in rows of `stride` numbers, of which those below the diagonal tiles need not be
// there, and which are overwritten; sizes (B, M) and maximum costs (B,) -> for each cluster the one that it ends in,
// (B, M), which has the lowest number of those that end in it. Returns 0 on success, 1 for an unsupported instruction
// set, 2 if memory ran out.
int clustr_merge_clusters_v1(float* products, int64_t stride, const float* size, const float* max_cost,
                             int64_t batch_size, int64_t num_clusters, int num_threads, const char* instruction_set,
                             int64_t* owner) {
    const InstructionSet set = find_instruction_set(instruction_set);
    if (set == NONE) return 1;
    const Loops loops = CHOOSE(LOOPS_OF, set);
    const int64_t padded = (num_clusters + TILE - 1) / TILE * TILE;
    try {
        const int threads = int(std::clamp<int64_t>(batch_size, 1, std::max(1, num_threads)));
        Team::gather(threads, [&](Team& team) {
            team.run(batch_size, [&](int64_t image, int) {
                float* of_image = products + image * padded * stride;
                const int64_t offset = image * num_clusters;
                Clusters clusters(of_image, stride, size + offset, num_clusters, loops, owner + offset);
                clusters.merge(max_cost[image]);
            });
        });
    } catch (const std::bad_alloc&) {
        return 2;
    } catch (const std::length_error&) {  // more elements than a vector can hold
        return 2;
    }
    return 0;
}
}
