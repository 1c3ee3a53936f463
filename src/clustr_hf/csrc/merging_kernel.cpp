// Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
//
// Merges the clusters of images by Ward's criterion, for clustering_content_clustr.py.
//
// Nearest-neighbour chains (Murtagh 1983) find the merges of the greedy algorithm in time proportional to M^2: follow
// the chain from any cluster to its cheapest partner until two clusters are each other's partner, and merge these.
// Merging never brings clusters closer, so the rest of the chain stays valid, and a pair whose merge is too expensive is
// final.
//
// M clusters.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <stdexcept>
#include <vector>

#include "clustering_kernel_threads.h"

namespace {

constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr int LANES = 16;  // numbers that are compared at once

// The clusters of one image.
class Clusters {
public:
    // `cost` (M, M) is overwritten: the cost of each merge, infinite on the diagonal and for clusters without tokens.
    Clusters(float* cost, const float* size, int64_t num_clusters, int64_t* owner)
        : cost(cost), owner(owner), m(num_clusters), size(size, size + num_clusters), penalty(num_clusters, 0.0f) {
        for (int64_t i = 0; i < m; ++i) {
            owner[i] = i;
            if (size[i] <= 0) penalty[i] = INFINITE;
        }
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
    // Extends the chain by a cluster, or removes the pair at its end: merged, or final.
    void follow(std::vector<int64_t>& chain, float max_cost) {
        const int64_t last = chain.back();
        if (penalty[last] != 0) return chain.pop_back();  // rounding can lead a chain back to a cluster
        int64_t partner = cheapest(last);
        const bool has_previous = chain.size() > 1;
        // Of equally cheap partners the previous cluster of the chain, so that every chain ends.
        if (has_previous && penalty[chain[chain.size() - 2]] == 0 && !(at(last, partner) < at(last, chain[chain.size() - 2])))
            partner = chain[chain.size() - 2];
        const float best = at(last, partner) + penalty[partner];
        if (!(best <= max_cost && best < INFINITE)) {  // also if there is no other cluster, and for NaN
            penalty[last] = INFINITE;
            chain.pop_back();
        } else if (has_previous && partner == chain[chain.size() - 2]) {
            chain.resize(chain.size() - 2);
            join(std::min(last, partner), std::max(last, partner));
            if (chain.empty()) chain.push_back(std::min(last, partner));
        } else {
            chain.push_back(partner);
        }
    }

    int64_t cheapest(int64_t i) const {
        const float* row = cost + i * m;
        float best[LANES];
        int32_t block[LANES];
        std::fill(best, best + LANES, INFINITE);
        std::fill(block, block + LANES, 0);
        const int64_t whole = m / LANES;
        for (int32_t b = 0; b < whole; ++b)
            for (int lane = 0; lane < LANES; ++lane) {
                const float value = row[int64_t(b) * LANES + lane] + penalty[int64_t(b) * LANES + lane];
                block[lane] = value < best[lane] ? b : block[lane];
                best[lane] = value < best[lane] ? value : best[lane];
            }
        float minimum = INFINITE;
        int64_t index = i == 0 && m > 1 ? 1 : 0;
        const auto consider = [&](float value, int64_t j) {
            if (value < minimum || (value == minimum && value < INFINITE && j < index)) minimum = value, index = j;
        };
        for (int lane = 0; lane < LANES; ++lane) consider(best[lane], int64_t(block[lane]) * LANES + lane);
        for (int64_t j = whole * LANES; j < m; ++j) consider(row[j] + penalty[j], j);
        return index;
    }

    // Cluster j joins cluster i: the formula of Lance and Williams for Ward's criterion.
    void join(int64_t i, int64_t j) {
        const float between = at(i, j), size_i = size[i], size_j = size[j], sum = size_i + size_j;
        float *row_i = cost + i * m, *row_j = cost + j * m;
        penalty[j] = INFINITE;
        owner[j] = i;
        size[i] = sum;
        for (int64_t k = 0; k < m; ++k)
            row_i[k] = ((size_i + size[k]) * row_i[k] + (size_j + size[k]) * row_j[k] - size[k] * between) / (sum + size[k]);
        row_i[i] = INFINITE;
        for (int64_t k = 0; k < m; ++k) cost[k * m + i] = row_i[k];
    }

    float at(int64_t i, int64_t j) const { return cost[i * m + j]; }

    float* cost;
    int64_t* owner;
    const int64_t m;
    std::vector<float> size, penalty;  // penalty: infinite for clusters that are no longer considered
};

}  // namespace

extern "C" {

// Costs (B, M, M), which are overwritten, sizes (B, M) and maximum costs (B,) -> for each cluster the one that it ends
// in, (B, M), which has the lowest number of those that end in it. Returns 0 on success, 2 if memory ran out.
int clustr_merge_clusters_v1(float* cost, const float* size, const float* max_cost, int64_t batch_size,
                             int64_t num_clusters, int num_threads, int64_t* owner) {
    try {
        const int threads = int(std::clamp<int64_t>(batch_size, 1, std::max(1, num_threads)));
        Team::gather(threads, [&](Team& team) {
            team.run(batch_size, [&](int64_t image, int) {
                const int64_t offset = image * num_clusters;
                Clusters(cost + offset * num_clusters, size + offset, num_clusters, owner + offset).merge(max_cost[image]);
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
