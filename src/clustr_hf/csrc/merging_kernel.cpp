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
// M clusters.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "clustering_kernel_threads.h"

namespace {

constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr int LANES = 16;    // numbers that are compared at once
constexpr int PADDING = 16;  // numbers after each row, so that the rows of 1024 clusters do not share cache lines

// The clusters of one image.
class Clusters {
public:
    // `products` (M, M): of the means.
    Clusters(const float* products, const float* size, int64_t num_clusters, int64_t* owner)
        : owner(owner), m(num_clusters), stride(m + PADDING), cost(new float[m * stride]), size(size, size + m),
          penalty(m, 0.0f), seen(m, 0), changed(m, -1) {
        for (int64_t i = 0; i < m; ++i) {
            owner[i] = i;
            if (size[i] <= 0) penalty[i] = INFINITE;
        }
        find_costs(products);
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
        update_row(last);
        int64_t partner = cheapest(last);
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

    // n_i n_j / (n_i + n_j) |mean_i - mean_j|^2, infinite for i = j.
    void find_costs(const float* products) {
        std::vector<float> norm(m), inverse(m);
        for (int64_t i = 0; i < m; ++i) {
            norm[i] = products[i * m + i];
            inverse[i] = 1.0f / std::max(size[i], 1.0f);
        }
        for (int64_t i = 0; i < m; ++i) {
            const float* product = products + i * m;
            float* to = row(i);
            for (int64_t j = 0; j < m; ++j) to[j] = ((norm[i] + norm[j]) - 2 * product[j]) / (inverse[i] + inverse[j]);
            to[i] = INFINITE;
        }
    }

    // Takes over the costs of the clusters that have changed since the row was last up to date.
    void update_row(int64_t i) {
        for (size_t merge = seen[i]; merge < merges.size(); ++merge) {
            const int64_t k = merges[merge];
            if (k != i && changed[k] == int64_t(merge) && penalty[k] == 0) row(i)[k] = at(k, i);
        }
        seen[i] = merges.size();
    }

    int64_t cheapest(int64_t i) const {
        const float* costs = row(i);
        float best[LANES];
        int32_t block[LANES];
        std::fill(best, best + LANES, INFINITE);
        std::fill(block, block + LANES, 0);
        const int64_t whole = m / LANES;
        for (int32_t b = 0; b < whole; ++b)
            for (int lane = 0; lane < LANES; ++lane) {
                const float value = costs[int64_t(b) * LANES + lane] + penalty[int64_t(b) * LANES + lane];
                block[lane] = value < best[lane] ? b : block[lane];
                best[lane] = value < best[lane] ? value : best[lane];
            }
        float minimum = INFINITE;
        int64_t index = i == 0 && m > 1 ? 1 : 0;
        const auto consider = [&](float value, int64_t j) {
            if (value < minimum || (value == minimum && value < INFINITE && j < index)) minimum = value, index = j;
        };
        for (int lane = 0; lane < LANES; ++lane) consider(best[lane], int64_t(block[lane]) * LANES + lane);
        for (int64_t j = whole * LANES; j < m; ++j) consider(costs[j] + penalty[j], j);
        return index;
    }

    // Cluster j joins cluster i: the formula of Lance and Williams for Ward's criterion.
    void join(int64_t i, int64_t j) {
        update_row(i);
        update_row(j);
        const float between = at(i, j), size_i = size[i], size_j = size[j], sum = size_i + size_j;
        float *row_i = row(i), *row_j = row(j);
        penalty[j] = INFINITE;
        owner[j] = i;
        size[i] = sum;
        for (int64_t k = 0; k < m; ++k) {
            const float both = (size_i + size[k]) * row_i[k] + (size_j + size[k]) * row_j[k];
            row_i[k] = (both - size[k] * between) / (sum + size[k]);
        }
        row_i[i] = INFINITE;
        changed[i] = int64_t(merges.size());
        merges.push_back(i);
        seen[i] = merges.size();
    }

    float* row(int64_t i) const { return cost.get() + i * stride; }
    float at(int64_t i, int64_t j) const { return row(i)[j]; }

    int64_t* owner;
    const int64_t m, stride;
    const std::unique_ptr<float[]> cost;  // (M, M)
    std::vector<float> size, penalty;  // penalty: infinite for clusters that are no longer considered
    std::vector<int64_t> merges;       // for each merge, the cluster that has grown
    std::vector<size_t> seen;          // for each row, the number of merges that it takes into account
    std::vector<int64_t> changed;      // for each cluster, the last merge that changed it, or -1
};

}  // namespace

extern "C" {

// Products of the means (B, M, M), sizes (B, M) and maximum costs (B,) -> for each cluster the one that it ends in,
// (B, M), which has the lowest number of those that end in it. Returns 0 on success, 2 if memory ran out.
int clustr_merge_clusters_v1(const float* products, const float* size, const float* max_cost, int64_t batch_size,
                             int64_t num_clusters, int num_threads, int64_t* owner) {
    try {
        const int threads = int(std::clamp<int64_t>(batch_size, 1, std::max(1, num_threads)));
        Team::gather(threads, [&](Team& team) {
            team.run(batch_size, [&](int64_t image, int) {
                const int64_t offset = image * num_clusters;
                Clusters clusters(products + offset * num_clusters, size + offset, num_clusters, owner + offset);
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
